"""Experiments over HTTP: declare, status, looks, metrics, end."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from tuneproof.experiments.report import STYLE, report_html
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.declared import (
    EXAMPLE_TEST,
    CreateRequest,
    FamilyDeclared,
    Test,
    TestState,
    declared_family,
    declared_test,
    test_state,
)
from tuneproof.server.families import family_of
from tuneproof.server.figures import LookAnswer, MetricsAnswer, look_answer, metrics_of
from tuneproof.server.models import (
    Answer,
    Cursor,
    IdempotencyKey,
    Instant,
    Limit,
    Paged,
    Reason,
    bounds_of,
    setting,
)
from tuneproof.server.once import once
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp
from tuneproof.settings import PipelineConfig

PlanShare = Annotated[float | None, Query(**bounds_of(setting(PipelineConfig, "traffic_split")))]
PlanHours = Annotated[
    float | None, Query(**bounds_of(setting(PipelineConfig, "a_b_test_duration_hours")))
]
PlanDaysBack = Annotated[float | None, Query(**bounds_of(setting(PipelineConfig, "days_back")))]
PlanCandidates = Annotated[int | None, Query(**bounds_of(setting(PipelineConfig, "candidates")))]

if TYPE_CHECKING:
    from tuneproof.experiments import ABTest
    from tuneproof.store import Claim

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

REPORT_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The report carries its style with it, known by its hash, and nothing else."""


class TallyAnswer(Answer):
    """The answers of one arm: scored, still waiting, dropped and why; `mean` of the scores."""

    scored: int
    waiting: int
    dropped: int
    mean: float | None
    reasons: dict[str, int]


class ScoringAnswer(Answer):
    """How the answers of a test are scored. `calls` and `cost_usd` are today's, the pipeline's."""

    ab_test_id: str = Field(examples=[EXAMPLE_TEST])
    scorer: str | None
    baseline: TallyAnswer
    candidate: TallyAnswer
    calls: int
    cost_usd: float
    quality_calls_day: int
    quality_cost_usd_day: float | None
    waits: str | None = Field(description="why answers wait for their scores")


class PlanAnswer(Answer):
    """What a test of the next candidate would find on this traffic. Shares, hours, USD."""

    sentence: str
    lift: float
    share: float
    hours: float
    alpha: float = Field(description="the two-sided level that is left for promoting")
    decision: str
    units_per_hour: float | None
    mean: float | None
    cv: float | None
    probability: float | None
    promoted: float | None
    needed_h: float | None
    training_cost_usd: float | None
    answers_cost_usd: float | None
    training_s: float | None = Field(
        description="how long the training takes; null: none that was like it has ended yet"
    )
    reason: str
    candidates: int = Field(description="how many are tested at once; the rest is about one")
    unpriced: int = Field(description="how many of them have answers whose price is not set")
    selects: str = Field(description="which posts a run would learn from; empty with `task`")


class ShadowSetting(Answer):
    """Who gets copies of a task's requests, and within which bounds."""

    model: str
    provider: str
    share: float
    concurrency: int
    budget_usd: float | None = Field(description="a day (UTC); null: unlimited")


class AnswersShown(Answer):
    """All answers of one side to the same requests; tokens and cost as far as they are known."""

    requests: int
    errors: int
    mean_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    tokens: int
    cost_usd: float


class ShadowWeekShown(Answer):
    """A week (from Monday, UTC) of copies for one model: `baseline` is what users got."""

    subject: str = Field(description="of GET /events?subject=")
    model: str
    began: Instant
    baseline: AnswersShown
    shadow: AnswersShown


class ShadowAnswer(Answer):
    """A task's shadow traffic, the newest week first. `shadow` is null where none is set."""

    task: str
    shadow: ShadowSetting | None
    spent_usd: float = Field(description="today (UTC)")
    weeks: list[ShadowWeekShown]


def router() -> APIRouter:
    """The routes under `/evaluation`."""
    routes = APIRouter(prefix="/evaluation", tags=["evaluation"], responses=RESPONSES)

    @routes.post(
        "/create-ab-test",
        status_code=201,
        response_model=Test | FamilyDeclared,
        summary="Declare a test, or several at once",
    )
    async def create(
        request: Request,
        app: TheApp,
        caller: Writer,
        asked: CreateRequest,
        key: IdempotencyKey = None,
    ) -> Response:
        async def declare(claim: Claim | None) -> Test | FamilyDeclared:
            baseline = await asked.baseline_model.ref(app)
            common: dict[str, Any] = {
                "traffic_split": asked.traffic_split,
                "duration_hours": asked.duration_hours,
                "pipeline": asked.pipeline,
                "tasks": asked.tasks,
                "actor": caller.actor,
                "claim": claim,
                **asked.declared(),
            }
            candidates = [await model.ref(app) for model in asked.candidates]
            tests = await app.experiments.create(baseline=baseline, candidates=candidates, **common)
            return answered(tests)

        def answered(tests: Sequence[ABTest]) -> Test | FamilyDeclared:
            if asked.candidate_models is None:
                return Test.model_validate(declared_test(tests[0]))
            return declared_family(tests)

        async def again(family: str) -> Test | FamilyDeclared:
            return answered(await app.store.experiments.family(family))

        return await once(request, caller, key, declare, again, status=201)

    @routes.get("/tests", summary="All tests, newest first")
    async def tests(
        app: TheApp,
        _: Reader,
        pipeline: str | None = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Paged[TestState]:
        page = await app.store.experiments.page(pipeline=pipeline, cursor=cursor, limit=limit)
        return Paged(items=[test_state(t) for t in page.items], next_cursor=page.next_cursor)

    @routes.get("/plan", summary="What a test would find on this traffic, and when")
    async def plan(
        app: TheApp,
        _: Reader,
        pipeline: str = "default",
        share: PlanShare = None,
        hours: PlanHours = None,
        lift: Annotated[float | None, Query(gt=-1, le=100, allow_inf_nan=False)] = None,
        days_back: PlanDaysBack = None,
        candidates: PlanCandidates = None,
        task: Annotated[
            str | None,
            Query(
                min_length=1,
                max_length=200,
                description="Plan from what the gateway recorded of this task, not from posts.",
            ),
        ] = None,
    ) -> PlanAnswer:
        found = await app.experiments.plan(
            pipeline=pipeline,
            share=share,
            hours=hours,
            lift=lift,
            days_back=days_back,
            candidates=candidates,
            task=task,
        )
        selects = (
            "" if task else await app.experiments.selection(pipeline=pipeline, days_back=days_back)
        )
        return PlanAnswer(sentence=found.sentence(), selects=selects, **asdict(found))

    @routes.get("/shadow/{task}", summary="What a task's shadow traffic showed")
    async def shadow(app: TheApp, _: Reader, task: str) -> ShadowAnswer:
        return ShadowAnswer.model_validate(await app.shadows.read(task))

    @routes.get("/status/{ab_test_id}", summary="Where a test stands")
    async def status(app: TheApp, _: Reader, ab_test_id: str) -> TestState:
        return test_state(await app.store.experiments.get(ab_test_id))

    @routes.get("/looks/{ab_test_id}", summary="All looks at a test, oldest first")
    async def looks(app: TheApp, _: Reader, ab_test_id: str) -> list[LookAnswer]:
        await app.store.experiments.get(ab_test_id)
        return [look_answer(look) for look in await app.experiments.looks(ab_test_id)]

    @routes.get("/scores/{ab_test_id}", summary="How the answers of a test are scored")
    async def scores(app: TheApp, _: Reader, ab_test_id: str) -> ScoringAnswer:
        found = await app.scoring.of(ab_test_id)
        arms = {str(arm): TallyAnswer.model_validate(tally) for arm, tally in found.arms.items()}
        return ScoringAnswer(
            ab_test_id=ab_test_id,
            scorer=found.scorer,
            calls=found.today.calls,
            cost_usd=found.today.cost_usd,
            quality_calls_day=found.calls_day,
            quality_cost_usd_day=found.cost_usd_day,
            waits=found.waits,
            **arms,
        )

    @routes.get("/metrics/{ab_test_id}", summary="What a test shows")
    async def metrics(app: TheApp, _: Reader, ab_test_id: str) -> MetricsAnswer:
        test = await app.store.experiments.get(ab_test_id)
        found = metrics_of(test, await app.experiments.shown(test), app.clock.now())
        if test.siblings is not None:
            found.family = await family_of(app, test.siblings)
        return found

    @routes.get(
        "/report/{ab_test_id}", response_class=HTMLResponse, summary="A test as one HTML page"
    )
    async def report(app: TheApp, _: Reader, ab_test_id: str) -> HTMLResponse:
        test = await app.store.experiments.get(ab_test_id)
        family = [] if test.siblings is None else await app.store.experiments.family(test.siblings)
        beside = [(t, await app.experiments.looks(t.id)) for t in family]
        page = report_html(test, await app.experiments.looks(ab_test_id), beside)
        return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    @routes.post("/end/{ab_test_id}", summary="End a test before its time")
    async def end(app: TheApp, caller: Writer, ab_test_id: str, asked: Reason) -> TestState:
        test = await app.store.experiments.get(ab_test_id)
        [ended] = await app.experiments.end(test.id, reason=asked.reason, actor=caller.actor)
        return test_state(ended)

    return routes
