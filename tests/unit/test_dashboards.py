"""The dashboards are what their code writes, and those of the first users are as documented."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.dashboards import FOLDER, dashboards, expressions, written
from tests.first_users import MENDED, PANELS, documents

from tuneproof.telemetry import Metrics

OURS = ("TuneProof loop health", "TuneProof rollouts and guardrails")
MOST_BYTES = 1024 * 1024
"""What a ConfigMap takes."""

SHOWN = {
    "Pipeline Execution Time": ("stat", "s", [("green", 0), ("yellow", 300), ("red", 600)]),
    "Memory Usage": ("timeseries", None, None),
    "Connection Pool Status": ("table", None, None),
    "Circuit Breaker Status": ("stat", None, None),
    "Model Engagement Rate": (
        "gauge",
        "percentunit",
        [("red", 0), ("yellow", 0.06), ("green", 0.08)],
    ),
    "Cost Efficiency Trend": ("timeseries", "currencyUSD", None),
    "A/B Test Success Rate": ("table", None, None),
}
"""The documented panels: type, unit, thresholds."""


def panel(title: str) -> dict[str, Any]:
    [found] = [p for board in dashboards().values() for p in board["panels"] if p["title"] == title]
    return dict(found)


def steps(found: dict[str, Any]) -> list[tuple[str, float]] | None:
    told = found["fieldConfig"]["defaults"].get("thresholds")
    return None if told is None else [(s["color"], s.get("value")) for s in told["steps"]]


def test_the_files_are_what_the_code_writes() -> None:
    files = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    assert files == written(), "run: python deploy/grafana/dashboards.py"
    assert all(len(text.encode()) < MOST_BYTES for text in files.values())


def test_there_are_the_documented_dashboards_and_ours() -> None:
    assert set(dashboards()) == {*PANELS, *OURS}
    uids = [board["uid"] for board in dashboards().values()]
    assert len(set(uids)) == len(uids)


def test_each_panel_takes_its_source_from_the_variable() -> None:
    for board in dashboards().values():
        [variable] = board["templating"]["list"]
        assert (variable["name"], variable["type"], variable["query"]) == (
            "datasource",
            "datasource",
            "prometheus",
        )
        for one in board["panels"]:
            sources = [one["datasource"], *(target["datasource"] for target in one["targets"])]
            assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)


@pytest.mark.parametrize("title", SHOWN)
def test_a_documented_panel_is_as_documented(title: str) -> None:
    found = panel(title)
    defaults = found["fieldConfig"]["defaults"]
    assert (found["type"], defaults.get("unit"), steps(found)) == SHOWN[title]
    if title == "Model Engagement Rate":
        assert (defaults["min"], defaults["max"]) == (0, 0.15)


def test_the_documented_panels_ask_what_is_documented_but_for_what_is_mended() -> None:
    for board, panels in PANELS.items():
        assert [p["title"] for p in dashboards()[board]["panels"]] == list(panels)
        for title, asked in panels.items():
            found = [target["expr"] for target in panel(title)["targets"]]
            if title == "Circuit Breaker Status":
                assert found == [f"max by (state) ({one}) == 1" for one in asked]
            else:
                assert found == [MENDED.get(one, one) for one in asked]


def test_the_documents_themselves_say_so() -> None:
    found = documents()
    boards = [json.loads(t)["dashboard"] for n, t in found.items() if n.startswith("grafana/")]
    for board in boards:
        for theirs in board["panels"]:
            mine, told = panel(theirs["title"]), theirs.get("fieldConfig", {}).get("defaults", {})
            assert mine["type"] == theirs["type"]
            defaults = mine["fieldConfig"]["defaults"]
            for name in ("unit", "min", "max"):
                assert name not in told or defaults[name] == told[name]
            if "thresholds" in told:
                assert steps(mine) == [
                    (s["color"], s["value"]) for s in told["thresholds"]["steps"]
                ]
            legends = [target["legendFormat"] for target in mine["targets"]]
            assert all(
                mine.startswith(documented["legendFormat"])
                for mine, documented in zip(legends, theirs["targets"], strict=True)
            )


def test_a_breaker_has_the_colour_of_its_state() -> None:
    for title in ("Circuit Breaker Status", "Circuit breakers"):
        found = panel(title)
        assert found["options"]["textMode"] == "name"
        colours = {}
        for override in found["fieldConfig"]["overrides"]:
            pattern = override["matcher"]["options"].strip("/")
            for state in ("CLOSED", "OPEN", "HALF_OPEN"):
                if re.search(pattern, f"OpenAI CB {state}"):
                    colours[state] = override["properties"][0]["value"]["fixedColor"]
        assert colours == {"CLOSED": "green", "OPEN": "red", "HALF_OPEN": "yellow"}


def test_each_expression_asks_for_metrics_that_there_are() -> None:
    families = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics().render()[0].decode(), re.M)
    ends = ("_sum", "_count", "_bucket")
    known = {f for f, _ in families}
    known |= {f"{f}{end}" for f, kind in families if kind == "histogram" for end in ends}
    for where, expression in expressions():
        assert set(re.findall(r"\b(?:fine_tuning|tuneproof)_\w+", expression)) <= known, where
