"""What is for no task, passed on to a provider unread: one client is enough.

Bytes go on in both directions as they come, with the provider's key in place of the caller's. Of a
request only the model's name is looked at, of an answer what it used, so that a caller's budget
holds. No exposure is recorded, and nothing is tried elsewhere.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from tuneproof.errors import InputError, NotFoundError, QuotaExhaustedError
from tuneproof.server import headers
from tuneproof.server.bodies import dumped, loaded
from tuneproof.server.exchange import Left, Sender, Upload, body_of, while_there
from tuneproof.server.meter import BYTES_PER_TOKEN, USUAL_TOKENS, Meter, expected_tokens
from tuneproof.server.upstream import no_answer, nothing_was_sent

if TYPE_CHECKING:
    from multidict import CIMultiDict
    from starlette.types import Receive, Scope

    from tuneproof.app import ProviderEndpoint
    from tuneproof.server.serving import Serving
    from tuneproof.server.upstream import Upstream

__all__ = ["PassThrough", "Passing"]

log = logging.getLogger(__name__)

ROOT = "/v1"

_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[\w.:@~-]+)+", re.ASCII)
"""A path that means the same to everybody: no dots that lead elsewhere, nothing encoded twice."""

_FIELD = re.compile(rb'name="model"(?:\r\n[^\r\n]+)*\r\n\r\n([^\r\n]{1,200})\r\n')
"""The model in a multipart form, where it stands before the file."""


@dataclass(frozen=True, kw_only=True)
class Passing:
    """A request that is passed on, as far as it was looked at."""

    method: str
    path: str
    """Below the provider's address, with the query."""
    endpoint: ProviderEndpoint
    model: str
    content: bytes | None
    """Its body; None where that is passed on as it arrives, or where it has none."""
    expected: int
    """How many tokens its answer may have."""


class PassThrough:
    """Passes on what the settings let through, for callers who have budget left."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._under_way: defaultdict[str, float] = defaultdict(float)

    def entry(self, scope: Scope) -> str:
        """The entry of the allow-list under which a request may be passed on; empty: none."""
        known = self._serving.relay.passes(scope["method"], scope["path"])
        return known if known and _PATH.fullmatch(scope["path"]) else ""

    async def serve(
        self, upstream: Upstream, caller: str, scope: Scope, receive: Receive, send: Sender
    ) -> None:
        """Pass on a request whose body was not read yet."""
        asked: dict[bytes, bytes] = dict(scope["headers"])
        if b"json" in asked.get(b"content-type", b"") and b"content-encoding" not in asked:
            content = await body_of(receive)
            await self.pass_on(upstream, caller, scope, receive, send, content, _body(content))
            return
        upload = Upload(receive) if _has_body(asked) else None
        if upload is not None:
            await upload.begin()
        model = _model_in(upload.first if upload else b"")
        passing = replace(self._passing(scope, ""), model=model)
        await self._send(upstream, caller, passing, scope, receive, send, upload)

    async def pass_on(
        self,
        upstream: Upstream,
        caller: str,
        scope: Scope,
        receive: Receive,
        send: Sender,
        content: bytes,
        body: dict[str, Any],
    ) -> None:
        """Pass on a request whose body says this."""
        model = body.get("model")
        passing = self._passing(scope, model if isinstance(model, str) else "")
        if isinstance(model, str) and passing.model != model:
            content = dumped({**body, "model": passing.model})
        passing = replace(passing, content=content, expected=expected_tokens(body))
        await self._send(upstream, caller, passing, scope, receive, send, None)

    def _passing(self, scope: Scope, model: str) -> Passing:
        """Who gets it: whom a header names, or the model's name, else the default provider."""
        named = dict(scope["headers"]).get(b"x-tuneproof-provider", b"").decode("latin-1")
        first, slash, rest = model.partition("/")
        endpoint = None
        if named:
            endpoint = self._serving.provider(named)
            if endpoint is None:
                raise _no_provider(named)
        elif slash and rest:
            endpoint = self._serving.provider(first)
            model = model if endpoint is None else rest
        if endpoint is None:
            endpoint = self._serving.provider(self._serving.default_provider)
        if endpoint is None:
            raise _no_provider(self._serving.default_provider)
        query: bytes = scope["query_string"]
        path: str = scope["path"].removeprefix(ROOT)
        return Passing(
            method=scope["method"],
            path=f"{path}?{query.decode('latin-1')}" if query else path,
            endpoint=endpoint,
            model=model,
            content=None,
            expected=USUAL_TOKENS,
        )

    async def _send(
        self,
        upstream: Upstream,
        caller: str,
        passing: Passing,
        scope: Scope,
        receive: Receive,
        send: Sender,
        upload: Upload | None,
    ) -> None:
        there = while_there(receive, None if upload is None else upload.read)
        with self._within_budget(caller, passing) as charged, there:
            try:
                response = await upstream.pass_on(
                    passing.endpoint,
                    passing.method,
                    passing.path,
                    headers=_headers(passing, scope, upload),
                    content=passing.content if upload is None else upload.parts(),
                    timeout_s=self._serving.relay.timeout_seconds,
                )
                await _answer(passing, response, send, charged)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                charged.sent = not nothing_was_sent(error)
                if upload is not None and upload.left:
                    raise Left from error
                raise no_answer(passing.endpoint, error) from error
            finally:
                charged.asked = upload.bytes if upload else len(passing.content or b"")

    # --- budgets ---------------------------------------------------------------------------

    @contextmanager
    def _within_budget(self, caller: str, passing: Passing) -> Iterator[_Charged]:
        """Charge the caller for what the block does. Raises where its budget has no room."""
        self._check_price(passing)
        expected = self._expected_usd(passing)
        self._check_budget(caller)
        self._under_way[caller] += expected
        charged = _Charged()
        try:
            yield charged
        finally:
            self._under_way[caller] -= expected
            usd = self._charge_usd(passing, charged)
            if usd:
                self._serving.spend(caller, usd)
                self._serving.metrics.relay_spent.labels(caller).inc(usd)

    def _check_price(self, passing: Passing) -> None:
        relay = self._serving.relay
        if relay.budget_usd is None or relay.request_usd is not None or passing.method != "POST":
            return
        if self._tokens_usd(passing, 0, 0) is None:
            name = passing.endpoint.provider
            raise InputError(
                f"The price of the model {passing.model[:100]!r} at the provider {name!r} is not "
                f"known, and callers have a budget.",
                mend=f"Set it in [providers.{name}.prices], or relay.request_usd to what such a "
                "request is to count.",
                status=400,
            )

    def _check_budget(self, caller: str) -> None:
        budget = self._serving.relay.budget_usd
        if budget is None:
            return
        spent = self._serving.spent_usd(caller) + self._under_way[caller]
        if spent >= budget:
            raise _spent(caller, budget, self._until_tomorrow_s())

    def _until_tomorrow_s(self) -> float:
        now = self._serving.now()
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (tomorrow - now).total_seconds()

    def _tokens_usd(self, passing: Passing, read: int, written: int) -> float | None:
        return self._serving.cost_at_usd(
            passing.endpoint.provider,
            passing.model,
            prompt_tokens=read,
            completion_tokens=written,
        )

    def _expected_usd(self, passing: Passing) -> float:
        """What a request counts while it is under way."""
        if passing.method != "POST":
            return 0.0
        read = -(-len(passing.content or b"") // BYTES_PER_TOKEN)
        usd = self._tokens_usd(passing, read, passing.expected)
        return self._serving.relay.request_usd or 0.0 if usd is None else usd

    def _charge_usd(self, passing: Passing, charged: _Charged) -> float:
        """What it cost: by the usage that the answer names, else by its length, else a flat sum."""
        if passing.method != "POST" or not charged.sent or charged.refused:
            return 0.0
        read, written = charged.tokens
        usd = self._tokens_usd(passing, read, written) if charged.told else None
        return self._serving.relay.request_usd or 0.0 if usd is None else usd


def _headers(passing: Passing, scope: Scope, upload: Upload | None) -> CIMultiDict[str]:
    """What goes with a request: also how long it is, which is not counted before it is there."""
    asked = headers.of_request(scope["headers"], passing.endpoint.credentials(passing.path))
    length = dict(scope["headers"]).get(b"content-length")
    if upload is not None and length:
        asked["Content-Length"] = length.decode("latin-1")
    return asked


async def _answer(
    passing: Passing, response: aiohttp.ClientResponse, send: Sender, charged: _Charged
) -> None:
    """Pass on the provider's status, headers and bytes, as they are."""
    charged.begin(response.status, response.headers.get("Content-Type", ""))
    if response.status in (401, 403):
        log.warning("%s refused what was passed on: %s", passing.endpoint.provider, response.status)
    ours = (b"x-tuneproof-provider", quote(passing.endpoint.provider).encode())
    try:
        await send.begin(response.status, [*headers.of_answer(response.raw_headers), ours])
        async for data in response.content.iter_any():
            charged.meter.feed(data)
            await send.more(data)
        charged.whole = True
    except BaseException:
        response.close()  # the provider hears of it at once
        raise
    response.release()
    await send.end()


class _Charged:
    """What is known of a request that is to be paid."""

    def __init__(self) -> None:
        self.sent = True
        self.whole = self.refused = False
        self.asked = 0
        self.meter = Meter()
        self._text = True

    def begin(self, status: int, kind: str) -> None:
        """The answer has this status and type."""
        self.refused = status >= 400
        self.meter = Meter(streamed="event-stream" in kind)
        self._text = "json" in kind or "event-stream" in kind or kind.startswith("text/")

    @property
    def told(self) -> bool:
        """Whether tokens say what it cost: of sounds and images only where they are named."""
        return self._text or self.meter.usage is not None

    @property
    def tokens(self) -> tuple[int, int]:
        """Read and written: as the answer says, and of one that broke off at least as it looks."""
        asked = -(-self.asked // BYTES_PER_TOKEN)
        usage = self.meter.usage
        if usage is None:
            return asked, self.meter.written
        read, written = usage
        return read, written if self.whole else max(written, self.meter.written)


def _spent(caller: str, budget: float, left_s: float) -> QuotaExhaustedError:
    return QuotaExhaustedError(
        f"The caller {caller!r} has spent its budget of {budget:g} USD a day for requests that are "
        "passed on.",
        mend="Wait until the day (UTC) is over, or raise relay.budget_usd_per_day.",
        status=429,
        retry_after_s=left_s,
    )


def _no_provider(name: str) -> NotFoundError:
    return NotFoundError(
        f"There is no provider {name[:100]!r} in the settings.",
        mend="Name one of [providers.*], or none for the default one.",
    )


def _body(content: bytes) -> dict[str, Any]:
    try:
        body = loaded(content)
    except ValueError as error:
        raise InputError("The body is not JSON.", mend="Send JSON.", status=400) from error
    return body if isinstance(body, dict) else {}


def _has_body(asked: dict[bytes, bytes]) -> bool:
    return asked.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in asked


def _model_in(begun: bytes) -> str:
    """The model that a multipart form names, where its beginning says it."""
    found = _FIELD.search(begun)
    return found[1].decode("utf-8", "replace") if found else ""
