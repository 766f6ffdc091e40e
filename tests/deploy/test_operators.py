"""What the chart renders for operators is what their own definitions take."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy import operators
from tests.deploy.rendering import CHART, Object, rendered

FILES = sorted((CHART / "ci").glob("*-values.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    operators.installed()


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    """All objects of operators of all values files, with both versions of Istio's API."""
    found = [o for path in FILES for o in rendered(yaml.safe_load(path.read_text()))]
    older = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())
    older["istio"]["apiVersion"] = "networking.istio.io/v1beta1"
    return operators.of_operators([*found, *rendered(older)])


def test_every_kind_is_there_to_be_checked(objects: list[Object]) -> None:
    assert {o["kind"] for o in objects} == set(operators.KINDS)


def test_their_schemas_take_what_is_rendered(objects: list[Object]) -> None:
    assert operators.refusals(objects) == []


def test_their_types_have_every_key_that_is_rendered(objects: list[Object], tmp_path: Path) -> None:
    assert operators.wrongly_typed(objects, tmp_path) == []


SLIPS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), 30),
    ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), None),
    ("VirtualService", ("spec", "http", 0, "retries"), {"attempts": "three"}),
    ("DestinationRule", ("spec", "trafficPolicy", "loadBalancer"), {"simple": "FAST"}),
    ("HTTPRoute", ("spec", "rules", 0, "timeouts"), {"request": "soon"}),
]


def test_slips_in_values_would_be_refused(objects: list[Object]) -> None:
    broken = []
    for kind, path, value in SLIPS:
        broken.append(copy.deepcopy(next(o for o in objects if o["kind"] == kind)))
        at = broken[-1]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    found = operators.refusals(broken)
    assert [line.partition(" ")[0] for line in found] == [kind for kind, _, _ in SLIPS], found


def test_a_slip_in_a_key_would_be_refused(objects: list[Object], tmp_path: Path) -> None:
    broken = [copy.deepcopy(next(o for o in objects if o["kind"] == kind)) for kind in KEYS]
    for found in broken:
        found["spec"]["intervall"] = "30s"
    found = operators.wrongly_typed(broken, tmp_path)
    assert len(found) == len(KEYS), found
    assert all("intervall" in line for line in found)


KEYS = tuple(operators.KINDS)
