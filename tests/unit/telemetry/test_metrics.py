"""The metrics by the names that their users know, read back by Prometheus's own parser."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.servers import free_port

from tuneproof.errors import ProviderUnavailableError
from tuneproof.resilience import CircuitBreaker
from tuneproof.telemetry import Metrics, ModelFigures, ResponseTimes

THEIRS = {
    "fine_tuning_db_connections_active",
    "fine_tuning_db_connections_idle",
    "fine_tuning_redis_connections_active",
    "fine_tuning_redis_connections_idle",
    "fine_tuning_openai_circuit_breaker_state",
    "fine_tuning_openai_failures",
    "fine_tuning_mlflow_circuit_breaker_state",
    "fine_tuning_mlflow_failures",
    "fine_tuning_pipeline_execution_duration_seconds",
    "fine_tuning_pipeline_duration_seconds",
    "fine_tuning_pipeline_memory_peak_mb",
    "fine_tuning_memory_usage_mb",
    "fine_tuning_pipeline_training_examples",
    "fine_tuning_pipeline_cache_hit_rate",
    "fine_tuning_model_engagement_rate",
    "fine_tuning_model_cost_per_token",
    "fine_tuning_model_quality_score",
    "fine_tuning_ab_test_success_rate",
}


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample's value by name and labels."""
    text = metrics.render()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_every_known_name_is_there_from_the_start_in_both_formats(metrics: Metrics) -> None:
    text, text_type = metrics.render("text/plain")
    opened, opened_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert {f.name for f in parse_text(text.decode())} >= THEIRS
    assert {f.name for f in parse_openmetrics(opened.decode())} >= THEIRS
    assert text_type.startswith("text/plain")
    assert opened_type.startswith("application/openmetrics-text")


def test_ours_start_with_our_name(metrics: Metrics) -> None:
    families = {f.name for f in parse_text(metrics.render()[0].decode())}
    others = {
        n.removesuffix("_created")
        for n in families - THEIRS
        if not n.startswith(("tuneproof_", "process_"))
    }
    assert others <= THEIRS


def test_pools_are_read_at_each_scrape(metrics: Metrics) -> None:
    counts = {"db_connections_active": 1, "redis_connections_idle": 4}
    metrics.watch_pools(lambda: counts)
    assert read(metrics)["fine_tuning_db_connections_active", ()] == 1
    counts["db_connections_active"] = 2
    found = read(metrics)
    assert found["fine_tuning_db_connections_active", ()] == 2
    assert found["fine_tuning_redis_connections_idle", ()] == 4
    assert found["fine_tuning_redis_connections_active", ()] == 0


async def test_breaker_state_is_one_on_the_current_state(metrics: Metrics) -> None:
    breaker = CircuitBreaker(1, 60, name="openai", on_event=metrics.on_breaker_event)
    metrics.watch_breaker("openai", breaker)

    def states(name: str) -> dict[str, float]:
        found = read(metrics)
        key = f"fine_tuning_{name}_circuit_breaker_state"
        return {s: found[key, labels(state=s)] for s in ("CLOSED", "OPEN", "HALF_OPEN")}

    assert states("openai") == states("mlflow") == {"CLOSED": 1, "OPEN": 0, "HALF_OPEN": 0}

    def fail() -> None:
        raise ProviderUnavailableError("down")

    with pytest.raises(ProviderUnavailableError):
        await breaker.call(fail)
    assert states("openai") == {"CLOSED": 0, "OPEN": 1, "HALF_OPEN": 0}
    assert states("mlflow")["CLOSED"] == 1
    found = read(metrics)
    assert found["fine_tuning_openai_failures_total", ()] == 1
    assert found["fine_tuning_mlflow_failures_total", ()] == 0
    assert found["tuneproof_breaker_events_total", labels(breaker="openai", kind="opened")] == 1


def test_cache_hit_rate_has_no_value_before_the_first_read(metrics: Metrics) -> None:
    rate: list[float | None] = [None]
    metrics.watch_cache(lambda: rate[0])
    assert ("fine_tuning_pipeline_cache_hit_rate", ()) not in read(metrics)
    rate[0] = 0.95
    assert read(metrics)["fine_tuning_pipeline_cache_hit_rate", ()] == 0.95


def test_model_in_use_has_a_series_without_labels_once_it_is_known(metrics: Metrics) -> None:
    """Seen: an alert on `fine_tuning_model_engagement_rate` fired for a candidate of 1 %."""
    name = "fine_tuning_model_engagement_rate"
    assert not [series for series in read(metrics) if series[0] == name]
    metrics.model_in_use(ModelFigures(engagement_rate=0.08))
    metrics.arm_looked_at("candidate", ModelFigures(engagement_rate=0.01))
    assert [s for s in read(metrics).items() if s[0][0] == name] == [((name, ()), 0.08)]


def test_stages_and_runs_are_timed(metrics: Metrics) -> None:
    metrics.stage_finished("collect", 2.0)
    metrics.stage_finished("collect", 3.0)
    metrics.run_finished("success", 86400 * 16)
    metrics.run_skipped("predecessor_running")
    metrics.examples.inc(120)
    metrics.peak_mb.set(345.5)
    found = read(metrics)
    stage = "fine_tuning_pipeline_execution_duration_seconds"
    assert found[f"{stage}_count", labels(stage="collect")] == 2
    assert found[f"{stage}_sum", labels(stage="collect")] == 5
    assert found["fine_tuning_pipeline_duration_seconds_count", ()] == 1
    assert found["fine_tuning_pipeline_training_examples_total", ()] == 120
    assert found["fine_tuning_pipeline_memory_peak_mb", ()] == 345.5
    assert found["tuneproof_runs_total", labels(pipeline="default", status="success")] == 1
    skipped = labels(pipeline="default", reason="predecessor_running")
    assert found["tuneproof_ticks_skipped_total", skipped] == 1


def test_arms_show_their_last_look_and_tests_end(metrics: Metrics) -> None:
    metrics.arm_looked_at("candidate", ModelFigures(engagement_rate=0.07, cost_per_token=2e-6))
    metrics.arm_looked_at("candidate", ModelFigures(engagement_rate=0.08, quality_score=0.9))
    metrics.test_looked_at("ab-test-20261120-001", 2 / 3)
    found = read(metrics)
    arm = labels(pipeline="default", arm="candidate")
    test = labels(test_id="ab-test-20261120-001")
    assert found["tuneproof_arm_engagement_rate", arm] == 0.08
    assert ("tuneproof_arm_cost_per_token", arm) not in found
    assert found["tuneproof_arm_quality_score", arm] == 0.9
    assert found["fine_tuning_ab_test_success_rate", test] == pytest.approx(2 / 3)
    metrics.success_rate.remove("ab-test-20261120-001")
    metrics.success_rate.remove("ab-test-20261120-001")
    assert ("fine_tuning_ab_test_success_rate", test) not in read(metrics)


def test_our_own_hooks_count(metrics: Metrics) -> None:
    metrics.request_finished("GET", "/fine-tuning/status/{id}", 200, 0.004)
    metrics.events_ingested(3, 2)
    metrics.rollout_moved(0.3, "advancing")
    metrics.posts_dropped("too_short", 7)
    metrics.naive_times.inc()
    metrics.events_lost.inc(3)
    metrics.task_restarted("schedule")
    metrics.delivered.inc(4)
    metrics.memory_warnings.inc()
    metrics.watch_concerns(lambda: [("outbox_pending", (), 12.0)])
    found = read(metrics)
    route = labels(method="GET", route="/fine-tuning/status/{id}", status="200")
    assert found["tuneproof_http_request_duration_seconds_count", route] == 1
    assert found["tuneproof_events_total", labels(kind="outcome")] == 2
    assert found["tuneproof_rollout_traffic_share", labels(pipeline="default")] == 0.3
    assert found["tuneproof_posts_dropped_total", labels(reason="too_short")] == 7
    assert found["tuneproof_naive_times_total", ()] == 1
    assert found["tuneproof_events_lost_total", ()] == 3
    assert found["tuneproof_task_restarts_total", labels(task="schedule")] == 1
    assert found["tuneproof_tracking_delivered_total", ()] == 4
    assert found["tuneproof_memory_warnings_total", ()] == 1
    assert found["tuneproof_outbox_pending", ()] == 12
    assert metrics.response_times.avg_ms == pytest.approx(4)


def test_two_services_in_one_process_do_not_mix(metrics: Metrics) -> None:
    metrics.examples.inc(5)
    assert read(Metrics())["fine_tuning_pipeline_training_examples_total", ()] == 0


def test_a_port_of_its_own_serves_them_until_it_is_closed(metrics: Metrics) -> None:
    port = free_port()
    end = metrics.serve(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"fine_tuning_memory_usage_mb" in answer.read()
    end()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_response_times_keep_the_last_ones_only() -> None:
    times = ResponseTimes(size=100)
    assert times.read()["p99_ms"] == 0
    for n in range(1, 201):
        times.seconds.append(n / 1000)
    found = times.read()
    assert found["count"] == 100
    assert found["avg_ms"] == pytest.approx(150.5)
    assert found["p50_ms"] == pytest.approx(151)
    assert found["p99_ms"] == found["max_ms"] == pytest.approx(200)
