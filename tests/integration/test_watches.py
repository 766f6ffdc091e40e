"""No watch dies unseen: a look that is overdue is told, and a watch that ended is begun again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from dbos import DBOS
from tests.integration.loop import QUICK, T0, Traffic, posts, settings
from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.app.board import Board
from tuneproof.app.live import Live
from tuneproof.app.watches import Watchdog
from tuneproof.experiments import ExperimentStatus, Variant
from tuneproof.resilience import Supervisor
from tuneproof.rollout import DeploymentState
from tuneproof.settings import PipelineConfig
from tuneproof.store import RunStatus, SubjectKind
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock

BASE, BETTER = Variant(model_id="base"), Variant(model_id="better")
LOOK = timedelta(hours=QUICK.look_interval_hours)
HOUR = timedelta(hours=1)


class Told:
    """Whoever is to be told, and what was."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, str, str]] = []

    def __call__(self, kind: str, subject: str, summary: str, *, once: str = "") -> None:
        alert = (kind, subject, once)
        if alert not in self.alerts:
            self.alerts.append(alert)

    @property
    def of(self) -> list[tuple[str, str]]:
        return [(kind, subject) for kind, subject, _ in self.alerts]


SOON = replace(QUICK, look_interval_hours=1, max_unwatched_hours=1)
"""Fewer minutes for the watchdog to count."""


@asynccontextmanager
async def standing(
    directory: Path, database: str, config: PipelineConfig = QUICK
) -> AsyncIterator[App]:
    """An App in whose virtual time nothing passes unless a test says so."""
    clock = VirtualClock(T0)
    async with App.open(
        settings(directory, database, config),
        clock=clock,
        provider=MemoryProvider(clock=clock, base_models=("base", "better")),
        source=MemorySource(posts()),
        poll_s=0.005,
        background=False,
    ) as app:
        yield app


def later(app: App, by: timedelta) -> None:
    assert isinstance(app.clock, VirtualClock)
    app.clock.restore(app.clock.now() + by)


async def until_it_waits(app: App, id: str) -> None:
    """Until the durable function waits for its next look: then time may leap."""
    clock = app.clock
    assert isinstance(clock, VirtualClock)
    await eventually(lambda: id in clock._sleepers)


def watchdog(app: App, told: Told) -> Watchdog:
    return Watchdog(
        store=app.store,
        engine=app.engine,
        clock=app.clock,
        config_of=app.settings.pipelines.get,
        alert=told,
        take_back=app.rollouts.rollback,
    )


async def unwatched_rollout(app: App) -> str:
    """A rollout under way that no durable function looks at."""
    manager = app.managers.of(replace(app.settings.pipelines["default"], holdback_days=0))
    declared = await manager.declare(BETTER, BASE)
    await manager.begin(declared.id)
    await app.routing.board.refresh()
    return declared.id


async def test_look_that_is_overdue_by_an_hour_is_told_once(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        told = Told()
        dog = watchdog(app, told)
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        await until_it_waits(app, test.id)
        later(app, LOOK + HOUR)
        await dog.look()
        [state] = await dog.states()
        assert (state.subject, state.kind, state.stalled) == (test.id, SubjectKind.TEST, False)
        assert (state.due_at, state.looked_at, told.of) == (T0 + LOOK, None, [])

        later(app, timedelta(minutes=1))
        await dog.look()
        await dog.look()
        assert told.of == [("watch_stalled", test.id)]
        health = await app.health.report()
        assert health["status"] == "degraded"
        assert [w["stalled"] for w in health["watches"]] == [True]
        [pipeline] = (await app.overview.status())["pipelines"]
        assert test.id in pipeline["stalled_watches"][0]
        assert pipeline["stalled_watches"][0] in pipeline["waits_for_person"]
        found = {f.name: f.status for f in await app.doctor.examine()}
        assert found[f"watch: {test.id}"] == "failed"
        # The tests' PostgreSQL is quick, and loses commits when it crashes.
        assert ("commits" in found) is database_url.startswith("postgresql")

        await app.store.watches.looked([test.id], app.clock.now())
        assert [s.stalled for s in await dog.states()] == [False]
        later(app, LOOK + 2 * HOUR)
        await dog.look()
        assert told.of == [("watch_stalled", test.id)] * 2


async def test_each_look_of_a_test_and_of_a_rollout_is_kept(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        looked = []

        class Noting:
            async def advance(self, since: object, until: object) -> None:
                looked.extend([s.looked_at for s in await dog.states() if s.looked_at])

        dog = watchdog(app, Told())
        app.let_time_pass(Traffic(app, lift=0.5), Noting())
        await app.engine.result(test.id)
        assert looked[0] == T0 + LOOK
        begun = await app.rollouts.deploy(model=BETTER, ab_test_id=test.id)
        looked.clear()
        await app.engine.result(begun.id)
        assert looked
        assert await dog.states() == []


async def until_ended(app: App, id: str) -> None:
    async with asyncio.timeout(60):
        while not await app.engine.ended(id):
            await asyncio.sleep(0)


async def rounds(app: App, dog: Watchdog, hours: float) -> None:
    """Rounds of the watchdog, a minute apart."""
    for _ in range(round(hours * 60)):
        later(app, timedelta(minutes=1))
        await dog.look()


async def test_rollout_that_cannot_be_watched_goes_back_to_its_baseline(
    tmp_path: Path, database_url: str
) -> None:
    """Before: it stayed at its share for ever."""
    async with standing(tmp_path, database_url, SOON) as app:
        id = await unwatched_rollout(app)
        later(app, HOUR)
        await app.store.watches.looked([id], app.clock.now())
        limit = SOON.unwatched_limit_hours
        assert limit == 2 * SOON.look_interval_hours == 2
        await rounds(app, watchdog(app, Told()), SOON.look_interval_hours + limit - 0.5)
        later(app, 100 * HOUR)  # nobody was there: that does not count
        dog = watchdog(app, Told())
        await rounds(app, dog, 0.4)
        assert (await app.store.deployments.get(id)).state is DeploymentState.STEPPING
        await rounds(app, dog, 0.2)
        gone = await app.store.deployments.get(id)
        assert gone.state is DeploymentState.ROLLED_BACK
        assert gone.cause == "Nobody could look at it for 2.0 h after a look was due."
        assert app.routing.board.snapshot.by_task["hook"].baseline == BASE
        assert app.routing.board.snapshot.by_task["hook"].lanes == ()


@pytest.mark.parametrize("watched", [True, False])
async def test_what_was_in_doubt_is_decided_when_the_database_is_back(
    tmp_path: Path, database_url: str, watched: bool
) -> None:
    async with standing(tmp_path, database_url) as app:
        id = await unwatched_rollout(app)
        dog, elapsed = watchdog(app, Told()), [0.0]

        async def nothing(_models: object) -> None: ...

        board = Board(
            app.store.routing, Live(), prepare=nothing, clock=lambda: elapsed[0],
            trust_s=lambda _: 60.0, recall=dog.recall,
        )  # fmt: skip
        before = (await board.refresh()).by_task["hook"]
        elapsed[0] = 61.0  # as if nothing could be read
        await board.doubt()
        shown = board.snapshot.by_task["hook"]
        assert (shown.baseline, shown.lanes, shown.version) == (BASE, (), before.version + 1)
        later(app, LOOK + timedelta(hours=9))
        if watched:
            await app.store.watches.looked([id], app.clock.now())
        supervisor = Supervisor()
        board.watch(supervisor)
        try:
            await eventually(lambda: board.snapshot.by_task["hook"].version > shown.version)
            now = board.snapshot.by_task["hook"]
            assert now.lanes == (before.lanes if watched else ())
            state = (await app.store.deployments.get(id)).state
            gone = DeploymentState.ROLLED_BACK
            assert state is (DeploymentState.STEPPING if watched else gone)
        finally:
            await supervisor.close()


async def test_a_look_begins_the_time_unwatched_anew(tmp_path: Path, database_url: str) -> None:
    async with standing(tmp_path, database_url, SOON) as app:
        id = await unwatched_rollout(app)
        dog = watchdog(app, Told())
        for _ in range(3):
            await rounds(app, dog, 1)
            await app.store.watches.looked([id], app.clock.now())
        assert (await app.store.deployments.get(id)).state is DeploymentState.STEPPING


async def test_after_an_outage_only_rollouts_go_back_that_nobody_looked_at(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        id = await unwatched_rollout(app)
        later(app, LOOK + timedelta(hours=9))
        dog = watchdog(app, Told())
        await dog.recall(["another"])
        assert (await app.store.deployments.get(id)).state is DeploymentState.STEPPING
        await app.store.watches.looked([id], app.clock.now())
        await dog.recall([id])
        assert (await app.store.deployments.get(id)).state is DeploymentState.STEPPING
        later(app, LOOK + timedelta(hours=9))
        await dog.recall([id])
        assert (await app.store.deployments.get(id)).state is DeploymentState.ROLLED_BACK


async def test_test_whose_watch_was_ended_is_followed_again_to_its_verdict(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        told = Told()
        dog = watchdog(app, told)
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        await DBOS.cancel_workflow_async(test.id)
        await until_ended(app, test.id)
        await dog.look()
        assert await app.engine.ended(test.id)  # seen once, it may just have ended
        await dog.look()
        assert told.of == [("watch_stalled", test.id)]
        [line] = [x for x in (await app.store.activity.page()).items if x.action == "watch start"]
        assert (line.object_id, "CANCELLED" in line.reason) == (test.id, True)
        app.let_time_pass(Traffic(app, lift=0.5))
        await app.engine.result(test.id)
        assert (await app.store.experiments.get(test.id)).status is ExperimentStatus.COMPLETED
        await dog.look()
        await dog.look()
        assert len(told.of) == 1


async def test_rollout_that_the_engine_never_heard_of_is_followed(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        told = Told()
        dog = watchdog(app, told)
        manager = app.managers.of(replace(QUICK, holdback_days=0))
        declared = await manager.declare(BETTER, BASE)
        await manager.begin(declared.id)
        await dog.look()
        await dog.look()
        assert told.of == [("watch_stalled", declared.id)]
        app.let_time_pass(Traffic(app, lift=0.5))
        assert await app.engine.result(declared.id) == "complete"


async def test_run_that_the_engine_gave_up_leaves_no_candidate_unwatched(
    tmp_path: Path, database_url: str
) -> None:
    async with standing(tmp_path, database_url) as app:
        app.let_time_pass()
        run = await app.runs.start()
        while not await app.store.watches.under_way():
            await app.runs.wait(run.id, seconds=0.05)
        [watched] = await app.store.watches.under_way()
        assert watched.run_id == run.id
        await DBOS.cancel_workflow_async(run.id)
        assert await app.runs.fail_given_up() == [run.id]
        assert (await app.store.runs.get(run.id)).status is RunStatus.FAILED
        assert await app.store.watches.under_way() == []
        assert (await app.store.experiments.get(watched.subject)).status is ExperimentStatus.ABORTED
        assert all(not routing.subjects for routing in await app.routing.all())
