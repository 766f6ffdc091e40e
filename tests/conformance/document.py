"""An OpenAPI document as what answers are checked by, and the score of what was checked.

A field is a value at a place of an answer, such as `data[].status`; the places of all answers of an
operation are told apart by their names, not by their numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

__all__ = ["Document", "Score"]

Place = tuple[str, ...]


class Document:
    """The paths and schemas of the document."""

    def __init__(self, path: Path) -> None:
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        self._whole = _with_nulls(found)
        self._paths: dict[str, Any] = self._whole["paths"]

    def operations(self, *beginnings: str) -> list[str]:
        """`METHOD /path` of all operations on these paths."""
        return [
            f"{method.upper()} {path}"
            for path, methods in self._paths.items()
            for method in methods
            if path.startswith(beginnings)
        ]

    def template(self, method: str, path: str) -> str | None:
        """The operation that a request belongs to."""
        parts = path.strip("/").split("/")
        for known, methods in self._paths.items():
            named = known.strip("/").split("/")
            if method.lower() in methods and len(named) == len(parts) and _fit(named, parts):
                return f"{method.upper()} {known}"
        return None

    def wrong(self, operation: str, status: int, kind: str, answer: Any) -> dict[Place, str]:
        """What is wrong with an answer, by its place."""
        schema = self._schema(operation, status, kind)
        checked = Draft202012Validator({**schema, "components": self._whole["components"]})
        return dict(_places(checked.iter_errors(answer)))

    def _schema(self, operation: str, status: int, kind: str) -> dict[str, Any]:
        if status >= 400:
            return {"$ref": "#/components/schemas/ErrorResponse"}
        method, path = operation.split()
        content = self._paths[path][method.lower()]["responses"]["200"]["content"]
        schema: dict[str, Any] = content[kind]["schema"]
        return schema


def _fit(named: list[str], parts: list[str]) -> bool:
    pairs = zip(named, parts, strict=True)
    return all(name.startswith("{") or name == part for name, part in pairs)


def _with_nulls(found: Any) -> Any:
    """`nullable` and a bound that is exclusive, which the document has in the words of OpenAPI 3.0,
    as its version of JSON Schema says them."""
    if isinstance(found, list):
        return [_with_nulls(one) for one in found]
    if not isinstance(found, dict):
        return found
    made = {name: _with_nulls(value) for name, value in found.items()}
    if made.get("exclusiveMinimum") is True:
        made["exclusiveMinimum"] = made.pop("minimum")
    if made.pop("nullable", None) is True:
        return {"anyOf": [made, {"type": "null"}]}
    return made


def _places(errors: Iterator[ValidationError]) -> Iterator[tuple[Place, str]]:
    for error in errors:
        place = tuple("[]" if isinstance(step, int) else str(step) for step in error.absolute_path)
        if error.validator == "required":
            missing = error.message.split("'")[1]
            yield (*place, missing), "is missing"
        else:
            yield place, error.message[:120]


@dataclasses.dataclass
class Score:
    """What was seen of each operation, and what of it was wrong."""

    seen: dict[str, set[Place]] = dataclasses.field(default_factory=dict)
    wrong: dict[str, dict[Place, str]] = dataclasses.field(default_factory=dict)

    def count(self, operation: str, answer: Any, wrong: dict[Place, str]) -> None:
        """One answer."""
        self.seen.setdefault(operation, set()).update(_fields(answer), wrong)
        self.wrong.setdefault(operation, {}).update(wrong)

    @property
    def fields(self) -> int:
        """All that were seen."""
        return sum(map(len, self.seen.values()))

    @property
    def wrong_fields(self) -> int:
        """Those that were once wrong."""
        return sum(map(len, self.wrong.values()))

    def conforming(self) -> list[str]:
        """The operations with which nothing was wrong."""
        return [name for name in self.seen if not self.wrong[name]]


def _fields(answer: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(answer, dict):
        for name, value in answer.items():
            yield (*place, name)
            yield from _fields(value, (*place, name))
    elif isinstance(answer, list):
        for value in answer:
            yield from _fields(value, (*place, "[]"))
