"""The dashboards hold only what Grafana's own types know."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.dashboards import dashboards
from tests.deploy import operators

PANELS = {"gauge": "Gauge", "stat": "Stat", "table": "Table", "timeseries": "TimeSeries"}
"""What Grafana's types call the kinds of panels."""

CONFIGURED = ("table", "timeseries")
"""Those whose fields have settings of their own."""

PLAIN = (
    "type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[] "
    ": T extends object ? {[K in keyof T]: Plain<T[K]>} : T;"
)
"""A type with the values of its enumerations in their place, as JSON has them."""


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    operators.installed()


def mistakes(boards: list[dict[str, Any]], folder: Path) -> list[str]:
    """What the compiler refuses of the boards as literals of Grafana's types."""
    raw = "@grafana/schema/dist/esm/raw/composable"
    lines = ["import type {Dashboard} from '@grafana/schema';", PLAIN]
    lines += [
        f"import type * as {name} from '{raw}/{kind}/panelcfg/x/{name}PanelCfg_types.gen';"
        for kind, name in PANELS.items()
    ]
    typed = []
    for board in boards:
        typed.append(("Dashboard", board))
        for panel in board["panels"]:
            kind = panel["type"]
            typed.append((f"Partial<{PANELS[kind]}.Options>", panel["options"]))
            own = panel["fieldConfig"]["defaults"].get("custom")
            if kind in CONFIGURED:
                typed.append((f"Partial<{PANELS[kind]}.FieldConfig>", own))
            else:
                assert own is None
    lines += [
        f"export const t{number}: Plain<{kind}> = {json.dumps(value)};"
        for number, (kind, value) in enumerate(typed)
    ]
    return operators.compiled(lines, folder)


def test_every_key_and_value_is_one_of_grafanas(tmp_path: Path) -> None:
    """Seen: a data source's variable had an interval's settings, and tables a footer that current
    versions do not have."""
    assert mistakes(list(dashboards().values()), tmp_path) == []


SLIPS: list[tuple[tuple[Any, ...], Any]] = [
    (("refresh",), 60),
    (("templating", "list", 0, "auto"), False),
    (("panels", 0, "gridPos", "width"), 12),
    (("schemaVersion",), "39"),
    (("panels", 0, "options", "legend", "displayMode"), "chart"),
    (("panels", 0, "fieldConfig", "defaults", "custom", "lineWidth"), "thick"),
]


def test_slips_would_be_seen(tmp_path: Path) -> None:
    board = next(b for b in dashboards().values() if b["panels"][0]["type"] == "timeseries")
    for number, (path, value) in enumerate(SLIPS):
        broken = copy.deepcopy(board)
        at: Any = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        folder = tmp_path / str(number)
        folder.mkdir()
        assert mistakes([broken], folder), path
