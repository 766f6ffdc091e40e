"""What a test shows, as it is answered: looks, arms, criteria, segments."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tuneproof.experiments import ExperimentStatus, effect_size
from tuneproof.server.declared import EXAMPLE_TEST, DeclaredAnswer, declared_answer
from tuneproof.server.families import FamilyState
from tuneproof.server.models import Answer, Instant, Share

if TYPE_CHECKING:
    from tuneproof.experiments import ABTest, ArmMetrics, EvaluationResult, Look


class ArmFigures(Answer):
    """What one arm showed; null where there is nothing to say yet. Money is USD."""

    engagement_rate: float | None
    cost_per_token: float | None
    cost_per_engagement: float | None
    response_time_ms: float | None
    quality_score: float | None
    sample_size: int
    p95_engagement: float | None
    cost_known: float | None = Field(description="Share of the units whose cost is known.")
    usage_known: float | None = Field(description="Share of those whose tokens are known, too.")


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


class Statistics(Answer):
    """`p_value` is the anytime-valid one; `effect_size_value` is Cohen's h of shares of yes and no,
    else Cohen's d, and `effect_size` his word for it."""

    is_significant: bool
    confidence_level: Share
    p_value: float | None
    interval: Interval
    effect_size: str | None = Field(
        examples=["large"], description="negligible, small, medium or large"
    )
    effect_size_value: float | None
    method: str | None
    expected_effect: Expected | None = None


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


class MetricsAnswer(Answer):
    """A test as its last look sees it."""

    ab_test_id: str = Field(examples=[EXAMPLE_TEST])
    status: str
    duration_hours: float = Field(
        description="how long it has run; `declared` says how long it may"
    )
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


def metrics_of(test: ABTest, result: EvaluationResult | None, now: datetime) -> MetricsAnswer:
    """A test at this instant, as its last look saw it."""
    look = None if result is None else result.look
    nothing = ArmFigures.model_validate(dict.fromkeys(ArmFigures.model_fields) | {"sample_size": 0})
    return MetricsAnswer(
        ab_test_id=test.id,
        status=str(test.status),
        duration_hours=_hours(test, look, now),
        declared=declared_answer(test),
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


def _hours(test: ABTest, look: Look | None, now: datetime) -> float:
    """How long a test has enrolled units, or had when it ended."""
    running = test.status is ExperimentStatus.RUNNING
    until = now if running else test.start_at if look is None else look.at
    hours = (min(until, test.end_at) - test.start_at).total_seconds() / 3600
    return round(max(0.0, hours), 3)


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
    effect = effect_size(look)
    return Statistics(
        is_significant=look is not None and look.is_significant,
        confidence_level=1 - test.declaration.significance_threshold,
        p_value=None if look is None else look.p_value,
        interval=Interval(
            lower=None if look is None else look.lower,
            upper=None if look is None else look.upper,
        ),
        effect_size=None if effect is None else effect.word,
        effect_size_value=None if effect is None else effect.value,
        method=None if look is None else look.method,
        expected_effect=_expected(look),
    )


def _change(before: float | None, after: float | None) -> float | None:
    """The relative change, or None where either is unknown or there was nothing before."""
    return None if before is None or after is None or before == 0 else after / before - 1


def _arm(metrics: ArmMetrics) -> ArmFigures:
    return ArmFigures.model_validate(metrics)


def look_answer(look: Look) -> LookAnswer:
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
