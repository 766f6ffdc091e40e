"""Shutdowns and retries: who is asked, what follows, and what a retry takes from the settings."""

from __future__ import annotations

import html
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.integration.loop import T0
from tests.integration.providing import Provider, open_providers

from tuneproof.app.succession import GUIDE, command, needed
from tuneproof.cli.system import _shutdown
from tuneproof.errors import CredentialsError
from tuneproof.server import create_app
from tuneproof.settings import BODY, HOOK, PipelineConfig, TaskConfig
from tuneproof.store import RunStatus
from tuneproof.training import TrainingReadiness
from tuneproof.workflow import RecordSerializer

INTERNAL = {"schedule_driver": "internal"}


def successors(*models: str) -> dict[str, Any]:
    return {"successors": tuple({"make": "train", "model": one} for one in models)}


async def test_shutdown_is_still_counted_down_once_the_model_is_gone(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p")
    provider.shutdowns["base"] = T0 + timedelta(days=40)
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        await loop.app.shutdown_watch.look(T0)
        provider._base_models = ()  # the list forgets it before the day
        await loop.app.shutdown_watch.look(T0 + timedelta(days=2))
        shown = (await loop.app.overview.status())["pipelines"][0]["shutdown"]
        assert (shown["model"], shown["days"]) == ("base", 40)


async def test_provider_that_is_away_hides_no_other_shutdown(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base",))
    async with open_providers(tmp_path, sqlite_store_url, old, new) as loop:
        assert (await loop.turn()).status is RunStatus.SUCCESS
        old.raises["models"] = CredentialsError("The key was taken back.")
        new.shutdowns["open-base"] = T0 + timedelta(days=50)
        moved = replace(loop.app.pipelines.get("default"), provider="new", base_model="open-base")
        found = await loop.app.shutdowns.ask(moved)
        assert found is not None
        assert (found.model, found.provider) == ("open-base", "new")


async def test_base_that_was_changed_already_is_trained_on_in_time_and_not_overruled(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base", "late"))
    async with open_providers(tmp_path, sqlite_store_url, old, new) as loop:
        assert (await loop.turn()).status is RunStatus.SUCCESS
    old.shutdowns["base"] = T0 + timedelta(days=40)
    changes = {**INTERNAL, "provider": "new", "base_model": "open-base", **successors("late")}
    async with open_providers(tmp_path, sqlite_store_url, old, new, changes=changes) as loop:
        [run_id] = await loop.app.shutdown_watch.look(T0 + timedelta(days=15))
        ended = await loop.end(run_id)
        assert (ended.config["base_model"], ended.config["provider"]) == ("open-base", "new")
        warned = [
            a for a in (await loop.app.store.activity.page()).items if a.action == "model shutdown"
        ]
        assert "the loop starts a run with open-base" in warned[0].reason


async def test_retry_of_a_successor_s_run_trains_on_the_successor(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p", base_models=("base", "next"))
    provider.shutdowns["base"] = T0 + timedelta(days=20)
    changes = {**INTERNAL, **successors("next")}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        provider.says = TrainingReadiness(model="next", account=False, detail="closed for a day")
        [run_id] = await loop.app.shutdown_watch.look(T0)
        assert (await loop.end(run_id)).status is RunStatus.FAILED
        provider.says = None
        await loop.app.runs.retry(run_id)
        await loop.end(run_id)
        assert [v.base_model for v in await loop.app.store.versions.list()] == ["next"]


async def test_successors_are_made_each_at_its_place_and_those_that_go_are_left_out(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = (
        Provider(name="old", base_models=("base", "newer", "soon")),
        Provider(name="new", base_models=("open-base",)),
    )
    old.shutdowns = {"base": T0 + timedelta(days=20), "soon": T0 + timedelta(days=27)}
    given = (
        {"make": "as_is", "model": "newer"},
        {"make": "train", "model": "open-base", "provider": "new"},
        {"make": "as_is", "model": "base"},
        {"make": "as_is", "model": "soon"},
    )
    changes = {**INTERNAL, "successors": given, "traffic_split": 0.2}
    async with open_providers(tmp_path, sqlite_store_url, old, new, changes=changes) as loop:
        [run_id] = await loop.app.shutdown_watch.look(T0)
        ended = await loop.end(run_id)
        assert ended.status is RunStatus.SUCCESS, ended
        versions = await loop.app.store.versions.list()
        made = {(v.recipe, v.base_model, v.provider) for v in versions}
        assert made == {("train", "open-base", "new"), ("as_is", "newer", "old")}
        shown = (await loop.app.overview.status())["pipelines"][0]["shutdown"]
        assert shown["successor"] == "newer, open-base"
        own = await loop.turn(recipes=[{"make": "as_is", "model": "newer"}])
        assert [one["model"] for one in own.config["recipes"]] == ["newer"]


async def test_a_base_that_goes_with_the_model_in_use_is_no_move_already_made(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Seen: of a fine-tune that the settings name nobody knew the base, so that this one passed
    for the one that was changed to."""
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base",))
    tuned = "a-tuned"
    old.shutdowns = dict.fromkeys((tuned, "base"), T0 + timedelta(days=20))
    old._base_models = ("base", tuned)
    tasks = {
        name: replace(task, model=tuned, model_provider="old")
        for name, task in (("hook", HOOK), ("body", BODY))
    }
    given = ({"make": "train", "model": "open-base", "provider": "new"},)
    changes = {**INTERNAL, "successors": given}
    async with open_providers(
        tmp_path, sqlite_store_url, old, new, tasks=tasks, changes=changes
    ) as loop:
        [run_id] = await loop.app.shutdown_watch.look(T0)
        ended = await loop.end(run_id)
        assert (ended.config["base_model"], ended.config["provider"]) == ("open-base", "new")


async def test_a_retry_follows_other_successors(tmp_path: Path, sqlite_store_url: str) -> None:
    """As the settings say then; recipes that a run was given stay."""
    provider = Provider(name="p", base_models=("base", "next", "other"))
    provider.shutdowns["base"] = T0 + timedelta(days=20)
    changes = {**INTERNAL, **successors("next")}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        provider.says = TrainingReadiness(model="next", account=False, detail="closed for good")
        [run_id] = await loop.app.shutdown_watch.look(T0)
        assert (await loop.end(run_id)).status is RunStatus.FAILED
        own = await loop.turn(recipes=[{"make": "train", "model": "next", "provider": "p"}])
        assert own.status is RunStatus.FAILED
    changes = {**INTERNAL, **successors("other")}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        provider.says = None
        for retried in (run_id, own.id):
            await loop.app.runs.retry(retried)
            await loop.end(retried)
        made = {v.run_id: v.base_model for v in await loop.app.store.versions.list()}
        assert made == {run_id: "other", own.id: "next"}


async def test_a_successor_s_run_that_is_refused_is_told_once_a_day(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old = Provider(name="old", base_models=("base", "a", "b", "next"))
    old.shutdowns["a"] = T0 + timedelta(days=20)
    tasks = {"hook": replace(HOOK, model="a"), "body": replace(BODY, model="b")}
    changes = {**INTERNAL, "base_model": None, **successors("next")}
    async with open_providers(
        tmp_path, sqlite_store_url, old, tasks=tasks, changes=changes
    ) as loop:
        for hours in (0, 1, 25):
            assert await loop.app.shutdown_watch.look(T0 + timedelta(hours=hours)) == []
        refused = [
            one.reason
            for one in (await loop.app.store.activity.page()).items
            if one.action == "run refused"
        ]
        assert len(refused) == 2
        assert all("hook is served by a, and body by b" in str(said) for said in refused)


async def test_doctor_asks_for_the_models_that_follow(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    old, new = Provider(name="old"), Provider(name="new", base_models=("open-base",))
    given = (
        {"make": "as_is", "model": "newer"},
        {"make": "train", "model": "closed-base", "provider": "new"},
    )
    async with open_providers(
        tmp_path, sqlite_store_url, old, new, changes={"successors": given, "traffic_split": 0.2}
    ) as loop:
        new.says = TrainingReadiness(model="closed-base", account=False, detail="closed for good")
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["default: base model"].status == "ok"
        refused = found["default: base model of successors"]
        assert (refused.status, "closed for good" in refused.detail) == ("failed", True)


async def test_retry_of_a_task_that_trains_apart_takes_the_settings_of_now(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    one, two = Provider(name="one"), Provider(name="two", base_models=("small",))

    def tasks(place: str, base: str) -> dict[str, TaskConfig]:
        hook = TaskConfig(
            name="hook",
            prompt="{original_input}",
            completion="hook",
            provider=place,
            base_model=base,
        )
        return {"hook": hook, "body": replace(hook, name="body", completion="body")}

    apart = {"train_together": False}
    one.says = TrainingReadiness(model="base", account=False, detail="closed")
    async with open_providers(
        tmp_path, sqlite_store_url, one, two, changes=apart, tasks=tasks("one", "base")
    ) as loop:
        await loop.app.runs.start(last_stage="gate")
        runs = [r.id for r in (await loop.app.store.runs.page()).items]
        for run_id in runs:
            assert (await loop.end(run_id)).status is RunStatus.FAILED
    async with open_providers(
        tmp_path, sqlite_store_url, one, two, changes=apart, tasks=tasks("two", "small")
    ) as loop:
        for run_id in runs:
            await loop.app.runs.retry(run_id)
            assert (await loop.end(run_id)).status is RunStatus.SUCCESS
        versions = await loop.app.store.versions.list()
        made = {v.pipeline: (v.provider, v.base_model) for v in versions}
        assert made == dict.fromkeys(("default.hook", "default.body"), ("two", "small"))


async def test_status_doctor_page_and_alert_name_the_command_and_the_last_day(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p")
    provider.shutdowns["base"] = T0 + timedelta(days=40)
    async with open_providers(tmp_path, sqlite_store_url, provider) as loop:
        app = loop.app
        await app.shutdown_watch.look(T0)
        config = app.pipelines.get("default")
        last = f"start by {T0 + timedelta(days=40) - needed(config).all:%Y-%m-%d} ("
        shown = (await app.overview.status())["pipelines"][0]["shutdown"]
        [warned] = [
            a for a in (await app.store.activity.page()).items if a.action == "model shutdown"
        ]
        [found] = [f for f in await app.doctor.examine() if "base model" in f.name]
        asgi = httpx2.ASGITransport(app=create_app(app))
        async with httpx2.AsyncClient(transport=asgi, base_url="http://127.0.0.1") as client:
            page = html.unescape((await client.get("/")).text)
        assert found.status == "warning"
        for said in (shown["mend"], warned.reason, found.mend, page, _shutdown(shown)):
            assert f"{command(config, ())} ({GUIDE})" in said
            assert last in said


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("null", ()),
        ('"late"', ({"make": "train", "model": "late"},)),
    ],
)
def test_a_config_that_an_earlier_version_recorded_is_read_with_its_successor(
    stored: str, found: tuple[dict[str, str], ...]
) -> None:
    text = RecordSerializer().serialize(PipelineConfig())
    now, then = (
        '"successors":{"$tuple":[]}',
        f'"successor_model":{stored},"successor_provider":null',
    )
    assert now in text
    assert RecordSerializer().deserialize(text.replace(now, then)).successors == found
