"""Prometheus metrics under the names that the first users know, and ours beside them.

Names that start with `fine_tuning_` are theirs and fixed; ours start with `tuneproof_`. Every
`Metrics` has a registry of its own, so two services in one process don't mix. Labels are taken
from small sets only (stage, arm, pipeline, route pattern, test id while the test runs).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from tuneproof.resilience import BreakerEvent
from tuneproof.telemetry.memory import ProcessFigures
from tuneproof.telemetry.watched import FIGURES, Concern, ModelFigures, ObservedBreaker, Watched

__all__ = ["Metrics", "ResponseTimes"]

_STAGE_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200)
_RUN_BUCKETS = (60, 600, 3600, 21600, 86400, 259200, 604800, 1209600, 1814400, 2592000)
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_ARM = ("pipeline", "arm")


class ResponseTimes:
    """The last `size` response times, for averages and percentiles on the health page."""

    def __init__(self, size: int = 1000) -> None:
        self.seconds: deque[float] = deque(maxlen=size)

    @property
    def avg_ms(self) -> float:
        """Their mean in milliseconds; 0 before the first."""
        return 1000 * sum(self.seconds) / len(self.seconds) if self.seconds else 0.0

    def read(self) -> dict[str, float | int]:
        """`count`, `avg_ms`, `p50_ms`, `p95_ms`, `p99_ms` and `max_ms` (nearest rank)."""
        ordered = sorted(self.seconds)

        def rank(share: float) -> float:
            if not ordered:
                return 0.0
            return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

        return {
            "count": len(ordered),
            "avg_ms": round(self.avg_ms, 3),
            "p50_ms": rank(0.50),
            "p95_ms": rank(0.95),
            "p99_ms": rank(0.99),
            "max_ms": rank(1.0),
        }


class Metrics:
    """The service's metrics: hooks to call, sources to watch, and `render` for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.response_times = ResponseTimes()
        self._watched = Watched(ProcessFigures())
        self.registry.register(self._watched)
        ProcessCollector(registry=self.registry)
        self._make_theirs()
        self._make_ours()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics and their content type, in the form that the Accept header asks for."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def serve(self, port: int, host: str = "127.0.0.1") -> Callable[[], None]:
        """Serve `/metrics` from a thread on a port of its own; returns what ends it."""
        from prometheus_client import start_wsgi_server

        server, thread = start_wsgi_server(port, host, self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end

    # Sources, read at each scrape.

    def watch_pools(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Read the connection counts from here (`ConnectionPoolManager.counts`)."""
        self._watched.pools = counts

    def watch_breaker(self, name: str, breaker: ObservedBreaker) -> None:
        """Read the state and the failures of the breaker `openai` or `mlflow` from here."""
        self._watched.breakers[name] = breaker

    def watch_cache(self, hit_rate: Callable[[], float | None]) -> None:
        """Read the cache's hit rate from here; None before its first read."""
        self._watched.hit_rate = hit_rate

    def watch_concerns(self, read: Callable[[], Iterable[Concern]]) -> None:
        """Read what a person should know of from here: name, values of its labels, value."""
        self._watched.concerns = read

    # Hooks, called as things happen.

    def on_breaker_event(self, event: BreakerEvent) -> None:
        """A breaker opened, half-opened or closed (`CircuitBreaker(on_event=…)`)."""
        self._breaker_events.labels(event.breaker, event.kind).inc()

    def stage_finished(self, stage: str, seconds: float) -> None:
        """A stage ended after `seconds` of active time (waiting not counted)."""
        self._stage_seconds.labels(stage).observe(seconds)

    def run_finished(self, status: str, seconds: float, *, pipeline: str = "default") -> None:
        """A run ended as `status`, `seconds` after its start."""
        self._run_seconds.observe(seconds)
        self._runs.labels(pipeline, status).inc()

    def run_skipped(self, reason: str, *, pipeline: str = "default") -> None:
        """A tick started no run, because of `reason`."""
        self._skipped.labels(pipeline, reason).inc()

    def posts_dropped(self, reason: str, posts: int = 1) -> None:
        """Curation left `posts` out, because of `reason`."""
        self._dropped.labels(reason).inc(posts)

    def model_in_use(self, figures: ModelFigures) -> None:
        """A look found this of the model in use; what is not known has no series."""
        self._watched.model = figures

    def arm_looked_at(self, arm: str, figures: ModelFigures, *, pipeline: str = "default") -> None:
        """A look found this of an arm; what is not known has no series."""
        for name, gauge in self._arms.items():
            value = getattr(figures, name)
            if value is not None:
                gauge.labels(pipeline, arm).set(value)
            else:
                with suppress(KeyError):
                    gauge.remove(pipeline, arm)

    def test_looked_at(self, test_id: str, success_rate: float) -> None:
        """A look found this share of the test's success criteria met, 0–1."""
        self.success_rate.labels(test_id).set(success_rate)

    def rollout_moved(self, share: float, state: str, *, pipeline: str = "default") -> None:
        """A rollout serves `share` of the traffic, 0–1, by its step into `state`."""
        self._rollout_share.labels(pipeline).set(share)
        self._rollout_steps.labels(pipeline, state).inc()

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request on the route pattern `route` was answered."""
        self.response_times.seconds.append(seconds)
        series = self._answered.get((method, route, status))
        if series is None:  # finding a series by its labels costs more than counting
            series = self._requests.labels(method, route, str(status))
            self._answered[method, route, status] = series
        series.observe(seconds)

    def events_ingested(self, exposures: int, outcomes: int) -> None:
        """New exposures and outcomes were stored."""
        self._events.labels("exposure").inc(exposures)
        self._events.labels("outcome").inc(outcomes)

    def texts_scored(self, pipeline: str, result: str, texts: int, cost_usd: float = 0.0) -> None:
        """Answers ended as `scored` or `dropped`; scoring them cost so much."""
        self._texts.labels(pipeline, result).inc(texts)
        self._scoring_usd.labels(pipeline).inc(cost_usd)

    def task_restarted(self, task: str) -> None:
        """A background task that died was started again."""
        self._task_restarts.labels(task).inc()

    def _make_theirs(self) -> None:
        self._stage_seconds = self._histogram(
            "fine_tuning_pipeline_execution_duration_seconds",
            "Active time of a stage",
            _STAGE_BUCKETS,
            "stage",
        )
        self._run_seconds = self._histogram(
            "fine_tuning_pipeline_duration_seconds",
            "Time from a run's start to its end",
            _RUN_BUCKETS,
        )
        self.peak_mb = self._gauge(
            "fine_tuning_pipeline_memory_peak_mb",
            "Peak memory of the stage that a run works at; 0 while none works",
        )
        self.examples = self._counter(
            "fine_tuning_pipeline_training_examples", "Training examples made"
        )
        self.success_rate = self._gauge(
            "fine_tuning_ab_test_success_rate",
            "Share of a running test's success criteria that its last look found met",
            "test_id",
        )

    def _make_ours(self) -> None:
        self._arms = {
            name: self._gauge(f"tuneproof_arm_{name}", f"{text} of an arm by the last look", *_ARM)
            for name, text in FIGURES.items()
        }
        self._runs = self._counter("tuneproof_runs", "Runs ended", "pipeline", "status")
        self._skipped = self._counter(
            "tuneproof_ticks_skipped", "Ticks that started no run", "pipeline", "reason"
        )
        self._breaker_events = self._counter(
            "tuneproof_breaker_events", "Changes of a breaker's state", "breaker", "kind"
        )
        self.memory_warnings = self._counter(
            "tuneproof_memory_warnings", "Times that memory went over its limit"
        )
        self._dropped = self._counter(
            "tuneproof_posts_dropped", "Posts left out by curation", "reason"
        )
        self._rollout_share = self._gauge(
            "tuneproof_rollout_traffic_share", "Traffic on the rollout's version, 0-1", "pipeline"
        )
        self._rollout_steps = self._counter(
            "tuneproof_rollout_steps", "Steps of rollouts", "pipeline", "state"
        )
        self._answered: dict[tuple[str, str, int], Histogram] = {}
        self._requests = self._histogram(
            "tuneproof_http_request_duration_seconds",
            "Time to answer an HTTP request",
            _REQUEST_BUCKETS,
            *("method", "route", "status"),
        )
        self._events = self._counter("tuneproof_events", "Events stored", "kind")
        self._texts = self._counter(
            "tuneproof_texts", "Answers of tests that ended scored or dropped", "pipeline", "result"
        )
        self._scoring_usd = self._counter(
            "tuneproof_scoring_cost_usd", "What scoring answers cost in USD", "pipeline"
        )
        self._task_restarts = self._counter(
            "tuneproof_task_restarts", "Times that a background task died and began again", "task"
        )
        self.naive_times = self._counter(
            "tuneproof_naive_times", "Times without a zone, read as UTC"
        )
        self.events_rejected = self._counter(
            "tuneproof_events_rejected", "Events that were not kept, as their answers say"
        )
        self.events_lost = self._counter(
            "tuneproof_events_lost", "Events of the gateway that could not be kept"
        )
        self.events_waiting = self._gauge(
            "tuneproof_events_waiting_bytes", "Events of the gateway that the store has not yet"
        )
        self.relay_spent = self._counter(
            "tuneproof_relay_spent_usd", "What callers spent by the relay", "caller"
        )
        self.gateways = self._gauge(
            "tuneproof_gateways", "Gateway processes that this service feeds"
        )
        self.shadow_requests = self._counter(
            "tuneproof_shadow_requests",
            "Copies of requests, by what became of them",
            "task",
            "result",
        )
        self.shadow_spent = self._counter(
            "tuneproof_shadow_spent_usd", "What copies of requests cost", "task"
        )
        self.best_of_answers = self._counter(
            "tuneproof_best_of_answers",
            "Answers of which one is picked, by what became of them",
            "task",
            "result",
        )
        self.delivered = self._counter(
            "tuneproof_tracking_delivered", "Outbox items delivered to MLflow"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)
