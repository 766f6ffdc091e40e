"""What crosses a durable step comes back as what it was; one process owns a directory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tuneproof.pipeline  # noqa: F401 - registers what crosses steps
from tuneproof import errors, workflow
from tuneproof.settings import Declaration, PipelineConfig

T0 = datetime(2025, 1, 20, 2, 0, 0, 123456, tzinfo=UTC)
SERIALIZER = workflow.RecordSerializer()


def again(value: object) -> object:
    return SERIALIZER.deserialize(SERIALIZER.serialize(value))


@pytest.mark.parametrize("cls", sorted(errors.by_name().values(), key=lambda c: c.__name__))
def test_error_is_equal_after_replay(cls: type[errors.TuneProofError]) -> None:
    raised = cls("what", mend="how", code="c", n=3, at=[1, 2])
    restored = again(raised)
    assert type(restored) is cls
    assert restored == raised


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(JSON)
def test_any_json_value_is_equal_after_replay(value: object) -> None:
    assert again(value) == value


@pytest.mark.parametrize(
    "value",
    [
        T0,
        timedelta(hours=3),
        Decimal("1.10"),
        Path("/a/b"),
        (1, "a"),
        {1, 2},
        frozenset({"x"}),
        {1: "one", (2, 3): "pair"},
        {"$odd": 1},
    ],
)
def test_special_value_is_equal_after_replay(value: object) -> None:
    restored = again(value)
    assert restored == value
    assert type(restored) is type(value)


def example(annotation: object, seen: tuple[type, ...] = ()) -> object:
    """Some value of a type, for fields of records."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, __import__("types").UnionType):
        return example(next(a for a in arguments if a is not type(None)), seen)
    if origin is tuple:
        return (example(arguments[0], seen),)
    if origin in (list, set, frozenset):
        return origin([example(arguments[0], seen)])
    if origin is not None and issubclass(origin, typing.Mapping | dict):
        return {example(arguments[0], seen): example(arguments[1], seen)}
    if origin is not None:
        return [example(arguments[0], seen)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return list(annotation)[-1]
    if dataclasses.is_dataclass(annotation):
        return record(typing.cast(type, annotation), seen)
    simple = {str: "text", int: 3, float: 0.25, bool: True, datetime: T0, object: 1}
    return simple.get(typing.cast(type, annotation), "any")


def record(cls: type, seen: tuple[type, ...] = ()) -> object:
    if issubclass(cls, PipelineConfig):
        return cls(seed=3, steps=(0.1, 0.5), segments=("persona",))
    if issubclass(cls, Declaration):
        return cls(segments=("persona",), criteria=("quality non_inferior 0.02",))
    hints = typing.get_type_hints(cls)
    return cls(**{f.name: example(hints[f.name], (*seen, cls)) for f in dataclasses.fields(cls)})


@pytest.mark.parametrize("name", sorted(workflow.registered()))
def test_registered_type_is_equal_after_replay(name: str) -> None:
    cls = workflow.registered()[name]
    value = next(iter(cls)) if issubclass(cls, Enum) else record(cls)
    restored = again(value)
    assert type(restored) is cls
    assert restored == value


def test_unregistered_record_is_refused_by_name() -> None:
    @dataclasses.dataclass
    class Stranger:
        a: int = 1

    with pytest.raises(errors.ConfigError, match="Stranger, which is not registered"):
        SERIALIZER.serialize(Stranger())


def stored(value: object, **fields: object) -> str:
    """A record as it was stored, with other fields beside its own; None takes one away."""
    packed = json.loads(SERIALIZER.serialize(value))
    packed["fields"] |= fields
    packed["fields"] = {k: v for k, v in packed["fields"].items() if v is not None}
    return json.dumps(packed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trip:
    hours: float
    note: str = "none"


def _of_minutes(fields: dict[str, object]) -> dict[str, object]:
    minutes = typing.cast(float, fields.pop("minutes"))
    return {**fields, "hours": minutes / 60}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Journey:
    hours: float


workflow.register(Trip)
workflow.register_as("Voyage", Journey, upgrade=_of_minutes)


def test_a_stored_field_that_no_upgrade_names_is_refused() -> None:
    with pytest.raises(errors.DataError, match="A stored Trip has the field gone") as caught:
        SERIALIZER.deserialize(stored(Trip(hours=2), gone=1))
    assert caught.value.details == {"record": "Trip", "field": "gone"}
    assert "upgrade" in caught.value.mend


def test_an_upgrade_makes_the_fields_of_now_from_those_of_then() -> None:
    assert SERIALIZER.deserialize(stored(Journey(hours=0), hours=None, minutes=90)) == Journey(
        hours=1.5
    )
    assert again(Journey(hours=3)) == Journey(hours=3)  # a record of now is not upgraded


def test_a_field_that_an_upgrade_leaves_over_is_refused() -> None:
    text = stored(Journey(hours=0), minutes=90, gone=1)
    with pytest.raises(errors.DataError, match="Voyage has the field gone"):
        SERIALIZER.deserialize(text)


def test_a_stored_record_without_a_needed_field_is_refused_by_name() -> None:
    with pytest.raises(errors.DataError, match="A stored Trip is without hours"):
        SERIALIZER.deserialize(stored(Trip(hours=2), hours=None))
    assert SERIALIZER.deserialize(stored(Trip(hours=2), note=None)) == Trip(hours=2)


def test_a_class_is_stored_under_its_name_of_then() -> None:
    assert json.loads(SERIALIZER.serialize(Journey(hours=1)))["$record"] == "Voyage"
    with pytest.raises(errors.ConfigError, match="Two classes are stored as Voyage"):
        workflow.register_as("Voyage", Trip)
    with pytest.raises(errors.ConfigError, match="stored as Voyage already"):
        workflow.register(Journey)


@pytest.mark.parametrize(
    "text",
    [
        '{"$record": "Gone", "fields": {}}',
        '{"$enum": "RunStatus", "value": "gone"}',
        '{"$error": "GoneError", "fields": {}}',
    ],
)
def test_what_no_class_of_now_stands_for_is_refused_by_name(text: str) -> None:
    with pytest.raises(errors.DataError, match=r"[Gg]one.* (does not know|is none now)"):
        SERIALIZER.deserialize(text)


def test_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    lock = workflow.DirectoryLock(tmp_path)
    lock.acquire()
    code = (
        "import sys; from pathlib import Path; from tuneproof import workflow\n"
        "try: workflow.DirectoryLock(Path(sys.argv[1])).acquire()\n"
        "except Exception as e: print(e); sys.exit(3)"
    )
    second = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 3
    assert "is in use by process" in second.stdout
    lock.release()
    third = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert third.returncode == 0
