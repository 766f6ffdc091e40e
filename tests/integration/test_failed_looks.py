"""A look that raises is kept, and the next one is tried: no watch ends because one look failed.

The fault is real: a table that the look reads is away for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from tests.integration.loop import T0, Loop, open_loop
from tests.integration.test_alerts import Receiver, listening
from tests.waiting import eventually

from tuneproof.experiments import ExperimentStatus, Variant, Verdict
from tuneproof.pipeline import StepName
from tuneproof.settings import AlertsConfig, WebhookUrl
from tuneproof.store import RunStatus
from tuneproof.testing import MemoryProvider
from tuneproof.workflow import Moment

BASE, CANDIDATE = Variant(model_id="base"), Variant(model_id="candidate")


class Steps:
    """A step hook that says when a step was recorded for the first time."""

    def __init__(self) -> None:
        self._done: dict[str, asyncio.Event] = {}

    def __call__(self, name: str, moment: Moment) -> None:
        if moment is Moment.AFTER:
            self._done.setdefault(name, asyncio.Event()).set()

    async def recorded(self, name: StepName) -> None:
        event = self._done.setdefault(name, asyncio.Event())
        await asyncio.wait_for(event.wait(), 120)


@asynccontextmanager
async def away(loop: Loop, table: str) -> AsyncIterator[None]:
    """Without this table, for as long as the block lasts."""
    await _execute(loop, f"ALTER TABLE {table} RENAME TO {table}_away")
    try:
        yield
    finally:
        await _execute(loop, f"ALTER TABLE {table}_away RENAME TO {table}")


async def _execute(loop: Loop, statement: str) -> None:
    async with loop.app.store.database.begin() as tx:
        await tx.execute(sa.text(statement))


async def test_run_whose_looks_fail_goes_on_and_ends_once_they_succeed(
    tmp_path: Path, database_url: str
) -> None:
    steps = Steps()
    async with open_loop(tmp_path, database_url, on_step=steps) as loop:
        run = await loop.app.runs.start()
        await steps.recorded(StepName.EXPERIMENT_DECLARE)
        async with away(loop, "looks"):
            await steps.recorded(StepName.EXPERIMENT_NOTE)
            # beyond the last look that was due: it is tried for as long as it takes
            await loop.app.clock.sleep_until(T0 + timedelta(hours=120))
            stands = await loop.app.store.runs.get(run.id)
            detail = stands.stages["experiment"]["detail"]
            assert stands.status is RunStatus.RUNNING
            assert stands.stages["experiment"]["status"] == "in_progress"
            assert "failed" in detail["note"]
            assert "looks" in detail["note"]
            await shown_everywhere(loop, stands.result["ab_test_id"], run.id)
        ended = await loop.end(run.id)
        assert ended.status is RunStatus.SUCCESS
        assert ended.stages["experiment"]["detail"]["note"] == ""
        assert await loop.app.store.meta.under("look_failed:") == {}


async def shown_everywhere(loop: Loop, subject: str, run_id: str | None) -> None:
    """Seen: a look that kept failing stood in the log alone, until the alert after an hour."""
    app = loop.app
    health = await app.health.report()
    assert health["status"] == "degraded"
    [watch] = health["watches"]
    assert (watch["subject"], watch["last_error_at"] is None) == (subject, False)
    assert "looks" in watch["last_error"]
    found = {f.name: f for f in await app.doctor.examine()}
    assert found[f"watch: {subject}"].status == "failed"
    assert "looks" in found[f"watch: {subject}"].detail
    [pipeline] = (await app.overview.status())["pipelines"]
    assert any(subject in said and "looks" in said for said in pipeline["waits_for_person"])
    if run_id is not None:
        assert pipeline["run"] is not None
        assert "The look at" in pipeline["run"]["note"]
        last = (await app.runs.log(run_id))[-1]
        assert (last.level, last.stage) == ("warning", "experiment")
        assert "The look at" in last.message


async def test_rollout_whose_looks_fail_goes_on_and_ends_once_they_succeed(
    tmp_path: Path, database_url: str
) -> None:
    steps = Steps()
    async with open_loop(tmp_path, database_url, on_step=steps) as loop:
        run = await loop.app.runs.start()
        await steps.recorded(StepName.ROLLOUT_LOOK)
        async with away(loop, "deployments"):
            await steps.recorded(StepName.ROLLOUT_NOTE)
            stands = await loop.app.store.runs.get(run.id)
            assert not stands.status.final
            assert "failed" in stands.stages["rollout"]["detail"]["note"]
        ended = await loop.end(run.id)
        assert ended.status is RunStatus.SUCCESS


async def test_failed_look_at_a_test_without_a_run_is_an_activity(
    tmp_path: Path, database_url: str
) -> None:
    steps = Steps()
    provider = MemoryProvider(base_models=("base", "candidate"))
    async with open_loop(tmp_path, database_url, on_step=steps, provider=provider) as loop:
        [test] = await loop.app.experiments.create(baseline=BASE, candidates=[CANDIDATE])
        async with away(loop, "looks"):
            await steps.recorded(StepName.EXPERIMENT_NOTE)
            await shown_everywhere(loop, test.id, None)
        await loop.app.engine.result(test.id)
        ended = await loop.app.store.experiments.get(test.id)
        assert (ended.status, ended.verdict) == (ExperimentStatus.COMPLETED, Verdict.PROMOTE)
        said = [
            a.reason for a in (await loop.app.store.activity.page()).items if a.action == "look"
        ]
        assert said[-1].startswith("The look at ")
        assert said[0] == "The look succeeded again."


async def test_run_that_failed_to_look_is_replayed_to_the_same_end_and_told_once(
    tmp_path: Path, database_url: str
) -> None:
    steps = Steps()
    with listening() as receiver:
        alerts = AlertsConfig(webhook_url=WebhookUrl(f"{receiver.url}/hook"))
        told = partial(failures_told, receiver)
        async with open_loop(tmp_path, database_url, on_step=steps, alerts=alerts) as loop:
            run = await loop.app.runs.start()
            await steps.recorded(StepName.EXPERIMENT_DECLARE)
            async with away(loop, "looks"):
                await steps.recorded(StepName.EXPERIMENT_NOTE)
                await eventually(told)
                first = told()[0]
                await eventually(partial(recorded, loop, first))
            provider = loop.provider
        async with open_loop(tmp_path, database_url, provider=provider, alerts=alerts) as loop:
            ended = await loop.end(run.id)
            assert ended.status is RunStatus.SUCCESS
        assert told().count(first) == 1


async def recorded(loop: Loop, failure: tuple[str, str]) -> str | None:
    """When it was recorded that this one was told."""
    return await loop.app.store.meta.get("alerted:look_failed:" + ":".join(failure))


def failures_told(receiver: Receiver) -> list[tuple[str, str]]:
    """Of which looks it was told that they failed: whose, and when they were due."""
    failed = (m["data"] for m in receiver.messages if m["type"] == "tuneproof.look_failed")
    return [(data["subject"], data["due_at"]) for data in failed]
