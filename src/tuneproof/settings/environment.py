"""Which environment variable means which setting. The environment speaks of `default`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneproof.settings import checks


def _text(name: str, value: str) -> str:
    return value


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise checks.refuse(name, value, "must be a whole number") from error


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise checks.refuse(name, value, "must be a number") from error


def _truth(name: str, value: str) -> bool:
    word = value.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise checks.refuse(name, value, "must be true or false")


VARIABLES: Mapping[str, tuple[str, Callable[[str, str], Any]]] = {
    "FINE_TUNING_ENABLED": ("pipelines.default.enabled", _truth),
    "FINE_TUNING_MIN_EXAMPLES": ("pipelines.default.training_data_threshold", _whole),
    "FINE_TUNING_ENGAGEMENT_THRESHOLD": ("pipelines.default.engagement_threshold", _number),
    "FINE_TUNING_SCHEDULE": ("pipelines.default.weekly_schedule", _text),
    "OPENAI_ORG_ID": ("providers.default.organization", _text),
    "OPENAI_BASE_URL": ("providers.default.base_url", _text),
    "HOOK_MODEL": ("tasks.hook.model", _text),
    "BODY_MODEL": ("tasks.body.model", _text),
    "DATABASE_URL": ("store.url", _text),
    "DATABASE_POOL_SIZE": ("store.pool_size", _whole),
    "DATABASE_MAX_OVERFLOW": ("store.max_overflow", _whole),
    "DATABASE_POOL_TIMEOUT": ("store.pool_timeout", _number),
    "REDIS_URL": ("cache.url", _text),
    "REDIS_MAX_CONNECTIONS": ("cache.max_connections", _whole),
    "REDIS_SOCKET_KEEPALIVE": ("cache.keepalive", _truth),
    "MLFLOW_TRACKING_URI": ("tracking.uri", _text),
    "MLFLOW_EXPERIMENT_NAME": ("tracking.experiment_name", _text),
    "MLFLOW_AUTOLOG_ENABLED": ("tracking.autolog", _truth),
    "K8S_CLUSTER_NAME": ("kubernetes.cluster_name", _text),
    "K8S_NAMESPACE": ("kubernetes.namespace", _text),
    "K8S_CONNECTION_POOL_ENABLED": ("kubernetes.connection_pool_enabled", _truth),
    "K8S_CIRCUIT_BREAKER_ENABLED": ("kubernetes.circuit_breaker_enabled", _truth),
    "PROMETHEUS_METRICS_ENABLED": ("server.metrics_enabled", _truth),
    "PROMETHEUS_METRICS_PORT": ("server.metrics_port", _whole),
    "GRAFANA_DASHBOARD_ENABLED": ("server.grafana_dashboard_enabled", _truth),
    "TUNEPROOF_DIR": ("dir", _text),
    "TUNEPROOF_CONFIG": ("file", _text),
    "TUNEPROOF_HOST": ("server.host", _text),
    "TUNEPROOF_PORT": ("server.port", _whole),
    "TUNEPROOF_PUBLIC_URL": ("server.public_url", _text),
    "TUNEPROOF_URL": ("remote.url", _text),
    "TUNEPROOF_TOKEN": ("remote.token", _text),
}
"""Variable -> the setting's path and the reader of its text. Keys of providers come beside."""


def read(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The settings that the environment makes: path -> (value, variable). Empty is not set."""
    found = {}
    for name, (path, reader) in VARIABLES.items():
        value = env.get(name, "")
        if value.strip():
            found[path] = (reader(name, value), name)
    return found
