"""`POST /v1/chat/completions` as plain ASGI: who asks, what, and the provider's bytes passed on.

Whatever happens (the reader leaves, the provider stalls or breaks off), a request of a subject
leaves exactly one exposure, but for one that is refused as wrong itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from tuneproof.errors import InputError, TuneProofError
from tuneproof.server.chatting import ChatRequest, dumped, size
from tuneproof.server.events import MAX_BYTES
from tuneproof.server.gateway import Decision, Gateway, Written, error_body, told
from tuneproof.server.problems import headers_of, status_of
from tuneproof.server.upstream import Answer, Refused, Stream, renamed

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tuneproof.server.auth import Access
    from tuneproof.server.serving import Serving

__all__ = ["CHAT", "ChatRoute"]

log = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
DRAINED = 4 * MAX_BYTES
"""How much of a body that is too large is read, so that its sender gets to read the answer."""

_JSON = (b"content-type", b"application/json")
_SAFE = (b"x-content-type-options", b"nosniff")
_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))

RawHeaders = Sequence[tuple[bytes, bytes]]


class Left(Exception):
    """Whoever asked has gone."""


class ChatRoute:
    """Answers chat requests. `gateway` is given once the service has started."""

    def __init__(self, serving: Serving, access: Access) -> None:
        self._serving = serving
        self._access = access
        self.gateway: Gateway | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        began = time.perf_counter()
        answer = _Sender(send)
        try:
            await self._serve(scope, receive, answer, began)
        except Left:
            answer.status = 499
        except Refused as refusal:
            await answer.whole(refusal.status, refusal.body, refusal.headers)
        except TuneProofError as error:
            await answer.error(error)
        except Exception:
            log.exception("a chat request failed")
            await answer.unexpected()
        finally:
            seconds = time.perf_counter() - began
            self._serving.metrics.request_finished("POST", CHAT, answer.status, seconds)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Sender, began: float) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._access.callers.may_write(headers):
            await self._access.authorise(Headers(scope=scope), "write", any_key=True)
        content = await _body(receive)
        asked = ChatRequest.read(content, headers, self._serving.aliases)
        gateway = self.gateway
        assert gateway is not None
        decision = gateway.decide(asked)
        with _while_there(receive):
            await self._answer(gateway, decision, asked, answer, began)

    async def _answer(
        self, gateway: Gateway, decision: Decision, asked: ChatRequest, send: _Sender, began: float
    ) -> None:
        try:
            decision, answer = await gateway.ask(decision, asked)
        except Refused as refusal:
            if refusal.limited:
                gateway.record(decision, asked, began, error=True)
            raise
        except TuneProofError:
            gateway.record(decision, asked, began, error=True)
            raise
        except asyncio.CancelledError:
            gateway.record(decision, asked, began)
            raise
        if isinstance(answer, Stream):
            await self._stream(gateway, decision, asked, answer, send, began)
        else:
            await self._whole(gateway, decision, asked, answer, send, began)

    async def _whole(
        self,
        gateway: Gateway,
        decision: Decision,
        asked: ChatRequest,
        answer: Answer,
        send: _Sender,
        began: float,
    ) -> None:
        written = gateway.begin(decision)
        written.whole = True
        _note(written, answer.body, "message")
        gateway.record(decision, asked, began, written=written)
        receipt = decision.ticket.encode()
        headers = [*answer.headers, *_ours(decision, receipt), _JSON]
        await send.whole(200, renamed(answer.raw, answer.body, receipt), headers)

    async def _stream(
        self,
        gateway: Gateway,
        decision: Decision,
        asked: ChatRequest,
        stream: Stream,
        send: _Sender,
        began: float,
    ) -> None:
        """Pass the provider's events on under our id; usage that nobody asked for is kept.

        An answer that its reader broke off is not scored: nobody knows how it would have gone on.
        What it cost is estimated from what was written until then, where the provider says nothing.
        """
        written = gateway.begin(decision)
        receipt = decision.ticket.encode()
        failed = False
        try:
            await send.begin(200, [*stream.headers, *_ours(decision, receipt), *_STREAM])
            async for events in stream.events():
                passed = []
                for event in events:
                    chunk = event.chunk
                    if chunk is None:
                        passed.append(event.raw)
                        continue
                    _note(written, chunk, "delta")
                    if asked.wants_usage or chunk.get("choices") or not chunk.get("usage"):
                        passed.append(renamed(event.raw, chunk, receipt))
                if passed:
                    await send.more(b"".join(passed))
            written.whole = True
        except TuneProofError as error:
            failed = True
            log.warning("The stream for %s broke: %s", decision.routing.task, error)
            await send.more(b"data: " + dumped(error_body(error)) + b"\n\n")
        finally:
            stream.close()
            gateway.record(decision, asked, began, written=written, error=failed)
        await send.end()


def _ours(decision: Decision, receipt: str) -> RawHeaders:
    return [*decision.headers, (b"x-tuneproof-response", receipt.encode())]


def _note(written: Written, body: Mapping[str, Any], part: str) -> None:
    """Gather the usage and the text of an answer's first choice, or of a chunk's."""
    written.usage = told(body) or written.usage
    for choice in body.get("choices") or ():
        if isinstance(choice, dict) and not choice.get("index"):
            said = choice.get(part)
            text = said.get("content") if isinstance(said, dict) else None
            if isinstance(text, str):
                written.bytes += size(text)
                if written.texts is not None:
                    written.texts.append(text)
            return


async def _body(receive: Receive) -> bytes:
    """The request's body. Raises `Left`, and `InputError` for one that is too large."""
    parts, taken = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        part = message.get("body", b"")
        taken += len(part)
        if taken <= MAX_BYTES:
            parts.append(part)
        if not message.get("more_body") or taken > DRAINED:
            break
    if taken > MAX_BYTES:
        raise InputError(
            f"The body is larger than {MAX_BYTES} bytes.", mend="Send less.", status=413
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def _while_there(receive: Receive) -> Iterator[None]:
    """Break the block off once whoever asked has gone. Raises `Left` then."""
    working = asyncio.current_task()
    assert working is not None
    left = False

    async def listen() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        working.cancel()

    listening = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        if not left or working.uncancel():
            raise
        raise Left from None
    finally:
        listening.cancel()


class _Sender:
    """The answer on its way; `status` is what it began with, 500 before."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self.status = 500

    async def begin(self, status: int, headers: RawHeaders) -> None:
        """Send the head of an answer."""
        self._begun = True
        self.status = status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, _SAFE]}
        )

    async def more(self, body: bytes) -> None:
        """Send a part of it."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Nothing more comes."""
        await self._send({"type": "http.response.body", "body": b""})

    async def whole(self, status: int, body: bytes, headers: RawHeaders) -> None:
        """Send an answer with its body; nothing where one has begun."""
        if self._begun:
            return
        length = (b"content-length", b"%d" % len(body))
        typed = [] if any(name == b"content-type" for name, _ in headers) else [_JSON]
        await self.begin(status, [*headers, *typed, length])
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: TuneProofError) -> None:
        """Send an error in the shape that OpenAI's clients read."""
        headers = [(n.lower().encode(), v.encode()) for n, v in headers_of(error).items()]
        await self.whole(status_of(error), dumped(error_body(error)), headers)

    async def unexpected(self) -> None:
        """Say that the fault is ours."""
        error = {"message": "The service failed; its log says why.", "type": "server_error"}
        body = {"error": {**error, "param": None, "code": "internal"}}
        await self.whole(500, dumped(body), [])
