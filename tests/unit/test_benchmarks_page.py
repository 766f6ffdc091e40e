"""The page of benchmarks shows the results that were measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


def test_the_page_is_that_of_the_results():
    make = runpy.run_path(str(ROOT / "benchmarks" / "page.py"))["page"]
    text = PAGE.read_text("utf-8")
    assert make(text) == text, "run `python benchmarks/page.py`"


def test_every_missed_goal_is_shown():
    records = json.loads((ROOT / "benchmarks" / "results.json").read_text())["records"]
    missed = [record["name"] for record in records if record["met"] is False]
    text = PAGE.read_text("utf-8")
    shown = [line for line in text.splitlines() if line.endswith("| **no** |")]
    assert len(shown) == len(missed)
    assert all(any(name in line for line in shown) for name in missed)
