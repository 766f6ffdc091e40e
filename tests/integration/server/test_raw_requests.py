"""Requests that no client library makes: bad framing, bodies without end, values at all edges."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.chat import Chat
from tests.integration.server.conftest import Service, open_service

from tuneproof.server import framing
from tuneproof.settings import Settings

MB = 1024 * 1024
OPENAI, PROBLEM = "application/json", "application/problem+json"
PATHS = {"/v1/chat/completions": OPENAI, "/v1/feedback": OPENAI, "/events": PROBLEM}

Answer = tuple[int, dict[str, str], Any]


async def said(service: Service, *pieces: bytes) -> Answer:
    """What is answered to these bytes, read once all were sent."""
    port = int(service.address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await _read(reader)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines) if n}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers, json.loads(body)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


def assert_refused(answer: Answer, path: str, *statuses: int) -> str:
    """The error's text; it has the shape of its path."""
    status, headers, body = answer
    assert status in statuses, body
    assert headers["content-type"] == PATHS[path]
    if PATHS[path] == OPENAI:
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        return error["message"]
    assert (body["status"], body["instance"]) == (status, path)
    return body["detail"]


FRAMES = (
    ("Content-Length: five",),
    ("Content-Length: -5",),
    ("Content-Length: 5", "Content-Length: 6"),
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Content-Length: 5 5",),
    ("X-\0: a",),
)


@pytest.mark.parametrize("path", PATHS)
async def test_bad_framing_is_refused_in_the_shape_of_its_path(service: Service, path: str) -> None:
    """Seen: `Invalid HTTP request received.` as plain text, which no client of OpenAI reads."""
    for lines in FRAMES:
        answer = await said(service, head(path, *lines), b"hello")
        assert "framed" in assert_refused(answer, path, 400)
    chunks = head(path, "Transfer-Encoding: chunked")
    for bad in (b"zz\r\nhello\r\n", b"-5\r\nhello\r\n", b"5\r\nhello!\r\n"):
        assert "framed" in assert_refused(await said(service, chunks, bad), path, 400)
    assert (await service.http.get("/live")).status_code == 200


async def test_garbage_behind_a_request_takes_nothing_from_its_answer(service: Service) -> None:
    """Seen: the refusal of the garbage came as the answer to the request before it."""
    body = json.dumps({"exposures": [], "outcomes": []}).encode()
    whole = head("/events", f"Content-Length: {len(body)}") + body
    status, headers, taken = await said(service, whole + b"\0\0garbage\r\n\r\n")
    assert (status, headers["connection"]) == (200, "close")
    assert taken["accepted"] == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_who_sends_too_much_gets_to_read_it(
    service: Service, path: str, chunked: bool
) -> None:
    """Seen: with `Connection: close` the answer was lost in the connection's reset."""
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {40 * MB}"
    part = b"x" * MB
    if chunked:
        part = b"%x\r\n%s\r\n" % (MB, part)
    pieces = [head(path, length, "Connection: close"), *[part] * 40]
    pieces += [b"0\r\n\r\n"] if chunked else []
    message = assert_refused(await said(service, *pieces), path, 413)
    assert "larger than 16777216 bytes" in message


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "SLOWEST_S", 0.5)
    monkeypatch.setattr(framing, "LOOK_EVERY_S", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", PATHS)
async def test_a_request_that_never_ends_is_ended(service: Service, path: str) -> None:
    """Seen: connections with half a request stayed open for ever."""
    begun = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    bodies = head(path, "Content-Length: 50"), head(path, "Transfer-Encoding: chunked") + b"5\r\nhe"
    for pieces in ((begun,), *((body, b'{"a') for body in bodies)):
        answer = await said(service, *pieces)
        assert answer[1]["connection"] == "close"
        assert "did not come to its end" in assert_refused(answer, path, 408)
    status, _, body = await said(service)
    assert (status, body["detail"]) == (408, "The request did not come to its end.")


async def test_who_is_not_let_in_gets_to_read_it_too(service: Service) -> None:
    for path in PATHS:
        lines = (f"Content-Length: {8 * MB}", "Connection: close", "Authorization: Basic eDp5")
        answer = await said(service, head(path, *lines), *[b"x" * MB] * 8)
        assert "Bearer" in assert_refused(answer, path, 401)


async def test_what_waits_to_be_told_to_go_on_is_refused_at_once(service: Service) -> None:
    lines = (f"Content-Length: {40 * MB}", "Expect: 100-continue")
    assert_refused(await said(service, head("/events", *lines)), "/events", 413)


async def test_unknown_paths_and_methods_under_v1_have_openais_shape(service: Service) -> None:
    """Seen: problem details, whose `error` OpenAI's clients look for in vain."""
    asked = (
        ("POST", "/v1/audio/unheard", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_supported"),
        ("DELETE", "/v1/models", 405, "method_not_supported"),
        ("GET", "/v1/models/a%00b", 422, "input"),
    )
    for method, path, status, code in asked:
        answer = await service.http.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, OPENAI), path
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert error["message"]
    beside = await service.http.get("/v12")
    assert beside.headers["content-type"] == PROBLEM


async def test_allow_names_every_method_of_a_path(service: Service) -> None:
    """Seen: `Allow: POST` of /events, which answers GET too."""
    answer = await service.http.request("OPTIONS", "/events")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


NAMES = (
    {"Host": "[::1"},
    {"Host": "a]b"},
    {"Host": ""},
    {"Origin": "http://[x"},
    {"Origin": "null"},
)


async def test_names_that_are_none_are_refused(service: Service) -> None:
    """Seen: each bracket that is not closed was a 500."""
    for headers in NAMES:
        for path in ("/status", "/routing", "/v1/models", "/decide?task=hook&unit=u"):
            answer = await service.http.get(path, headers=headers)
            assert answer.status_code == 403, (headers, path, answer.text)
        chat = await service.http.post("/v1/chat/completions", json={}, headers=headers)
        assert chat.status_code == 403, headers


DEEP = b"[" * 100_000 + b"]" * 100_000
BODIES = (
    DEEP,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"value": 1e400}',
    b'{"value": NaN}',
    b'{"model": 1e400}',
    b'{"reason": "\\ud800"}',
    b'{"reason": "\xed\xa0\x80"}',
    b'{"x": "' + b"\\u0000" * 1000 + b'"}',
    b'{"duration_hours": true, "traffic_split": "0.1"}',
    b"\xff\xfe[\x00]\x00",
    b"9" * 10_000,
    b"",
    b"null",
)
WRITES = (
    "/v1/chat/completions",
    "/v1/feedback",
    "/events",
    "/fine-tuning/start",
    "/fine-tuning/abort/x",
    "/fine-tuning/retry/x",
    "/evaluation/create-ab-test",
    "/evaluation/end/x",
    "/evaluation/family/x/end",
    "/deployment/deploy",
    "/deployment/rollback/x",
    "/deployment/pause/x",
    "/routing/hook/rollback",
    "/tokens",
    "/webhooks/openai",
)


async def test_bodies_that_are_none_are_refused_everywhere(service: Service) -> None:
    for path in WRITES:
        for body in BODIES:
            answer = await service.http.post(
                path, content=body, headers={"content-type": "application/json"}
            )
            assert 400 <= answer.status_code < 500 or body in (b"", b"null"), (path, body[:40])
            assert answer.status_code < 500, (path, body[:40], answer.text)


EDGES = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "0001-01-01T00:00:00Z")


@pytest.fixture
async def on_postgresql(settings: Settings, postgres_url: str) -> AsyncIterator[Service]:
    changed = Settings.load(
        dir=settings.dir,
        env={},
        port=0,
        database_url=postgres_url,
        base_url=settings.providers["default"].base_url.reveal(),
        api_key="provider-key",
        base_model="base",
        **{"server.metrics_enabled": False},
    )
    async with open_service(changed) as opened:
        yield opened


@pytest.mark.postgres
async def test_no_id_or_time_is_a_fault_of_postgresql(on_postgresql: Service, chat: Chat) -> None:
    """Seen: a NUL in any id was a 500 of PostgreSQL, and so were times at the calendar's edges."""
    http = on_postgresql.http
    document = (await http.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method in operations:
            for id in ("%00", "a%00b", "%ED%A0%80", "%F0%9F%98%80", "x" * 5000):
                filled = "/".join(id if part.startswith("{") else part for part in path.split("/"))
                if "{" in path:
                    answer = await http.request(method, filled, json={"reason": "why"})
                    assert 400 <= answer.status_code < 500, (filled, answer.text)
    for query in ("subject=%00", "since=", *(f"since={at.replace('+', '%2B')}" for at in EDGES)):
        answer = await http.get(f"/events?{query}")
        assert answer.status_code in (200, 422), (query, answer.text)
    for at in EDGES:
        event = {"id": "e", "subject": "s", "unit": "u", "at": at}
        for body in ({"outcomes": [{**event, "value": 1}]}, {"outcomes": [{**event, "id": "\0"}]}):
            answer = await http.post("/events", json=body)
            assert answer.status_code in (200, 422), answer.text
        answer = await http.post("/fine-tuning/start", json={"as_of": at})
        assert answer.status_code == 422, answer.text
