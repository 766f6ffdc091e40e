"""Experiments: the online test of a candidate against a baseline, looked at every hour.

Assignment is `assignment.py`, the arithmetic is `stats/`; this stage declares the test,
takes looks, and turns them into a verdict. It knows no database and no wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


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


class TestStatus(StrEnum):
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
    status: TestStatus
    start_at: datetime
    end_at: datetime
    verdict: Verdict | None = None
    reason: str | None = None

    @property
    def last_look_at(self) -> datetime:
        """When the last look is due: one maturation window after enrolment ends."""
        from datetime import timedelta

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
    status: TestStatus
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
