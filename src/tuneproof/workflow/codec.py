"""What crosses a step: JSON that restores our records, enums, instants and errors by class.

What a run recorded is read for as long as the run may be replayed, by later releases as well. So
a class keeps the name under which it is stored, fields that it lost are made into what replaced
them by its `Upgrade`, and what nobody names is refused: dropped, a setting that was moved would
come back as its default.
"""

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

Fields = dict[str, Any]
Upgrade = Callable[[Fields], Fields]
"""Takes the fields that an earlier release stored, returns those that the class has now."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """A class, the name under which it is stored, and what reads its earlier forms."""

    name: str
    cls: type
    upgrade: Upgrade | None = None


_by_name: dict[str, _Stored] = {}
_by_class: dict[type, _Stored] = {}


def register(*classes: type) -> None:
    """Let these record and enum classes cross steps, stored under their own names.

    They come back as what they were. A class keeps its stored name for as long as runs that
    recorded it may be replayed: one that is renamed is registered by `register_as`.
    """
    for cls in classes:
        register_as(cls.__name__, cls)


def register_as(name: str, cls: type, *, upgrade: Upgrade | None = None) -> None:
    """Let a class cross steps under this name.

    `upgrade` gets the fields of a stored record whose fields are not the class's, and returns
    those that it has; to register a class again with one replaces what was said of it. Raises
    `ConfigError` where the name stands for another class.
    """
    known = _by_name.get(name)
    if known is not None and known.cls is not cls:
        raise errors.ConfigError(
            f"Two classes are stored as {name}: {known.cls.__module__}.{known.cls.__name__} and "
            f"{cls.__module__}.{cls.__name__}.",
            mend="Register one of them under another name.",
        )
    before = _by_class.get(cls)
    if before is not None and before.name != name:
        raise errors.ConfigError(
            f"{cls.__name__} is stored as {before.name} already.",
            mend=f"Register it as {before.name}: runs that recorded it say that name.",
        )
    _by_name[name] = _by_class[cls] = _Stored(name=name, cls=cls, upgrade=upgrade)


def registered() -> Mapping[str, type]:
    """Each registered class by its stored name; for the test that round-trips all of them."""
    return {name: stored.cls for name, stored in _by_name.items()}


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
        return {"$enum": _name_of(type(value)), "value": value.value}
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
        fields = {f.name: _pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$record": _name_of(type(value)), "fields": fields}
    if isinstance(value, str):
        return str(value)
    raise errors.ConfigError(
        f"A {type(value).__name__} cannot cross a durable step.",
        mend="Return records, numbers, text, instants, lists or mappings.",
    )


def _name_of(cls: type) -> str:
    if cls not in _by_class:
        raise errors.ConfigError(
            f"A step returned a {cls.__name__}, which is not registered.",
            mend="Pass it to workflow.register().",
        )
    return _by_class[cls].name


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    tag = next((k for k in value if k.startswith("$")), None)
    if tag is None:
        return {k: _unpack(v) for k, v in value.items()}
    return _UNPACK[tag](value)


def _stored_as(name: str) -> _Stored:
    if name not in _by_name:
        raise errors.DataError(
            f"A step recorded a {name}, which this version does not know.",
            mend=f"Run the version that recorded it, or register the class that {name} became: "
            f'workflow.register_as("{name}", …).',
            record=name,
        )
    return _by_name[name]


def _unpack_record(value: dict[str, Any]) -> Any:
    stored = _stored_as(value["$record"])
    fields = {name: _unpack(inner) for name, inner in value["fields"].items()}
    known = {f.name for f in dataclasses.fields(stored.cls)}
    if stored.upgrade is not None and fields.keys() != known:
        fields = stored.upgrade(fields)
    for name in fields:
        if name not in known:
            raise _misfit(stored, name, "which the class does not have")
    for f in dataclasses.fields(stored.cls):
        without = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if without and f.name not in fields:
            raise _misfit(stored, f.name, "which the class needs", there=False)
    # A class may say itself how it is made of fields that an earlier version stored.
    return getattr(stored.cls, "restored", stored.cls)(**fields)


def _misfit(stored: _Stored, field: str, why: str, *, there: bool = True) -> errors.DataError:
    said = f"has the field {field}, {why}" if there else f"is without {field}, {why}"
    return errors.DataError(
        f"A stored {stored.name} {said}.",
        mend=f"Let an upgrade say what becomes of it: workflow.register_as("
        f'"{stored.name}", {stored.cls.__name__}, upgrade=…); or run the version that stored it.',
        record=stored.name,
        field=field,
    )


def _unpack_enum(value: dict[str, Any]) -> Any:
    stored = _stored_as(value["$enum"])
    try:
        return stored.cls(value["value"])
    except ValueError as error:
        raise errors.DataError(
            f"A step recorded the {stored.name} {value['value']!r}, which is none now.",
            mend=f"Keep that member of {stored.cls.__name__}, or run the version that stored it.",
            record=stored.name,
        ) from error


def _unpack_error(value: dict[str, Any]) -> errors.TuneProofError:
    known = errors.by_name()
    if value["$error"] not in known:
        raise errors.DataError(
            f"A step recorded the error {value['$error']}, which this version does not know.",
            mend="Run the version that recorded it.",
            record=value["$error"],
        )
    return known[value["$error"]].from_dict(_unpack(value["fields"]))


def _unpack_exception(value: dict[str, Any]) -> Exception:
    known: dict[str, type[Exception]] = {
        c.__name__: c for c in (ValueError, KeyError, TypeError, RuntimeError, OSError)
    }
    return known.get(value["$exception"], RuntimeError)(value["message"])


_UNPACK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$enum": _unpack_enum,
    "$at": lambda v: datetime.fromisoformat(v["$at"]),
    "$seconds": lambda v: timedelta(seconds=v["$seconds"]),
    "$path": lambda v: Path(v["$path"]),
    "$decimal": lambda v: Decimal(v["$decimal"]),
    "$tuple": lambda v: tuple(_unpack(i) for i in v["$tuple"]),
    "$set": lambda v: {_unpack(i) for i in v["$set"]},
    "$frozenset": lambda v: frozenset(_unpack(i) for i in v["$frozenset"]),
    "$pairs": lambda v: {_unpack(k): _unpack(i) for k, i in v["$pairs"]},
    "$error": _unpack_error,
    "$exception": _unpack_exception,
    "$record": _unpack_record,
}
