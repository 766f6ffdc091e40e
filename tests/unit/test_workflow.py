"""What crosses a durable step comes back as what it was; one process owns a directory."""

from __future__ import annotations

import dataclasses
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
    if cls.__name__ == "PipelineConfig":
        return cls(seed=3, steps=(0.1, 0.5))
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


def test_record_of_an_older_release_ignores_fields_that_are_gone() -> None:
    text = SERIALIZER.serialize(workflow.Signal(kind="abort"))
    older = text.replace('"kind":"abort"', '"kind":"abort","gone":1')
    assert SERIALIZER.deserialize(older) == workflow.Signal(kind="abort")


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
