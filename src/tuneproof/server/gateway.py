"""The gateway: an OpenAI-compatible face that decides which arm answers.

`model="tuneproof/<task>"`; the unit is the header `x-tuneproof-unit`, else `user`, else a new
one for this request. The answer is passed through; its exposure (arm, latency, tokens, cost,
error) is recorded behind it. A candidate whose provider fails is replaced by the baseline, and
the failure counts as the candidate's. The response's id names subject and unit, so that
`POST /v1/feedback` needs no memory of it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ConfigDict, Field, ValidationError

from tuneproof.errors import ConflictError, InputError, NotFoundError, TuneProofError
from tuneproof.experiments import Arm, Exposure, ModelRef, Outcome
from tuneproof.server import upstream
from tuneproof.server.auth import Scope, authorise
from tuneproof.server.models import Strict, described, kept_text, utc
from tuneproof.server.problems import headers_of, status_of

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.rollout import Routing
    from tuneproof.server.recorder import Recorder

log = logging.getLogger(__name__)

PREFIX = "tuneproof/"
MAX_UNIT = 500
MAX_COVARIATE = 9e9


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
    },
    "example": {
        "model": "tuneproof/hook",
        "messages": [{"role": "user", "content": "Our summer sale starts"}],
        "user": "post-42",
    },
}


class Feedback(Strict):
    """The outcome of an answer. `at` is when it was measured, by default now.

    Without an `id` the same answer, value and given `at` are one outcome, however often sent.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"response_id": "tp-WyJh", "value": 0.071}}
    )

    response_id: str = Field(min_length=1, max_length=4000)
    value: float = Field(allow_inf_nan=False)
    quality: float | None = Field(default=None, allow_inf_nan=False)
    item: str = Field(default="", max_length=MAX_UNIT)
    id: str | None = Field(default=None, min_length=1, max_length=200)
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What the id of an answer says: whose outcome belongs to what."""

    exposure: str
    task: str
    subject: str | None
    unit: str

    def encode(self) -> str:
        """As the id of a response."""
        fields = [self.exposure, self.task, self.subject, self.unit]
        text = json.dumps(fields, separators=(",", ":"))
        return "tp-" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, id: str) -> Ticket:
        """From the id of a response. Raises `InputError` for any other text."""
        text = id.removeprefix("tp-")
        try:
            fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            exposure, task, subject, unit = fields
            good = all(isinstance(part, str) for part in (exposure, task, unit))
            if not good or not isinstance(subject, str | None):
                raise ValueError
        except (ValueError, TypeError) as error:
            raise InputError(
                f"response_id {id[:80]!r} is not the id of an answer of this gateway.",
                mend="Send the `id` of the chat completion as it came.",
            ) from error
        return cls(exposure=exposure, task=task, subject=subject, unit=unit)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which arm answers this request."""

    routing: Routing
    unit: str
    arm: Arm
    model: ModelRef
    ticket: Ticket
    failed: bool = False
    covariate: float | None = None

    def fallen_back(self) -> Decision:
        """The same decision, answered by the baseline since the candidate's provider failed."""
        return replace(self, model=self.routing.baseline, failed=True)


class Gateway:
    """Answers chat requests for tasks. One per service; `client` is shared by all requests."""

    def __init__(self, app: App, client: httpx2.AsyncClient, recorder: Recorder) -> None:
        self._app = app
        self._client = client
        self._recorder = recorder

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = await _chat_body(request)
        decision = replace(self._decide(request, body), covariate=_covariate(request))
        began = time.perf_counter()
        ask = self._stream if body.get("stream") else self._complete
        try:
            return await ask(decision, body, began)
        except upstream.Refused as refusal:
            return Response(refusal.body, refusal.status, media_type="application/json")
        except TuneProofError as error:
            if decision.arm is not Arm.CANDIDATE:
                self._record(decision, began, error=True)
                raise
            log.warning("%s falls back to its baseline: %s", decision.routing.task, error)
        decision = decision.fallen_back()
        try:
            return await ask(decision, body, began)
        except upstream.Refused as refusal:
            self._record(decision, began, error=True)
            return Response(refusal.body, refusal.status, media_type="application/json")
        except TuneProofError:
            self._record(decision, began, error=True)
            raise

    def _decide(self, request: Request, body: Mapping[str, Any]) -> Decision:
        task = str(body["model"]).removeprefix(PREFIX)
        routing = self._app.routing.board.snapshot.by_task.get(task)
        if routing is None or task == body["model"]:
            raise NotFoundError(
                f"The model {str(body['model'])[:100]!r} does not exist here.",
                mend='Use "tuneproof/TASK"; GET /v1/models lists all.',
            )
        if not self._app.managers.asks([task]):
            raise ConflictError(
                f"The models of {task} are asked by the application itself, not by this gateway.",
                mend="Ask GET /decide or the client which model serves a unit; or set "
                f'served_by = "gateway" in [tasks.{task}].',
            )
        return decide(routing, _unit(request, body))

    async def _complete(self, decision: Decision, body: dict[str, Any], began: float) -> Response:
        endpoint = await self._app.routing.endpoints.of(decision.model)
        asked = {**body, "model": decision.model.model_id}
        answer = await upstream.complete(self._client, endpoint, asked)
        written = _answer_text(answer)
        text = written if self._app.scoring.scores_task(decision.routing.task) else None
        usage = _told(answer) or _estimated(body, _size(written))
        self._record(decision, began, usage=usage, text=text, asked=body)
        answer["id"] = decision.ticket.encode()
        return JSONResponse(answer, headers=_headers(decision))

    async def _stream(self, decision: Decision, body: dict[str, Any], began: float) -> Response:
        endpoint = await self._app.routing.endpoints.of(decision.model)
        options = dict(body.get("stream_options") or {})
        asked_usage = bool(options.get("include_usage"))
        options["include_usage"] = True
        asked = {**body, "model": decision.model.model_id, "stream_options": options}
        chunks = await upstream.stream(self._client, endpoint, asked)
        relay = self._relay(decision, chunks, began, body, asked_usage=asked_usage)
        headers = {**_headers(decision), "Cache-Control": "no-cache"}
        return StreamingResponse(relay, media_type="text/event-stream", headers=headers)

    async def _relay(
        self,
        decision: Decision,
        chunks: AsyncIterator[dict[str, Any]],
        began: float,
        body: Mapping[str, Any],
        *,
        asked_usage: bool,
    ) -> AsyncIterator[bytes]:
        """The provider's chunks under our id; usage that the caller did not ask for is kept.

        An answer that its reader broke off is not scored: nobody knows how it would have gone on.
        What it cost is estimated from what was written until then, where the provider says nothing.
        """
        usage: Mapping[str, int] | None = None
        written = 0
        failed, whole = False, False
        texts: list[str] | None = (
            [] if self._app.scoring.scores_task(decision.routing.task) else None
        )
        id = decision.ticket.encode()
        try:
            async for chunk in chunks:
                usage = _told(chunk) or usage
                part = _answer_text(chunk, "delta")
                written += _size(part)
                if texts is not None:
                    texts.append(part)
                if chunk.get("usage") and not chunk.get("choices") and not asked_usage:
                    continue
                yield _sse({**chunk, "id": id})
            whole = True
            yield b"data: [DONE]\n\n"
        except TuneProofError as error:
            failed = True
            log.warning("The stream for %s broke: %s", decision.routing.task, error)
            yield _sse(_error_body(error))
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
            text = "".join(texts) if texts is not None and whole else None
            usage = usage or _estimated(body, written)
            self._record(decision, began, usage=usage, error=failed, text=text, asked=body)

    def _record(
        self,
        decision: Decision,
        began: float,
        *,
        usage: Mapping[str, int] | None = None,
        error: bool = False,
        text: str | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        routing, subject = decision.routing, decision.ticket.subject
        if subject is None:
            return
        self._recorder.add(
            Exposure(
                id=decision.ticket.exposure,
                subject=subject,
                phase=routing.phase,
                arm=decision.arm,
                unit=decision.unit,
                at=self._app.clock.now(),
                task=routing.task,
                latency_ms=(time.perf_counter() - began) * 1000,
                error=error or decision.failed,
                tokens=None if usage is None else sum(usage.values()),
                cost_usd=(
                    None
                    if usage is None
                    else self._app.routing.endpoints.cost_usd(decision.model, **usage)
                ),
                covariate=decision.covariate,
                text=text or None,
                messages=_messages(asked) if text and asked is not None else (),
            )
        )

    async def models(self) -> Response:
        """`GET /v1/models`."""
        entries = [
            {
                "id": f"{PREFIX}{routing.task}",
                "object": "model",
                "created": int(routing.updated_at.timestamp()) if routing.updated_at else 0,
                "owned_by": "tuneproof",
            }
            for routing in self._app.routing.board.snapshot.routing
            if self._app.managers.asks([routing.task])
        ]
        return JSONResponse({"object": "list", "data": entries})

    async def feedback(self, request: Request) -> Response:
        """`POST /v1/feedback`."""
        try:
            asked = Feedback.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{field or 'body'}: {first['msg']}.", mend="Mend it.") from error
        ticket = Ticket.decode(asked.response_id)
        if ticket.subject is None:
            reason = "No experiment or rollout was under way when this was answered."
            return JSONResponse({"accepted": 0, "reason": reason})
        if asked.at is not None and asked.at.tzinfo is None:
            self._app.metrics.naive_times.inc()
        at = utc(asked.at) if asked.at else self._app.clock.now()
        outcome = Outcome(
            id=asked.id or _outcome_id(ticket, asked),
            subject=ticket.subject,
            unit=ticket.unit,
            at=at,
            value=asked.value,
            quality=asked.quality,
            item=asked.item,
        )
        request.app.state.shares.check([outcome])
        taken = await self._app.events.record(exposures=[], outcomes=[outcome])
        if taken.rejected:
            return JSONResponse({"accepted": 0, "reason": taken.rejected[0].reason})
        return JSONResponse({"accepted": taken.accepted, "duplicates": taken.duplicates})


def decide(routing: Routing, unit: str) -> Decision:
    """Which arm of `routing` answers `unit`: the same everywhere, by `assignment`."""
    served = routing.serve(unit)
    ticket = Ticket(exposure=uuid.uuid4().hex, task=routing.task, subject=served.subject, unit=unit)
    return Decision(routing=routing, unit=unit, arm=served.arm, model=served.model, ticket=ticket)


async def _chat_body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise InputError("The body is not JSON.", mend="Send a chat completion request.") from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        mend = 'Send a chat completion request with model "tuneproof/TASK".'
        raise InputError("The body names no model.", mend=mend)
    return body


def _unit(request: Request, body: Mapping[str, Any]) -> str:
    given = request.headers.get("x-tuneproof-unit") or body.get("user") or uuid.uuid4().hex
    if not isinstance(given, str) or len(given) > MAX_UNIT:
        raise InputError(
            f"The unit is not a text of at most {MAX_UNIT} characters.",
            mend="Send an id in `user` or in the header x-tuneproof-unit.",
        )
    return kept_text("The unit", given)


def _covariate(request: Request) -> float | None:
    """What the caller knew of the unit before the test; None where it does not say."""
    given = request.headers.get("x-tuneproof-covariate")
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COVARIATE:
        raise InputError(
            f"The header x-tuneproof-covariate is {given[:50]!r}, no number.",
            mend="Send a number between -9e9 and 9e9, or leave it out.",
        )
    return value


def _headers(decision: Decision) -> dict[str, str]:
    found = {
        "x-tuneproof-task": decision.routing.task,
        "x-tuneproof-arm": str(decision.arm),
        "x-tuneproof-model": decision.model.model_id,
        "x-tuneproof-unit": decision.unit,
        "x-tuneproof-subject": decision.ticket.subject or "",
        "x-tuneproof-fallback": "true" if decision.failed else "",
    }
    return {name: quote(value, safe="/:@ ,;=+") for name, value in found.items() if value}


def _told(answer: Mapping[str, Any]) -> dict[str, int] | None:
    """The tokens that an answer or a chunk names; None where it does not name both."""
    usage = answer.get("usage")
    named = usage if isinstance(usage, Mapping) else {}
    found = {name: named.get(name) for name in ("prompt_tokens", "completion_tokens")}
    known = {name: n for name, n in found.items() if isinstance(n, int) and n >= 0}
    return known if len(known) == len(found) else None


def _answer_text(answer: Mapping[str, Any], part: str = "message") -> str:
    """The text of an answer's first choice, or of a chunk's; empty where it has none."""
    for choice in answer.get("choices") or ():
        if isinstance(choice, dict) and not choice.get("index"):
            content = (choice.get(part) or {}).get("content")
            return content if isinstance(content, str) else ""
    return ""


BYTES_PER_TOKEN = 4
"""About how long a token is: where a provider does not say how many an answer has."""


def _estimated(asked: Mapping[str, Any], written: int) -> dict[str, int]:
    """The usage of a request for which its provider names none; `written` are bytes of answer."""
    read = sum(_size(message["content"]) for message in _messages(asked))
    return {
        "prompt_tokens": -(-read // BYTES_PER_TOKEN),
        "completion_tokens": -(-written // BYTES_PER_TOKEN),
    }


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was asked, as texts: of a message in parts the texts among them."""
    return [
        {"role": str(message.get("role", "")), "content": _content(message.get("content"))}
        for message in body.get("messages") or ()
        if isinstance(message, dict)
    ]


def _content(content: Any) -> str:
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _sse(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _outcome_id(ticket: Ticket, asked: Feedback) -> str:
    """The same for the same feedback, so that one sent again counts once."""
    at = utc(asked.at).isoformat() if asked.at else ""
    text = f"{ticket.exposure} {at} {asked.value!r}" + (f" {asked.item}" if asked.item else "")
    return f"fb-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _error_body(error: TuneProofError) -> dict[str, Any]:
    """An error in the shape that OpenAI's clients read."""
    code = "model_not_found" if isinstance(error, NotFoundError) else error.slug.replace("-", "_")
    kind = "invalid_request_error" if isinstance(error, InputError) else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


def router() -> APIRouter:
    """The routes under `/v1`."""
    routes = APIRouter(prefix="/v1", tags=["gateway"])

    async def answer(
        request: Request, scope: Scope, do: Callable[[Gateway], Awaitable[Response]]
    ) -> Response:
        try:
            await authorise(request, scope, any_key=True)
            return await do(request.app.state.gateway)
        except TuneProofError as error:
            return JSONResponse(_error_body(error), status_of(error), headers=headers_of(error))

    @routes.post(
        "/chat/completions",
        summary="Chat, answered by the arm of the unit",
        openapi_extra=described(_CHAT),
    )
    async def chat(request: Request) -> Response:
        return await answer(request, "write", lambda gateway: gateway.chat(request))

    @routes.get("/models", summary="The tasks, as models")
    async def models(request: Request) -> Response:
        return await answer(request, "read", Gateway.models)

    @routes.post(
        "/feedback",
        summary="The outcome of an answer",
        openapi_extra=described(Feedback.model_json_schema()),
    )
    async def feedback(request: Request) -> Response:
        return await answer(request, "write", lambda gateway: gateway.feedback(request))

    return routes
