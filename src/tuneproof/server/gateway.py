"""The gateway: an OpenAI-compatible face that decides which arm answers.

`model="tuneproof/<task>"`; the unit is the header `x-tuneproof-unit`, else `user`,
`safety_identifier` or `metadata.unit`, else a new one for this request. The answer is passed
through; its exposure (arm, latency, tokens, cost, error) is recorded behind it. A candidate whose
provider fails is replaced by the baseline, and the failure counts as the candidate's. The
response's id names subject and unit, so that `POST /v1/feedback` needs no memory of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from tuneproof.errors import ConflictError, NotFoundError, QuotaExhaustedError, TuneProofError
from tuneproof.experiments import Arm, Exposure, Variant
from tuneproof.experiments.histories import HISTORY_PHASE, history_of
from tuneproof.prompts import Prompt
from tuneproof.resilience import CircuitBreaker, State
from tuneproof.server.auth import Scope, authorise
from tuneproof.server.chatting import PREFIX, ChatRequest
from tuneproof.server.models import described
from tuneproof.server.openai_shape import RESPONSES, error_object
from tuneproof.server.picking import Picking, may_pick
from tuneproof.server.problems import headers_of, status_of
from tuneproof.server.shadows import Shadows
from tuneproof.server.tickets import Ticket
from tuneproof.server.upstream import Answer, Recorded, Refused, Stream, Upstream
from tuneproof.server.written import Written

if TYPE_CHECKING:
    from tuneproof.app import ChatEndpoint, Picker, ReceiptKey
    from tuneproof.rollout import Routing
    from tuneproof.server.serving import Serving
    from tuneproof.server.spool import Spool
    from tuneproof.telemetry import Tracing

log = logging.getLogger(__name__)

Reply = Answer | Stream | Recorded
"""An answer: whole, begun, or read to its end before it is passed on as a stream."""

LONGEST_WAIT_S = 300.0
"""How long a candidate is spared at most whose provider said that it is asked too often."""

_CHAT: dict[str, Any] = {
    "type": "object",
    "description": "OpenAI's chat completion request; further fields go to the provider.",
    "required": ["model", "messages"],
    "additionalProperties": True,
    "properties": {
        "model": {"type": "string", "description": "tuneproof/TASK"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "user": {"type": "string", "description": "The unit, unless x-tuneproof-unit says it."},
        "stream": {"type": "boolean"},
        "prompt_variables": {
            "type": "object",
            "description": "Of which the task's prompt is made, where variants own that; "
            "`messages` then follow it, and may be empty.",
        },
    },
    "example": {
        "model": "tuneproof/hook",
        "messages": [{"role": "user", "content": "Our summer sale starts"}],
        "user": "post-42",
    },
}


_KIND = {"name": "kind", "in": "path", "required": True, "schema": {"type": "string"}}

_EVENTS: dict[str, Any] = {"text/event-stream": {}}
"""What a stream is, for the OpenAPI document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Which arm answers this request, decided at `at`.

    Its exposure counts from then: an arm whose answers fail late, or are replaced late, is compared
    with what the other was asked at the same time.
    """

    routing: Routing
    unit: str
    arm: Arm
    model: Variant
    ticket: Ticket
    at: datetime
    failed: bool = False
    picker: Picker | None = None
    """Who picks among several answers; None where one is asked for."""
    prompts: Mapping[str, Prompt] | None = None
    """Of the routing, by hash; None where who asks says what the model is asked."""

    def fallen_back(self) -> Decision:
        """The same decision, answered by the baseline since the candidate's provider failed."""
        return replace(self, model=self.routing.baseline, failed=True)

    @property
    def prompt(self) -> Prompt | None:
        """By which the model is asked; None where who asks says it."""
        hash = self.model.prompt
        return None if self.prompts is None or hash is None else self.prompts[hash]

    def asking(self, asked: ChatRequest, length: str = "max_tokens") -> ChatRequest:
        """What the model is asked. Raises `InputError`, with status 400."""
        prompt = self.prompt
        return asked if prompt is None else asked.asked_by(prompt, length)

    def answered_as(self, theirs: str) -> Decision:
        """The same decision, whose receipt names the provider's own id of the answer."""
        return replace(self, ticket=replace(self.ticket, theirs=theirs))

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer says of it."""
        subject = (self.ticket.subject if self.routing.lanes else None) or ""
        model = self.model.model_id
        prompt = self.prompt
        named = "" if prompt is None else prompt.hash
        same = _headers(self.routing.task, self.arm, model, subject, self.failed, named)
        unit = self.unit if self.unit.isalnum() and self.unit.isascii() else _quoted(self.unit)
        found = [*same, (b"x-tuneproof-unit", unit.encode())]
        if self.picker is not None:
            found.append((b"x-tuneproof-best-of", b"%d" % self.picker.answers))
        return found


class Gateway:
    """Decides, asks and records. One per service; `upstream` is shared by all requests."""

    def __init__(
        self, serving: Serving, upstream: Upstream, spool: Spool, tracing: Tracing
    ) -> None:
        self._serving = serving
        self.upstream = upstream
        self._spool = spool
        self._tracing = tracing
        self.shadows = Shadows(serving, upstream, spool)
        self._picking = Picking(upstream, serving.metrics)
        self._spared_until: dict[Variant, float] = {}
        self._out: dict[Variant, set[CircuitBreaker]] = {}
        """By baseline: of the candidates that failed since it answered last."""

    def decide(self, asked: ChatRequest) -> Decision:
        """Which arm answers. Raises `NotFoundError` or `ConflictError` where none does."""
        routing = self._serving.routing.by_task.get(asked.task)
        if routing is None:
            raise _unknown(asked.body["model"])
        if not self._serving.asks(asked.task):
            raise ConflictError(
                f"The models of {asked.task} are asked by the application itself, not by this "
                "gateway.",
                mend="Ask GET /decide or the client which model serves a unit; or set "
                f'served_by = "gateway" in [tasks.{asked.task}].',
            )
        now, key = self._serving.now(), self._serving.receipts
        if asked.variables is None:
            if routing.baseline.prompt is not None:
                asked.ensure_asks()
            decision = decide(routing.unprompted, asked.unit, now, key)
        else:
            prompts = self._serving.routing.prompts
            # A test would compare something else, were some of its units unable to ask an arm.
            sayable = asked.can_say(prompts[one] for one in routing.prompts)
            decision = decide(routing if sayable else routing.unprompted, asked.unit, now, key)
            decision = replace(decision, prompts=prompts)
            asked = decision.asking(asked)  # what is wrong with it is said before anybody is asked
        picker = self._serving.picker(asked.task)
        if picker is None or not may_pick(asked):
            return decision
        return replace(decision, picker=picker)

    async def ask(
        self, decision: Decision, asked: ChatRequest, replaced: Callable[[Decision], None]
    ) -> tuple[Decision, Reply]:
        """The answer, whole or begun, and by whom: a candidate that fails is replaced.

        `replaced` hears of that at once: who asked may leave before the baseline has answered.
        Raises `Refused`, or a `TuneProofError`, where nobody answers.
        """
        if decision.arm is not Arm.CANDIDATE:
            return decision, await self._asked_anyway(decision, asked)
        breaker = None
        try:
            if time.monotonic() >= self._spared_until.get(decision.model, 0.0):
                endpoint = await self._serving.endpoint(decision.model)
                breaker = endpoint.breaker
                call = breaker.call_anyway if await self._both_away(decision) else breaker.call
                return decision, await self._through(call, endpoint, asked, decision)
        except Refused as refusal:
            self._spare(decision.model, refusal)
            log.warning("%s falls back to its baseline: %s", decision.routing.task, refusal)
        except TuneProofError as error:
            log.warning("%s falls back to its baseline: %s", decision.routing.task, error)
        decision = decision.fallen_back()
        replaced(decision)
        if breaker is not None:
            self._out.setdefault(decision.model, set()).add(breaker)
        return decision, await self._asked_anyway(decision, asked)

    # A candidate's breaker spares its users the wait. Were it to refuse for its whole pause, three
    # requests that a reset cut off would become two minutes of "failures" beside a baseline that
    # answers, and the candidate would be taken back for them. So one request at a time finds out
    # whether it is back, as long as the baseline answers in its place; and in an outage of both,
    # where that is no help, it is asked as the baseline is.

    async def _both_away(self, decision: Decision) -> bool:
        """Whether neither the candidate nor its baseline answered of late."""
        candidate = await self._serving.endpoint(decision.model)
        if candidate.breaker.state is State.CLOSED:
            return False
        baseline = await self._serving.endpoint(decision.routing.baseline)
        return baseline.breaker.state is not State.CLOSED

    def _spare(self, model: Variant, refusal: Refused) -> None:
        """Ask this candidate no more before its provider said that it may be."""
        if refusal.limited and refusal.retry_after_s:
            wait_s = min(refusal.retry_after_s, LONGEST_WAIT_S)
            self._spared_until[model] = time.monotonic() + wait_s

    async def _asked_anyway(self, decision: Decision, asked: ChatRequest) -> Reply:
        """The baseline's answer: nobody replaces it, so its breaker refuses nothing."""
        endpoint = await self._serving.endpoint(decision.model)
        call = endpoint.breaker.call_anyway
        answer = await self._through(call, endpoint, asked, decision)
        for breaker in self._out.pop(decision.model, ()):
            breaker.allow_probe()
        return answer

    async def _through(
        self,
        call: Callable[..., Any],
        endpoint: ChatEndpoint,
        asked: ChatRequest,
        decision: Decision,
    ) -> Reply:
        """Ask a model through its breaker. Raises `Refused`, which says nothing against it."""
        found: Reply | Refused = await call(self._answered, endpoint, asked, decision)
        if isinstance(found, Refused):
            raise found
        return found

    async def _answered(
        self, endpoint: ChatEndpoint, asked: ChatRequest, decision: Decision
    ) -> Reply | Refused:
        """An answer, or a refusal: it says nothing against the provider."""
        model, picker = decision.model.model_id, decision.picker
        asked = decision.asking(asked, endpoint.length_field)
        try:
            with self._tracing.asking(endpoint.provider, model) as carried:
                if carried:
                    asked = replace(asked, headers={**asked.headers, **carried})
                if picker is not None:
                    return await self._picking.ask(endpoint, asked, model, picker)
                if asked.stream:
                    return await self.upstream.stream(endpoint, asked, model)
                return await self.upstream.complete(endpoint, asked, model)
        except Refused as refusal:
            return refusal

    def begin(self, decision: Decision) -> Written:
        """To gather in what is to be recorded of an answer."""
        routing = decision.routing  # a history's answers are scored by nobody
        scored = routing.lanes and self._serving.scores(routing.task)
        return Written(texts=[] if scored else None)

    def record(
        self,
        decision: Decision,
        asked: ChatRequest,
        began: float,
        *,
        written: Written | None = None,
        error: bool = False,
    ) -> None:
        """Record the exposure of an answer; without `written` nothing is known of it."""
        routing, subject = decision.routing, decision.ticket.subject
        if subject is None:
            return
        asked = decision.asking(asked)
        text = usage = None
        if written is not None:
            if written.whole and not error and written.texts:
                text = "".join(written.texts) or None
            usage = written.spent_tokens(asked)
        exposure = Exposure(
            id=decision.ticket.exposure,
            subject=subject,
            phase=routing.phase if routing.lanes else HISTORY_PHASE,
            arm=decision.arm,
            unit=decision.unit,
            at=decision.at,
            task=routing.task,
            latency_ms=(time.perf_counter() - began) * 1000,
            error=error or decision.failed,
            tokens=None if usage is None else sum(usage.values()),
            cost_usd=None if usage is None else self._serving.cost_usd(decision.model, **usage),
            attributes=_attributes(decision),
            covariate=asked.covariate,
            text=text,
            messages=asked.messages if text else (),
        )
        self._spool.add(exposure)
        ended = error or (written is not None and written.whole)
        if ended and decision.arm is Arm.BASELINE:  # a reader who left compares with nobody
            self.shadows.copy(asked, exposure)

    async def models(self) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [*self._models().values()]})

    async def model(self, id: str) -> Response:
        """`GET /v1/models/{id}`. Raises `NotFoundError`."""
        found = self._models().get(id)
        if found is None:
            raise _unknown(id)
        return JSONResponse(found)

    def _models(self) -> dict[str, dict[str, Any]]:
        return {
            f"{PREFIX}{routing.task}": {
                "id": f"{PREFIX}{routing.task}",
                "object": "model",
                "created": int(routing.updated_at.timestamp()) if routing.updated_at else 0,
                "owned_by": "tuneproof",
            }
            for routing in self._serving.routing.routing
            if self._serving.asks(routing.task)
        }


def decide(routing: Routing, unit: str, now: datetime, key: ReceiptKey | None) -> Decision:
    """Which arm of `routing` answers `unit`: the same everywhere, by `assignment`.

    Where nothing is tested the answer belongs to the history of its task, of this week. `key` signs
    its receipt.
    """
    served = routing.serve(unit)
    subject = served.subject or history_of(routing.task, now)
    ticket = Ticket.new(key, task=routing.task, subject=subject, unit=unit)
    return Decision(
        routing=routing, unit=unit, arm=served.arm, model=served.model, ticket=ticket, at=now
    )


def _attributes(decision: Decision) -> dict[str, str]:
    """What an exposure says of how it was answered, to be looked into as a segment."""
    return {} if decision.picker is None else {"best_of": str(decision.picker.answers)}


def _unknown(model: str) -> NotFoundError:
    return NotFoundError(
        f"The model {model[:100]!r} does not exist here.",
        mend='Use "tuneproof/TASK"; GET /v1/models lists all. [relay] passes other models on.',
    )


@lru_cache(maxsize=1024)
def _headers(
    task: str, arm: Arm, model: str, subject: str, failed: bool, prompt: str
) -> tuple[tuple[bytes, bytes], ...]:
    found = {
        "task": task,
        "arm": str(arm),
        "model": model,
        "subject": subject,
        "fallback": "true" if failed else "",
        "prompt": prompt,
    }
    return tuple(
        (f"x-tuneproof-{name}".encode(), _quoted(value).encode())
        for name, value in found.items()
        if value
    )


def _quoted(value: str) -> str:
    return quote(value, safe="/:@ ,;=+")


def error_body(error: TuneProofError) -> dict[str, Any]:
    """An error in the shape that OpenAI's clients read."""
    code = error.slug.replace("-", "_")
    if isinstance(error, NotFoundError):
        code = error.details.get("code", "model_not_found")
    found = error_object(str(error), status=status_of(error), code=code)
    if isinstance(error, QuotaExhaustedError):
        found["error"].update(type="insufficient_quota", code="insufficient_quota")
    return found


async def not_passed_on(request: Request) -> Response:
    """What is answered where the settings pass a request on to nobody."""
    error = NotFoundError(
        f"{request.url.path[:100]} is passed on to nobody.",
        mend="Set relay.enabled and name it in relay.paths.",
        code="unknown_url",
    )
    return JSONResponse(error_body(error), status_of(error))


def router() -> APIRouter:
    """The routes under `/v1`."""
    routes = APIRouter(prefix="/v1", tags=["gateway"], responses=RESPONSES)

    async def answer(
        request: Request, scope: Scope, do: Callable[[Gateway], Awaitable[Response]]
    ) -> Response:
        try:
            await authorise(request, scope, any_key=True)
            return await do(request.app.state.gateway)
        except TuneProofError as error:
            return JSONResponse(error_body(error), status_of(error), headers=headers_of(error))

    @routes.post(
        "/chat/completions",
        summary="Chat, answered by the arm of the unit",
        openapi_extra=described(_CHAT),
        responses={200: {"content": _EVENTS}},
    )
    async def chat() -> Response:
        raise AssertionError("answered in front of the routes, by `relay`")

    @routes.post("/responses", summary="A response, answered by the arm of the unit")
    async def responses() -> Response:
        raise AssertionError("answered in front of the routes, by `relay`")

    @routes.post("/messages", summary="A message (Anthropic's), answered by the arm of the unit")
    async def messages() -> Response:
        raise AssertionError("answered in front of the routes, by `relay`")

    for path in ("/completions", "/embeddings", "/audio/{kind}", "/images/{kind}"):
        routes.add_api_route(
            path,
            not_passed_on,
            methods=["POST"],
            summary="Passed on to a provider unread, where that is switched on",
            operation_id=f"pass_on_{path.split('/')[1]}",
            openapi_extra={"parameters": [_KIND]} if path.endswith("}") else None,
        )

    @routes.get("/models", summary="The tasks, as models")
    async def models(request: Request) -> Response:
        return await answer(request, "read", Gateway.models)

    @routes.get("/models/{id:path}", summary="A task, as a model")
    async def model(request: Request, id: str) -> Response:
        return await answer(request, "read", lambda gateway: gateway.model(id))

    return routes
