"""Requests that are no HTTP are refused as OpenAI's clients read it."""

from __future__ import annotations

import contextlib
import json
import socket
from urllib.parse import urlsplit

import pytest
from tests.trainer.integration.conftest import BASE, Start, client_of, upload
from tests.waiting import until

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


def code_of(answer: bytes) -> tuple[int, str | None]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


UNENDING = {
    "half a line": b"POST /v1/fi",
    "half a head": HEAD + b"Content-Le",
    "no body": HEAD + b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\n",
    "half a body": HEAD + b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\n{",
    "half a form": HEAD.replace(b"chat/completions", b"files")
    + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5\r\n\r\n--b",
    "half a chunk": HEAD
    + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
}


@pytest.mark.parametrize("sent", UNENDING.values(), ids=UNENDING)
def test_a_request_that_never_ends_is_ended(start: Start, sent: bytes) -> None:
    """Seen: it was waited for without an end."""
    assert code_of(said(start(slowest_request_s=0.6).base_url, sent)) == (408, "request_timeout")


def test_a_connection_that_asks_nothing_is_closed_without_a_word(start: Start) -> None:
    assert said(start(slowest_request_s=0.6).base_url, b"") == b""


def test_a_body_that_comes_by_drops_is_ended(start: Start) -> None:
    address = urlsplit(start(slowest_request_s=0.6).base_url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as sock:
        sock.sendall(HEAD + b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n")
        sock.settimeout(0.05)
        answer = b""
        for _ in range(200):
            sock.sendall(b" ")
            try:
                answer = sock.recv(65536)
                break
            except TimeoutError:
                continue
    assert code_of(answer) == (408, "request_timeout")


@pytest.mark.parametrize("header", [b"X: " + b"x" * 2**20, b"X-1: 1\r\n" * 1000])
def test_a_head_without_an_end_is_refused(start: Start, header: bytes) -> None:
    """Seen: it was kept, whatever its size."""
    address = urlsplit(start().base_url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as sock:
        with contextlib.suppress(ConnectionError):  # it was refused while it was sent
            sock.sendall(HEAD + header)
        try:
            answer = sock.recv(65536)
        except ConnectionError:
            return
    assert code_of(answer) in [(431, "headers_too_large"), (400, "bad_framing")]


def test_headers_behind_a_body_come_to_an_end(start: Start) -> None:
    body = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    answer = said(start().base_url, HEAD + body + b"X: 1\r\n" * 500)
    assert code_of(answer) == (400, "bad_framing")


def test_a_crowd_of_half_sent_requests_makes_way_for_a_whole_one(start: Start) -> None:
    trainer = start(connections=20)
    address = urlsplit(trainer.base_url)
    held = []
    for _ in range(100):
        sock = socket.create_connection((address.hostname, address.port), timeout=60)
        sock.sendall(b"GET /health HTT")
        held.append(sock)
    whole = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert said(trainer.base_url, whole).startswith(b"HTTP/1.1 200 ")
    for sock in held:
        sock.close()


def test_where_all_are_being_answered_one_more_is_told_to_come_again(start: Start) -> None:
    trainer = start(connections=8, connections_per_address=8, answers_at_once=1)
    address = urlsplit(trainer.base_url)
    asked = json.dumps(
        {
            "model": BASE,
            "messages": [{"role": "user", "content": "x"}],
            "n": 128,
            "max_tokens": 4096,
        }
    ).encode()
    request = HEAD + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(asked)
    held = []
    for _ in range(8):
        sock = socket.create_connection((address.hostname, address.port), timeout=60)
        sock.sendall(request + asked)
        held.append(sock)
    assert trainer.app is not None
    turns = trainer.app.turns
    until(lambda: turns.waiting >= 7)
    assert code_of(said(trainer.base_url, b"")) == (503, "too_many_connections")
    for sock in held:
        sock.close()


def test_what_was_not_asked_for_is_not_waited_for(start: Start) -> None:
    """After `Expect: 100-continue` and a refusal the body never comes: nothing may follow."""
    sent = HEAD + b"Expect: 100-continue\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n"
    assert code_of(said(start().base_url, sent)) == (415, "unsupported_content_type")


def test_an_answer_that_nobody_reads_is_given_up(start: Start) -> None:
    trainer = start(slowest_request_s=0.6)
    file = upload(client_of(trainer), bytes(64 * 2**20), "large")
    address = urlsplit(trainer.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as sock:
        path = f"/v1/files/{file}/content".encode()
        sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: peer_is_gone(sock))


def peer_is_gone(sock: socket.socket) -> bool:
    """Whether the connection was cut, as its state tells without reading."""
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # ESTABLISHED
