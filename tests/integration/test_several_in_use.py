"""Tasks that several models serve: a run compares with one, and puts none into production for
another task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.loop import T0
from tests.integration.providing import Provider, open_providers
from tests.servers import free_port
from tests.waiting import eventually

from tuneproof.errors import ConfigError, ConflictError
from tuneproof.experiments import Variant
from tuneproof.pipeline.routing import ensure_one
from tuneproof.settings import BODY, HOOK, AlertsConfig
from tuneproof.settings.secrets import Url
from tuneproof.store import RunStatus

HOOKS, BODIES = "ft:base::hooks", "ft:base::bodies"
NEWER = {"make": "as_is", "model": "newer", "provider": "new"}
SEVERAL = {
    "hook": replace(HOOK, model=HOOKS, model_provider="old"),
    "body": replace(BODY, model=BODIES, model_provider="old"),
}


def providers() -> tuple[Provider, Provider]:
    old = Provider(name="old", base_models=("base", HOOKS, BODIES))
    return old, Provider(name="new", base_models=("newer",))


async def test_a_run_and_a_move_are_refused_before_anything_is_spent(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Seen: the hooks' model was put into production for bodies, as the baseline of the test."""
    said = f"hook is served by {HOOKS}, and body by {BODIES}"
    async with open_providers(tmp_path, sqlite_store_url, *providers(), tasks=SEVERAL) as loop:
        for starting in (
            loop.app.runs.start(),
            loop.app.migration.plan([NEWER], cheaper=0),
            loop.app.migration.start([NEWER], cheaper=0),
        ):
            with pytest.raises(ConflictError, match=said) as caught:
                await starting
            assert "train_together = false in [pipelines.default.training]" in caught.value.mend
        assert not (await loop.app.store.runs.page()).items
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["default: one model in use"].status == "failed"


@pytest.mark.parametrize("given", ["hook", "body"])
async def test_a_task_without_a_model_of_its_own_has_the_base_in_use(
    tmp_path: Path, sqlite_store_url: str, given: str
) -> None:
    """Also one that came to the pipeline later than the other's rollout."""
    tasks = {"hook": HOOK, "body": BODY} | {given: SEVERAL[given]}
    async with open_providers(tmp_path, sqlite_store_url, *providers(), tasks=tasks) as loop:
        with pytest.raises(ConflictError, match="compares with one model in use"):
            await loop.app.runs.start(recipes=[NEWER])
    alone = {"tasks": ("hook",)}
    async with open_providers(tmp_path, sqlite_store_url, *providers(), changes=alone) as loop:
        loop.traffic.lift = 0.5
        assert (await loop.turn()).status is RunStatus.SUCCESS
    async with open_providers(tmp_path, sqlite_store_url, *providers()) as loop:
        with pytest.raises(ConflictError, match="and body by base"):
            await loop.app.runs.start()


async def test_a_refused_tick_is_told_and_ends_no_other_pipeline_s(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    alerts = AlertsConfig(webhook_url=Url(f"http://127.0.0.1:{free_port()}"))  # nobody takes it
    changes = {"schedule_driver": "internal", "weekly_schedule": "0 3 * * *"}
    async with open_providers(
        tmp_path, sqlite_store_url, *providers(), tasks=SEVERAL, changes=changes, alerts=alerts
    ) as loop:
        await loop.app.schedule.tick(T0)
        assert await loop.app.schedule.tick(T0 + timedelta(days=1)) == []
        [told] = [
            one
            for one in (await loop.app.store.activity.page()).items
            if one.action == "run refused"
        ]
        assert "body by" in (told.reason or "")
        kept = await eventually(loop.app.store.alerts.waiting, 10)
        assert [(one.kind, one.subject) for one in kept] == [("run_failed", "default")]


async def test_tasks_that_train_apart_move_one_by_one(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    apart = {"train_together": False}
    old, new = providers()
    old.shutdowns = {HOOKS: T0 + timedelta(days=60), BODIES: T0 + timedelta(days=50)}
    async with open_providers(
        tmp_path, sqlite_store_url, old, new, tasks=SEVERAL, changes=apart
    ) as loop:
        move = loop.app.migration
        with pytest.raises(ConfigError, match="train apart") as caught:
            await move.plan([NEWER], cheaper=0)
        assert "default.hook, default.body" in caught.value.mend
        plan = await move.plan([NEWER], cheaper=0, pipeline="default.body")
        assert plan.in_use == ((BODIES, "old"),)
        assert (plan.doomed, plan.shutdown_at) == (BODIES, T0 + timedelta(days=50))
        loop.traffic.lift = 0.5
        run = await move.start([NEWER], cheaper=0, pipeline="default.hook")
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        in_use = {r.task: r.baseline.model_id for r in await loop.app.routing.all()}
        assert in_use == {"hook": "newer", "body": BODIES}


@pytest.mark.parametrize(
    ("in_use", "several"),
    [
        ({}, False),
        ({"hook": Variant(model_id="m")}, False),
        ({"hook": Variant(model_id="m"), "body": Variant(model_id="m", provider="p")}, False),
        (
            {
                "hook": Variant(model_id="m", provider="p@then"),
                "body": Variant(model_id="m", provider="p@now"),
            },
            False,
        ),
        (
            {
                "hook": Variant(model_id="m", provider="p"),
                "body": Variant(model_id="m", provider="q"),
            },
            True,
        ),
        ({"hook": Variant(model_id="m"), "body": Variant(model_id="n")}, True),
    ],
)
def test_one_model_is_one_wherever_its_provider_has_moved(
    in_use: Mapping[str, Variant], several: bool
) -> None:
    if not several:
        ensure_one("default", in_use)
        return
    with pytest.raises(ConflictError, match="compares with one model in use"):
        ensure_one("default", in_use)
