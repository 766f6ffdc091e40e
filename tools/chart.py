"""What is made from the chart's values.yaml, and what the chart takes from beside it.

    python -m tools.chart            # writes values.schema.json, README.md, files/
    python -m tools.chart --check    # says what is not as it would be written, and ends with 1

A key of values.yaml has its text in the comment above it; a line `# @{...}` there is put into its
schema. A map is closed: a key that it does not have is refused, unless it is empty by default.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy" / "helm" / "tuneproof"
TAKEN = {"prometheus": ("*.yaml", "*.yml"), "grafana": ("*.json",)}
"""Folders of `deploy` whose files the chart has copies of: Helm reads none outside of it."""

_BEGIN, _END = "<!-- values -->", "<!-- end -->"
_KEY = re.compile(r"^( *)([\w./-]+):(?: |$)")
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """One key of values.yaml: its path, default, text and what its schema says beside the type."""

    path: tuple[str, ...]
    default: Any
    doc: str
    schema: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_table(self) -> bool:
        """Whether it only holds others that are values of their own."""
        return (
            isinstance(self.default, dict)
            and bool(self.default)
            and "properties" not in (self.schema)
        )


def values(text: str) -> Iterator[Value]:
    """Each key of values.yaml, in order; what is below one that is a value itself is left out."""
    told: list[str] = []
    path: list[tuple[int, str]] = []
    whole = yaml.safe_load(text)
    hidden: int | None = None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            told.append(stripped.removeprefix("#").strip())
            continue
        key = _KEY.match(line)
        if key is not None:
            indent = len(key[1])
            path = [*(part for part in path if part[0] < indent), (indent, key[2])]
            hidden = None if hidden is not None and indent <= hidden else hidden
            if hidden is None:
                found = _value(tuple(name for _, name in path), whole, told)
                yield found
                hidden = None if found.is_table else indent
        told = []


def _value(path: tuple[str, ...], whole: Any, told: list[str]) -> Value:
    for name in path:
        whole = whole[name]
    schema: dict[str, Any] = {}
    for line in told:
        if line.startswith("@"):
            schema |= json.loads(line[1:])
    doc = " ".join(line for line in told if not line.startswith("@"))
    return Value(path=path, default=whole, doc=doc, schema=schema)


def schema(text: str) -> dict[str, Any]:
    """The JSON schema of the values."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart tuneproof",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for value in values(text):
        at = root
        for name in value.path[:-1]:
            at = at["properties"][name]
        at["properties"][value.path[-1]] = _schema_of(value)
    return root


def _schema_of(value: Value) -> dict[str, Any]:
    found: dict[str, Any] = {"description": value.doc} if value.doc else {}
    if isinstance(value.default, dict):
        found["type"] = "object"
        if value.is_table:
            found |= {"additionalProperties": False, "properties": {}}
    else:
        found["type"] = _TYPES[type(value.default)]
    return {**found, **value.schema}


def table(text: str) -> str:
    """The values as a table of Markdown."""
    lines = ["| value | default | |", "| --- | --- | --- |"]
    for value in values(text):
        if not value.is_table or value.doc:
            shown = "" if value.is_table else f"`{json.dumps(value.default)}`"
            lines.append(f"| `{'.'.join(value.path)}` | {shown} | {value.doc} |")
    return "\n".join(lines)


def readme(page: str, text: str) -> str:
    """The page with the table made anew."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table(text)}\n{_END}{after}"


def written() -> dict[Path, str]:
    """Each file that is made, with what it should say."""
    text = (CHART / "values.yaml").read_text("utf-8")
    made = {
        CHART / "values.schema.json": json.dumps(schema(text), indent=2, ensure_ascii=False) + "\n",
        CHART / "README.md": readme((CHART / "README.md").read_text("utf-8"), text),
    }
    return {**made, **taken()}


def taken() -> dict[Path, str]:
    """The chart's copies of dashboards and rules, with what they should say."""
    return {
        CHART / "files" / folder / path.name: path.read_text("utf-8")
        for folder, patterns in TAKEN.items()
        for pattern in patterns
        for path in sorted((ROOT / "deploy" / folder).glob(pattern))
        if folder != "prometheus" or "groups" in (yaml.safe_load(path.read_text("utf-8")) or {})
    }


def stray() -> list[Path]:
    """Copies of what is not there any more."""
    lying = (path for folder in TAKEN for path in (CHART / "files" / folder).glob("*.*"))
    return sorted(set(lying) - set(taken()))


def drifted() -> list[Path]:
    """The files that are not as they would be written."""
    return [
        path
        for path, text in written().items()
        if not path.is_file() or path.read_text("utf-8") != text
    ] + stray()


def main(arguments: list[str]) -> int:
    """Write, or check; the exit code."""
    wrong = drifted()
    if arguments == ["--check"]:
        for path in wrong:
            print(f"{path.relative_to(ROOT)} is not as `python -m tools.chart` writes it.")
        return 1 if wrong else 0
    made = written()
    for path in wrong:
        if path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], "utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
