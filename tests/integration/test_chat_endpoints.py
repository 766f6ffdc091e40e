"""Who serves which model is found ahead of the requests, and found anew when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import event
from tests.integration.store.records import version

from tuneproof.app.endpoints import ModelEndpoints
from tuneproof.app.places import Places
from tuneproof.errors import ConfigError
from tuneproof.experiments import Variant
from tuneproof.settings import Settings
from tuneproof.store import Store

TUNED = Variant(model_id="tuned", version="ver-1")


class Counted:
    """How many statements the store was asked."""

    def __init__(self, store: Store) -> None:
        self.statements = 0
        event.listen(store.database.engine.sync_engine, "before_cursor_execute", self._count)

    def _count(self, *_: object) -> None:
        self.statements += 1


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(
        dir=tmp_path,
        env={},
        base_url="http://first.example/v1",
        api_key="key",
        base_model="base",
        **{
            "providers.other.base_url": "http://other.example/v1",
            "providers.default.prices": {"tuned": [1.0, 2.0]},
        },
    )


@pytest.fixture
async def endpoints(store: Store, settings: Settings) -> ModelEndpoints:
    await store.versions.add(version("ver-1", model_id="tuned"))
    return ModelEndpoints(
        store,
        settings,
        Places(store, settings),
        embedded=lambda name: settings.providers[name],
        breakers={},
    )


async def test_what_was_prepared_is_known_without_asking(endpoints, store):
    await endpoints.prepare([TUNED])
    counted = Counted(store)
    found = await endpoints.of(TUNED)
    assert (found.provider, found.base_url) == ("default", "http://first.example/v1")
    assert endpoints.cost_usd(TUNED, prompt_tokens=1_000_000, completion_tokens=0) == 1.0
    await endpoints.prepare([TUNED])
    assert counted.statements == 0


async def test_a_model_that_moved_is_asked_where_it_is_once_that_is_renewed(endpoints, store):
    await endpoints.prepare([TUNED])
    await store.versions.update("ver-1", provider="other")
    assert (await endpoints.of(TUNED)).provider == "default"
    await endpoints.renew([TUNED])
    assert (await endpoints.of(TUNED)).base_url == "http://other.example/v1"


async def test_a_model_whose_provider_left_the_settings_is_told_to_who_asks(endpoints, store):
    await endpoints.prepare([TUNED])
    await store.versions.update("ver-1", provider="gone")
    await endpoints.renew([TUNED])
    with pytest.raises(ConfigError, match="gone"):
        await endpoints.of(TUNED)


async def test_a_model_that_serves_nobody_is_forgotten(endpoints, store):
    await endpoints.prepare([TUNED])
    await endpoints.renew([])
    counted = Counted(store)
    await endpoints.of(TUNED)
    assert counted.statements > 0


async def test_a_price_of_training_alone_is_no_price_of_answers(store, tmp_path):
    """Seen: requests for a model at Together counted as free; only its training has a price."""
    settings = Settings.load(
        dir=tmp_path,
        env={"TOGETHER_API_KEY": "key"},
        base_model="meta-llama/Llama-3.1-8B",
        **{"providers.default.kind": "together"},
    )
    endpoints = ModelEndpoints(
        store,
        settings,
        Places(store, settings),
        embedded=lambda name: settings.providers[name],
        breakers={},
    )
    model = Variant(model_id="meta-llama/Llama-3.1-8B")
    await endpoints.prepare([model])
    tokens = {"prompt_tokens": 1000, "completion_tokens": 1000}
    assert endpoints.cost_usd(model, **tokens) is None
    assert endpoints.cost_at_usd("default", model.model_id, **tokens) is None
