"""What the runbooks say to run is run, against a service in the state that each page is about."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.documents import ROOT, Block, Session, blocks
from tests.integration.server.conftest import posts
from tests.integration.test_watches import BASE, BETTER
from tests.integration.watched.middle import in_the_middle_of_a_test
from tests.line import write_posts
from tests.servers import free_port, postgres_server, redis_server
from tests.wire import wire_server

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.errors import TuneProofError
from tuneproof.resilience import State
from tuneproof.settings import Settings
from tuneproof.testing import MemoryProvider, MemorySource

RUNBOOKS = sorted((ROOT / "docs/runbooks").glob("*.md"))

STATES = {"down", "healthy", "busy", "rollout", "away", "redis", "postgres"}


ENDS = ("tuneproof run abort", "tuneproof experiment end")
"""What leaves nothing to look at for the pages behind it."""


def pages(state: str) -> list[list[Block]]:
    """The pages that have something to run in this state; those that end something come last."""
    found = [blocks(page) for page in RUNBOOKS]
    found = [page for page in found if any(block.state == state for block in page)]
    return sorted(found, key=lambda page: any(end in b.text for b in page for end in ENDS))


def run(
    folder: Path, state: str, *, stands_for: Mapping[str, str] | None = None, **env: str
) -> int:
    """Run all that is to be run in this state, page by page; how many blocks there were."""
    count = 0
    for page in pages(state):
        with Session(folder, stands_for=stands_for or {}, env=env) as session:
            count += session.run(page, state=state)
    return count


def test_each_state_is_one_that_is_tested() -> None:
    assert {block.state for page in RUNBOOKS for block in blocks(page) if block.is_run} == STATES


def test_the_index_names_each_page() -> None:
    index = (ROOT / "docs/runbooks/README.md").read_text("utf-8")
    for page in RUNBOOKS:
        assert page.name == "README.md" or f"[{page.stem}]({page.name})" in index


def test_while_no_service_runs(tmp_path: Path) -> None:
    assert run(tmp_path, "down")


def test_while_nothing_is_wrong(tmp_path: Path) -> None:
    assert run(tmp_path, "healthy")


@pytest.mark.slow
async def test_in_the_middle_of_a_test(tmp_path: Path, sqlite_store_url: str) -> None:
    async with in_the_middle_of_a_test(tmp_path / "data", sqlite_store_url) as watched:
        store = watched.loop.app.store
        [rollout] = (await store.deployments.page()).items
        tests = (await store.experiments.page()).items
        stands_for = {
            "8686": watched.address.rpartition(":")[2],
            "9090": str(watched.metrics_port),
            "ft-pipeline-20261122-001": watched.run_id,
            "ab-test-20261122-001": tests[0].id,
            "deploy-20261122-001": rollout.id,
        }
        assert await asyncio.to_thread(
            run, tmp_path, "busy", stands_for=stands_for, TUNEPROOF_URL=watched.address
        )


def plain(folder: Path, **more: object) -> tuple[Settings, int]:
    """Settings of a service on free ports, and the port of its metrics."""
    port = free_port()
    told = {"server.metrics_port": port, **more}
    return Settings.load(dir=folder, env={}, port=0, base_model="base", **told), port


async def test_while_a_rollout_is_under_way(tmp_path: Path) -> None:
    settings, _ = plain(tmp_path / "data")
    provider = MemoryProvider(base_models=("base", "better"))
    async with (
        App.open(settings, provider=provider, source=MemorySource(posts())) as app,
        serving(app, settings) as (address, _),
    ):
        manager = app.managers.of(replace(settings.pipeline(), holdback_days=0))
        begun = await manager.begin((await manager.declare(BETTER, BASE)).id)
        await app.routing.board.refresh()
        stands_for = {"8686": address.rpartition(":")[2]}
        assert await asyncio.to_thread(
            run, tmp_path, "rollout", stands_for=stands_for, TUNEPROOF_URL=address
        )
        assert str((await app.store.deployments.get(begun.id)).state) == "rolled_back"


@pytest.mark.slow
async def test_while_the_provider_is_away(tmp_path: Path) -> None:
    with wire_server() as wire:
        wire.fail("GET /models", status=503)
        settings, port = plain(tmp_path / "data", base_url=wire.url, api_key="key")
        async with (
            App.open(settings, source=MemorySource(posts())) as app,
            serving(app, settings) as (address, _),
        ):
            breaker = app.providers.breakers["openai"]
            while breaker.state is not State.OPEN:
                with pytest.raises(TuneProofError):
                    await app.providers.get("default").models()
            stands_for = {"8686": address.rpartition(":")[2], "9090": str(port)}
            assert await asyncio.to_thread(
                run, tmp_path, "away", stands_for=stands_for, TUNEPROOF_URL=address
            )


def test_where_redis_keeps_the_cache(tmp_path: Path) -> None:
    with redis_server() as redis:
        assert run(tmp_path, "redis", REDIS_URL=redis.url)


@pytest.mark.slow
@pytest.mark.postgres
async def test_on_postgresql(tmp_path: Path) -> None:
    with postgres_server(shared_preload_libraries="pg_stat_statements") as server:
        url = server.create_database()
        settings, port = plain(tmp_path / "data", **{"store.url": url})
        provider = MemoryProvider(base_models=("base",))
        async with (
            App.open(settings, provider=provider) as app,
            serving(app, settings) as (address, _),
        ):
            write_posts(tmp_path / "posts.csv")
            assert await app.import_posts(tmp_path / "posts.csv") == 150
            stands_for = {"8686": address.rpartition(":")[2], "9090": str(port)}
            plainly = url.replace("postgresql+psycopg", "postgresql")
            assert await asyncio.to_thread(
                run,
                tmp_path,
                "postgres",
                stands_for=stands_for,
                TUNEPROOF_URL=address,
                DATABASE_URL=plainly,
            )
