"""Switching providers over the wire: one line changes, the model in use stays where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.switching import open_wires, provider
from tests.wire import Wire, wire_server

from tuneproof.app.providing import apart
from tuneproof.errors import ConfigError
from tuneproof.experiments import Variant, variant_of
from tuneproof.settings import PipelineConfig, ProviderConfig, Settings, TaskConfig
from tuneproof.store import RunStatus
from tuneproof.testing import VirtualClock

OLD_KEY = {"OLD_KEY": "sk-old"}


@pytest.fixture
def old() -> Iterator[Wire]:
    with wire_server() as made:
        yield made


@pytest.fixture
def new() -> Iterator[Wire]:
    with wire_server() as made:
        yield made


async def test_moved_address_leaves_the_model_in_use_where_it_was_trained(
    tmp_path: Path, database_url: str, old: Wire, new: Wire
) -> None:
    before = provider("default", old.url, api_key_env="OLD_KEY", api_key="sk-old")
    async with open_wires(tmp_path, database_url, before, env=OLD_KEY) as loop:
        first = await loop.turn()
        assert first.status is RunStatus.SUCCESS, first.reason
        now = loop.app.clock.now()
    asked = old.count("POST /chat/completions")
    after = provider("default", new.url, api_key_env="NEW_KEY", api_key="sk-new")
    async with open_wires(
        tmp_path, database_url, after, env=OLD_KEY, clock=VirtualClock(now)
    ) as loop:
        second = await loop.turn()
        assert second.status is RunStatus.SUCCESS, second.reason
        newest, oldest = await loop.app.store.versions.list()
        assert (newest.provider, newest.parent_id) == ("default", oldest.id)
        assert oldest.provider == f"default@127.0.0.1:{old.url.split(':')[2]}"
        # The safety check called the baseline at the old server, the candidate at the new one.
        assert old.count("POST /chat/completions") == asked + 2
        assert old.count("POST /fine_tuning/jobs") == new.count("POST /fine_tuning/jobs") == 1
        endpoint = await loop.app.routing.endpoints.of(variant_of(oldest))
        assert (endpoint.base_url, endpoint.api_key) == (old.url, "sk-old")
        endpoint = await loop.app.routing.endpoints.of(variant_of(newest))
        assert (endpoint.base_url, endpoint.api_key) == (new.url, "sk-new")


async def test_base_model_in_use_stays_where_it_was_when_the_address_moves(
    tmp_path: Path, sqlite_store_url: str, old: Wire, new: Wire
) -> None:
    async with open_wires(tmp_path, sqlite_store_url, provider("default", old.url)) as loop:
        loop.traffic.lift = 0.0
        assert (await loop.turn()).status is RunStatus.REJECTED
        now = loop.app.clock.now()
    asked = old.count("POST /chat/completions")
    moved = provider("default", new.url)
    async with open_wires(tmp_path, sqlite_store_url, moved, clock=VirtualClock(now)) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        assert old.count("POST /chat/completions") == asked + 2


async def test_former_key_is_used_only_while_it_is_the_same(
    tmp_path: Path, sqlite_store_url: str, old: Wire, new: Wire
) -> None:
    before = provider("default", old.url, api_key="sk-old")
    env = {"OPENAI_API_KEY": "sk-old"}
    async with open_wires(tmp_path, sqlite_store_url, before, env=env) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS
        [version] = await loop.app.store.versions.list()
    after = provider("default", new.url, api_key="sk-new")
    env = {"OPENAI_API_KEY": "sk-new"}
    requests = len(old.requests)
    async with open_wires(tmp_path, sqlite_store_url, after, env=env) as loop:
        with pytest.raises(ConfigError, match="another key than OPENAI_API_KEY holds") as caught:
            await loop.app.routing.endpoints.of(variant_of(version))
        assert f'base_url = "{old.url}"' in caught.value.mend
        kept = await loop.app.store.meta.get("places")
        assert "sk-old" not in str(kept)
        assert len(old.requests) == requests  # the new key was not shown to the old server
    kept_beside = provider("before", old.url, api_key="sk-old")
    async with open_wires(tmp_path, sqlite_store_url, after, kept_beside, env=env) as loop:
        endpoint = await loop.app.routing.endpoints.of(variant_of(version))
        assert (endpoint.provider, endpoint.api_key) == ("before", "sk-old")


async def test_password_in_an_address_is_not_kept(
    tmp_path: Path, sqlite_store_url: str, old: Wire, new: Wire
) -> None:
    secret = provider("default", old.url.replace("http://", "http://ann:hunter2@"))
    async with open_wires(tmp_path, sqlite_store_url, secret) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS
        [version] = await loop.app.store.versions.list()
        assert "hunter2" not in str(await loop.app.store.meta.get("places"))
    async with open_wires(tmp_path, sqlite_store_url, provider("default", new.url)) as loop:
        with pytest.raises(ConfigError, match="Keep it in the settings"):
            await loop.app.providers.serves(variant_of(version))


async def test_server_that_moves_with_its_models_takes_them_along(
    tmp_path: Path, sqlite_store_url: str, old: Wire
) -> None:
    async with open_wires(tmp_path, sqlite_store_url, provider("default", old.url)) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS
        [version] = await loop.app.store.versions.list()
    other_name = old.url.replace("127.0.0.1", "localhost")
    async with open_wires(tmp_path, sqlite_store_url, provider("default", other_name)) as loop:
        assert await loop.app.providers.settle() == [version.model_id]
        [version] = await loop.app.store.versions.list()
        assert version.provider == "default"
        assert (await loop.app.routing.endpoints.of(variant_of(version))).base_url == other_name
        assert await loop.app.providers.settle() == []


async def test_same_model_name_at_two_providers_is_asked_where_its_reference_says(
    tmp_path: Path, sqlite_store_url: str, old: Wire, new: Wire
) -> None:
    servers = provider("one", old.url), provider("two", new.url)
    async with open_wires(tmp_path, sqlite_store_url, *servers) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS
        for name, wire in (("one", old), ("two", new)):
            endpoint = await loop.app.routing.endpoints.of(
                Variant(model_id="base-model", provider=name)
            )
            assert endpoint.base_url == wire.url
        bare = await loop.app.routing.endpoints.of(Variant(model_id="base-model"))
        assert bare.base_url == old.url  # where it was last trained on


async def test_model_in_use_before_the_first_rollout_is_asked_where_its_task_says(
    tmp_path: Path, sqlite_store_url: str, old: Wire, new: Wire
) -> None:
    tasks = {
        name: TaskConfig(
            name=name,
            prompt="{original_input}",
            completion=name,
            model="old-model",
            model_provider="old",
        )
        for name in ("hook", "body")
    }
    servers = provider("new", new.url), provider("old", old.url)
    async with open_wires(tmp_path, sqlite_store_url, *servers, tasks=tasks) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        test = await loop.app.store.experiments.get(run.result["ab_test_id"])
        assert test.baseline.model_id == "old-model"
        assert old.count("POST /chat/completions") == 2
        assert [b["model"] for b in old.bodies] == ["old-model"] * 2


def test_naming_another_provider_is_enough_where_each_names_its_base(tmp_path: Path) -> None:
    file = tmp_path / "tuneproof.toml"
    text = """
    [providers.openai]
    base_url = "https://api.openai.com/v1"
    base_model = "gpt-4.1-mini-2025-04-14"
    [providers.own]
    base_url = "http://127.0.0.1:8700/v1"
    base_model = "tuneproof-ngram-1"
    [pipelines.default.training]
    provider = "openai"
    """
    file.write_text(text)
    assert Settings.load(file=file, env={}).pipelines["default"].base_model == (
        "gpt-4.1-mini-2025-04-14"
    )
    file.write_text(text.replace('provider = "openai"', 'provider = "own"'))
    switched = Settings.load(file=file, env={}).pipelines["default"]
    assert (switched.provider, switched.base_model) == ("own", "tuneproof-ngram-1")


def test_task_that_trains_apart_takes_the_base_of_its_own_provider() -> None:
    providers = {
        "old": ProviderConfig(name="old", base_url="http://127.0.0.1:9/v1", base_model="large"),
        "own": ProviderConfig(name="own", base_url="http://127.0.0.1:8/v1", base_model="small"),
    }
    hook = TaskConfig(name="hook", prompt="{original_input}", completion="hook")
    tasks = {"hook": replace(hook, provider="own"), "body": replace(hook, name="body")}
    settings = Settings(
        pipelines={"default": PipelineConfig(provider="old", train_together=False)},
        providers=providers,
        tasks=tasks,
    )
    made = apart(settings, settings.pipelines["default"])
    assert {c.name: (c.provider, c.base_model) for c in made} == {
        "default.hook": ("own", "small"),
        "default.body": ("old", "large"),
    }
