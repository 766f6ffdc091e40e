"""Exposures and outcomes over HTTP: in batches, idempotent by event id."""

from __future__ import annotations

import logging
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, ValidationError

from tuneproof.errors import InputError
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.models import Answer, Bulk, Instant, Limit, When, described, utc
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp

log = logging.getLogger(__name__)

MAX_EVENTS = 10_000
MAX_BYTES = 16 * 1024 * 1024
MAX_TEXT = 100_000
MAX_TOLD = 1000
"""Subjects that are remembered as told of."""

Id = Annotated[str, Field(min_length=1, max_length=200)]
Unit = Annotated[str, Field(min_length=1, max_length=500)]

_ARMS = {str(arm): arm for arm in Arm}

_Event = TypeVar("_Event", Exposure, Outcome)


class MessageIn(Bulk):
    """One message of what was asked."""

    role: str = Field(max_length=100)
    content: str = Field(max_length=MAX_TEXT)


class ExposureIn(Bulk):
    """A request served to a unit by an arm.

    `text` is what was answered, `messages` what was asked: send them where the pipeline scores its
    answers (`quality_scorer`); elsewhere they are read past, and kept nowhere.
    """

    model_config = ConfigDict(str_max_length=MAX_TEXT)

    id: Id
    subject: Id = Field(description="The experiment's or the rollout's id.")
    phase: int = Field(ge=0, le=10_000, description="As routing named it; the first is 1.")
    arm: str = Field(max_length=100, json_schema_extra={"enum": [str(arm) for arm in Arm]})
    unit: Unit
    at: When
    task: str = Field(default="", max_length=200)
    latency_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    error: bool = False
    tokens: int | None = Field(
        default=None, ge=0, le=2**53, description="Left out or null where unknown, which is not 0."
    )
    cost_usd: float | None = Field(
        default=None,
        ge=0,
        le=1e9,
        description="Left out or null where unknown: means leave such units out.",
    )
    attributes: dict[str, str] = Field(default_factory=dict, max_length=50)
    covariate: float | None = Field(
        default=None,
        ge=-9e9,
        le=9e9,
        allow_inf_nan=False,
        description="Known of the unit before the test began; counts where the test adjusts by it.",
    )
    text: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: list[MessageIn] = Field(default_factory=list, max_length=100)

    def record(self) -> Exposure:
        """As a record; a naive time is read as UTC."""
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        arm = _ARMS.get(self.arm, self.arm)
        return _record(Exposure, self, at=utc(self.at), arm=arm, messages=messages)


class OutcomeIn(Bulk):
    """A measurement of a unit, maybe days later. The newest `at` of a unit counts.

    Where the test declares `analysis_unit` "item", it is of one `item` of the unit, and the
    newest of each item counts.
    """

    id: Id
    subject: Id
    unit: Unit
    at: When
    value: float = Field(allow_inf_nan=False)
    quality: float | None = Field(default=None, allow_inf_nan=False)
    item: str = Field(default="", max_length=500)

    def record(self) -> Outcome:
        """As a record; a naive time is read as UTC."""
        return _record(Outcome, self, at=utc(self.at))


def _record(kind: type[_Event], event: Bulk, **changed: object) -> _Event:
    """A record of fields that were checked; its own `__init__` would take longer than the check."""
    record = object.__new__(kind)
    record.__dict__.update(event.__dict__, **changed)
    return record


class Batch(Bulk):
    """Events; each is taken once, however often it is sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "exposures": [
                    {
                        "id": "0192f3a1",
                        "subject": "ab-test-20261120-001",
                        "phase": 1,
                        "arm": "candidate",
                        "unit": "post-42",
                        "at": "2026-11-20T09:00:00Z",
                        "task": "hook",
                        "latency_ms": 412.0,
                        "tokens": 96,
                        "cost_usd": 0.00021,
                    }
                ],
                "outcomes": [
                    {
                        "id": "0192f3a2",
                        "subject": "ab-test-20261120-001",
                        "unit": "post-42",
                        "at": "2026-11-21T09:00:00Z",
                        "value": 0.071,
                    }
                ],
            }
        }
    )

    exposures: list[ExposureIn] = Field(default_factory=list, max_length=MAX_EVENTS)
    outcomes: list[OutcomeIn] = Field(default_factory=list, max_length=MAX_EVENTS)

    def naive(self) -> int:
        """How many times came without a zone."""
        times = [e.at for e in self.exposures] + [e.at for e in self.outcomes]
        return sum(at.tzinfo is None for at in times)


class RejectedOut(Answer):
    """An event that was not kept, and why. To send it again as it is will not help."""

    id: str
    reason: str


class Taken(Answer):
    """What became of a batch. `rejected` are the events that were not kept, the rest was;
    `unknown` are those of them whose subject takes no events."""

    accepted: int
    duplicates: int
    unknown: list[str]
    rejected: list[RejectedOut]


class ExposureOut(Answer):
    """A request that was served to a unit by an arm."""

    id: str
    subject: str
    phase: int
    arm: str
    unit: str
    at: Instant
    task: str
    latency_ms: float | None
    error: bool
    tokens: int | None
    cost_usd: float | None
    covariate: float | None


class CommentOut(Answer):
    """What somebody said of an answer, and the arm that served its unit first."""

    id: str
    subject: str
    unit: str
    at: Instant
    text: str
    arm: str | None


class Shares:
    """Warns of outcomes that are no shares: percents sent as such would count a hundredfold.

    They are taken, since an outcome may be a count or a price. Each subject is told of once.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[str, None] = OrderedDict()

    def check(self, outcomes: Iterable[Outcome]) -> None:
        """Log a warning for each new subject with a value outside 0..1."""
        for outcome in outcomes:
            if 0 <= outcome.value <= 1 or outcome.subject in self._told:
                continue
            self._told[outcome.subject] = None
            if len(self._told) > MAX_TOLD:
                self._told.popitem(last=False)
            log.warning(
                "The outcome %r of %r has the value %g; an engagement rate is a share, 0 to 1. "
                "If it is a percent, send it divided by 100. Said once for each subject.",
                outcome.id,
                outcome.subject,
                outcome.value,
            )


def router() -> APIRouter:
    """The routes under `/events`."""
    routes = APIRouter(prefix="/events", tags=["events"], responses=RESPONSES)

    @routes.post(
        "",
        summary="Send exposures and outcomes",
        openapi_extra=described(Batch.model_json_schema()),
    )
    async def take(request: Request, app: TheApp, caller: Writer) -> Taken:
        batch = _parsed(await _body(request))
        for _ in range(batch.naive()):
            app.metrics.naive_times.inc()
        outcomes = [event.record() for event in batch.outcomes]
        request.app.state.shares.check(outcomes)
        taken = await app.events.record(
            exposures=[event.record() for event in batch.exposures], outcomes=outcomes
        )
        return Taken.model_validate(taken)

    @routes.get("", summary="The newest exposures, oldest first")
    async def tail(
        app: TheApp,
        _: Reader,
        subject: Annotated[str | None, Query(max_length=200)] = None,
        since: When | None = None,
        limit: Limit = 100,
    ) -> list[ExposureOut]:
        start = None if since is None else utc(since)
        found = await app.events.recent(subject=subject, since=start, limit=limit)
        return [ExposureOut.model_validate(event) for event in found]

    @routes.get("/comments", summary="What was said of a test's or a rollout's answers")
    async def comments(
        app: TheApp, _: Reader, subject: Annotated[str, Query(max_length=200)], limit: Limit = 100
    ) -> list[CommentOut]:
        found = await app.events.comments(subject, limit=limit)
        return [CommentOut(**asdict(heard.comment), arm=heard.arm) for heard in found]

    return routes


def _parsed(body: bytes) -> Batch:
    try:
        return Batch.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[:100]
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in found]) from error


async def _body(request: Request) -> bytes:
    """The request's body, unzipped where it says so. Raises `InputError` (413, 415)."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise InputError(
            f"Content-Encoding is {coding[:20]!r}.", mend="Use gzip or none.", status=415
        )
    body = await request.body()
    if coding == "gzip":
        unzip = zlib.decompressobj(wbits=31)
        try:
            body = unzip.decompress(body, MAX_BYTES + 1)
        except zlib.error as error:
            raise InputError("The body is not gzip.", mend="Send it plain, or zip it.") from error
        if not unzip.eof and len(body) <= MAX_BYTES:
            raise InputError("The gzip body is cut short.", mend="Send all of it.")
    if len(body) > MAX_BYTES:
        raise too_large(MAX_BYTES)
    return body


def too_large(limit: int) -> InputError:
    """The error for a body above `limit` bytes."""
    return InputError(
        f"The body is larger than {limit} bytes.", mend="Send smaller batches.", status=413
    )
