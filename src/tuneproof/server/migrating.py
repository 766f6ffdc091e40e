"""A move to another model over HTTP: what it would take, and its start."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from tuneproof.app import CHEAPER, MARGIN, MigrationPlan
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.fine_tuning import RecipeRequest, Started, started
from tuneproof.server.models import Answer, IdempotencyKey, Instant, Strict
from tuneproof.server.once import once
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp
from tuneproof.store import Claim

__all__ = ["router"]


class MoveRequest(Strict):
    """Where to move, and what must be shown."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "recipes": [{"make": "as_is", "model": "gpt-5-mini", "provider": "openai"}],
                "margin": 0.05,
                "cheaper": 0.1,
            }
        }
    )

    pipeline: str = Field(default="default", max_length=200)
    recipes: list[RecipeRequest] = Field(min_length=1, max_length=20)
    margin: float = Field(
        default=MARGIN, gt=0, lt=1, description="How much engagement may be below, at most."
    )
    cheaper: float = Field(
        default=CHEAPER, ge=0, lt=1, description="How much less it must cost; 0: that is no reason."
    )

    def told(self) -> list[dict[str, str]]:
        """The recipes, as the settings have them."""
        return [one.model_dump(exclude_none=True) for one in self.recipes]


class StartMoveRequest(MoveRequest):
    """The same; `late`: start also where it cannot be over before the model is shut down."""

    late: bool = False


class Served(Answer):
    """A model, and who serves it."""

    model: str
    provider: str


class MovePlan(Answer):
    """What a move would take; days, shares, USD. Times are null where no shutdown is announced."""

    sentences: list[str]
    pipeline: str
    model: str
    provider: str
    in_use: list[Served] = Field(
        description="the models in use, each once: `model` and `provider` are of the first"
    )
    candidates: list[str]
    criteria: list[str]
    share: float
    units: float | None = Field(description="that each candidate gets within the test")
    test_days: float
    maturation_days: float
    rollout_days: float
    shutdown_at: Instant | None
    start_by: Instant | None
    probability: float | None = Field(description="that the test shows what is asked of engagement")
    cost_usd: float | None
    warnings: list[str]


def _plan(found: MigrationPlan, app: TheApp) -> MovePlan:
    day = 86_400
    same = ("pipeline", "share", "units", "shutdown_at", "start_by")
    in_use = [Served(model=one.model, provider=one.provider) for one in found.in_use]
    return MovePlan(
        sentences=found.sentences(app.clock.now()),
        **{name: getattr(found, name) for name in same},
        model=in_use[0].model,
        provider=in_use[0].provider,
        in_use=in_use,
        candidates=list(found.candidates),
        criteria=list(found.criteria),
        test_days=found.takes.test.total_seconds() / day,
        maturation_days=found.takes.maturing.total_seconds() / day,
        rollout_days=found.takes.rollout.total_seconds() / day,
        probability=found.cycle.probability,
        cost_usd=found.cycle.cost_usd,
        warnings=list(found.warnings),
    )


def router() -> APIRouter:
    """The routes under `/migration`."""
    routes = APIRouter(prefix="/migration", tags=["fine-tuning"], responses=RESPONSES)

    @routes.post("/plan", summary="What a move to another model would take")
    async def plan(app: TheApp, _: Reader, asked: MoveRequest) -> MovePlan:
        found = await app.migration.plan(
            asked.told(), pipeline=asked.pipeline, margin=asked.margin, cheaper=asked.cheaper
        )
        return _plan(found, app)

    @routes.post(
        "/start", status_code=202, response_model=Started, summary="Test and roll out a successor"
    )
    async def start(
        request: Request,
        app: TheApp,
        caller: Writer,
        asked: StartMoveRequest,
        key: IdempotencyKey = None,
    ) -> Response:
        async def begin(claim: Claim | None) -> Started:
            run = await app.migration.start(
                asked.told(),
                pipeline=asked.pipeline,
                margin=asked.margin,
                cheaper=asked.cheaper,
                late=asked.late,
                actor=caller.actor,
                claim=claim,
            )
            return await again(run.id)

        async def again(id: str) -> Started:
            return started(await app.store.runs.get(id))

        return await once(request, caller, key, begin, again, status=202)

    return routes
