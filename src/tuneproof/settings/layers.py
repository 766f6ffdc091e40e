"""Where settings come from: each source read into a layer, path -> (value, origin).

A path is `pipelines.default.traffic_split`, `store.url` and the like; unknown ones are
refused with the closest known one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings import checks, files
from tuneproof.settings.checks import unknown_key
from tuneproof.settings.fields import from_table, options
from tuneproof.settings.former import FORMER, split
from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.records import ProviderConfig, key_variable
from tuneproof.settings.secrets import Secret
from tuneproof.settings.tables import NAMED, SINGLE, arguments

DEFAULT_DIR = Path(".tuneproof")
FILE_NAME = files.NAMES[-1]

Layer = dict[str, tuple[Any, str]]
"""Path -> (value, origin)."""


def find_file(named: Path | str | None, dir: Path) -> Path | None:
    """The settings file: the named one, or the first usual place that has one, or None.

    A folder may be named that has some of `files.NAMES`, as a mounted ConfigMap does.
    """
    if named:
        path = Path(named)
        if path.is_dir():
            if files.in_folder(path):
                return path
            mend = f"Name the file in it, such as {path / FILE_NAME}."
            raise ConfigError(
                f"The settings file {str(path)!r} is a directory without any of "
                f"{', '.join(files.NAMES)}.",
                mend=mend,
            )
        if not path.is_file():
            mend = "Create it with: tuneproof init"
            raise ConfigError(f"The settings file {str(path)!r} does not exist.", mend=mend)
        return path
    return next((p for p in (Path(FILE_NAME), dir / FILE_NAME) if p.is_file()), None)


def folder_of(path: Path | None) -> Path:
    """What a relative path in this settings file is relative to."""
    if path is None:
        return Path()
    return path if path.is_dir() else path.parent


def from_file(path: Path) -> Layer:
    """What a settings file sets, or all those of a folder, the later over the earlier ones."""
    if path.is_dir():
        merged: Layer = {}
        for file in files.in_folder(path):
            merged |= from_file(file)
        return merged
    try:
        return {key: (value, str(path)) for key, value in _flat(files.read(path)).items()}
    except ConfigError as error:
        raise located(error, str(path)) from error


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key == "dir":
            found[key] = value
        elif key in NAMED:
            for name, table in _table(key, value).items():
                where = f"{key}.{name}"
                given, former = _table(where, table), dict[str, Any]()
                if key == "pipelines":
                    given, former = split(given)
                fields = {**from_table(NAMED[key], given, where), **former} or {"name": name}
                found |= {f"{where}.{field}": given for field, given in fields.items()}
        elif key in SINGLE:
            fields = from_table(SINGLE[key], _table(key, value), key)
            found |= {f"{key}.{field}": given for field, given in fields.items()}
        elif key == "adapters":
            found |= {f"{key}.{name}": given for name, given in _table(key, value).items()}
        else:
            raise unknown_key(key, ["dir", *NAMED, *SINGLE, "adapters"])
    return found


def _table(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise checks.refuse(path, value, "must be a table", mend=f"Write it as [{path}].")
    return value


def _fields(record: type[Any]) -> list[str]:
    return [option.name for option in options(record)]


def from_arguments(given: Mapping[str, Any]) -> Layer:
    """What the caller's arguments set; one that is None sets nothing."""
    pipeline = {*_fields(PipelineConfig), *FORMER} - {"name"}
    short = arguments()
    found: Layer = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in short:
            path = short[name]
        elif name in pipeline:
            path = f"pipelines.default.{name}"
        elif _is_path(name):
            path = name
        else:
            raise unknown_key(name, [*short, *pipeline])
        found[path] = (value, "argument")
    return found


def _is_path(path: str) -> bool:
    head, _, rest = path.partition(".")
    if head in NAMED:
        former = FORMER if head == "pipelines" else ()
        return rest.rpartition(".")[2] in (*_fields(NAMED[head]), *former)
    if head == "adapters":
        return bool(rest)
    return head in SINGLE and rest in _fields(SINGLE[head])


def with_keys(layers: Layer, env: Mapping[str, str]) -> Layer:
    """Add each provider's secrets, read from the variables that its settings name."""
    names = {path.split(".")[1] for path in layers if path.startswith("providers.")} | {"default"}
    for name in names:
        where = f"providers.{name}"
        kind = str(layers.get(f"{where}.kind", ("", ""))[0])
        # Only the default one is made by a key alone; others are named by their settings.
        _add_secret(layers, env, where, "api_key", key_variable(kind))
        if any(path.startswith(f"{where}.") for path in layers):
            _add_secret(layers, env, where, "webhook_secret", ProviderConfig.webhook_secret_env)
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
    return [option.name for option in options(record) if option.required]


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
