"""The socket that a trainer listens on, made before anything else can go wrong."""

from __future__ import annotations

import socket

from tuneproof_trainer.errors import ServerError

__all__ = ["listening"]

_BACKLOG = 1024


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
