"""No template of the chart needs more than Helm 3.8 has, which the guide names as the oldest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from tests.deploy.functions import HELM_3_8, calls, eager
from tests.deploy.rendering import CHART, Object, rendered

TEMPLATES = sorted(p for p in (CHART / "templates").rglob("*") if p.is_file())
FILES = sorted((CHART / "ci").glob("*-values.yaml"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_function_is_newer_than_helm_3_8(path: Path) -> None:
    assert set(calls(path.read_text("utf-8"))) <= HELM_3_8


def test_every_call_is_seen() -> None:
    template = '{{- if and (.a | toYaml) (eq $b.c "not {{ here") }}{{ /* nor */ x 1 }}{{ end }}'
    assert list(calls(template)) == ["and", "toYaml", "eq", "x"]
    assert {"break", "sha512sum"} == set(calls('{{ break }}{{ sha512sum "x" }}')) - HELM_3_8
    found = {name for path in TEMPLATES for name in calls(path.read_text("utf-8"))}
    assert {"include", "toYaml", "and", "fail", "lookup", "mergeOverwrite"} <= found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_conditions_hold_where_all_their_parts_are_evaluated(path: Path, tmp_path: Path) -> None:
    """Before Go 1.18, with which Helm 3.8 was not yet built, `and` and `or` did not stop early."""
    older = tmp_path / "chart"
    shutil.copytree(CHART, older)
    for template in (p for p in (older / "templates").rglob("*") if p.is_file()):
        template.write_text(eager(template.read_text("utf-8")), "utf-8")
    values = yaml.safe_load(path.read_text())
    assert _drawn(rendered(values, chart=older)) == _drawn(rendered(values))
    assert eager('{{ and .a (or "or" .b) }} and') == '{{ all .a (any "or" .b) }} and'


def _drawn(objects: list[Object]) -> list[Object]:
    """The objects, without the passwords that are drawn anew each time."""
    return [{**o, "stringData": ...} if o["kind"] == "Secret" else o for o in objects]
