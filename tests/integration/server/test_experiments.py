"""Experiments over HTTP: their ledger, criteria, looks, report and plan; and the command line."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.integration.server.conftest import Service

from tuneproof import cli
from tuneproof.experiments import ABTest, Arm, Exposure, ModelEvaluator, Outcome

HOURS = 60


@pytest.fixture
async def looked(service: Service) -> ABTest:
    """An experiment with traffic of two personas, and one look after 60 hours."""
    app = service.app
    config = replace(app.pipelines.get("default"), tasks=("hook",), segments=("persona",))
    evaluator = ModelEvaluator(store=app.store, clock=app.clock, config=config)
    test = await evaluator.create_a_b_test("base", "cand <script>", 0.5)
    rng = np.random.default_rng(1)
    shown, told = [], []
    for i in range(1200):
        arm = (Arm.BASELINE, Arm.CANDIDATE)[i % 2]
        at = test.start_at + timedelta(minutes=i)
        mean = 0.068 * (1.3 if i % 2 else 1.0)
        shown.append(
            Exposure(
                id=f"e{i}", subject=test.id, phase=1, arm=arm, unit=f"u{i}", at=at, cost_usd=0.01,
                latency_ms=100.0, tokens=50, attributes={"persona": f"p{i % 4 // 2}"},
            )
        )  # fmt: skip
        value = float(rng.beta(mean * 20, (1 - mean) * 20))
        told.append(Outcome(id=f"o{i}", subject=test.id, unit=f"u{i}", at=at, value=value))
    await app.store.events.ingest(shown, told)
    await evaluator.look(test.family, at=test.start_at + timedelta(hours=HOURS))
    return test


async def test_status_shows_what_was_declared_and_what_the_ledger_left(
    service: Service, looked: ABTest
) -> None:
    body = (await service.http.get(f"/evaluation/status/{looked.id}")).json()
    assert body["criteria"] == ["engagement superior 0.15", "cost superior 0.1"]
    assert body["segments"] == ["persona"]
    assert body["ledger_alpha"] == pytest.approx(0.02187, abs=1e-5)
    assert body["promotion_alpha"] == pytest.approx(0.04374, abs=1e-5)
    assert body["retest"] == 0


async def test_metrics_show_the_expected_lift_the_trade_off_and_the_segments(
    service: Service, looked: ABTest
) -> None:
    body = (await service.http.get(f"/evaluation/metrics/{looked.id}")).json()
    expected = body["statistical_analysis"]["expected_effect"]
    lift = body["performance_comparison"]["engagement_lift"]
    assert 0 < expected["lift"] < lift
    assert [c["metric"] for c in body["criteria"]] == ["engagement", "cost", "latency"]
    assert body["criteria"][2]["asked"] is None
    assert [s["value"] for s in body["segments"]] == ["p0", "p1"]
    assert body["halves"]["first"]["n_baseline"] > 100


async def test_looks_are_answered_whole(service: Service, looked: ABTest) -> None:
    [look] = (await service.http.get(f"/evaluation/looks/{looked.id}")).json()
    assert look["number"] == 1
    assert look["standard_error"] > 0
    assert look["alpha"] == pytest.approx(0.04374, abs=1e-5)
    assert {c["metric"] for c in look["criteria"]} == {"engagement", "cost", "latency"}
    assert sum(c["units"]["n"] for c in look["inputs"]["cells"]) == 1200


async def test_report_is_a_page_of_its_own(service: Service, looked: ABTest) -> None:
    answer = await service.http.get(f"/evaluation/report/{looked.id}")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "<svg" in answer.text
    assert "<script" not in answer.text


async def test_plan_reads_the_pipelines_posts(service: Service) -> None:
    body = (await service.http.get("/evaluation/plan", params={"share": 0.5})).json()
    assert (body["share"], body["lift"]) == (0.5, 0.15)
    assert body["units_per_hour"] > 1
    assert 0 < body["probability"] <= 1
    assert "at 50% share" in body["sentence"]
    refused = await service.http.get("/evaluation/plan", params={"share": 0.9})
    assert refused.status_code == 422


async def test_command_line_shows_it_and_writes_the_page(
    service: Service, looked: ABTest, tmp_path: Path
) -> None:
    import asyncio
    import io
    from contextlib import redirect_stderr, redirect_stdout

    def run(*tokens: str) -> str:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = cli.run([*tokens, "--url", service.address])
        assert code == 0, err.getvalue()
        return out.getvalue() + err.getvalue()

    page = tmp_path / "report.html"
    shown = await asyncio.to_thread(run, "experiment", "show", looked.id, "--html", str(page))
    for word in ("expected", "ledger", "persona = p0", "shown only"):
        assert word in shown
    assert "<svg" in page.read_text()
    planned = await asyncio.to_thread(run, "experiment", "plan", "--share", "0.5")
    assert "posts an hour" in planned
