"""What a person should know of is a gauge while it is so, and none where it is not known."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.conftest import HandClock
from tests.integration.loop import QUICK, T0, posts, settings
from tests.integration.test_watches import BASE, BETTER, LOOK, later, standing, until_it_waits
from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.app.concerns import READ_FOR, Concerns
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.settings import RelayConfig, TrackingConfig, Url
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock

HOUR = timedelta(hours=1)


def shown(app: App) -> dict[str, float]:
    """Our gauges by name and by the values of their labels, which are sorted by name."""
    text = app.metrics.render()[0].decode()
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("tuneproof_") and not line.startswith("#"):
            labels = re.findall(r'="([^"]*)"', name)
            found[" ".join([name.partition("{")[0].removeprefix("tuneproof_"), *labels])] = float(
                value
            )
    return found


@asynccontextmanager
async def busy(directory: Path, database: str, **more: object) -> AsyncIterator[App]:
    """As `standing`, with other settings."""
    clock = VirtualClock(T0)
    config = replace(QUICK, max_cost_usd_month=100.0)
    async with App.open(
        settings(directory, database, config, **more),
        clock=clock,
        provider=MemoryProvider(clock=clock, base_models=("base", "better")),
        source=MemorySource(posts()),
        poll_s=0.005,
        background=False,
    ) as app:
        yield app


async def exposed(
    app: App, subject: str, arms: dict[Arm, int], at: datetime, *, outcomes: float, failed: int = 0
) -> None:
    """So many units of each arm at an instant; this share of them with an outcome."""
    exposures, told = [], []
    for arm, count in arms.items():
        for number in range(count):
            unit = f"{arm}-{at.isoformat()}-{number}"
            exposures.append(
                Exposure(
                    id=unit, subject=subject, phase=1, arm=arm, unit=unit, at=at, task="hook",
                    latency_ms=20.0, error=arm is Arm.CANDIDATE and number < failed,
                )
            )  # fmt: skip
            if number < outcomes * count:
                told.append(Outcome(id=unit, subject=subject, unit=unit, at=at, value=0.07))
    await app.store.events.ingest(exposures, told, now=app.clock.now())


async def test_a_look_that_is_due_is_counted_down_and_then_up(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        await app.concerns.refresh()
        assert "watch_overdue_seconds default" not in shown(app)
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        await until_it_waits(app, test.id)
        await app.concerns.refresh()
        assert shown(app)["watch_overdue_seconds default"] == -LOOK.total_seconds()
        later(app, LOOK + 2 * HOUR)  # nobody has read the store since
        assert shown(app)["watch_overdue_seconds default"] == 7200
        await app.experiments.end(test.id, reason="enough")
        await app.concerns.refresh()
        assert "watch_overdue_seconds default" not in shown(app)


async def test_a_run_that_does_not_get_on_is_over_its_time(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        run = await app.runs.start()

        async def trains() -> bool:
            """It waits for its job: what it notes of that is written, and time stands."""
            train = (await app.store.runs.get(run.id)).stages.get("train", {})
            return bool(train.get("detail", {}).get("job_id"))

        await eventually(trains)
        await app.concerns.refresh()
        assert shown(app)["run_overdue_seconds default train"] == -3600
        later(app, timedelta(seconds=3600 + 60))
        assert shown(app)["run_overdue_seconds default train"] == 60
        moves_on_by = app.clock.now() + 5 * HOUR
        await app.store.runs.progress(run.id, "train", {"gives_up_at": moves_on_by.isoformat()})
        await app.concerns.refresh()
        assert shown(app)["run_overdue_seconds default train"] == -6 * 3600
        await app.runs.abort(run.id, reason="enough")
        app.let_time_pass()
        await app.runs.wait(run.id, seconds=60)
        await app.concerns.refresh()
        assert not [name for name in shown(app) if name.startswith("run_overdue")]


async def test_a_rollout_that_was_taken_back_has_an_age(tmp_path: Path, database_url: str) -> None:
    async with standing(tmp_path, database_url) as app:
        manager = app.managers.of(replace(QUICK, holdback_days=0))
        begun = await manager.begin((await manager.declare(BETTER, BASE)).id)
        await app.routing.board.refresh()
        await app.concerns.refresh()
        assert "rollback_age_seconds default" not in shown(app)
        await app.rollouts.rollback(begun.id, reason="readers complain")
        await app.concerns.refresh()
        later(app, HOUR)
        assert shown(app)["rollback_age_seconds default"] == 3600


async def test_a_split_that_is_not_as_set_is_broken(tmp_path: Path, database_url: str) -> None:
    async with standing(tmp_path, database_url) as app:
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER], traffic_split=0.5)
        await app.concerns.refresh()
        assert shown(app)["split_broken default"] == 0
        at = app.clock.now() + timedelta(minutes=1)
        later(app, HOUR)
        await exposed(app, test.id, {Arm.BASELINE: 900, Arm.CANDIDATE: 300}, at, outcomes=1)
        await app.concerns.refresh()
        assert shown(app)["split_broken default"] == 1
        assert shown(app)["arm_error_share candidate default"] == 0
        # It ends the test at its next look, and is shown for a day after that.
        app.let_time_pass()
        await app.engine.result(test.id)
        await app.concerns.refresh()
        assert shown(app)["split_broken default"] == 1
        later(app, timedelta(days=1, hours=1))
        await app.concerns.refresh()
        assert "split_broken default" not in shown(app)


async def test_outcomes_that_are_due_and_absent_are_missing(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER], traffic_split=0.5)
        at, half = app.clock.now() + timedelta(minutes=1), {Arm.BASELINE: 50, Arm.CANDIDATE: 50}
        later(app, HOUR)
        await exposed(app, test.id, half, at, outcomes=0.5, failed=10)
        await app.concerns.refresh()
        assert "outcomes_share default" not in shown(app)  # not due yet
        assert shown(app)["arm_error_share candidate default"] == pytest.approx(0.2)
        later(app, 2 * HOUR)
        await app.concerns.refresh()
        assert shown(app)["outcomes_share default"] == 0.5
        # A day later only what was due since then counts.
        later(app, timedelta(days=1))
        await exposed(app, test.id, half, app.clock.now() - 3 * HOUR, outcomes=0)
        await app.concerns.refresh()
        assert shown(app)["outcomes_share default"] == 0


async def test_the_outbox_has_a_backlog_only_where_there_is_an_mlflow(
    tmp_path: Path, database_url: str
) -> None:
    """Without one it keeps everything, and nothing is wrong."""
    async with standing(tmp_path, database_url) as app:
        await app.store.outbox.add("k", "run", {})
        await app.concerns.refresh()
        assert not [name for name in shown(app) if name.startswith("outbox")]
    tracking = TrackingConfig(uri=Url("http://127.0.0.1:9"))
    async with busy(tmp_path, database_url, tracking=tracking) as app:
        later(app, HOUR)
        await app.store.outbox.add("k2", "run", {})
        await app.concerns.refresh()
        assert shown(app)["outbox_pending"] == 2
        assert shown(app)["outbox_oldest_seconds"] == 3600
        for item in await app.store.outbox.due(app.clock.now()):
            await app.store.outbox.delivered(item.id)
        await app.concerns.refresh()
        assert shown(app)["outbox_pending"] == 0
        assert "outbox_oldest_seconds" not in shown(app)


async def test_budgets_are_used_up_by_shares(tmp_path: Path, database_url: str) -> None:
    relay = RelayConfig(enabled=True, budget_usd_per_day=2.0)
    async with busy(tmp_path, database_url, relay=relay) as app:
        await app.concerns.refresh()
        assert shown(app)["budget_used_share training default"] == 0
        run = await app.runs.start()
        await app.store.runs.mark(
            run.id, run.status, at=T0, result={"cost": {"spent_usd": 95.0, "at": T0.isoformat()}}
        )
        app.spending.spend("the newsletter", 1.5)
        await app.concerns.refresh()
        assert shown(app)["budget_used_share training default"] == pytest.approx(0.95)
        assert shown(app)["budget_used_share relay the newsletter"] == 0.75
        await app.runs.abort(run.id, reason="enough")


async def test_a_shutdown_is_counted_down_at_every_worker_and_forgotten_with_its_model(
    tmp_path: Path, database_url: str
) -> None:
    """Seen: only the worker that leads the schedule had it, and had it until it was restarted."""
    async with standing(tmp_path, database_url) as app:
        announced = {"model": "base", "provider": "p", "base": "base"}
        at = (T0 + timedelta(days=40)).isoformat()
        heard = {"asked_at": T0.isoformat(), "shutdown": {**announced, "at": at}}
        await app.store.meta.set("shutdown:default", heard)
        await app.concerns.refresh()
        later(app, timedelta(days=1))
        assert shown(app)["model_shutdown_seconds base default"] == 39 * 86400
        await app.store.meta.set("shutdown:default", {**heard, "shutdown": None})
        await app.concerns.refresh()
        assert "model_shutdown_seconds base default" not in shown(app)


async def test_what_was_read_too_long_ago_is_not_known(tmp_path: Path, database_url: str) -> None:
    clock = HandClock()
    async with standing(tmp_path, database_url) as app:
        concerns = Concerns(
            settings=app.settings, store=app.store, clock=app.clock, metrics=app.metrics,
            pipelines=app.pipelines, watchdog=app.watchdog, shutdowns=app.shutdowns,
            spending=app.spending, tracked=True, now=clock.now,
        )  # fmt: skip
        assert "outbox_pending" not in shown(app)
        await concerns.refresh()
        assert shown(app)["outbox_pending"] == 0
        clock.move(seconds=READ_FOR.total_seconds() + 1)
        assert "outbox_pending" not in shown(app)
