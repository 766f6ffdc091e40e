"""Experiments over HTTP: declare, status, looks, metrics, end."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import ConfigDict, Field, model_validator

from tuneproof.experiments import Declared
from tuneproof.experiments.report import report_html
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.families import EXAMPLE_FAMILY, FamilyAllocation, FamilyState, family_of
from tuneproof.server.models import (
    Answer,
    Cursor,
    IdempotencyKey,
    Instant,
    Limit,
    Model,
    Paged,
    Reason,
    Share,
    Strict,
)
from tuneproof.server.once import once
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuneproof.experiments import ABTest, ArmMetrics, EvaluationResult, Look

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The report carries its style with it, and nothing else."""

EXAMPLE_TEST = "ab-test-20261120-001"


class SuccessCriteria(Strict):
    """The thresholds of engagement and cost, and the error. Shares, not percent.

    What a request leaves out is as the settings say.
    """

    min_engagement_lift: float | None = Field(default=None, ge=-1, allow_inf_nan=False)
    min_cost_efficiency_gain: float | None = Field(default=None, ge=-10, le=1, allow_inf_nan=False)
    significance_threshold: float | None = Field(default=None, gt=0, le=0.5)


class CriterionAsked(Strict):
    """One thing that must hold: better by more than `margin`, or worse by no more than it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"metric": "quality", "kind": "non_inferior", "margin": 0.02}}
    )

    metric: str = Field(max_length=100, description="engagement, cost, quality or latency")
    kind: str = Field(max_length=100, description="superior or non_inferior")
    margin: float = Field(allow_inf_nan=False, description="a share; of latency an absolute one")


class CreateRequest(Strict):
    """A new test of a candidate against a baseline. What is left out is as the settings say.

    `criteria` is the whole list of what must hold, as objects or as texts; beside it,
    `success_criteria` may only have `significance_threshold`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "baseline_model": {"model_id": "ngram-base", "version": None},
                "candidate_model": {"model_id": "ft:ngram:hook:7f3a", "version": "1.4.0"},
                "traffic_split": 0.1,
                "duration_hours": 168,
                "criteria": ["engagement superior 0.15", "quality non_inferior 0.02"],
                "success_criteria": {"significance_threshold": 0.05},
                "segments": ["persona"],
                "segment_guardrail": True,
                "allocation": "fixed",
                "decision": "spec",
            }
        }
    )

    baseline_model: Model
    candidate_model: Model | None = None
    candidate_models: list[Model] | None = Field(
        default=None,
        min_length=2,
        max_length=20,
        description="several candidates at once, instead of candidate_model: traffic_split is "
        "the share of each",
    )
    traffic_split: float | None = Field(default=None, gt=0, le=0.5)
    duration_hours: float | None = Field(default=None, gt=0, le=24 * 365)
    success_criteria: SuccessCriteria | None = None
    criteria: list[str | CriterionAsked] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        description="all of it must hold at one look; latency's margin is absolute",
    )
    segments: list[str] | None = Field(
        default=None, max_length=20, description="attributes of the exposures; [] for none"
    )
    segment_guardrail: bool | None = Field(
        default=None, description="whether a segment that is harmed ends the test"
    )
    allocation: str | None = Field(default=None, description="fixed or thompson")
    analysis_unit: str | None = Field(
        default=None, description="unit, or item: each item of a unit is counted"
    )
    cuped: bool | None = Field(
        default=None, description="whether the exposures' covariate adjusts the lift"
    )
    decision: str | None = Field(default=None, description="spec or confirmed")
    cost_metric: str | None = Field(default=None, description="per_engagement or per_token")
    maturation_hours: float | None = Field(default=None, ge=0, le=24 * 365)
    min_units: int | None = Field(default=None, ge=2, le=10**9)
    min_units_phase: int | None = Field(default=None, ge=2, le=10**9)
    pipeline: str = Field(default="default", max_length=200)
    tasks: list[str] | None = Field(default=None, min_length=1, max_length=100)

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.candidate_model is None) == (self.candidate_models is None):
            raise ValueError("give either candidate_model or candidate_models")
        return self

    def declared(self) -> Declared:
        """What of it is of the test itself, for `declare`."""
        fields = self.model_dump(include=set(Declared.__annotations__))
        return cast(Declared, fields)


class Allocation(Answer):
    """The share of the units that each arm gets."""

    baseline: float
    candidate: float


class Endpoints(Answer):
    """Where to look at the test."""

    metrics: str
    status: str


class Test(Answer):
    """A declared test."""

    __test__ = False

    ab_test_id: str = Field(examples=[EXAMPLE_TEST])
    status: str = Field(examples=["running"])
    start_time: Instant
    estimated_end_time: Instant
    traffic_allocation: Allocation
    monitoring_endpoints: Endpoints


class FamilyDeclared(Answer):
    """The tests of several candidates that were declared at once, by `candidate_models`."""

    family: str = Field(examples=[EXAMPLE_FAMILY])
    status: str = Field(examples=["running"])
    start_time: Instant
    estimated_end_time: Instant
    traffic_allocation: FamilyAllocation
    tests: list[Test]


class TestState(Test):
    """A test, with what is declared of it and how it ended."""

    family: str | None = Field(description="the family that it was declared with")

    run_id: str | None
    pipeline: str
    tasks: list[str]
    baseline_model: Model
    candidate_model: Model
    success_criteria: SuccessCriteria
    decision: str
    cost_metric: str
    duration_hours: float
    maturation_hours: float
    min_units: int
    min_units_phase: int
    last_look_at: Instant
    criteria: list[str] = Field(examples=[["engagement superior 0.15", "cost superior 0.1"]])
    segments: list[str]
    segment_guardrail: bool
    allocation: str = Field(examples=["fixed", "thompson"])
    analysis_unit: str = Field(examples=["unit", "item"])
    cuped: bool
    ledger_alpha: float | None = Field(
        description="the chance of a false promotion that the pipeline's ledger leaves"
    )
    promotion_alpha: float = Field(description="the two-sided level at which a look may promote")
    retest: int = Field(description="how often this candidate was tested before")
    verdict: str | None
    reason: str | None


class ArmFigures(Answer):
    """What one arm showed; null where there is nothing to say yet. Money is USD."""

    engagement_rate: float | None
    cost_per_token: float | None
    cost_per_engagement: float | None
    response_time_ms: float | None
    quality_score: float | None
    sample_size: int
    p95_engagement: float | None


class Arms(Answer):
    """Both arms."""

    baseline: ArmFigures
    candidate: ArmFigures


class Comparison(Answer):
    """The candidate against the baseline, as shares; positive is better."""

    engagement_lift: float | None
    cost_efficiency_gain: float | None
    quality_improvement: float | None
    latency_improvement: float | None


class Interval(Answer):
    """The confidence sequence of the lift at `confidence_level`."""

    lower: float | None
    upper: float | None


class Statistics(Answer):
    """`p_value` is the anytime-valid one; `effect_size` the relative lift."""

    is_significant: bool
    confidence_level: Share
    p_value: float | None
    interval: Interval
    effect_size: float | None
    method: str | None
    expected_effect: Expected | None = None


class Metrics(Answer):
    """A test as its last look sees it."""

    ab_test_id: str = Field(examples=[EXAMPLE_TEST])
    status: str
    duration_hours: float
    declared: DeclaredAnswer
    metrics: Arms
    performance_comparison: Comparison
    statistical_analysis: Statistics
    criteria: list[CriterionAnswer] = Field(default_factory=list)
    halves: HalvesAnswer | None = None
    segments: list[SegmentAnswer] = Field(default_factory=list)
    recommendation: str = Field(description="promote, reject, continue or invalid")
    reason: str
    looks: int
    family: FamilyState | None = Field(
        default=None, description="all candidates side by side, where several were declared"
    )


class DeclaredAnswer(Answer):
    """What was declared of the test, and does not change while it runs."""

    criteria: list[str] = Field(examples=[["engagement superior 0.15", "cost superior 0.1"]])
    significance_threshold: float
    decision: str
    cost_metric: str
    segments: list[str]
    segment_guardrail: bool
    allocation: str
    analysis_unit: str
    cuped: bool
    maturation_hours: float
    min_units: int
    min_units_phase: int


class CriterionAnswer(Answer):
    """One metric at one look; a change is a share, positive where the candidate is better.

    `asked` is null for a metric that is only shown for the trade-off.
    """

    metric: str
    asked: str | None = Field(examples=["engagement superior 0.15"])
    holds: bool | None
    change: float | None
    lower: float | None
    upper: float | None
    reason: str


class Expected(Answer):
    """The lift to be expected of everybody, shrunk towards past experiments."""

    lift: float
    lower: float
    upper: float
    observed: float
    weight: float
    prior_mean: float
    prior_sd: float
    prior_experiments: int
    mean_lift: float | None


class PartAnswer(Answer):
    """The lift in a part of the units."""

    lift: float | None
    lower: float | None
    upper: float | None
    n_baseline: int
    n_candidate: int


class HalvesAnswer(Answer):
    """First half of the time against the second; exploratory."""

    first: PartAnswer
    second: PartAnswer
    p_value: float | None
    reason: str


class SegmentAnswer(Answer):
    """The lift among the units of one attribute value; exploratory, decides nothing."""

    attribute: str
    value: str
    lift: float | None
    lower: float | None
    upper: float | None
    n_baseline: int
    n_candidate: int
    found: bool
    harmed: bool
    reason: str


class LookAnswer(Answer):
    """One analysis."""

    number: int
    at: Instant
    matured_before: Instant
    baseline: ArmFigures
    candidate: ArmFigures
    lift: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    cost_gain: float | None
    is_significant: bool
    declared: bool
    method: str
    verdict: str
    reason: str
    alpha: float | None
    standard_error: float | None
    expected: Expected | None
    halves: HalvesAnswer | None
    criteria: list[CriterionAnswer]
    segments: list[SegmentAnswer]
    reweighted: PartAnswer | None
    inputs: dict[str, Any]


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


class Plan(Answer):
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
    reason: str
    candidates: int = Field(description="how many are tested at once; the rest is about one")


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
        async def declare() -> Test | FamilyDeclared:
            baseline = await asked.baseline_model.ref(app)
            common: dict[str, Any] = {
                "traffic_split": asked.traffic_split,
                "duration_hours": asked.duration_hours,
                "pipeline": asked.pipeline,
                "tasks": asked.tasks,
                "actor": caller.actor,
                **asked.declared(),
            }
            if asked.candidate_model is not None:
                candidate = await asked.candidate_model.ref(app)
                test = await app.create_ab_test(baseline=baseline, candidate=candidate, **common)
                return Test.model_validate(_test(test))
            candidates = [await model.ref(app) for model in asked.candidate_models or ()]
            return _declared_family(
                await app.create_family(baseline=baseline, candidates=candidates, **common)
            )

        return await once(request, caller, key, declare, status=201)

    @routes.get("/tests", summary="All tests, newest first")
    async def tests(
        app: TheApp,
        _: Reader,
        pipeline: str | None = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Paged[TestState]:
        page = await app.experiments(pipeline=pipeline, cursor=cursor, limit=limit)
        return Paged(items=[test_state(t) for t in page.items], next_cursor=page.next_cursor)

    @routes.get("/plan", summary="What a test would find on this traffic, and when")
    async def plan(
        app: TheApp,
        _: Reader,
        pipeline: str = "default",
        share: Annotated[float | None, Query(gt=0, le=0.5)] = None,
        hours: Annotated[float | None, Query(gt=0, le=24 * 365)] = None,
        lift: Annotated[float | None, Query(gt=-1, le=100, allow_inf_nan=False)] = None,
        days_back: Annotated[float | None, Query(gt=0, le=3660)] = None,
        candidates: Annotated[int | None, Query(ge=1, le=20)] = None,
    ) -> Plan:
        found = await app.plan(
            pipeline=pipeline,
            share=share,
            hours=hours,
            lift=lift,
            days_back=days_back,
            candidates=candidates,
        )
        return Plan(sentence=found.sentence(), **asdict(found))

    @routes.get("/status/{ab_test_id}", summary="Where a test stands")
    async def status(app: TheApp, _: Reader, ab_test_id: str) -> TestState:
        return test_state(await app.experiment(ab_test_id))

    @routes.get("/looks/{ab_test_id}", summary="All looks at a test, oldest first")
    async def looks(app: TheApp, _: Reader, ab_test_id: str) -> list[LookAnswer]:
        await app.experiment(ab_test_id)
        return [_look(look) for look in await app.looks(ab_test_id)]

    @routes.get("/scores/{ab_test_id}", summary="How the answers of a test are scored")
    async def scores(app: TheApp, _: Reader, ab_test_id: str) -> ScoringAnswer:
        found = await app.scoring(ab_test_id)
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
    async def metrics(app: TheApp, _: Reader, ab_test_id: str) -> Metrics:
        test = await app.experiment(ab_test_id)
        found = _metrics(test, await app.evaluation(ab_test_id))
        if test.family is not None:
            found.family = await family_of(app, test.family)
        return found

    @routes.get(
        "/report/{ab_test_id}", response_class=HTMLResponse, summary="A test as one HTML page"
    )
    async def report(app: TheApp, _: Reader, ab_test_id: str) -> HTMLResponse:
        test = await app.experiment(ab_test_id)
        family = [] if test.family is None else await app.family(test.family)
        beside = [(t, await app.looks(t.id)) for t in family]
        page = report_html(test, await app.looks(ab_test_id), beside)
        return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    @routes.post("/end/{ab_test_id}", summary="End a test before its time")
    async def end(app: TheApp, caller: Writer, ab_test_id: str, asked: Reason) -> TestState:
        return test_state(
            await app.end_experiment(ab_test_id, reason=asked.reason, actor=caller.actor)
        )

    return routes


def _test(test: ABTest) -> dict[str, Any]:
    return {
        "ab_test_id": test.id,
        "status": str(test.status),
        "start_time": test.start_at,
        "estimated_end_time": test.end_at,
        "traffic_allocation": {
            "baseline": round(1 - test.traffic_split * test.lanes, 10),
            "candidate": test.traffic_split,
        },
        "monitoring_endpoints": {
            "metrics": f"/evaluation/metrics/{test.id}",
            "status": f"/evaluation/status/{test.id}",
        },
    }


def _declared_family(tests: Sequence[ABTest]) -> FamilyDeclared:
    shares = [test.traffic_split for test in tests]
    return FamilyDeclared(
        family=tests[0].salt,
        status=str(tests[0].status),
        start_time=tests[0].start_at,
        estimated_end_time=tests[0].end_at,
        traffic_allocation=FamilyAllocation(baseline=round(1 - sum(shares), 10), candidates=shares),
        tests=[Test.model_validate(_test(test)) for test in tests],
    )


def test_state(test: ABTest) -> TestState:
    """A test as `GET /evaluation/status` answers it."""
    return TestState(
        **_test(test),
        family=test.family,
        run_id=test.run_id,
        pipeline=test.pipeline,
        tasks=list(test.tasks),
        baseline_model=Model.of(test.baseline),
        candidate_model=Model.of(test.candidate),
        success_criteria=SuccessCriteria(
            min_engagement_lift=test.criteria.min_engagement_lift,
            min_cost_efficiency_gain=test.criteria.min_cost_efficiency_gain,
            significance_threshold=test.criteria.significance_threshold,
        ),
        decision=test.decision,
        cost_metric=test.cost_metric,
        duration_hours=test.duration_hours,
        maturation_hours=test.maturation_hours,
        min_units=test.min_units,
        min_units_phase=test.min_units_phase,
        last_look_at=test.last_look_at,
        criteria=[str(c) for c in test.all_criteria],
        segments=list(test.segments),
        segment_guardrail=test.segment_guardrail,
        allocation=test.allocation,
        analysis_unit=test.analysis_unit,
        cuped=test.cuped,
        ledger_alpha=test.alpha,
        promotion_alpha=test.promotion_alpha,
        retest=test.retest,
        verdict=None if test.verdict is None else str(test.verdict),
        reason=test.reason,
    )


def _metrics(test: ABTest, result: EvaluationResult | None) -> Metrics:
    look = None if result is None else result.look
    nothing = ArmFigures.model_validate(dict.fromkeys(ArmFigures.model_fields) | {"sample_size": 0})
    return Metrics(
        ab_test_id=test.id,
        status=str(test.status),
        duration_hours=test.duration_hours,
        declared=_declared(test),
        metrics=Arms(
            baseline=_arm(look.baseline) if look else nothing,
            candidate=_arm(look.candidate) if look else nothing,
        ),
        performance_comparison=_comparison(look),
        statistical_analysis=_statistics(test, look),
        **(_beside(look) if look else {"criteria": _open_criteria(test)}),
        recommendation=str(result.recommendation) if result else "continue",
        reason=result.reason if result else "There is no look yet.",
        looks=result.looks if result else 0,
    )


def _declared(test: ABTest) -> DeclaredAnswer:
    return DeclaredAnswer(
        criteria=[str(c) for c in test.all_criteria],
        significance_threshold=test.criteria.significance_threshold,
        decision=test.decision,
        cost_metric=test.cost_metric,
        segments=list(test.segments),
        segment_guardrail=test.segment_guardrail,
        allocation=test.allocation,
        analysis_unit=test.analysis_unit,
        cuped=test.cuped,
        maturation_hours=test.maturation_hours,
        min_units=test.min_units,
        min_units_phase=test.min_units_phase,
    )


def _open_criteria(test: ABTest) -> list[CriterionAnswer]:
    """The declared criteria while nothing is known of any."""
    nothing = {"holds": None, "change": None, "lower": None, "upper": None}
    return [
        CriterionAnswer(metric=c.metric, asked=str(c), reason="there is no look yet", **nothing)
        for c in test.all_criteria
    ]


def _comparison(look: Look | None) -> Comparison:
    if look is None:
        return Comparison.model_validate(dict.fromkeys(Comparison.model_fields))
    quality = _change(look.baseline.quality_score, look.candidate.quality_score)
    slower = _change(look.baseline.response_time_ms, look.candidate.response_time_ms)
    return Comparison(
        engagement_lift=look.lift,
        cost_efficiency_gain=look.cost_gain,
        quality_improvement=quality,
        latency_improvement=None if slower is None else -slower,
    )


def _statistics(test: ABTest, look: Look | None) -> Statistics:
    return Statistics(
        is_significant=look is not None and look.is_significant,
        confidence_level=1 - test.criteria.significance_threshold,
        p_value=None if look is None else look.p_value,
        interval=Interval(
            lower=None if look is None else look.lower,
            upper=None if look is None else look.upper,
        ),
        effect_size=None if look is None else look.lift,
        method=None if look is None else look.method,
        expected_effect=_expected(look),
    )


def _change(before: float | None, after: float | None) -> float | None:
    """The relative change, or None where either is unknown or there was nothing before."""
    return None if before is None or after is None or before == 0 else after / before - 1


def _arm(metrics: ArmMetrics) -> ArmFigures:
    return ArmFigures.model_validate(metrics)


def _look(look: Look) -> LookAnswer:
    fields = {name: getattr(look, name) for name in LookAnswer.model_fields}
    arms = {"baseline": _arm(look.baseline), "candidate": _arm(look.candidate)}
    return LookAnswer.model_validate(
        {
            **fields,
            **arms,
            **_beside(look),
            "reweighted": None if look.reweighted is None else asdict(look.reweighted),
            "expected": _expected(look),
            "verdict": str(look.verdict),
        }
    )


def _beside(look: Look) -> dict[str, Any]:
    """What a look says beside its lift."""
    return {
        "criteria": [
            CriterionAnswer(
                metric=r.metric,
                asked=None if r.criterion is None else str(r.criterion),
                holds=r.holds,
                change=r.change,
                lower=r.lower,
                upper=r.upper,
                reason=r.reason,
            )
            for r in look.criteria
        ],
        "halves": None if look.halves is None else HalvesAnswer(**asdict(look.halves)),
        "segments": [SegmentAnswer(**asdict(s)) for s in look.segments],
    }


def _expected(look: Look | None) -> Expected | None:
    return Expected(**asdict(look.expected)) if look is not None and look.expected else None
