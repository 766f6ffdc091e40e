"""The socket that the service listens on."""

from __future__ import annotations

import socket

import pytest

from tuneproof.cli.serve import listen
from tuneproof.errors import ConfigError


def test_answers_leave_at_once():
    # asyncio switches Nagle's algorithm off for sockets that say that they are TCP; with it
    # on, each answer's body waits 40 ms for the client to acknowledge its head.
    with listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_taken_port_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            listen("127.0.0.1", port)
