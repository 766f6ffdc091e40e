"""What the settings say about requests that are passed on to providers: which, and for how much."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tuneproof.settings import checks, fields
from tuneproof.settings.fields import YEAR_SECONDS, Option, option

RELAYED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/audio/*",
    "/v1/images/*",
)

UNLIMITED = "unlimited"

OWN_PATHS = ("/v1/models", "/v1/models/*", "/v1/feedback")
"""What the gateway answers itself in any case."""


def budget_usd(said: float | str | None) -> float | None:
    """A budget as a number; None: as much as one likes."""
    return said if isinstance(said, int | float) else None


def _paths(field: str, value: Any) -> tuple[str, ...]:
    paths = checks.names(field, value)
    for path in paths:
        where = path.removeprefix("GET ").removeprefix("DELETE ")
        if not re.fullmatch(r"/v1(/[\w.-]+)+(/\*)?", where) or where in OWN_PATHS:
            mend = 'Write it like "/v1/embeddings", "/v1/audio/*" for all below, or "GET /v1/...".'
            rule = "must be a path below /v1 that is not the gateway's own"
            raise checks.refuse(field, path, rule, mend=mend)
    return paths


@dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """What the gateway passes on to providers unread: requests for models that are no task.

    Whoever may do that spends money at the provider, so it is off, tokens need the scope `relay`
    for it, and a budget must be said.
    """

    enabled: bool = option(
        False, Option(doc="whether requests that are for no task are passed on to a provider")
    )
    paths: tuple[str, ...] = option(
        RELAYED,
        Option(
            rule=_paths,
            doc="the only ones that are passed on, of POST requests, or `GET /v1/...` and "
            "`DELETE /v1/...`; `/*` at the end: all below. What the provider stores of everybody "
            "can be read by others, such as `GET /v1/responses/*`",
        ),
    )
    provider: str | None = option(
        None,
        Option(
            doc="who gets what names no provider; none: the first pipeline's. A model "
            "`NAME/MODEL`, or the header `x-tuneproof-provider`, names another one of the settings"
        ),
    )
    budget_usd_per_day: float | str | None = option(
        None,
        Option(
            words=(UNLIMITED,),
            at_least=0,
            at_most=1e9,
            default_doc="must be said",
            doc="what each caller (a token by its name) may spend in a day (UTC); or `unlimited`",
        ),
    )
    request_usd: float | None = option(
        None,
        Option(
            at_least=0,
            at_most=1e6,
            doc="what a request counts whose cost cannot be told, such as an image's; none: a "
            "model without a price is refused to callers with a budget",
        ),
    )
    timeout_seconds: float = option(
        600,
        Option(
            above=0,
            at_most=YEAR_SECONDS,
            doc="how long a provider may be silent: before its answer, and in it",
        ),
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.enabled and self.budget_usd_per_day is None:
            rule = "must be said where enabled is true"
            mend = f'Set it to USD for each caller and day, or to "{UNLIMITED}".'
            raise checks.refuse("budget_usd_per_day", None, rule, mend=mend)

    @property
    def budget_usd(self) -> float | None:
        """What a caller may spend in a day; None: as much as it likes."""
        return budget_usd(self.budget_usd_per_day)

    def passes(self, method: str, path: str) -> str:
        """The entry of `paths` that lets a request through, its path alone; empty: none does."""
        for known in self.paths if self.enabled else ():
            of, _, where = known.rpartition(" ")
            below = where.removesuffix("*")
            inside = below != where and path.startswith(below) and path != below
            if method == (of or "POST") and (path == where or inside):
                return where
        return ""
