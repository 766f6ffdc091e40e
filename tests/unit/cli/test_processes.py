"""The sockets that gateways answer at."""

from __future__ import annotations

import socket

from tuneproof.cli.processes import shared
from tuneproof.cli.serve import listen


def test_a_caller_that_vanished_is_noticed() -> None:
    """Seen: a host that lost its power in the middle of a request left its connection open for as
    long as the gateway lived."""
    for listening in (*shared("127.0.0.1", 0, 1), listen("127.0.0.1", 0)):
        with listening, socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                waits = [
                    accepted.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                ]
                assert waits[0] + waits[1] * waits[2] <= 120
