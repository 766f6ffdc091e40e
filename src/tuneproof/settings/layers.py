"""Where settings come from: each source read into a layer, path -> (value, origin).

A path is `pipelines.default.traffic_split`, `store.url` and the like; unknown ones are
refused with the closest known one.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings import checks
from tuneproof.settings.checks import Secret, unknown_key
from tuneproof.settings.fields import from_sections
from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.records import (
    AlertsConfig,
    CacheConfig,
    KubernetesConfig,
    OutcomeSourceConfig,
    ProviderConfig,
    RemoteConfig,
    ScorerConfig,
    ServerConfig,
    SourceConfig,
    StoreConfig,
    TargetConfig,
    TaskConfig,
    TrackingConfig,
    key_variable,
)

DEFAULT_DIR = Path(".tuneproof")
FILE_NAME = "tuneproof.toml"

NAMED: Mapping[str, type[Any]] = {
    "pipelines": PipelineConfig,
    "tasks": TaskConfig,
    "providers": ProviderConfig,
    "sources": SourceConfig,
    "outcome_sources": OutcomeSourceConfig,
    "scorers": ScorerConfig,
    "targets": TargetConfig,
}
SINGLE: Mapping[str, type[Any]] = {
    "store": StoreConfig,
    "cache": CacheConfig,
    "tracking": TrackingConfig,
    "server": ServerConfig,
    "kubernetes": KubernetesConfig,
    "remote": RemoteConfig,
    "alerts": AlertsConfig,
}
_ARGUMENTS: Mapping[str, str] = {
    "database_url": "store.url",
    "redis_url": "cache.url",
    "host": "server.host",
    "port": "server.port",
    "public_url": "server.public_url",
    "metrics_port": "server.metrics_port",
    "base_url": "providers.default.base_url",
    "api_key": "providers.default.api_key",
    "mlflow_tracking_uri": "tracking.uri",
    "posts": "sources.posts.url",
    "url": "remote.url",
    "token": "remote.token",
}

Layer = dict[str, tuple[Any, str]]
"""Path -> (value, origin)."""


def find_file(named: Path | str | None, dir: Path) -> Path | None:
    """The settings file: the named one, or the first usual place that has one, or None."""
    if named:
        path = Path(named)
        if not path.is_file():
            mend = "Create it with: tuneproof init"
            raise ConfigError(f"The settings file {str(path)!r} does not exist.", mend=mend)
        return path
    return next((p for p in (Path(FILE_NAME), dir / FILE_NAME) if p.is_file()), None)


def from_file(path: Path) -> Layer:
    """What a settings file sets."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        mend = "Correct that line."
        raise ConfigError(f"{path} is not valid TOML: {error}.", mend=mend) from error
    try:
        return {key: (value, str(path)) for key, value in _flat(data).items()}
    except ConfigError as error:
        raise located(error, str(path)) from error


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key == "dir":
            found[key] = value
        elif key in NAMED:
            for name, table in _table(key, value).items():
                found |= _flat_record(key, name, _table(f"{key}.{name}", table))
        elif key in SINGLE or key == "adapters":
            known = None if key == "adapters" else fields_in(SINGLE[key])
            for name, inner in _table(key, value).items():
                if known is not None and name not in known:
                    raise unknown_key(f"{key}.{name}", known, last=name)
                found[f"{key}.{name}"] = inner
        else:
            raise unknown_key(key, ["dir", *NAMED, *SINGLE, "adapters"])
    return found


def _flat_record(kind: str, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    where = f"{kind}.{name}"
    if kind == "pipelines":
        fields = from_sections(PipelineConfig, table, where)
    elif kind == "targets":
        options = {k: v for k, v in table.items() if k != "kind"}
        fields = {"kind": table.get("kind"), "options": options}
    elif kind == "scorers" and table.get("kind", "judge") != "judge":
        known = fields_in(ScorerConfig)
        options = {k: v for k, v in table.items() if k not in known}
        fields = {k: v for k, v in table.items() if k in known} | {"options": options}
    else:
        fields = dict(table)
        known = [f for f in fields_in(NAMED[kind]) if f != "name"]
        for key in fields:
            if key not in known:
                raise unknown_key(f"{where}.{key}", known, last=key)
    return {f"{where}.{key}": value for key, value in fields.items()} or {f"{where}.name": name}


def _table(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise checks.refuse(path, value, "must be a table", mend=f"Write it as [{path}].")
    return value


def fields_in(record: type[Any]) -> list[str]:
    """The names of a record's fields."""
    return [f.name for f in dataclasses.fields(record)]


def from_arguments(arguments: Mapping[str, Any]) -> Layer:
    """What the caller's arguments set; one that is None sets nothing."""
    pipeline = set(fields_in(PipelineConfig)) - {"name"}
    found: Layer = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _ARGUMENTS:
            path = _ARGUMENTS[name]
        elif name in pipeline:
            path = f"pipelines.default.{name}"
        elif _is_path(name):
            path = name
        else:
            raise unknown_key(name, [*_ARGUMENTS, *pipeline])
        found[path] = (value, "argument")
    return found


def _is_path(path: str) -> bool:
    head, _, rest = path.partition(".")
    if head in NAMED:
        return rest.rpartition(".")[2] in fields_in(NAMED[head])
    if head == "adapters":
        return bool(rest)
    return head in SINGLE and rest in fields_in(SINGLE[head])


def with_keys(layers: Layer, env: Mapping[str, str]) -> Layer:
    """Add each provider's secrets, read from the variables that its settings name."""
    names = {path.split(".")[1] for path in layers if path.startswith("providers.")} | {"default"}
    for name in names:
        where = f"providers.{name}"
        kind = str(layers.get(f"{where}.kind", ("", ""))[0])
        # Only the default one is made by a key alone; others are named by their settings.
        _add_secret(layers, env, where, "api_key", key_variable(kind))
        if any(path.startswith(f"{where}.") for path in layers):
            _add_secret(layers, env, where, "webhook_secret", "OPENAI_WEBHOOK_SECRET")
    return layers


def _add_secret(
    layers: Layer, env: Mapping[str, str], where: str, field: str, default: str
) -> None:
    variable, _ = layers.get(f"{where}.{field}_env", (default, ""))
    path = f"{where}.{field}"
    value = env.get(variable, "").strip() if isinstance(variable, str) else ""
    if value and path not in layers:
        layers[path] = (Secret(value), f"environment {variable}")


def required_in(record: type[Any]) -> list[str]:
    """The fields of a record that have no default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(record)
    return [f.name for f in fields if f.default is missing and f.default_factory is missing]


def located(error: ConfigError, origin: str, path: str = "") -> ConfigError:
    """The same error with the setting's whole path, and where the value came from."""
    field = str(error.details.get("field", ""))
    path = path or field
    message = path + error.message.removeprefix(field) if field else error.message
    mend = error.mend.replace(f"Change {field} ", f"Change {path} ")
    if origin:
        message = f"{message.rstrip('.')} (set by {origin})."
    return ConfigError(
        message, mend=mend, **{**error.details, "field": path, "origin": origin or "default"}
    )
