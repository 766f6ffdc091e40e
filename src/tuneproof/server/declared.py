"""What is declared of a test, as it is asked for and answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import ConfigDict, Field, model_validator

from tuneproof.experiments import Declared
from tuneproof.server.families import EXAMPLE_FAMILY, FamilyAllocation
from tuneproof.server.models import Answer, Instant, Model, Strict

if TYPE_CHECKING:
    from tuneproof.experiments import ABTest

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

    @property
    def candidates(self) -> list[Model]:
        """All that are to be tested."""
        return self.candidate_models or [m for m in (self.candidate_model,) if m is not None]

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


def declared_test(test: ABTest) -> dict[str, Any]:
    return {
        "ab_test_id": test.id,
        "status": str(test.status),
        "start_time": test.start_at,
        "estimated_end_time": test.end_at,
        "traffic_allocation": {
            "baseline": round(1 - test.declaration.traffic_split * test.lanes, 10),
            "candidate": test.declaration.traffic_split,
        },
        "monitoring_endpoints": {
            "metrics": f"/evaluation/metrics/{test.id}",
            "status": f"/evaluation/status/{test.id}",
        },
    }


def declared_family(tests: Sequence[ABTest]) -> FamilyDeclared:
    shares = [test.declaration.traffic_split for test in tests]
    return FamilyDeclared(
        family=tests[0].family,
        status=str(tests[0].status),
        start_time=tests[0].start_at,
        estimated_end_time=tests[0].end_at,
        traffic_allocation=FamilyAllocation(baseline=round(1 - sum(shares), 10), candidates=shares),
        tests=[Test.model_validate(declared_test(test)) for test in tests],
    )


def test_state(test: ABTest) -> TestState:
    """A test as `GET /evaluation/status` answers it."""
    return TestState(
        **declared_test(test),
        family=test.siblings,
        run_id=test.run_id,
        pipeline=test.pipeline,
        tasks=list(test.tasks),
        baseline_model=Model.of(test.baseline),
        candidate_model=Model.of(test.candidate),
        success_criteria=SuccessCriteria(
            min_engagement_lift=test.declaration.min_engagement_lift,
            min_cost_efficiency_gain=test.declaration.min_cost_efficiency_gain,
            significance_threshold=test.declaration.significance_threshold,
        ),
        decision=test.declaration.decision,
        cost_metric=test.declaration.cost_metric,
        duration_hours=test.declaration.a_b_test_duration_hours,
        maturation_hours=test.declaration.maturation_hours,
        min_units=test.declaration.min_units,
        min_units_phase=test.declaration.min_units_phase,
        last_look_at=test.last_look_at,
        criteria=[str(c) for c in test.all_criteria],
        segments=list(test.declaration.segments),
        segment_guardrail=test.declaration.segment_guardrail,
        allocation=test.declaration.allocation,
        analysis_unit=test.declaration.analysis_unit,
        cuped=test.declaration.cuped,
        ledger_alpha=test.alpha,
        promotion_alpha=test.promotion_alpha,
        retest=test.retest,
        verdict=None if test.verdict is None else str(test.verdict),
        reason=test.reason,
    )


def declared_answer(test: ABTest) -> DeclaredAnswer:
    return DeclaredAnswer(
        criteria=[str(c) for c in test.all_criteria],
        significance_threshold=test.declaration.significance_threshold,
        decision=test.declaration.decision,
        cost_metric=test.declaration.cost_metric,
        segments=list(test.declaration.segments),
        segment_guardrail=test.declaration.segment_guardrail,
        allocation=test.declaration.allocation,
        analysis_unit=test.declaration.analysis_unit,
        cuped=test.declaration.cuped,
        maturation_hours=test.declaration.maturation_hours,
        min_units=test.declaration.min_units,
        min_units_phase=test.declaration.min_units_phase,
    )
