"""Rollouts over HTTP: deploy, status, pause, resume, advance, roll back; and who serves what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ConfigDict, Field

from tuneproof.errors import NotFoundError
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.hot import MAX_UNIT
from tuneproof.server.models import (
    Answer,
    Cursor,
    IdempotencyKey,
    IfMatch,
    Instant,
    Limit,
    Model,
    OptionalReason,
    Paged,
    Reason,
    Strict,
    bounds_of,
    etag,
    expected,
    setting,
)
from tuneproof.server.once import once
from tuneproof.server.problems import RESPONSES
from tuneproof.server.prompts import PromptText
from tuneproof.server.state import TheApp
from tuneproof.settings import PipelineConfig

if TYPE_CHECKING:
    from tuneproof.app import RoutingSnapshot
    from tuneproof.rollout import Deployment, RollbackResult
    from tuneproof.store import Claim, HistoryEntry

EXAMPLE_DEPLOYMENT = "deploy-20261120-001"
Action = Literal["pause", "resume", "advance"]
ROLLBACK_S = 30
"""What was promised of a rollback: traffic is back on the old model within this time."""


class Evaluation(Strict):
    """Which test speaks for the version. Only its id is used: the service looks it up."""

    ab_test_id: str = Field(min_length=1, max_length=200)
    recommendation: str | None = Field(default=None, max_length=50)
    safety_checks_passed: bool | None = None


def _bounds(name: str) -> Any:
    return Field(**bounds_of(setting(PipelineConfig, name)))


class RolloutConfig(Strict):
    """The steps of a rollout; fields left out are the pipeline's."""

    initial_traffic: Annotated[float | None, _bounds("initial_traffic")] = None
    increment_interval_hours: Annotated[float | None, _bounds("increment_interval_hours")] = None
    increment_percentage: Annotated[float | None, _bounds("increment_percentage")] = None
    max_traffic: Annotated[float | None, _bounds("max_traffic")] = None
    holdback: Annotated[float | None, _bounds("holdback")] = None
    holdback_days: Annotated[float | None, _bounds("holdback_days")] = None


class DeployRequest(Strict):
    """A version to roll out, and the test that speaks for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_version": {"model_id": "ft:ngram:hook:7f3a", "version": "1.4.0"},
                "evaluation_result": {
                    "ab_test_id": "ab-test-20261120-001",
                    "recommendation": "promote",
                    "safety_checks_passed": True,
                },
                "deployment_strategy": "gradual_rollout",
                "rollout_config": {
                    "initial_traffic": 0.1,
                    "increment_interval_hours": 24,
                    "increment_percentage": 0.1,
                    "max_traffic": 1.0,
                    "holdback": 0.05,
                    "holdback_days": 14,
                },
            }
        }
    )

    model_version: Model | Annotated[str, Field(min_length=1, max_length=500)]
    evaluation_result: Evaluation
    deployment_strategy: Literal["gradual_rollout", "canary", "immediate"] | None = None
    rollout_config: RolloutConfig | None = None
    pipeline: str | None = Field(default=None, max_length=200)

    def model(self) -> Model:
        """The version, however it was named."""
        version = self.model_version
        return Model(model_id=version) if isinstance(version, str) else version


class RollbackPlan(Answer):
    """The way back."""

    previous_model: str
    rollback_time_seconds: int
    health_check_endpoints: list[str]


class Monitoring(Answer):
    """Where to watch the rollout. `alerts_configured` is true only where it was verified."""

    deployment_dashboard: str = Field(
        description="a path of this service",
        examples=[f"/dashboard/deployment/{EXAMPLE_DEPLOYMENT}"],
    )
    alerts_configured: bool
    rollback_triggers: list[str] = Field(
        examples=[
            [
                "engagement_rate_drop_15_percent",
                "error_rate_above_5_percent",
                "response_time_above_2000ms",
            ]
        ]
    )


class Deployed(Answer):
    """A rollout that was accepted: `status` says so, `state` where it stands."""

    deployment_id: str = Field(examples=[EXAMPLE_DEPLOYMENT])
    status: str = Field(examples=["success"])
    state: str = Field(examples=["stepping"])
    deployment_strategy: str
    current_traffic: float
    rollback_plan: RollbackPlan
    monitoring: Monitoring


class HistoryLine(Answer):
    """Something that happened to a rollout."""

    at: Instant
    kind: str
    who: str
    reason: str
    detail: dict[str, Any]


class RolloutState(Deployed):
    """Where a rollout stands: `status` and `state` are the same word here."""

    run_id: str | None
    pipeline: str
    tasks: list[str]
    ab_test_id: str | None
    candidate: Model
    previous: Model
    steps: list[float]
    step: int
    interval_hours: float
    holdback: float
    holdback_days: float
    created_at: Instant
    step_started_at: Instant | None
    next_at: Instant | None
    ended_at: Instant | None
    cause: str | None
    evidence: dict[str, Any]
    history: list[HistoryLine]
    version: int


class RolledBack(Answer):
    """What a rollback did; `overtook` is what somebody did at the same moment, taken back too."""

    deployment_id: str = Field(examples=[EXAMPLE_DEPLOYMENT])
    status: str = Field(examples=["rolled_back"])
    restored_model: str
    reason: str
    rollback_time_seconds: float
    overtook: str = ""


class LaneState(Answer):
    """One of several candidates: its lane's test, and the share of all units that it gets."""

    subject: str
    candidate: Model | None
    share: float


class RoutingState(Answer):
    """Which model serves a task, and the share of units that get the candidate.

    Where several candidates are tested at once, `lanes` has them, and is absent otherwise.
    """

    task: str
    baseline: Model
    candidate: Model | None
    share: float
    salt: str
    subject: str | None
    phase: int
    version: int
    updated_at: Instant | None
    cause: str
    lanes: list[LaneState] = Field(default_factory=list, exclude_if=lambda lanes: not lanes)


class Decided(Answer):
    """Which model serves a unit, and what an exposure of it must say."""

    task: str
    model: str
    model_version: str | None
    arm: Literal["baseline", "candidate"]
    subject: str | None
    phase: int
    version: int
    unit: str
    prompt: str | None = Field(
        default=None, description="By which it is to be asked; only for who knows prompts."
    )


class RoutingAnswer(Answer):
    """All tasks; `version` grows with each change of any of them. Who knows prompts gets those that
    are served, by their hash."""

    version: int
    routing: list[RoutingState]
    prompts: dict[str, PromptText] | None = Field(
        default=None, exclude_if=lambda prompts: prompts is None
    )


def router() -> APIRouter:
    """The routes under `/deployment`."""
    routes = APIRouter(prefix="/deployment", tags=["deployment"], responses=RESPONSES)

    @routes.post("/deploy", status_code=202, response_model=Deployed, summary="Begin a rollout")
    async def deploy(
        request: Request,
        app: TheApp,
        caller: Writer,
        asked: DeployRequest,
        key: IdempotencyKey = None,
    ) -> Response:
        async def begin(claim: Claim | None) -> Deployed:
            config = asked.rollout_config
            deployment = await app.rollouts.deploy(
                model=asked.model().named(),
                ab_test_id=asked.evaluation_result.ab_test_id,
                strategy=asked.deployment_strategy,
                rollout=None if config is None else config.model_dump(exclude_none=True),
                pipeline=asked.pipeline,
                actor=caller.actor,
                claim=claim,
            )
            return await answered(deployment)

        async def answered(deployment: Deployment) -> Deployed:
            alerts = await app.alerts.verified()
            return Deployed(status="success", **_deployed(deployment, app, alerts))

        async def again(id: str) -> Deployed:
            return await answered(await app.store.deployments.get(id))

        return await once(request, caller, key, begin, again, status=202)

    @routes.get("/rollouts", summary="All rollouts, newest first")
    async def rollouts(
        app: TheApp,
        _: Reader,
        pipeline: str | None = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Paged[RolloutState]:
        page = await app.store.deployments.page(pipeline=pipeline, cursor=cursor, limit=limit)
        alerts = await app.alerts.verified()
        items = [deployment_state(d, (), app, alerts) for d in page.items]
        return Paged(items=items, next_cursor=page.next_cursor)

    @routes.get("/status/{deployment_id}", summary="Where a rollout stands")
    async def status(
        app: TheApp, _: Reader, deployment_id: str, response: Response
    ) -> RolloutState:
        deployment = await app.store.deployments.get(deployment_id)
        history = await app.rollouts.history(deployment_id)
        response.headers.update(etag(deployment.version))
        return deployment_state(deployment, history, app, await app.alerts.verified())

    @routes.post("/rollback/{deployment_id}", summary="Return all traffic to the old model")
    async def rollback(
        app: TheApp, caller: Writer, deployment_id: str, asked: Reason, if_match: IfMatch = None
    ) -> RolledBack:
        return rolled_back(
            await app.rollouts.rollback(
                deployment_id,
                reason=asked.reason,
                actor=caller.actor,
                expected_version=expected(if_match),
            )
        )

    for action in get_args(Action):
        routes.post(f"/{action}/{{deployment_id}}", summary=f"{action.capitalize()} a rollout")(
            _change(action)
        )

    return routes


def _change(action: Action) -> Callable[..., Awaitable[RolloutState]]:
    """The route of one thing that a person does to a rollout."""

    async def change(
        app: TheApp,
        caller: Writer,
        deployment_id: str,
        asked: OptionalReason | None = None,
        if_match: IfMatch = None,
    ) -> RolloutState:
        deployment = await app.rollouts.act(
            deployment_id,
            action,
            reason=(asked.reason if asked else "") or f"asked by {caller.name}",
            actor=caller.actor,
            expected_version=expected(if_match),
        )
        history = await app.rollouts.history(deployment_id)
        return deployment_state(deployment, history, app, await app.alerts.verified())

    return change


Knows = Annotated[
    Literal["prompts"] | None,
    Query(
        description="`prompts`: the caller asks a model by the prompt that it is told. Who does "
        "not say so gets the model in use where variants own the prompt, and is no evidence."
    ),
]


def routing_router() -> APIRouter:
    """The routes under `/routing`: what clients decide by."""
    routes = APIRouter(prefix="/routing", tags=["routing"], responses=RESPONSES)

    @routes.get(
        "",
        response_model=RoutingAnswer,
        summary="Which model serves each task",
        responses={304: {"description": "It is the version of `If-None-Match` yet"}},
    )
    async def table(
        app: TheApp,
        _: Reader,
        after: Annotated[int, Query(ge=0, description="Answer when it is newer.")] = 0,
        wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait.")] = 0,
        knows: Knows = None,
        seen: Annotated[str | None, Header(alias="If-None-Match")] = None,
    ) -> Response:
        found = app.routing.board.snapshot
        if wait and found.version <= after:
            found = await _newer(app, after, wait)
        headers = etag(found.tag[knows is not None])
        if seen is not None and seen == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        body = found.body[knows is not None]
        return Response(body, headers=headers, media_type="application/json")

    @routes.post("/{task}/rollback", summary="Return a task to its old model")
    async def rollback(app: TheApp, caller: Writer, task: str, asked: Reason) -> RolledBack:
        return rolled_back(
            await app.rollouts.rollback(task, reason=asked.reason, actor=caller.actor)
        )

    return routes


def decide_router() -> APIRouter:
    """`/decide`: for callers that cannot hold the routing themselves."""
    routes = APIRouter(tags=["routing"], responses=RESPONSES)

    @routes.get("/decide", response_model=Decided, summary="Which model serves this unit")
    async def decide(
        app: TheApp,
        _: Reader,
        task: Annotated[str, Query(min_length=1, max_length=200)],
        unit: Annotated[str, Query(min_length=1, max_length=MAX_UNIT)],
        knows: Knows = None,
    ) -> Response:
        answers = app.routing.board.snapshot.answers[knows is not None]
        if task not in answers:
            known = ", ".join(answers) or "none yet"
            raise NotFoundError(
                f"No routing is known for task {task!r} (known: {known}).",
                mend="Check the name; a task has a routing once its first test or rollout began.",
            )
        return Response(answers[task].decide(unit), media_type="application/json")

    return routes


async def _newer(app: TheApp, after: int, wait: float) -> RoutingSnapshot:
    """The state once it is newer than `after`, or what it is when the wait is over."""
    board = app.routing.board
    with app.live.listen() as events, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait):
            while board.snapshot.version <= after and await events.get() is not None:
                pass
    return board.snapshot


def rolled_back(result: RollbackResult) -> RolledBack:
    """The answer to a rollback."""
    return RolledBack(
        deployment_id=result.deployment_id,
        status=str(result.status),
        restored_model=result.restored_model,
        reason=result.reason,
        rollback_time_seconds=result.seconds,
        overtook=result.overtook,
    )


def deployment_state(
    deployment: Deployment, history: Sequence[HistoryEntry], app: TheApp, alerts: bool
) -> RolloutState:
    """A rollout as `GET /deployment/status` answers it; `alerts` says whether they arrive."""
    same = ["run_id", "pipeline", "ab_test_id", "step", "created_at", "step_started_at"]
    same += ["next_at", "ended_at", "cause", "version"]
    return RolloutState(
        status=str(deployment.state),
        **_deployed(deployment, app, alerts),
        **{name: getattr(deployment, name) for name in same},
        tasks=list(deployment.tasks),
        candidate=Model.of(deployment.candidate),
        previous=Model.of(deployment.previous),
        steps=list(deployment.plan.steps),
        interval_hours=deployment.plan.interval_hours,
        holdback=deployment.plan.holdback,
        holdback_days=deployment.plan.holdback_days,
        evidence=dict(deployment.evidence),
        history=[HistoryLine.model_validate(asdict(entry)) for entry in history],
    )


def _deployed(deployment: Deployment, app: TheApp, alerts: bool) -> dict[str, Any]:
    settings = app.settings
    known = {c.name: c for c in (*settings.pipelines.values(), *app.pipelines.running)}
    config = known.get(deployment.pipeline)
    return {
        "deployment_id": deployment.id,
        "state": str(deployment.state),
        "deployment_strategy": deployment.plan.strategy,
        "current_traffic": deployment.share,
        "rollback_plan": {
            "previous_model": deployment.previous.model_id,
            "rollback_time_seconds": ROLLBACK_S,
            "health_check_endpoints": [
                "/health/model-performance",
                "/health/response-time",
            ],
        },
        "monitoring": {
            "deployment_dashboard": f"/dashboard/deployment/{deployment.id}",
            "alerts_configured": alerts,
            "rollback_triggers": [] if config is None else triggers(config),
        },
    }


def triggers(config: PipelineConfig) -> list[str]:
    """The names of what rolls a rollout of this pipeline back by itself."""
    return [
        f"engagement_rate_drop_{config.max_engagement_drop * 100:g}_percent",
        f"error_rate_above_{config.max_error_rate * 100:g}_percent",
        f"response_time_above_{config.max_p95_latency_ms:g}ms",
    ]
