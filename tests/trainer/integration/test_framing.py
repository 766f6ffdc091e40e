"""Requests that are no HTTP are refused as OpenAI's clients read it."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest
from tests.trainer.integration.conftest import Start

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def said(base_url: str, sent: bytes) -> bytes:
    address = urlsplit(base_url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as sock:
        sock.sendall(sent)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: five\r\n\r\nhello",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    ],
)
def test_bad_framing_has_openais_shape(start: Start, rest: bytes) -> None:
    """Seen: `Invalid HTTP request received.` as plain text."""
    head, _, body = said(start().base_url, HEAD + rest).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "bad_framing")
    assert "framed" in error["message"]


def test_garbage_behind_a_request_is_no_answer_to_it(start: Start) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    answer = said(start().base_url, whole + b"\0\0garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1
