"""What crosses a step: JSON that restores our records, enums, instants and errors by class."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

from dbos import Serializer

from tuneproof import errors

_registry: dict[str, type] = {}


def register(*classes: type) -> None:
    """Let these record and enum classes cross steps: they come back as what they were.

    A class keeps its registered name (`__name__`) for as long as runs that recorded it may
    be replayed.
    """
    for cls in classes:
        known = _registry.setdefault(cls.__name__, cls)
        if known is not cls:
            raise errors.ConfigError(
                f"Two record classes are named {cls.__name__}: {known.__module__} and "
                f"{cls.__module__}.",
                mend="Rename one: replay restores records by class name.",
            )


def registered() -> Mapping[str, type]:
    """Each registered class by its name; for the test that round-trips all of them."""
    return dict(_registry)


class RecordSerializer(Serializer):
    """JSON that restores our records, enums, instants and errors by class."""

    def name(self) -> str:
        """The name under which the engine stores what this wrote."""
        return "tuneproof_json"

    def serialize(self, data: Any) -> str:
        """One value as JSON text."""
        return json.dumps(_pack(data), separators=(",", ":"), ensure_ascii=False)

    def deserialize(self, serialized_data: str) -> Any:
        """The value that `serialize` wrote."""
        return _unpack(json.loads(serialized_data))


def _pack(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)) or type(value) is str:
        return value
    if isinstance(value, Enum):
        return {"$enum": type(value).__name__, "value": value.value}
    if isinstance(value, datetime):
        return {"$at": value.isoformat()}
    if isinstance(value, timedelta):
        return {"$seconds": value.total_seconds()}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = type(value).__name__
        items = [_pack(v) for v in value]
        return items if kind == "list" else {f"${kind}": items}
    if isinstance(value, Mapping):
        if all(type(k) is str and not k.startswith("$") for k in value):
            return {k: _pack(v) for k, v in value.items()}
        return {"$pairs": [[_pack(k), _pack(v)] for k, v in value.items()]}
    if isinstance(value, errors.TuneProofError):
        return {"$error": type(value).__name__, "fields": _pack(value.to_dict())}
    if isinstance(value, BaseException):
        return {"$exception": type(value).__name__, "message": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        if _registry.get(name) is not type(value):
            raise errors.ConfigError(
                f"A step returned a {name}, which is not registered.",
                mend="Pass it to workflow.register().",
            )
        fields = {f.name: _pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$record": name, "fields": fields}
    if isinstance(value, str):
        return str(value)
    raise errors.ConfigError(
        f"A {type(value).__name__} cannot cross a durable step.",
        mend="Return records, numbers, text, instants, lists or mappings.",
    )


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next((k for k in value if k.startswith("$")), None)
    if tag is None:
        return {k: _unpack(v) for k, v in value.items()}
    return _UNPACK[tag](value)


def _unpack_record(value: dict[str, Any]) -> Any:
    cls = _registry[value["$record"]]
    known = {f.name for f in dataclasses.fields(cls)}
    fields = {k: _unpack(v) for k, v in value["fields"].items() if k in known}
    return cls(**fields)


def _unpack_exception(value: dict[str, Any]) -> Exception:
    known: dict[str, type[Exception]] = {
        c.__name__: c for c in (ValueError, KeyError, TypeError, RuntimeError, OSError)
    }
    return known.get(value["$exception"], RuntimeError)(value["message"])


_UNPACK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$enum": lambda v: _registry[v["$enum"]](v["value"]),
    "$at": lambda v: datetime.fromisoformat(v["$at"]),
    "$seconds": lambda v: timedelta(seconds=v["$seconds"]),
    "$path": lambda v: Path(v["$path"]),
    "$decimal": lambda v: Decimal(v["$decimal"]),
    "$tuple": lambda v: tuple(_unpack(i) for i in v["$tuple"]),
    "$set": lambda v: {_unpack(i) for i in v["$set"]},
    "$frozenset": lambda v: frozenset(_unpack(i) for i in v["$frozenset"]),
    "$pairs": lambda v: {_unpack(k): _unpack(i) for k, i in v["$pairs"]},
    "$error": lambda v: errors.by_name()[v["$error"]].from_dict(_unpack(v["fields"])),
    "$exception": _unpack_exception,
    "$record": _unpack_record,
}
