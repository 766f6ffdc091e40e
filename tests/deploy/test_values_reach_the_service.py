"""Every value of the chart reaches the running service: rendered, mounted, started, asked."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.deploy.rendering import NAME, Object, one, rendered
from tests.deploy.test_chart import DOCUMENTED, leaves, merged
from tests.line import EXECUTABLE, clean_env
from tests.servers import PostgresServer, redis_server
from tests.waiting import until

from tuneproof.settings import Settings

START_S = 200.0
"""How long a start may take; two seconds where nothing else runs."""

SETTINGS = {
    "config.trainingDataThreshold": "pipelines.default.training_data_threshold",
    "config.engagementThreshold": "pipelines.default.engagement_threshold",
    "config.weeklySchedule": "pipelines.default.weekly_schedule",
    "config.abTestDurationHours": "pipelines.default.a_b_test_duration_hours",
    "connectionPools.database.minSize": "store.pool_min_size",
    "connectionPools.database.maxSize": "store.pool_size",
    "connectionPools.database.maxQueries": "store.max_queries",
    "connectionPools.database.maxInactiveLifetime": "store.max_idle_seconds",
    "connectionPools.redis.maxConnections": "cache.max_connections",
    "connectionPools.redis.healthCheckInterval": "cache.health_check_interval",
    "circuitBreakers.openai.failureThreshold": "breakers.openai_failure_threshold",
    "circuitBreakers.openai.timeout": "breakers.openai_timeout",
    "circuitBreakers.mlflow.failureThreshold": "breakers.mlflow_failure_threshold",
    "circuitBreakers.mlflow.timeout": "breakers.mlflow_timeout",
}
"""What the documented values mean, by the paths of `tuneproof config check`."""


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """The documented values that are settings."""
    service = values["fineTuningPipeline"]
    return {
        path.removeprefix("kubernetesOptimizations."): value
        for path, value in leaves({k: service[k] for k in ("config", "kubernetesOptimizations")})
    }


class Pod:
    """A container of the chart's Deployment as a process of this machine."""

    def __init__(self, objects: list[Object], folder: Path, **replaced: str) -> None:
        spec = one(objects, "Deployment", NAME)["spec"]["template"]["spec"]
        self.main, self.init = spec["containers"][0], spec["initContainers"][0]
        mounted = {m["mountPath"] for m in self.main["volumeMounts"]}
        assert {"/etc/tuneproof", "/data"} <= mounted
        for name, text in one(objects, "ConfigMap", "fine-tuning-config")["data"].items():
            (folder / "etc").mkdir(exist_ok=True)
            (folder / "etc" / name).write_text(text, "utf-8")
        places = {
            "/etc/tuneproof": str(folder / "etc"),
            "/data": str(folder),
            "/data/tuneproof": str(folder / "data"),
        }
        env = {}
        for entry in self.main["env"]:
            if "value" in entry:
                env[entry["name"]] = places.get(entry["value"], entry["value"])
            elif "secretKeyRef" in entry["valueFrom"]:
                env[entry["name"]] = replaced[entry["name"]]
        free = {"TUNEPROOF_PORT": "0", "PROMETHEUS_METRICS_PORT": "0"}
        self.env = clean_env(**{**env, **{k: replaced[k] for k in env if k in replaced}, **free})
        self.folder = folder

    def run(self, *args: str) -> str:
        """What a command prints in this pod's environment."""
        done = subprocess.run(
            [*EXECUTABLE, *args],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def settings(self) -> dict[str, str]:
        """What holds in this pod, as `tuneproof config check` says it."""
        return {path: value for path, value, _ in Settings.load(env=self.env).describe()}

    @contextmanager
    def serving(self) -> Iterator[httpx2.Client]:
        """The container, its init container run before it; whom its callers ask."""
        self.run(*self.init["args"])
        log = (self.folder / "log").open("w")
        process = subprocess.Popen(
            [*EXECUTABLE, *self.main["args"]], env=self.env, cwd=self.folder, stdout=log, stderr=log
        )
        left = self.folder / "data" / "service.json"
        try:
            until(
                lambda: left.is_file() or process.poll() is not None,
                START_S,
                otherwise=lambda: (self.folder / "log").read_text(),
            )
            found = json.loads(left.read_text("utf-8"))
            headers = {"Authorization": f"Bearer {found['token']}"}
            with httpx2.Client(base_url=found["url"], headers=headers, timeout=30) as client:
                yield client
        finally:
            process.terminate()
            assert process.wait(timeout=START_S) == 0, (self.folder / "log").read_text()
            log.close()


@pytest.mark.postgres
def test_the_documented_values_reach_the_running_service(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    database = postgres.create_database()
    with redis_server() as redis:
        pod = Pod(
            rendered(DOCUMENTED),
            tmp_path,
            DATABASE_URL=database,
            REDIS_URL=redis.url,
            OPENAI_API_KEY="sk-test",
            MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        )
        with pod.serving() as client:
            assert client.get("/ready").json() == {"ready": True, "reasons": []}
            health = client.get("/health").json()
            pools = health["connection_pools"]
            assert (pools["db_connections_min"], pools["db_connections_max"]) == (2, 10)
            assert pools["redis_connections_max"] == 20
            said = {name: check["detail"] for name, check in health["checks"].items()}
            assert "after 3 failures in a row, for 120 s" in said["openai_circuit_breaker"]
            assert "after 5 failures in a row, for 60 s" in said["mlflow_circuit_breaker"]
            assert health["checks"]["redis"]["status"] == "healthy"
            status = client.get("/status").json()["pipelines"][0]
            assert status["next_start_at"].endswith("T02:00:00+00:00"), status
            found = pod.settings()
    for path, value in told(DOCUMENTED).items():
        assert found[SETTINGS[path]] == str(value), path


CHANGED = {
    "fineTuningPipeline/config/trainingDataThreshold": 120,
    "fineTuningPipeline/config/engagementThreshold": 0.075,
    "fineTuningPipeline/config/weeklySchedule": "30 4 1 * *",
    "fineTuningPipeline/config/abTestDurationHours": 336,
    "fineTuningPipeline/kubernetesOptimizations": {
        "connectionPools": {
            "database": {
                "minSize": 1,
                "maxSize": 4,
                "maxQueries": 1000000,
                "maxInactiveLifetime": 60,
            },
            "redis": {"maxConnections": 7, "healthCheckInterval": 15},
        },
        "circuitBreakers": {
            "openai": {"failureThreshold": 4, "timeout": 90},
            "mlflow": {"failureThreshold": 6, "timeout": 45},
        },
    },
    "fineTuningPipeline/settings": {
        "store": {"pool_timeout": 12},
        "tasks": {"hook": {"model": "gpt-4.1-mini"}},
    },
    "fineTuningPipeline/trainingConfig": {
        "training": {"base_model": "gpt-4.1-mini", "timeout_seconds": 7200}
    },
}


def test_changed_values_reach_the_settings_of_the_pod(tmp_path: Path) -> None:
    values = merged(CHANGED)
    pod = Pod(
        rendered(values),
        tmp_path,
        DATABASE_URL="postgresql://nobody@127.0.0.1:9/none",
        OPENAI_API_KEY="sk-test",
    )
    found = pod.settings()
    for path, value in told(values).items():
        assert found[SETTINGS[path]] == str(value), path
    assert set(told(values)) == set(SETTINGS), "each documented value is looked for"
    assert found["store.pool_timeout"] == "12"
    assert found["tasks.hook.model"] == "gpt-4.1-mini"
    assert found["pipelines.default.base_model"] == "gpt-4.1-mini"
    assert found["pipelines.default.timeout_seconds"] == "7200"
    assert os.environ.get("TUNEPROOF_CONFIG") is None
