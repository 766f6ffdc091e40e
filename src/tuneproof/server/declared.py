"""What is declared of a test, as it is asked for and answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from tuneproof.server.families import EXAMPLE_FAMILY, FamilyAllocation
from tuneproof.server.models import Answer, Instant, Model, Strict, bounds_of
from tuneproof.settings import Declaration, Option, options

if TYPE_CHECKING:
    from tuneproof.experiments import ABTest

EXAMPLE_TEST = "ab-test-20261120-001"


class CriterionAsked(Strict):
    """One thing that must hold: better by more than `margin`, or worse by no more than it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"metric": "quality", "kind": "non_inferior", "margin": 0.02}}
    )

    metric: str = Field(max_length=100, description="engagement, cost, quality or latency")
    kind: str = Field(max_length=100, description="superior or non_inferior")
    margin: float = Field(allow_inf_nan=False, description="a share; of latency an absolute one")


_THRESHOLDS = tuple(o.name for o in options(Declaration) if o.within == "success_criteria")

_CRITERIA = ["engagement superior 0.15", "cost superior 0.1"]


def _asked(option: Option) -> tuple[Any, Any]:
    """The field of a request that sets an option: None is as the settings say."""
    if option.name == "criteria":
        kind: Any = list[str | CriterionAsked]
        bounds: dict[str, Any] = {"min_length": 1, "max_length": 20}
    elif option.is_list:
        kind, bounds = list[str], {"max_length": 20}
    else:
        kind, bounds = option.kind, bounds_of(option)
    examples = list(option.choices) or None
    about = Field(default=None, description=option.plain_doc, examples=examples, **bounds)
    return kind | None, about


def _answered(option: Option) -> tuple[Any, Any]:
    """The field of an answer that shows an option."""
    kind = list[str] if option.is_list else option.kind
    kind = kind | None if option.optional else kind
    examples = [_CRITERIA] if option.name == "criteria" else list(option.choices) or None
    return kind, Field(description=option.plain_doc, examples=examples)


_BASE = (*_THRESHOLDS, "traffic_split", "a_b_test_duration_hours")
"""What an answer shows elsewhere than by its key at the top."""


def threshold_fields(record: type[Declaration] = Declaration) -> dict[str, Any]:
    """What `success_criteria` holds."""
    return {o.request_key: _asked(o) for o in options(record) if o.name in _THRESHOLDS}


def request_fields(record: type[Declaration] = Declaration) -> dict[str, Any]:
    """What a request holds beside `success_criteria`."""
    return {o.request_key: _asked(o) for o in options(record) if o.name not in _THRESHOLDS}


def shown_fields(record: type[Declaration] = Declaration) -> dict[str, Any]:
    """What answers show by the keys of a request."""
    return {o.request_key: _answered(o) for o in options(record) if o.name not in _BASE}


if TYPE_CHECKING:

    class SuccessCriteria(Strict):
        """As it is made below."""

    class _Asked(Strict):
        traffic_split: float | None
        duration_hours: float | None
        success_criteria: SuccessCriteria | None

    class _Declared(Answer):
        """As it is made below."""

else:
    SuccessCriteria = create_model(
        "SuccessCriteria",
        __base__=Strict,
        __doc__="The thresholds of engagement and cost, and the error. Shares, not percent.\n\n"
        "What a request leaves out is as the settings say.",
        **threshold_fields(),
    )
    _Asked = create_model(
        "_Asked",
        __base__=Strict,
        success_criteria=(SuccessCriteria | None, None),
        **request_fields(),
    )
    _Declared = create_model("_Declared", __base__=Answer, **shown_fields())


class CreateRequest(_Asked):
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
    pipeline: str = Field(default="default", max_length=200)
    tasks: list[str] | None = Field(default=None, min_length=1, max_length=100)
    replace_baseline: bool = Field(
        default=False,
        description="put a baseline into production that is not the model in use: both are asked "
        "first, and POST /routing/TASK/rollback returns to the model before",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.candidate_model is None) == (self.candidate_models is None):
            raise ValueError("give either candidate_model or candidate_models")
        return self

    @property
    def candidates(self) -> list[Model]:
        """All that are to be tested."""
        return self.candidate_models or [m for m in (self.candidate_model,) if m is not None]

    def declared(self) -> dict[str, Any]:
        """What of it is of the test itself, for `declare`."""
        facts = {"baseline_model", "candidate_model", "candidate_models", "pipeline", "tasks"}
        return self.model_dump(exclude=facts | {"traffic_split", "duration_hours"})


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


class TestState(_Declared, Test):
    """A test, with what is declared of it and how it ended."""

    family: str | None = Field(description="the family that it was declared with")

    run_id: str | None
    pipeline: str
    tasks: list[str]
    baseline_model: Model
    candidate_model: Model
    success_criteria: SuccessCriteria
    duration_hours: float
    last_look_at: Instant
    ledger_alpha: float | None = Field(
        description="the chance of a false promotion that the pipeline's ledger leaves"
    )
    promotion_alpha: float = Field(description="the two-sided level at which a look may promote")
    retest: int = Field(description="how often this candidate was tested before")
    verdict: str | None
    reason: str | None


class DeclaredAnswer(_Declared):
    """What was declared of the test, and does not change while it runs."""

    significance_threshold: float
    duration_hours: float


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
            **{name: getattr(test.declaration, name) for name in _THRESHOLDS}
        ),
        duration_hours=test.declaration.a_b_test_duration_hours,
        last_look_at=test.last_look_at,
        **_shown(test),
        ledger_alpha=test.alpha,
        promotion_alpha=test.promotion_alpha,
        retest=test.retest,
        verdict=None if test.verdict is None else str(test.verdict),
        reason=test.reason,
    )


def declared_answer(test: ABTest) -> DeclaredAnswer:
    return DeclaredAnswer(
        significance_threshold=test.declaration.significance_threshold,
        duration_hours=test.declaration.a_b_test_duration_hours,
        **_shown(test),
    )


def _shown(test: ABTest) -> dict[str, Any]:
    """The options of a test's declaration by the names of an answer."""
    told = {
        option.request_key: getattr(test.declaration, option.name)
        for option in options(Declaration)
        if option.name not in _BASE
    }
    return {**told, "criteria": [str(c) for c in test.all_criteria]}
