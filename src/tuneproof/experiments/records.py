"""What experiments are made of: tests, arms, events, looks, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from tuneproof.stats.aggregates import Aggregate, Histogram, Stratum, merge
from tuneproof.stats.effects import quantile


class Arm(StrEnum):
    """The two sides of an experiment or a rollout."""

    BASELINE = "baseline"  # the model in use
    CANDIDATE = "candidate"  # the version that wants its place


class Verdict(StrEnum):
    """What a look says."""

    PROMOTE = "promote"  # all success criteria hold
    REJECT = "reject"  # harm, futility, or the end of the test without success
    CONTINUE = "continue"  # not enough known yet
    INVALID = "invalid"  # a precondition failed (a broken split): the data answer nothing


class ExperimentStatus(StrEnum):
    """Where an experiment stands."""

    RUNNING = "running"  # enrols or matures
    COMPLETED = "completed"  # has its verdict
    ABORTED = "aborted"  # its run was aborted, or a person ended it


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What a candidate must show to be promoted. Shares, not percent."""

    min_engagement_lift: float = 0.15
    min_cost_efficiency_gain: float = 0.10
    significance_threshold: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model by the provider's name for it, and our version's id where it is one of ours."""

    model_id: str
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class ABTest:
    """A declared experiment; nothing of it changes while it runs except `status` and `verdict`."""

    id: str
    run_id: str | None
    pipeline: str
    tasks: tuple[str, ...]
    baseline: ModelRef
    candidate: ModelRef
    traffic_split: float
    duration_hours: float
    criteria: Criteria
    decision: str
    cost_metric: str
    maturation_hours: float
    min_units: int
    min_units_phase: int
    salt: str
    status: ExperimentStatus
    start_at: datetime
    end_at: datetime
    verdict: Verdict | None = None
    reason: str | None = None

    @property
    def last_look_at(self) -> datetime:
        """When the last look is due: one maturation window after enrolment ends."""
        return self.end_at + timedelta(hours=self.maturation_hours)


@dataclass(frozen=True, kw_only=True)
class ArmMetrics:
    """What one arm showed; None where there is nothing to say yet."""

    sample_size: int = 0
    engagement_rate: float | None = None
    p95_engagement: float | None = None
    cost_per_token: float | None = None
    cost_per_engagement: float | None = None
    response_time_ms: float | None = None
    quality_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """One analysis, kept for ever: its inputs, its results, its verdict and the reason in words."""

    experiment_id: str
    number: int
    at: datetime
    matured_before: datetime
    baseline: ArmMetrics
    candidate: ArmMetrics
    lift: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    cost_gain: float | None
    is_significant: bool
    declared: bool
    method: str
    verdict: Verdict
    reason: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """An experiment as its last look sees it: the answer of `evaluate_performance`."""

    ab_test_id: str
    status: ExperimentStatus
    look: Look
    recommendation: Verdict
    reason: str
    looks: int = 0

    @property
    def is_significant(self) -> bool:
        """Whether the lift is significantly above 0 at the declared level."""
        return self.look.is_significant


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """A request served to a unit by an arm. `subject` is the experiment's or the rollout's id."""

    id: str
    subject: str
    phase: int
    arm: Arm
    unit: str
    at: datetime
    task: str = ""
    latency_ms: float | None = None
    error: bool = False
    tokens: int = 0
    cost_usd: float = 0.0
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A measurement of a unit, maybe days later. The newest `at` of a unit counts."""

    id: str
    subject: str
    unit: str
    at: datetime
    value: float
    quality: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What became of a batch of events."""

    accepted: int
    duplicates: int
    unknown: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm in one phase: its matured units with an outcome (y engagement, c cost in USD,
    d tokens), and how many units it was exposed to."""

    phase: int
    arm: Arm
    units: Aggregate
    exposed: int = 0
    quality: float | None = None


@dataclass(frozen=True, kw_only=True)
class Requests:
    """All requests of one arm: how many, how many failed, how long they took (ms)."""

    n: int = 0
    errors: int = 0
    latency: Histogram | None = None
    mean_latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a look is made from. `exposed` counts every exposure, matured or not."""

    cells: tuple[Cell, ...] = ()
    exposed: Mapping[tuple[int, Arm], int] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)
    requests: Mapping[Arm, Requests] = field(default_factory=dict)

    def strata(self) -> list[Stratum]:
        """The phases with their two arms, in order."""
        empty = Aggregate()
        found: dict[int, dict[Arm, Aggregate]] = {}
        for cell in self.cells:
            found.setdefault(cell.phase, {})[cell.arm] = cell.units
        return [
            Stratum(
                phase=str(phase),
                baseline=arms.get(Arm.BASELINE, empty),
                candidate=arms.get(Arm.CANDIDATE, empty),
            )
            for phase, arms in sorted(found.items())
        ]

    def arm(self, arm: Arm) -> ArmMetrics:
        """What one arm showed, over its phases."""
        cells = [c for c in self.cells if c.arm is arm]
        units = merge(c.units for c in cells)
        requests = self.requests.get(arm, Requests())
        qualities = [c.quality for c in cells if c.quality is not None]
        if not units.n:
            return ArmMetrics(response_time_ms=requests.mean_latency_ms)
        return ArmMetrics(
            sample_size=units.n,
            engagement_rate=units.sum_y / units.n,
            p95_engagement=quantile(units.histogram, 0.95).value if units.histogram else None,
            cost_per_token=units.sum_c / units.sum_d if units.sum_d else None,
            cost_per_engagement=units.sum_c / units.sum_y if units.sum_y else None,
            response_time_ms=requests.mean_latency_ms,
            quality_score=sum(qualities) / len(qualities) if qualities else None,
        )
