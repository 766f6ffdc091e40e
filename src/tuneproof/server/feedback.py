"""Feedback: what came of an answer, by its receipt; a number, words, or both.

A number is the outcome of the answer's unit, which looks read. Words are a comment beside it,
which people read. A report is known by its id, or else by what it says, so one sent again counts
once.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tuneproof.errors import InputError, RetryableError, TuneProofError
from tuneproof.experiments import Comment, Outcome
from tuneproof.server.auth import authorise
from tuneproof.server.bodies import loaded
from tuneproof.server.chatting import MAX_UNIT
from tuneproof.server.gateway import error_body
from tuneproof.server.models import Strict, When, described, kept_text, utc
from tuneproof.server.openai_shape import RESPONSES
from tuneproof.server.problems import headers_of, status_of
from tuneproof.server.tickets import Ticket, unknown_answer

if TYPE_CHECKING:
    from tuneproof.server.events import Shares
    from tuneproof.server.serving import Serving
    from tuneproof.server.spool import Spool

MAX_ANSWERS = 100
"""How many answers one request may speak of; `POST /events` takes thousands."""

MAX_TEXT = 10_000

Receipt = Annotated[str, Field(min_length=1, max_length=12_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Valued = Number | bool | Text | None

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")

_EXAMPLE: dict[str, Any] = {
    "response_id": "tp-WyJh",
    "value": {"value": 0.071, "comment": "a good answer"},
}


class _Rated(Strict):
    model_config = ConfigDict(strict=False)

    quality: Number | bool | None = None
    comment: Text | None = None


class Said(_Rated):
    """What an object says of an answer. A text is a comment, unless it is a number in quotes."""

    value: Valued = Field(None, description="A number is the outcome, true is 1, false is 0.")


class Feedback(_Rated):
    """What came of one answer or several. `at` is when it was measured, by default now.

    Without an `id` what says the same of the same answer, at the same given `at`, is one report.
    """

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    response_id: Receipt | None = None
    response_ids: list[Receipt] | None = Field(None, min_length=1, max_length=MAX_ANSWERS)
    value: Valued | Said = Field(
        None, description="The outcome, as a number or a boolean; a comment; or both, as an object."
    )
    item: str = Field(default="", max_length=MAX_UNIT)
    id: str | None = Field(default=None, min_length=1, max_length=200)
    at: When | None = None


_SCHEMA = TypeAdapter(Feedback | list[Feedback])


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is to be kept of one feedback: a number, words, or both."""

    value: float | None
    quality: float | None
    comment: str | None
    item: str
    id: str | None
    at: datetime | None

    @classmethod
    def of(cls, asked: Feedback) -> Report:
        """What was said, wherever it stands. Raises `InputError` where it is nothing, or twice."""
        found: dict[str, Any] = {}
        for said in (asked, asked.value) if isinstance(asked.value, Said) else (asked,):
            for name, told in _told(said).items():
                if name in found:
                    raise _refused(name, f"{name} is said twice", "Say it once.")
                found[name] = told
        if not found.keys() & {"value", "comment"}:
            raise _refused(
                "value",
                "It says neither a value nor a comment",
                'Send a number, a text, or {"value": 0.07, "comment": "..."}.',
            )
        if "quality" in found and "value" not in found:
            raise _refused("quality", "A quality comes beside a value", "Send both.")
        absent = dict.fromkeys(("value", "quality", "comment"))
        return cls(**{**absent, **found}, item=asked.item, id=asked.id, at=asked.at)

    def outcome(self, ticket: Ticket, subject: str, at: datetime) -> Outcome | None:
        """The number, as the outcome of the answer's unit."""
        if self.value is None:
            return None
        return Outcome(
            id=self.id or self._known_as(ticket, repr(self.value), self.quality, self.item),
            subject=subject,
            unit=ticket.unit,
            at=at,
            value=self.value,
            quality=self.quality,
            item=self.item,
        )

    def said(self, ticket: Ticket, subject: str, at: datetime) -> Comment | None:
        """The words."""
        if self.comment is None:
            return None
        id = self.id or self._known_as(ticket, repr(self.comment), None, self.item)
        return Comment(id=id, subject=subject, unit=ticket.unit, at=at, text=self.comment)

    def _known_as(self, ticket: Ticket, said: str, quality: float | None, item: str) -> str:
        """The same for the same feedback, so that one sent again counts once."""
        at = utc(self.at).isoformat() if self.at else ""
        text = f"{ticket.exposure} {at} {said}" + (f" {item}" if item else "")
        text += "" if quality is None else f" quality {quality!r}"
        return f"fb-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _told(said: Said | Feedback) -> dict[str, Any]:
    """The number and the words among what one object says, each under its name."""
    value, found = said.value, dict[str, Any]()
    if isinstance(value, str):
        number = _number(value)
        found = {"comment": value} if number is None else {"value": number}
    elif isinstance(value, int | float):
        found = {"value": float(value)}
    if said.quality is not None:
        found["quality"] = float(said.quality)
    if said.comment is not None:
        if "comment" in found:
            raise _refused("comment", "comment is said twice", "Say it once.")
        found["comment"] = said.comment
    return {name: told for name, told in found.items() if told != ""}


def _number(text: str) -> float | None:
    """The number that a text is, as JSON writes them: so they were always taken."""
    found = float(text) if _NUMBER.fullmatch(text.strip()) else math.inf
    return found if math.isfinite(found) else None


class FeedbackDesk:
    """Takes feedback, one answer after the other: one that cannot be kept stops no other.

    What the service cannot take now waits in the spool; whether its receipt is one of ours is
    found out then.
    """

    def __init__(self, serving: Serving, shares: Shares, spool: Spool) -> None:
        self._serving = serving
        self._shares = shares
        self._spool = spool

    async def take(self, content: bytes) -> Response:
        """Answer `POST /v1/feedback`. Raises `InputError`, also for an unknown receipt (404)."""
        body = _parsed(content)
        if isinstance(body, list):
            return await self._each(body)
        asked = _feedback(body)
        if asked.response_ids is None:
            return JSONResponse(await self._one(asked))
        return await self._each([body])

    async def _each(self, bodies: Sequence[Any]) -> Response:
        """What became of each answer; an error where nothing was kept of any."""
        found: list[dict[str, Any]] = []
        errors: list[TuneProofError] = []
        for receipt, body in _single(bodies):
            try:
                found.append({"response_id": receipt, **await self._one(_feedback(body))})
            except InputError as error:
                errors.append(error)
                found.append({"response_id": receipt, "accepted": 0, **error_body(error)})
        answer = {
            "accepted": sum(one["accepted"] for one in found),
            "duplicates": sum(one.get("duplicates", 0) for one in found),
            "results": found,
        }
        if len(errors) < len(found):
            return JSONResponse(answer)
        return JSONResponse({**error_body(errors[0]), **answer}, status_of(errors[0]))

    async def _one(self, asked: Feedback) -> dict[str, Any]:
        """Keep what was said of one answer: whether it was new, and why not where it was not."""
        report = Report.of(asked)
        id = asked.response_id or ""
        ticket = Ticket.decode(id)
        known = await self._had(ticket) if self._may_be_ours(ticket) else False
        if known is False:
            raise unknown_answer(id)
        if ticket.subject is None:
            reason = "No experiment or rollout was under way when this was answered."
            return {"accepted": 0, "reason": reason}
        if report.at is not None and report.at.tzinfo is None:
            self._serving.metrics.naive_times.inc()
        return await self._kept(report, ticket, ticket.subject, waits=known is None)

    def _may_be_ours(self, ticket: Ticket) -> bool:
        serving = self._serving
        return _can_be_kept(ticket) and ticket.genuine(serving.receipts, serving.now())

    async def _had(self, ticket: Ticket) -> bool | None:
        """Whether there was such a subject; None where nobody can tell now."""
        try:
            return await self._serving.had(ticket.subject, ticket.task)
        except RetryableError:
            return None

    async def _kept(
        self, report: Report, ticket: Ticket, subject: str, *, waits: bool
    ) -> dict[str, Any]:
        """Keep it, or have it wait: until the exposure before it is kept, its history may not be
        there, and it would be turned away."""
        at = utc(report.at) if report.at else self._serving.now()
        outcome = report.outcome(ticket, subject, at)
        comment = report.said(ticket, subject, at)
        outcomes = [] if outcome is None else [outcome]
        self._shares.check(outcomes)
        comments = [] if comment is None else [comment]
        if waits:
            return self._waiting(outcomes, comments)
        try:
            taken = await self._serving.keep(outcomes=outcomes, comments=comments)
        except RetryableError:
            return self._waiting(outcomes, comments)
        accepted = min(taken.accepted, 1)
        if taken.rejected:
            return {"accepted": accepted, "reason": taken.rejected[0].reason}
        return {"accepted": accepted, "duplicates": 1 - accepted}

    def _waiting(self, outcomes: Sequence[Outcome], comments: Sequence[Comment]) -> dict[str, Any]:
        for outcome in outcomes:
            self._spool.add(outcome)
        for words in comments:
            self._spool.add(words)
        return {"accepted": 1, "duplicates": 0, "waiting": True}


def _can_be_kept(ticket: Ticket) -> bool:
    """Whether it names what the gateway would have kept."""
    try:
        kept_text("It", f"{ticket.task}{ticket.unit}{ticket.subject or ''}")
    except InputError:
        return False
    return bool(ticket.unit)


def _parsed(content: bytes) -> Any:
    try:
        body = loaded(content)
    except ValueError as error:
        raise _refused(
            "body", "The body is not JSON", "Send an object, or a list of them."
        ) from error
    answers = body if isinstance(body, list) else [body]
    if not 0 < len(answers) <= MAX_ANSWERS:
        raise _refused(
            "body", f"It has {len(answers)} reports", f"Send from 1 to {MAX_ANSWERS} in a request."
        )
    return body


def _single(bodies: Sequence[Any]) -> list[tuple[str | None, Any]]:
    """Each receipt that is named with the feedback on it alone. Raises `InputError`."""
    found: list[tuple[str | None, Any]] = []
    for body in bodies:
        told = body if isinstance(body, Mapping) else {}
        given, several = told.get("response_id"), told.get("response_ids")
        texts = isinstance(several, list) and all(isinstance(one, str) for one in several)
        if several and texts and given is None:
            rest = {name: value for name, value in told.items() if name != "response_ids"}
            found += [(one, {**rest, "response_id": one}) for one in several]
        else:
            found.append((given if isinstance(given, str) else None, body))
    if len(found) > MAX_ANSWERS:
        raise _refused(
            "response_ids",
            f"They name {len(found)} answers",
            f"Name at most {MAX_ANSWERS} in a request.",
        )
    return found


def _feedback(body: Any) -> Feedback:
    """A report on one answer, or on those that it lists. Raises `InputError`."""
    try:
        asked = Feedback.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "body"
        raise _refused(field, first["msg"], "Mend it.") from error
    if (asked.response_id is None) == (asked.response_ids is None):
        raise _refused(
            "response_id", "It names no answer, or names them twice", "Give response_id or _ids."
        )
    return asked


def _refused(field: str, what: str, mend: str) -> InputError:
    return InputError(f"{field}: {what}.", mend=mend)


def router() -> APIRouter:
    """`POST /v1/feedback`."""
    routes = APIRouter(prefix="/v1", tags=["gateway"], responses=RESPONSES)

    @routes.post(
        "/feedback",
        summary="What came of an answer, or of several",
        openapi_extra=described(_SCHEMA.json_schema()),
    )
    async def feedback(request: Request) -> Response:
        try:
            await authorise(request, "write", any_key=True)
            desk: FeedbackDesk = request.app.state.feedback
            return await desk.take(await request.body())
        except TuneProofError as error:
            return JSONResponse(error_body(error), status_of(error), headers=headers_of(error))

    return routes
