"""The report: one page, nothing beside it, every text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

from tuneproof.experiments import (
    ABTest,
    ArmMetrics,
    ExperimentStatus,
    Look,
    Variant,
    Verdict,
)
from tuneproof.experiments.records import Segment
from tuneproof.experiments.report import POINTS, report_html, thinned
from tuneproof.settings import Declaration

T0 = datetime(2025, 1, 20, tzinfo=UTC)
EVIL = "<script>alert('x')</script>"

TEST = ABTest(
    id="ab-test-20250120-001", run_id=None, pipeline="default", tasks=("hook",),
    baseline=Variant(model_id="old"), candidate=Variant(model_id=EVIL), declaration=Declaration(),
    family="s",
    status=ExperimentStatus.RUNNING, start_at=T0, end_at=T0 + timedelta(hours=168), alpha=0.02,
)  # fmt: skip


def look(number: int, *, declared: bool = False, lift: float | None = 0.1) -> Look:
    bound = None if lift is None else 1 / number
    return Look(
        experiment_id=TEST.id, number=number, at=T0 + timedelta(hours=number), matured_before=T0,
        baseline=ArmMetrics(sample_size=900), candidate=ArmMetrics(sample_size=100), lift=lift,
        lower=None if bound is None else -bound, upper=bound, p_value=0.1, cost_gain=None,
        is_significant=False, declared=declared, method="sequence", verdict=Verdict.CONTINUE,
        reason=f"So far {EVIL}",
    )  # fmt: skip


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "circle", "polyline", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "circle", "polyline", "polygon"):
            return
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def test_page_is_well_formed_and_needs_nothing_beside_it() -> None:
    page = report_html(TEST, [look(i) for i in range(1, 50)])
    tags = parsed(page)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.seen}
    assert not [a for _, a in tags.seen if {"href", "src", "onload"} & set(a)]
    assert "http" not in page
    assert EVIL not in page


def test_chart_has_at_most_240_points_and_keeps_declared_looks_and_the_last() -> None:
    looks = [look(i, declared=i in (97, 401)) for i in range(1, 1001)]
    kept = thinned(looks)
    assert len(kept) == POINTS
    assert {97, 401, 1000} <= {k.number for k in kept}
    assert [k.number for k in kept] == sorted(k.number for k in kept)
    page = report_html(TEST, looks)
    [line] = re.findall(r'<polyline class="lift" points="([^"]*)"', page)
    assert len(line.split()) == POINTS


def test_chart_stays_inside_its_frame_however_wild_the_first_looks() -> None:
    page = report_html(TEST, [look(i) for i in range(1, 200)])
    numbers = re.findall(r"(-?\d+\.\d),(-?\d+\.\d)", page)
    assert all(0 <= float(x) <= 920 and 0 <= float(y) <= 320 for x, y in numbers)


def test_looks_without_an_estimate_and_no_looks_are_said() -> None:
    assert "There is no look yet" in report_html(TEST, [])
    page = report_html(TEST, [look(1, lift=None)])
    parsed(page)
    assert "No look has an estimate yet" in page


def test_segments_are_labelled_exploratory() -> None:
    segment = Segment(
        attribute="persona", value=EVIL, lift=0.1, lower=None, upper=None, n_baseline=9,
        n_candidate=1, found=False, harmed=False, reason="",
    )  # fmt: skip
    page = report_html(TEST, [replace(look(60), segments=(segment,))])
    parsed(page)
    assert "Exploratory: segments decide nothing" in page
