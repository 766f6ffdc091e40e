"""Requests for tasks as plain ASGI: who asks, what, and the provider's bytes passed on.

Whatever happens (the reader leaves, the provider stalls or breaks off), a request of a subject
leaves exactly one exposure, but for one that is refused as wrong itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from tuneproof.errors import TuneProofError
from tuneproof.server.auth import permitted
from tuneproof.server.chatting import ChatRequest, opened, task_of
from tuneproof.server.exchange import Left, RawHeaders, Sender, body_of, while_there
from tuneproof.server.framing import answered_when_sent
from tuneproof.server.gateway import Decision, Gateway
from tuneproof.server.passthrough import PassThrough
from tuneproof.server.upstream import Answer, Recorded, Refused, Stream, renamed
from tuneproof.server.wires import CHAT, RESPONSES, WIRES, Wire, wire_like

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tuneproof.server.auth import Access, Caller
    from tuneproof.server.serving import Serving
    from tuneproof.telemetry import Tracing

__all__ = ["ChatRoute"]

log = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class ChatRoute:
    """Answers requests for tasks, and passes on the others as far as the settings let it.

    `gateway` is given once the service has started.
    """

    def __init__(self, serving: Serving, access: Access, tracing: Tracing) -> None:
        self._serving = serving
        self._access = access
        self._tracing = tracing
        self._passing = PassThrough(serving)
        self.gateway: Gateway | None = None

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for this route."""
        if scope["type"] != "http":
            return False
        return _wire(scope) is not None or bool(self._passing.entry(scope))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        began = time.perf_counter()
        wire = _wire(scope)
        if wire is not None:
            receive, send = answered_when_sent(scope, receive, send)
        answer = Sender(send, wire or wire_like(scope["path"]))
        try:
            if wire is None:
                await self._pass(scope, receive, answer)
            else:
                await self._serve(scope, receive, answer, wire, began)
        except Left:
            answer.status = 499
        except Refused as refusal:
            await answer.refused(refusal)
        except TuneProofError as error:
            if answer.begun:
                log.warning("What was passed on broke off: %s", error)
            await answer.error(error)
        except Exception:
            log.exception("a request to the gateway failed")
            await answer.unexpected()
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if wire else self._passing.entry(scope)
            self._serving.metrics.request_finished(scope["method"], path, answer.status, seconds)

    async def _serve(
        self, scope: Scope, receive: Receive, answer: Sender, wire: Wire, began: float
    ) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        caller = None
        if not self._access.callers.may_write(headers):
            caller = await self._identified(scope)
        content = await body_of(receive)
        body = opened(content, wire)
        gateway = self.gateway
        assert gateway is not None
        task, named = task_of(body["model"], headers, self._serving.aliases)
        if not named and self._passes(scope, task):
            caller = permitted(caller or await self._identified(scope), "relay")
            upstream, passing = gateway.upstream, self._passing
            await passing.pass_on(upstream, caller.name, scope, receive, answer, content, body)
            return
        if caller is not None:
            permitted(caller, "write")
        asked = ChatRequest.read(body, task, headers, wire)
        decision = gateway.decide(asked)
        subject, arm = decision.ticket.subject, str(decision.arm)
        with self._tracing.request(headers, task, subject, arm) as span, while_there(receive):
            answered = await self._answer(gateway, decision, asked, answer, began)
            if span is not None:
                span.set_attribute("tuneproof.exposure", decision.ticket.exposure)
                span.set_attribute("tuneproof.fallback", answered.failed)

    def _passes(self, scope: Scope, task: str) -> bool:
        """Whether a request is passed on: no task is called so."""
        entry = self._passing.entry(scope)
        return bool(entry) and task not in self._serving.routing.by_task

    async def _pass(self, scope: Scope, receive: Receive, answer: Sender) -> None:
        caller = permitted(await self._identified(scope), "relay")
        gateway = self.gateway
        assert gateway is not None
        await self._passing.serve(gateway.upstream, caller.name, scope, receive, answer)

    async def _identified(self, scope: Scope) -> Caller:
        """Who asks. Raises `DeniedError` for who may neither ask a task nor pass anything on."""
        peer = (scope.get("client") or ("",))[0]
        caller = await self._access.identify(Headers(scope=scope), any_key=True, peer=peer)
        return caller if "relay" in caller.scopes else permitted(caller, "write")

    async def _answer(
        self, gateway: Gateway, decision: Decision, asked: ChatRequest, send: Sender, began: float
    ) -> Decision:
        def replaced(by: Decision) -> None:
            nonlocal decision
            decision = by

        try:
            decision, answer = await gateway.ask(decision, asked, replaced)
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
        if isinstance(answer, Answer):
            await self._whole(gateway, decision, asked, answer, send, began)
        else:
            await self._stream(gateway, decision, asked, answer, send, began)
        return decision

    async def _whole(
        self,
        gateway: Gateway,
        decision: Decision,
        asked: ChatRequest,
        answer: Answer,
        send: Sender,
        began: float,
    ) -> None:
        written = gateway.begin(decision)
        written.spent, written.whole = answer.spent, True
        written.note(asked.wire.usage(answer.body), asked.wire.text(answer.body))
        gateway.record(decision, asked, began, written=written)
        receipt = _receipt(decision, asked.wire, answer.body.get("id"))
        headers = [*answer.headers, *_ours(decision, receipt), _JSON]
        await send.whole(200, renamed(answer.raw, answer.body, receipt), headers)

    async def _stream(
        self,
        gateway: Gateway,
        decision: Decision,
        asked: ChatRequest,
        stream: Stream | Recorded,
        send: Sender,
        began: float,
    ) -> None:
        """Pass the provider's events on under our id; usage that nobody asked for is kept.

        An answer that its reader broke off is not scored: nobody knows how it would have gone on.
        What it cost is estimated from what was written until then, where the provider says nothing.
        """
        written = gateway.begin(decision)
        written.spent = stream.spent
        wire = asked.wire
        receipt = _receipt(decision, wire, stream.id)
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
                    written.note(wire.usage(chunk), wire.delta(chunk))
                    if asked.wants_usage or not _is_usage(wire, chunk):
                        passed.append(renamed(event.raw, chunk, receipt, wire.holder))
                if passed:
                    await send.more(b"".join(passed))
            written.whole = True
        except TuneProofError as error:
            failed = True
            log.warning("The stream for %s broke: %s", decision.routing.task, error)
            await send.broken(error)
        finally:
            stream.close()
            gateway.record(decision, asked, began, written=written, error=failed)
        await send.end()


def _ours(decision: Decision, receipt: str) -> RawHeaders:
    return [*decision.headers, (b"x-tuneproof-response", receipt.encode())]


def _wire(scope: Scope) -> Wire | None:
    """The wire that a request is for a task over, unless it is for none."""
    return WIRES.get(scope["path"]) if scope["method"] == "POST" else None


def _receipt(decision: Decision, wire: Wire, theirs: object) -> str:
    """The id of an answer; of a response it holds the provider's own, to go on from."""
    if wire is RESPONSES and isinstance(theirs, str):
        decision = decision.answered_as(theirs)
    return decision.ticket.encode()


def _is_usage(wire: Wire, chunk: Mapping[str, Any]) -> bool:
    """Whether an event tells usage alone, which a chat's reader has to ask for."""
    return wire is CHAT and bool(chunk.get("usage")) and not chunk.get("choices")
