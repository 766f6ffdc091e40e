"""The options of every command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from tuneproof.settings import Settings

_EVERYWHERE = Group("Options of every command", sort_key=100)


def finite(_: object, value: Any) -> None:
    """Refuse a number of the command line that is none, whatever its option."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("It must be a finite number.")


@Parameter(name="*", group=_EVERYWHERE)
@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Where the data is, which service is meant, and how to answer."""

    dir: Annotated[Path | None, Parameter(help="The data directory [./.tuneproof].")] = None
    config: Annotated[Path | None, Parameter(help="The settings file [tuneproof.toml].")] = None
    url: Annotated[str | None, Parameter(help="Speak to the service at this address.")] = None
    token: Annotated[str | None, Parameter(help="The bearer token for it.")] = None
    json: Annotated[bool, Parameter(help="Print data as JSON on stdout.", negative="")] = False
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), help="Ask nothing.", negative="")] = False

    def settings(self, **arguments: Any) -> Settings:
        """The settings that hold for this command."""
        from tuneproof.settings import Settings

        return Settings.load(
            dir=self.dir, file=self.config, url=self.url, token=self.token, **arguments
        )


NONE = CommonOptions()
