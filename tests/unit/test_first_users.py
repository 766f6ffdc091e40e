"""The names, settings and metrics of the first users' documents are ours; the table is theirs."""

from __future__ import annotations

import inspect
import json
import re
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests import first_users
from tests.first_users import (
    ASKED,
    BREAKER_ATTRIBUTES,
    BREAKERS,
    DIAGNOSIS,
    ENVIRONMENT,
    EVALUATION_METRICS,
    MENDED,
    METRICS,
    PANELS,
    PYTHON,
    REDIS_LINES,
    REST,
    RULES,
    TRAINING_CONFIG,
    TRANSITIONS,
    At,
    Later,
    Only,
    Word,
    differences,
    disagreements,
    documents,
)

import tuneproof
from tuneproof import CircuitBreaker, PipelineConfig, Settings, blocking
from tuneproof.cache import metrics_key
from tuneproof.errors import ProviderUnavailableError
from tuneproof.experiments import ArmMetrics
from tuneproof.telemetry import Metrics

# --- the table --------------------------------------------------------------------------


def test_the_table_is_what_the_documents_say() -> None:
    assert disagreements(documents()) == []


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (Word("CLOSED", "OPEN"), "OPEN", "closed"),
        (float, 3, "3"),
        (int, 3, 3.5),
        (bool, True, 1),
        (At(), "2025-01-02T10:00:00Z", "2025-01-02T10:00:00"),
        (Later(int), None, "soon"),
        ([str], ["a"], ["a", 1]),
        (Only(("a", "b")), ["b"], ["c"]),
        ({"a": int}, {"a": 1, "b": 2}, {"b": 2}),
    ],
)
def test_a_value_that_differs_is_found(shape: Any, good: Any, bad: Any) -> None:
    assert differences({"x": shape}, {"x": good}) == []
    assert len(differences({"x": shape}, {"x": bad})) == 1


def test_a_key_that_the_table_lacks_is_found() -> None:
    assert differences({"a": int}, {"a": 1, "b": 2}, whole=True) == [".b is not in the table"]


def test_what_is_asked_in_tests_has_the_shape_of_the_documents() -> None:
    for name, asked in ASKED.items():
        assert differences(REST[name], json.loads(json.dumps(asked)), whole=True) == [], name


# --- metrics, rules, dashboards, cache --------------------------------------------------


def _families() -> dict[str, str]:
    """Our metrics and their kinds; Prometheus names counters with `_total`."""
    lines = Metrics().render()[0].decode().splitlines()
    return {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}


def test_each_documented_metric_is_one_of_its_kind() -> None:
    ours = _families()
    assert {name: ours.get(name) for name in METRICS} == METRICS


@pytest.mark.parametrize(
    "expression",
    [
        *(expression for expression, _, _ in RULES.values()),
        *(e for panels in PANELS.values() for targets in panels.values() for e in targets),
    ],
)
def test_each_documented_expression_asks_for_what_there_is(expression: str) -> None:
    """The label was `state="open"`: `{state="OPEN"} == 1` never fired."""
    works = MENDED.get(expression, expression)
    text, families = Metrics().render()[0].decode(), _families()
    for name, labels in re.findall(r"(fine_tuning_\w+)(\{[^}]*\})?", works):
        family = re.sub(r"_(sum|count)$", "", name)
        assert family in families
        if name == family:
            assert families[family] != "histogram", "a histogram has no value of its own"
        if labels:
            assert f"{name}{labels.replace('!=', '=')}" in text
    called = dict(re.findall(r"(\w+)\((fine_tuning_\w+)\[", works))
    assert all(families[name] == "counter" for call, name in called.items() if call == "increase")


def test_mended_expressions_are_those_that_cannot_work_and_are_documented() -> None:
    page = (Path(first_users.ROOT) / "docs/reference/documented-names.md").read_text("utf-8")
    for expression, works in MENDED.items():
        assert expression in page
        assert works in page
    for title, panels in PANELS.items():
        assert title in page
        assert all(panel in page for panel in panels)
    for name, (expression, held, severity) in RULES.items():
        assert re.search(rf"{name}`[^\n]*`{held}`[^\n]*{severity}", page), name
        assert MENDED.get(expression, expression) in page
    assert all(line in page for line in REDIS_LINES)


def test_the_cache_has_the_documented_keys_and_figures() -> None:
    [pattern] = re.findall(r'--pattern "([^"]*)"', REDIS_LINES[0])
    assert fnmatch(metrics_key("ab-test-20250102-001", "candidate", 4), pattern)
    arm = ArmMetrics(
        sample_size=1500, engagement_rate=0.08, p95_engagement=0.12, cost_per_token=0.0015,
        response_time_ms=1200.0, quality_score=0.8,
    )  # fmt: skip
    assert differences(EVALUATION_METRICS, {n: getattr(arm, n) for n in EVALUATION_METRICS}) == []


# --- settings ---------------------------------------------------------------------------


def test_the_documented_environment_is_read(tmp_path: Path) -> None:
    settings = Settings.load(dir=tmp_path, env=ENVIRONMENT)
    said = {origin.removeprefix("environment ") for origin in settings.origins.values()}
    assert ENVIRONMENT.keys() - said - {"OPENAI_API_KEY"} == set()
    assert settings.pipeline().weekly_schedule == "0 2 * * 0"
    assert settings.store.max_overflow == 20
    assert settings.tasks["body"].model == "gpt-3.5-turbo-0125"


def test_the_documented_configuration_is_a_pipelines(tmp_path: Path) -> None:
    lines = []
    for section, values in TRAINING_CONFIG.items():
        lines += _toml(f"pipelines.default.{section}", values)
    file = tmp_path / "tuneproof.toml"
    file.write_text("\n".join(lines), "utf-8")
    config = Settings.load(dir=tmp_path, file=file, env={}).pipeline()
    assert (config.days_back, config.timeout_seconds, config.traffic_split) == (7, 1800, 0.1)
    assert (config.min_engagement_lift, config.min_cost_efficiency_gain) == (0.15, 0.1)
    assert (config.initial_traffic, config.increment_interval_hours) == (0.1, 24)
    assert (config.n_epochs, config.deployment_strategy) == ("auto", "gradual_rollout")


def _toml(table: str, values: dict[str, Any]) -> list[str]:
    plain = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    inner = [
        line for k, v in values.items() if isinstance(v, dict) for line in _toml(f"{table}.{k}", v)
    ]
    return [f"[{table}]", *plain, *inner]


@pytest.mark.parametrize(
    "address",
    ["ftp://mlflow", "./mlruns", "postgresql://u:p@h/mlflow", "http:mlflow", "databricks"],
)
def test_an_address_of_mlflow_that_cannot_be_is_refused(tmp_path: Path, address: str) -> None:
    """All of these were taken, and each delivery failed."""
    with pytest.raises(tuneproof.TuneProofError, match=r"tracking\.uri") as refused:
        Settings.load(dir=tmp_path, env={"MLFLOW_TRACKING_URI": address})
    assert "MLFLOW_TRACKING_URI" in str(refused.value)


@pytest.mark.parametrize("address", ["https://mlflow:5000", "file:./mlruns", "sqlite:///m.db"])
def test_an_address_of_mlflow_that_can_be_is_taken(tmp_path: Path, address: str) -> None:
    uri = Settings.load(dir=tmp_path, env={"MLFLOW_TRACKING_URI": address}).tracking.uri
    assert uri is not None
    assert uri.reveal() == address


# --- Python -----------------------------------------------------------------------------

CALLS = [(c, m, a) for c, methods in PYTHON.items() for m, a in methods.items()]


@pytest.mark.parametrize(("cls", "method", "arguments"), CALLS)
@pytest.mark.parametrize("module", [tuneproof, blocking], ids=["tuneproof", "blocking"])
def test_each_documented_call_is_taken(
    module: Any, cls: str, method: str, arguments: tuple[str, ...]
) -> None:
    """There was no `initialize_pools`, no `KubernetesOptimizedPipeline`, and nothing blocking."""
    found = inspect.signature(getattr(getattr(module, cls), method)).parameters
    names = [name for name in found if name != "self"]
    if cls != "PipelineConfig":  # whose arguments are named by its users, too
        assert names[: len(arguments)] == list(arguments)
    assert set(arguments) <= set(names)
    needed = [
        name
        for name, one in found.items()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    assert set(needed) - {"self"} <= set(arguments)


@pytest.mark.parametrize(("name", "numbers"), BREAKERS.items())
async def test_breakers_open_and_close_as_documented(name: str, numbers: tuple[int, int]) -> None:
    now = 0.0
    breaker = CircuitBreaker.named(name, clock=lambda: now)
    assert (breaker.failure_threshold, breaker.timeout) == numbers
    seen = [breaker.state]
    breaker.subscribe(lambda event: seen.append(event.state))

    def fail() -> None:
        raise ProviderUnavailableError("down")

    async def failing(times: int) -> None:
        for _ in range(times):
            with pytest.raises(ProviderUnavailableError):
                await breaker.call(fail)

    await failing(numbers[0])
    now += numbers[1]
    await failing(1)  # the probe
    now += 2 * numbers[1]
    assert await breaker.call(lambda: 1) == 1
    assert set(pairwise(seen)) == set(TRANSITIONS)
    assert all(hasattr(breaker, attribute) for attribute in BREAKER_ATTRIBUTES)
    diagnosis = breaker.diagnose().to_dict()
    assert set(DIAGNOSIS) <= diagnosis.keys()
    assert diagnosis["state"] == "CLOSED"
    assert 0 <= diagnosis["health_score"] <= 100


def test_the_documented_thresholds_are_the_defaults() -> None:
    told = ASKED["start.request"]["config"]
    config = PipelineConfig()
    assert {name: getattr(config, name) for name in told} == told
