"""How the service is: probes, health by real calls, metrics, overview, doctor, activity, tokens."""

from __future__ import annotations

import os
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from tuneproof.server.auth import Admin, Reader, Scope
from tuneproof.server.models import Answer, Cursor, Instant, Limit, Paged, Strict
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp


class Alive(Answer):
    """The process answers."""

    status: Literal["alive"] = "alive"
    pid: int = Field(default_factory=os.getpid, description="Tells one process from the next.")


class Readiness(Answer):
    """Whether the service can answer requests, and if not, why."""

    ready: bool
    reasons: list[str]


class Check(Answer):
    """What a real call of one dependency found; `hint` says how to mend it."""

    status: str = Field(examples=["healthy"])
    detail: str = ""
    hint: str = ""
    latency_ms: float | None = None


class TaskOut(Answer):
    """A background task of this process: what it did last, and whether it stands still."""

    name: str = Field(examples=["schedule"])
    state: str = Field(examples=["running"], description="Or standby, failing, given_up.")
    started_at: Instant
    every_s: float | None = Field(description="Absent for one that lives on.")
    last_success: Instant | None
    restarts: int
    last_error: str
    last_error_at: Instant | None
    overdue: bool


class WatchOut(Answer):
    """A running test, or a rollout that is not over: when its next look was or is due."""

    subject: str
    kind: str = Field(examples=["rollout"])
    pipeline: str
    run_id: str | None
    looked_at: Instant | None
    due_at: Instant
    stalled: bool = Field(description="Whether the look is overdue by more than an hour.")
    last_error: str = Field(description="Why the newest look failed; empty where it did not.")
    last_error_at: Instant | None


class Health(Answer):
    """All dependencies. The status is the worst that matters."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(examples=["healthy"])
    timestamp: float = Field(description="Seconds since 1970.", examples=[1704196800.0])
    components: dict[str, str] = Field(
        description="A word each: healthy, degraded, unhealthy, not_configured; "
        "a circuit breaker's is its state: CLOSED, OPEN, HALF_OPEN.",
        examples=[{"database": "healthy", "openai_circuit_breaker": "CLOSED"}],
    )
    checks: dict[str, Check] = Field(description="What stands behind each word.")
    routing_age_s: float | None = Field(
        description="For how long the routing in memory could not be compared with the database."
    )
    connection_pools: dict[str, int | None]
    performance_metrics: dict[str, float | None]
    tasks: list[TaskOut]
    watches: list[WatchOut]


class FindingOut(Answer):
    """One check of the doctor."""

    name: str
    status: str = Field(examples=["ok"])
    detail: str
    mend: str


class ActivityLine(Answer):
    """One deed."""

    seq: int
    at: Instant
    actor: str
    action: str
    object_id: str
    reason: str
    detail: dict[str, Any]


class TokenRequest(Strict):
    """A new token."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "ci", "scopes": ["read"]}})

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w.@-]+$")
    scopes: list[Scope] = Field(min_length=1, max_length=4)


class NewToken(Answer):
    """The token, shown this once."""

    name: str
    scopes: list[str]
    token: str


def router() -> APIRouter:
    """Probes, health, metrics, overview."""
    routes = APIRouter(tags=["health"], responses=RESPONSES)

    @routes.get("/live", summary="Whether the process answers (no dependency is asked)")
    async def live() -> Alive:
        return Alive()

    @routes.get(
        "/ready",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "Not now: `reasons` says why"}},
        summary="Whether requests can be answered (no dependency is asked)",
    )
    async def ready(app: TheApp, request: Request) -> Response:
        found = app.health.ready()
        ending = ["it ends, and answers until then"] if request.app.state.ending else []
        body = Readiness(ready=found.ok and not ending, reasons=[*ending, *found.reasons])
        return JSONResponse(body.model_dump(), 200 if body.ready else 503)

    @routes.get(
        "/health",
        response_model=Health,
        summary="Each dependency, by a real call",
        responses={503: {"model": Health, "description": "One that all need is unhealthy"}},
    )
    async def health(app: TheApp, _: Reader) -> Response:
        found = Health.model_validate(await app.health.report())
        body = found.model_dump(mode="json")
        return JSONResponse(body, 503 if found.status == "unhealthy" else 200)

    @routes.get("/health/model-performance", summary="What each model in use shows")
    async def model_performance(app: TheApp, _: Reader) -> dict[str, Any]:
        return dict(await app.health.model_performance())

    @routes.get("/health/response-time", summary="How fast this service answers")
    async def response_time(app: TheApp, _: Reader) -> dict[str, Any]:
        return dict(await app.health.response_time())

    @routes.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics(request: Request, app: TheApp, _: Reader) -> Response:
        body, kind = app.metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": kind})

    return routes


def overview_router() -> APIRouter:
    """What the command line and the dashboard open with."""
    routes = APIRouter(tags=["overview"], responses=RESPONSES)

    @routes.get("/status", summary="All pipelines at a glance")
    async def status(app: TheApp, _: Reader) -> dict[str, Any]:
        return dict(await app.overview.status())

    @routes.get("/doctor", summary="What is wrong, and how to mend it")
    async def doctor(app: TheApp, _: Reader) -> list[FindingOut]:
        return [FindingOut.model_validate(finding) for finding in await app.doctor.examine()]

    @routes.get("/activity", summary="Who did what and why, newest first")
    async def activity(
        app: TheApp, _: Reader, cursor: Cursor = None, limit: Limit = 50
    ) -> Paged[ActivityLine]:
        page = await app.store.activity.page(cursor=cursor, limit=limit)
        items = [ActivityLine.model_validate(line) for line in page.items]
        return Paged(items=items, next_cursor=page.next_cursor)

    @routes.post("/tokens", status_code=201, summary="Make a bearer token")
    async def token(app: TheApp, caller: Admin, asked: TokenRequest) -> NewToken:
        made = await app.tokens.create(asked.name, scopes=asked.scopes, actor=caller.actor)
        return NewToken(name=asked.name, scopes=list(asked.scopes), token=made)

    return routes
