"""The socket that a trainer listens on, made before anything else can go wrong, and how HTTP is
spoken there."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tuneproof_trainer.errors import ServerError
from tuneproof_trainer.framing import ConnectionLimits, protocol_for
from tuneproof_trainer.settings import TrainerSettings

__all__ = ["await_all", "http_config", "listening"]

_BACKLOG = 1024
_TAKEN_AT_ONCE = 8
"""Connections that the loop takes before it looks whether there is room for them: each has an
open file."""


def listening(host: str, port: int) -> socket.socket:
    """A listening socket that says it is TCP: asyncio turns Nagle's delay off only on such.

    Raises ServerError where the address is taken or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(
            f"The trainer cannot listen on {host}:{port}: {error.strerror or error}. Name another "
            "host or port, or stop what uses this one."
        ) from error
    return listener


def http_config(app: ASGIApp, settings: TrainerSettings, **how: Any) -> uvicorn.Config:
    """How uvicorn serves a trainer."""
    limits = ConnectionLimits(
        most=settings.connections,
        most_of_address=settings.connections_per_address,
        slowest_s=settings.slowest_request_s,
    )
    return uvicorn.Config(
        app,
        http=protocol_for(limits),
        ws="none",
        backlog=_TAKEN_AT_ONCE,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
        server_header=False,
        **how,
    )


def await_all(sockets: Sequence[socket.socket] | None) -> None:
    """Let more connections wait to be taken than are taken at once."""
    for listener in sockets or ():
        listener.listen(_BACKLOG)
