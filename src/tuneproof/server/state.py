"""How a route reaches the App that it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

if TYPE_CHECKING:
    from tuneproof.app import App


def app_of(request: Request) -> App:
    """The App behind this request."""
    return cast("App", request.app.state.tuneproof)


def _app(request: Request) -> object:
    return request.app.state.tuneproof


if TYPE_CHECKING:
    TheApp = Annotated[App, Depends(_app)]
else:
    TheApp = Annotated[object, Depends(_app)]
"""The App as a route's argument. At run time its class is not imported here."""
