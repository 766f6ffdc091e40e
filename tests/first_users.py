"""What the documents of the first users say: keys, types and words, in a table of our own.

Tests compare what we answer with it; where the documents themselves are at hand (a folder
`shared/documents` beside the checkout) one more test holds the table against them. A table is the
shape of one JSON document: a dict of what each key holds.

    str, bool, int, float      a value of this kind; a float may come as an int
    Word("running", ...)       a text, one of these; the first is the documents' own
    At()                       a text that is an instant as RFC 3339
    Later(shape)               this, or null until it comes
    [shape]                    a list of such
    Only([...])                a list of some of these words
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACE = ROOT.parent / "shared" / "documents"
"""Where the documents lie, if they do."""


class Word(tuple[str, ...]):
    """A text that is one of these."""

    def __new__(cls, *words: str) -> Word:
        return super().__new__(cls, words)


@dataclass(frozen=True)
class At:
    """An instant as RFC 3339."""


@dataclass(frozen=True)
class Later:
    """Null until it comes."""

    shape: Any


@dataclass(frozen=True)
class Only:
    """A list of some of these words."""

    words: tuple[str, ...]


def differences(shape: Any, found: Any, where: str = "", *, whole: bool = False) -> list[str]:
    """How a document differs from its table; `whole`: also in keys that the table lacks."""
    return list(_differences(shape, found, where, whole))


def _differences(shape: Any, found: Any, where: str, whole: bool) -> Iterator[str]:
    if isinstance(shape, Later):
        if found is not None or whole:
            yield from _differences(shape.shape, found, where, whole)
    elif isinstance(shape, dict):
        yield from _in_object(shape, found, where, whole)
    elif isinstance(shape, list):
        if not isinstance(found, list):
            yield f"{where} is {found!r}, not a list"
            return
        for number, one in enumerate(found):
            yield from _differences(shape[0], one, f"{where}[{number}]", whole)
    elif not _fits(shape, found):
        yield f"{where} is {found!r}, not {shape!r}"


def _in_object(shape: dict[str, Any], found: Any, where: str, whole: bool) -> Iterator[str]:
    if not isinstance(found, dict):
        yield f"{where} is {found!r}, not an object"
        return
    for name, inner in shape.items():
        place = f"{where}.{name}".lstrip(".")
        if name not in found:
            yield f"{place} is absent"
        else:
            yield from _differences(inner, found[name], place, whole)
    for name in found.keys() - shape.keys() if whole else ():
        yield f"{where}.{name} is not in the table"


def _fits(shape: Any, found: Any) -> bool:
    if isinstance(shape, Word):
        return found in shape
    if isinstance(shape, Only):
        return isinstance(found, list) and set(found) <= set(shape.words)
    if isinstance(shape, At):
        return isinstance(found, str) and datetime.fromisoformat(found).tzinfo is not None
    if shape is float:
        return isinstance(found, int | float) and not isinstance(found, bool)
    return type(found) is shape


# --- REST -------------------------------------------------------------------------------

_MODEL = {"model_id": str, "version": str}
_ARM = {
    "engagement_rate": Later(float),
    "cost_per_token": Later(float),
    "response_time_ms": Later(float),
    "quality_score": Later(float),
    "sample_size": int,
}
_STEP = Word("completed", "in_progress", "pending", "failed", "skipped")
_ROLLOUT = {
    "initial_traffic": float,
    "increment_interval_hours": int,
    "increment_percentage": float,
    "max_traffic": float,
}
_STATES = Word("CLOSED", "OPEN", "HALF_OPEN")
_HEALTH = Word("healthy", "degraded", "unhealthy", "not_configured")

REST: dict[str, Any] = {
    "start.request": {
        "config": {
            "training_data_threshold": int,
            "engagement_threshold": float,
            "weekly_schedule": str,
            "a_b_test_duration_hours": int,
        },
        "force_run": bool,
    },
    "start.response": {
        "status": Word("success"),
        "pipeline_id": str,
        "model_version": {
            "model_id": Later(str),
            "version": Later(str),
            "training_job_id": Later(str),
            "base_model": Later(str),
            "status": Later(Word("training", "queued", "trained")),
        },
        "training_data": {
            "hook_examples": Later(int),
            "body_examples": Later(int),
            "total_records": Later(int),
        },
        "execution_time_seconds": Later(float),
        "memory_usage": {
            "initial_mb": Later(float),
            "peak_mb": Later(float),
            "final_mb": Later(float),
        },
    },
    "status.response": {
        "pipeline_id": str,
        "status": Word("training"),
        "progress": {
            "data_collection": _STEP,
            "model_training": _STEP,
            "evaluation": _STEP,
            "deployment": _STEP,
        },
        "current_stage": Word("model_training"),
        "estimated_completion": Later(At()),
        "metrics": {
            "training_examples": int,
            "training_duration_minutes": Later(float),
            "memory_efficiency_mb_per_example": Later(float),
        },
    },
    "abort.response": {
        "pipeline_id": str,
        "status": Word("aborted"),
        "cleanup_status": Word("completed"),
        "reason": Word("user_requested"),
        "resources_cleaned": Only(
            ("temporary_files", "training_data_cache", "openai_job_cancelled")
        ),
    },
    "create-ab-test.request": {
        "baseline_model": _MODEL,
        "candidate_model": _MODEL,
        "traffic_split": float,
        "duration_hours": int,
        "success_criteria": {
            "min_engagement_lift": float,
            "min_cost_efficiency_gain": float,
            "significance_threshold": float,
        },
    },
    "create-ab-test.response": {
        "ab_test_id": str,
        "status": Word("running"),
        "start_time": At(),
        "estimated_end_time": At(),
        "traffic_allocation": {"baseline": float, "candidate": float},
        "monitoring_endpoints": {"metrics": str, "status": str},
    },
    "metrics.response": {
        "ab_test_id": str,
        "status": Word("running", "completed", "aborted"),
        "duration_hours": float,
        "metrics": {"baseline": _ARM, "candidate": _ARM},
        "performance_comparison": {
            "engagement_lift": Later(float),
            "cost_efficiency_gain": Later(float),
            "quality_improvement": Later(float),
            "latency_improvement": Later(float),
        },
        "statistical_analysis": {
            "is_significant": bool,
            "confidence_level": float,
            "p_value": Later(float),
            "effect_size": Later(Word("large", "medium", "small", "negligible")),
        },
        "recommendation": Word("promote", "reject", "continue", "invalid"),
    },
    "deploy.request": {
        "model_version": _MODEL,
        "evaluation_result": {
            "ab_test_id": str,
            "recommendation": Word("promote"),
            "safety_checks_passed": bool,
        },
        "deployment_strategy": Word("gradual_rollout"),
        "rollout_config": _ROLLOUT,
    },
    "deploy.response": {
        "deployment_id": str,
        "status": Word("success"),
        "deployment_strategy": Word("gradual_rollout"),
        "current_traffic": float,
        "rollback_plan": {
            "previous_model": str,
            "rollback_time_seconds": int,
            "health_check_endpoints": [Word("/health/model-performance", "/health/response-time")],
        },
        "monitoring": {
            "deployment_dashboard": str,
            "alerts_configured": bool,
            "rollback_triggers": [
                Word(
                    "engagement_rate_drop_15_percent",
                    "error_rate_above_5_percent",
                    "response_time_above_2000ms",
                )
            ],
        },
    },
    "health.response": {
        "status": Word("healthy", "degraded", "unhealthy"),
        "timestamp": float,
        "components": {
            "database": _HEALTH,
            "redis": _HEALTH,
            "openai_circuit_breaker": _STATES,
            "mlflow_circuit_breaker": _STATES,
        },
        "connection_pools": {
            "db_connections_active": int,
            "db_connections_idle": int,
            "redis_connections_active": int,
            "redis_connections_idle": int,
        },
        "performance_metrics": {
            "avg_response_time_ms": float,
            "cache_hit_rate": Later(float),
            "memory_usage_mb": float,
            "cpu_usage_percent": float,
        },
    },
}
"""The bodies of requests and answers, by the name of their document."""

ASKED: dict[str, Any] = {
    "start.request": {
        "config": {
            "training_data_threshold": 100,
            "engagement_threshold": 0.06,
            "weekly_schedule": "0 2 * * 0",
            "a_b_test_duration_hours": 168,
        },
        "force_run": False,
    },
    "create-ab-test.request": {
        "baseline_model": {"model_id": "gpt-3.5-turbo-0125", "version": "baseline"},
        "candidate_model": {"model_id": "ft:gpt-3.5-turbo:threads:1234", "version": "1.0.0"},
        "traffic_split": 0.1,
        "duration_hours": 168,
        "success_criteria": {
            "min_engagement_lift": 0.15,
            "min_cost_efficiency_gain": 0.10,
            "significance_threshold": 0.05,
        },
    },
    "deploy.request": {
        "model_version": {"model_id": "ft:gpt-3.5-turbo:threads:1234", "version": "1.0.0"},
        "evaluation_result": {
            "ab_test_id": "ab-test-20250102-001",
            "recommendation": "promote",
            "safety_checks_passed": True,
        },
        "deployment_strategy": "gradual_rollout",
        "rollout_config": {
            "initial_traffic": 0.1,
            "increment_interval_hours": 24,
            "increment_percentage": 0.1,
            "max_traffic": 1.0,
        },
    },
}
"""The requests that the documents send."""

IDS = {
    "pipeline_id": r"ft-pipeline-\d{8}-\d{3,}",
    "ab_test_id": r"ab-test-\d{8}-\d{3,}",
    "deployment_id": r"deploy-\d{8}-\d{3,}",
}
"""How ids are made."""

# --- metrics, rules, dashboards, cache --------------------------------------------------

METRICS = {
    "fine_tuning_pipeline_execution_duration_seconds": "histogram",
    "fine_tuning_pipeline_memory_peak_mb": "gauge",
    "fine_tuning_pipeline_training_examples_total": "counter",
    "fine_tuning_pipeline_cache_hit_rate": "gauge",
    "fine_tuning_db_connections_active": "gauge",
    "fine_tuning_db_connections_idle": "gauge",
    "fine_tuning_redis_connections_active": "gauge",
    "fine_tuning_redis_connections_idle": "gauge",
    "fine_tuning_openai_circuit_breaker_state": "gauge",
    "fine_tuning_openai_failures_total": "counter",
    "fine_tuning_mlflow_circuit_breaker_state": "gauge",
    "fine_tuning_mlflow_failures_total": "counter",
    "fine_tuning_model_engagement_rate": "gauge",
    "fine_tuning_model_cost_per_token": "gauge",
    "fine_tuning_model_quality_score": "gauge",
    "fine_tuning_ab_test_success_rate": "gauge",
}
"""Each metric and its kind."""

RULES = {
    "FineTuningPipelineDown": ('up{job="fine-tuning-pipeline"} == 0', "2m", "critical"),
    "OpenAICircuitBreakerOpen": (
        'fine_tuning_openai_circuit_breaker_state{state="OPEN"} == 1',
        "1m",
        "critical",
    ),
    "HighMemoryUsage": ("fine_tuning_pipeline_memory_peak_mb > 1500", "5m", "warning"),
    "LowCacheHitRate": ("fine_tuning_pipeline_cache_hit_rate < 0.8", "10m", "warning"),
    "ModelPerformanceDegradation": ("fine_tuning_model_engagement_rate < 0.06", "30m", "warning"),
    "CostEfficiencyDegradation": (
        "increase(fine_tuning_model_cost_per_token[1h]) > 0.0005",
        "15m",
        "warning",
    ),
}
"""Each alert: its expression, how long it must hold, how grave it is."""

MENDED = {
    'up{job="fine-tuning-pipeline"} == 0': (
        'up{job="fine-tuning-pipeline"} == 0 or absent(up{job="fine-tuning-pipeline"})'
    ),
    'fine_tuning_openai_circuit_breaker_state{state="OPEN"} == 1': (
        'sum without (state) (fine_tuning_openai_circuit_breaker_state{state!="CLOSED"}) == 1'
    ),
    "fine_tuning_pipeline_memory_peak_mb > 1500": "fine_tuning_memory_usage_mb > 1500",
    "increase(fine_tuning_model_cost_per_token[1h]) > 0.0005": (
        "delta(fine_tuning_model_cost_per_token[1h]) > 0.0005"
    ),
    "fine_tuning_pipeline_execution_duration_seconds": (
        "fine_tuning_pipeline_execution_duration_seconds_sum"
        " / fine_tuning_pipeline_execution_duration_seconds_count"
    ),
}
"""What cannot work as it is written: a target that vanished has no `up`, a breaker that is tried is
not OPEN for that moment, a peak does not fall, `increase` is of counters, a histogram is no number.
"""

PANELS = {
    "Fine-Tuning Business KPIs": {
        "Model Engagement Rate": ["fine_tuning_model_engagement_rate"],
        "Cost Efficiency Trend": ["fine_tuning_model_cost_per_token"],
        "A/B Test Success Rate": ["fine_tuning_ab_test_success_rate"],
    },
    "Fine-Tuning Pipeline Performance": {
        "Pipeline Execution Time": ["fine_tuning_pipeline_execution_duration_seconds"],
        "Memory Usage": ["fine_tuning_pipeline_memory_peak_mb"],
        "Connection Pool Status": [
            "fine_tuning_db_connections_active",
            "fine_tuning_db_connections_idle",
            "fine_tuning_redis_connections_active",
            "fine_tuning_redis_connections_idle",
        ],
        "Circuit Breaker Status": [
            "fine_tuning_openai_circuit_breaker_state",
            "fine_tuning_mlflow_circuit_breaker_state",
        ],
    },
}
"""Dashboards by title, their panels by title, and what these ask."""

REDIS_LINES = ('redis-cli --scan --pattern "model_metrics:*" | wc -l', "redis-cli info memory")
"""How the cache is looked into."""

# --- settings ---------------------------------------------------------------------------

ENVIRONMENT = {
    "FINE_TUNING_ENABLED": "true",
    "FINE_TUNING_MIN_EXAMPLES": "100",
    "FINE_TUNING_ENGAGEMENT_THRESHOLD": "0.06",
    "FINE_TUNING_SCHEDULE": "0 2 * * 0",
    "OPENAI_API_KEY": "sk-...",
    "OPENAI_ORG_ID": "org-...",
    "HOOK_MODEL": "gpt-4o",
    "BODY_MODEL": "gpt-3.5-turbo-0125",
    "DATABASE_URL": "postgresql://user:pass@host:5432/threads_agent",
    "DATABASE_POOL_SIZE": "10",
    "DATABASE_MAX_OVERFLOW": "20",
    "DATABASE_POOL_TIMEOUT": "30",
    "REDIS_URL": "redis://redis.default.svc.cluster.local:6379",
    "REDIS_MAX_CONNECTIONS": "20",
    "REDIS_SOCKET_KEEPALIVE": "true",
    "MLFLOW_TRACKING_URI": "http://mlflow.monitoring:5000",
    "MLFLOW_EXPERIMENT_NAME": "fine_tuning_pipeline",
    "MLFLOW_AUTOLOG_ENABLED": "true",
    "K8S_CLUSTER_NAME": "threads-agent-production",
    "K8S_NAMESPACE": "fine-tuning",
    "K8S_CONNECTION_POOL_ENABLED": "true",
    "K8S_CIRCUIT_BREAKER_ENABLED": "true",
    "PROMETHEUS_METRICS_ENABLED": "true",
    "PROMETHEUS_METRICS_PORT": "9090",
    "GRAFANA_DASHBOARD_ENABLED": "true",
}
"""Each variable with the documents' value."""

TRAINING_CONFIG: dict[str, Any] = {
    "data_collection": {
        "engagement_threshold": 0.06,
        "days_back": 7,
        "chunk_size": 1000,
        "max_records": 10000,
    },
    "training": {
        "base_model": "gpt-3.5-turbo-0125",
        "hyperparameters": {"n_epochs": "auto", "batch_size": "auto"},
        "timeout_seconds": 1800,
    },
    "evaluation": {
        "traffic_split": 0.1,
        "duration_hours": 168,
        "significance_threshold": 0.05,
        "success_criteria": {"min_engagement_lift": 0.15, "min_cost_efficiency_gain": 0.10},
    },
    "deployment": {
        "strategy": "gradual_rollout",
        "rollout_config": {
            "initial_traffic": 0.1,
            "increment_interval_hours": 24,
            "increment_percentage": 0.1,
        },
    },
}
"""The settings of a pipeline as one document."""

# --- Python -----------------------------------------------------------------------------

PYTHON: dict[str, dict[str, tuple[str, ...]]] = {
    "PipelineConfig": {
        "__init__": (
            "training_data_threshold",
            "engagement_threshold",
            "weekly_schedule",
            "a_b_test_duration_hours",
        )
    },
    "FineTuningPipeline": {"__init__": ("config",), "run": ()},
    "DataCollector": {
        "__init__": ("engagement_threshold",),
        "collect_training_data": ("days_back",),
    },
    "ModelTrainer": {
        "__init__": ("base_model",),
        "start_fine_tuning": ("training_data",),
        "monitor_training_job": ("model_version",),
    },
    "ModelEvaluator": {
        "create_a_b_test": (
            "baseline_model",
            "candidate_model",
            "traffic_split",
            "duration_hours",
        ),
        "evaluate_performance": ("ab_test_id", "significance_threshold"),
    },
    "DeploymentManager": {
        "deploy_model": ("model_version", "evaluation_result", "deployment_strategy"),
        "rollback_model": ("deployment_id", "reason"),
    },
    "KubernetesOptimizedPipeline": {
        "collect_training_data_optimized": ("engagement_threshold", "days_back"),
        "start_fine_tuning_with_circuit_breaker": ("training_data",),
        "cache_evaluation_metrics": ("model_type", "ab_test_id", "metrics"),
        "health_check": (),
        "get_prometheus_metrics": (),
    },
    "CircuitBreaker": {"__init__": ("failure_threshold", "timeout")},
    "ConnectionPoolManager": {"get_pool_stats": ()},
}
"""Each class: its methods, and their arguments in order."""

BREAKERS = {"openai": (3, 120), "mlflow": (5, 60)}
"""Failures that open each breaker, and seconds until its probe."""

TRANSITIONS = (
    ("CLOSED", "OPEN"),
    ("OPEN", "HALF_OPEN"),
    ("HALF_OPEN", "CLOSED"),
    ("HALF_OPEN", "OPEN"),
)

BREAKER_ATTRIBUTES = ("state", "failure_count", "failure_threshold", "timeout")
"""What the runbook reads of a breaker."""

DIAGNOSIS = (
    "health_score",
    "state",
    "failure_count",
    "failure_threshold",
    "timeout",
    "issues",
    "recommendations",
)
"""What it makes of it; the score counts down from 100."""

EXAMPLE = {
    "messages": [{"role": Word("user", "assistant"), "content": str}],
    "engagement_rate": float,
}
"""An example, of either task."""

NO_INPUT, BODY_INPUT = "Create engaging content", "{hook}\n\nWrite a detailed post:"
"""What the model is asked for a hook without an input, and for a body."""

POSTS = ("id", "persona_id", "hook", "body", "engagement_rate", "ts", "tokens_used")
"""The columns of the table of posts that is read."""

EVALUATION_METRICS = {
    "engagement_rate": float,
    "cost_per_token": float,
    "response_time_ms": float,
    "quality_score": float,
    "sample_size": int,
    "p95_engagement": float,
}
"""What the cache keeps of an arm."""


# --- the documents themselves -----------------------------------------------------------


def documents() -> dict[str, str]:
    """The documents at hand by their path; none where the folder is not there."""
    if not PLACE.is_dir():
        return {}
    files = (path for path in PLACE.rglob("*") if path.is_file())
    return {str(path.relative_to(PLACE)): path.read_text("utf-8") for path in files}


def disagreements(found: dict[str, str]) -> list[str]:
    """In what this table and the documents differ."""
    if not found:
        return []
    said = [
        (f"rest/{name}.json: {difference}")
        for name, shape in REST.items()
        for difference in differences(shape, json.loads(found[f"rest/{name}.json"]), whole=True)
    ]
    known = {f"rest/{name}.json" for name in REST} | {"rest/prometheus-metrics.txt"}
    said += [f"{n} is not in the table" for n in found if n.startswith("rest/") and n not in known]
    for what, mine, theirs in _compared(found):
        if mine != theirs:
            said.append(f"{what}: the table has {mine!r}, the documents {theirs!r}")
    return said


def _compared(found: dict[str, str]) -> Iterator[tuple[str, Any, Any]]:
    """What is compared, as the table has it and as the documents do."""
    for name, asked in ASKED.items():
        yield f"rest/{name}.json", asked, json.loads(found[f"rest/{name}.json"])
    kinds = re.findall(r"^(fine_tuning_\w+): (\w+)$", found["prometheus/metrics.yaml"], re.M)
    yield "metrics", METRICS, {name: kind.lower() for name, kind in kinds}
    shown = re.findall(r"^(fine_tuning_\w+)", found["rest/prometheus-metrics.txt"], re.M)
    yield "metrics shown", set(), set(shown) - METRICS.keys()
    yield "rules", RULES, _rules(found["prometheus/rules.yaml"])
    boards = [
        json.loads(found[f"grafana/{n}.json"])["dashboard"] for n in ("business", "performance")
    ]
    yield "panels", PANELS, {board["title"]: _panels(board) for board in boards}
    lines = re.findall(r"^redis-cli .*$", found["runbooks/cache.sh"], re.M)
    yield "redis-cli", list(REDIS_LINES), lines
    yield "environment", ENVIRONMENT, _variables(found["environment.sh"])
    yield "training_config.json", TRAINING_CONFIG, _config(found["kubernetes/configmap.yaml"])
    yield "Python", _names(PYTHON), _names_in(found)
    breakers = found["python/breakers.py"]
    numbers = re.findall(
        r"(\w+)_circuit_breaker = .*?threshold=(\d+).*?timeout=(\d+)", breakers, re.S
    )
    yield "breakers", BREAKERS, {n: (int(count), int(s)) for n, count, s in numbers}
    yield (
        "transitions",
        list(TRANSITIONS),
        re.findall(r"^(\w+) → \(.*\) → (\w+)", found["python/breaker_states.txt"], re.M),
    )
    runbook = found["runbooks/breaker.py"]
    yield "breaker", set(BREAKER_ATTRIBUTES), set(re.findall(r"cb\.(\w+)", runbook))
    yield "diagnosis", list(DIAGNOSIS), re.findall(r'^        "(\w+)":', runbook, re.M)
    columns = re.findall(r"SELECT ([\w, ]+)$", found["sql/collect.sql"], re.M)[0]
    yield "posts", list(POSTS), columns.split(", ")
    examples = found["python/example_format.py"]
    yield "asked", True, f'"{NO_INPUT}"' in examples and r"\n\nWrite a detailed post:" in examples
    yield "example", set(EXAMPLE), set(re.findall(r'^    "(\w+)":', examples, re.M))
    yield (
        "arm",
        set(EVALUATION_METRICS),
        set(re.findall(r'^    "(\w+)":', found["python/metrics.py"], re.M)),
    )


def _rules(text: str) -> dict[str, tuple[str, ...]]:
    parts = re.split(r"- alert: ", text)[1:]
    return {
        part.split()[0]: tuple(
            re.findall(rf"^\s*{key}: (.*)$", part, re.M)[0] for key in ("expr", "for", "severity")
        )
        for part in parts
    }


def _panels(board: dict[str, Any]) -> dict[str, list[str]]:
    return {p["title"]: [target["expr"] for target in p["targets"]] for p in board["panels"]}


def _variables(text: str) -> dict[str, str]:
    return {n: v.strip('"') for n, v in re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.M)}


def _config(text: str) -> Any:
    return json.loads(re.split(r"training_config.json: \|\n", text)[1])


def _names(known: dict[str, dict[str, tuple[str, ...]]]) -> set[str]:
    """`Class.method(argument, ...)` of all."""
    return {f"{c}.{m}({', '.join(a)})" for c, inner in known.items() for m, a in inner.items()}


def _names_in(found: dict[str, str]) -> set[str]:
    """The same, of the documents; what begins with an underscore is none of a user's."""
    names = set()
    for file in (
        "pipeline",
        "collector",
        "trainer",
        "evaluator",
        "deployment",
        "kubernetes_pipeline",
    ):
        text = found[f"python/{file}.py"]
        cls = re.findall(r"class (\w+)", text)[0]
        for method, inside in re.findall(r"def (\w+)\(self(.*?)\) ?(?:->|$)", text, re.S | re.M):
            if method == "__init__" or not method.startswith("_"):
                arguments = re.findall(r"(\w+)\s*: ", inside)
                names.add(f"{cls}.{method}({', '.join(arguments)})")
    fields = re.findall(r"^    (\w+): ", found["python/config.py"], re.M)
    names.add(f"PipelineConfig.__init__({', '.join(fields)})")
    arguments = re.findall(r"(\w+)=\d", found["python/breakers.py"].split(")")[0])
    names.add(f"CircuitBreaker.__init__({', '.join(arguments)})")
    if "manager = ConnectionPoolManager()" in found["runbooks/pool-exhaustion.sh"]:
        calls = re.findall(r"manager\.(\w+)\(\)", found["runbooks/pool-exhaustion.sh"])
        names |= {f"ConnectionPoolManager.{call}()" for call in calls}
    return names
