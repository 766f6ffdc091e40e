"""What is read when Prometheus asks, and never pushed: pools, breakers, the cache, concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tuneproof.resilience import State
from tuneproof.telemetry.memory import ProcessFigures

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["FIGURES", "Concern", "ModelFigures", "ObservedBreaker", "Watched"]

_BREAKERS = {"openai": "the first pipeline's provider", "mlflow": "MLflow"}
_POOL_COUNTS = {
    f"{kind}_connections_{use}": f"{text} connections {use}"
    for kind, text in (("db", "Database"), ("redis", "Redis"))
    for use in ("active", "idle")
}


_CONCERNS: Mapping[str, tuple[str, Sequence[str]]] = {
    "watch_overdue_seconds": (
        "By how much the most overdue look at a test or rollout is overdue; below 0 until then",
        ["pipeline"],
    ),
    "run_overdue_seconds": (
        "By how much the stage that a run works at is over its time; below 0 until then",
        ["pipeline", "stage"],
    ),
    "rollback_age_seconds": (
        "Time since the newest rollout was taken back, if it was",
        ["pipeline"],
    ),
    "outbox_pending": ("Items that MLflow has not taken yet", []),
    "outbox_oldest_seconds": ("Age of the oldest of them", []),
    "split_broken": (
        "1 where units of the newest test or rollout come in other shares than were set, else 0",
        ["pipeline"],
    ),
    "outcomes_share": (
        "Share of the units whose outcomes were due in the last day that have theirs",
        ["pipeline"],
    ),
    "arm_error_share": (
        "Share of an arm's requests in the tests and rollouts under way that failed",
        ["pipeline", "arm"],
    ),
    "model_shutdown_seconds": (
        "Seconds until the provider shuts a pipeline's model down",
        ["pipeline", "model"],
    ),
    "budget_used_share": ("Share of a budget that is used", ["budget", "of"]),
}
"""What a person should know of, by the rest of its name: what it is, and its labels."""

Concern = tuple[str, Sequence[str], float]
"""A gauge of `_CONCERNS` by name, the values of its labels, its value."""

FIGURES = {
    "engagement_rate": "Mean engagement",
    "cost_per_token": "Cost per token in USD",
    "quality_score": "Mean quality score",
}
"""The figures of a model or an arm: each a field of `ModelFigures`, and how it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFigures:
    """What a look says of a model; None where it is not known."""

    engagement_rate: float | None = None
    cost_per_token: float | None = None
    quality_score: float | None = None


class ObservedBreaker(Protocol):
    """What is read of a breaker; `resilience.CircuitBreaker` is one."""

    @property
    def state(self) -> State: ...
    @property
    def failures_total(self) -> int: ...


def _known(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """A gauge that has a series only where its value is known."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


class Watched(Collector):
    """Reads pools, breakers, the cache, the model in use, memory and concerns when Prometheus
    asks."""

    def __init__(self, process: ProcessFigures) -> None:
        self.pools: Callable[[], Mapping[str, int]] = dict
        self.breakers: dict[str, ObservedBreaker] = {}
        self.hit_rate: Callable[[], float | None] = lambda: None
        self.model = ModelFigures()
        self.concerns: Callable[[], Iterable[Concern]] = tuple
        self._process = process

    def collect(self) -> Iterable[Metric]:
        """The families, with what their sources say now."""
        counts = self.pools()
        for name, text in _POOL_COUNTS.items():
            yield GaugeMetricFamily(f"fine_tuning_{name}", text, value=counts.get(name, 0))
        for name in dict.fromkeys((*_BREAKERS, *self.breakers)):
            yield from self._breaker(name)
        yield GaugeMetricFamily(
            "fine_tuning_memory_usage_mb",
            "Resident memory of the service",
            value=self._process.read()["memory_usage_mb"],
        )
        text = "Share of cache reads that found a value"
        yield _known("fine_tuning_pipeline_cache_hit_rate", text, self.hit_rate())
        for name, text in FIGURES.items():
            text = f"{text} of the model in use of the first pipeline, by the last look"
            yield _known(f"fine_tuning_model_{name}", text, getattr(self.model, name))
        yield from self._concerns()

    def _concerns(self) -> Iterable[Metric]:
        """What is not known has no series."""
        families = {
            name: GaugeMetricFamily(f"tuneproof_{name}", text, labels=labels)
            for name, (text, labels) in _CONCERNS.items()
        }
        for name, labels, value in self.concerns():
            families[name].add_metric(labels, value)
        return families.values()

    def _breaker(self, name: str) -> Iterable[Metric]:
        breaker = self.breakers.get(name)
        now = breaker.state if breaker is not None else State.CLOSED
        states = GaugeMetricFamily(
            f"fine_tuning_{name}_circuit_breaker_state",
            f"1 on the current state of the breaker of {_BREAKERS[name]}",
            labels=["state"],
        )
        for state in State:
            states.add_metric([state.value], float(state is now))
        yield states
        yield CounterMetricFamily(
            f"fine_tuning_{name}_failures",
            f"Failed calls of {_BREAKERS[name]}",
            value=breaker.failures_total if breaker is not None else 0,
        )
