"""Writes the results into `docs/benchmarks.md`, between its two markers.

    python benchmarks/page.py

`benchmarks/run.py` does it after each run, so the page's tables are those of `results.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: written by benchmarks/page.py -->", "<!-- end of results -->"
HEAD = "| what | ours | peer | its value | ratio | goal | met |\n|---|---|---|---|---|---|---|"


def write_page() -> None:
    """Replace what stands between the markers. Raises `SystemExit` where they are missing."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


def page(text: str) -> str:
    """The page with the results of `results.json` between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the markers {BEGIN} and {END}.")
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    body = "\n\n".join([_machine(results["machine"]), *_tables(results["records"])])
    return f"{before}{begin}\n\n{body}\n\n{end}{after}"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items())
    return (
        f"{machine['cores']} cores, {machine['memory_gb']} GB of memory, Python "
        f"{machine['python']}, {machine['system']}" + (f"; {versions}." if versions else ".")
    )


def _tables(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    for name, found in groupby(records, key=lambda record: record["benchmark"]):
        rows = list(found)
        day = max(row["measured_at"] for row in rows)[:10]
        lines = "\n".join(_row(row) for row in rows)
        yield f"### {name}\n\n`python -m benchmarks.run {name}`, {day}\n\n{HEAD}\n{lines}"


def _row(record: dict[str, Any]) -> str:
    unit = record["unit"]
    cells = [
        record["name"],
        _quantity(record["ours"], unit),
        record["peer"] or "",
        _quantity(record["peer_value"], unit),
        "" if record["ratio"] is None else f"{_number(record['ratio'])} ×",
        record["goal"] or "",
        {True: "yes", False: "**no**"}.get(record["met"], ""),
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _quantity(value: Any, unit: str) -> str:
    return "" if value is None else f"{_number(value)} {unit}"


def _number(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


if __name__ == "__main__":
    write_page()
