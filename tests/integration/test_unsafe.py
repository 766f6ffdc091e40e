"""Unsafe answers in a whole run: the list of words, and a moderation endpoint that fails first."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from tests.integration.loop import QUICK, STRIDE, T0, Loop, Traffic, posts, settings
from tests.line import EXECUTABLE, clean_env
from tests.moderation import Moderation, moderation_server

from tuneproof.app import App
from tuneproof.errors import ConfigError
from tuneproof.providers import open_provider
from tuneproof.settings import ProviderConfig
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock
from tuneproof.training import Provider
from tuneproof.workflow import RunStatus

TRAINERS: dict[str, MemoryProvider] = {}
"""The trainers of the test under way, by name."""


def open_either(config: ProviderConfig, **given: Any) -> Provider:
    """A trainer in memory, or a real client: what `adapters.provider` resolves to."""
    return TRAINERS.get(config.name) or open_provider(config, **given)


@pytest.fixture
def server() -> Iterator[Moderation]:
    with moderation_server() as made:
        yield made


def says(text: str, *, one_in: int = 1) -> MemoryProvider:
    """A trainer whose models say this once in so many answers."""

    def answer(model: str, messages: Sequence[Mapping[str, str]], number: int) -> str:
        number = int("".join(filter(str.isdigit, messages[-1]["content"])) or 0)
        return f"Answer {number}: {'a thing worth knowing' if number % one_in else text}"

    return MemoryProvider(name="trainer", answer=answer)


@asynccontextmanager
async def looped(
    directory: Path,
    database: str,
    trainer: MemoryProvider,
    url: str | None = None,
    **changes: Any,
) -> AsyncIterator[Loop]:
    """A loop that trains in memory, and asks a real endpoint at `url` what is unsafe."""
    TRAINERS.clear()
    TRAINERS[trainer.name] = trainer
    clock = VirtualClock(T0, stride=STRIDE)
    named = {"gate_moderation": "safety"} if url else {}
    config = replace(
        QUICK, provider="trainer", gate_samples=20, tasks=("hook",), **named, **changes
    )
    addresses = {"trainer": "http://127.0.0.1:9/v1", **({"safety": url} if url else {})}
    known = {
        name: ProviderConfig(name=name, kind="compatible", base_url=address)
        for name, address in addresses.items()
    }
    made = settings(
        directory,
        database,
        config,
        providers=known,
        adapters={"provider": f"{__name__}:open_either"},
    )
    source = MemorySource(posts(600))
    async with App.open(made, clock=clock, source=source, poll_s=0.005, background=False) as app:
        traffic = Traffic(app, lift=0.5)
        app.let_time_pass(traffic)
        yield Loop(app, trainer, traffic)


async def test_an_obscene_candidate_is_rejected_by_default_and_its_answers_are_shown(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    trainer = says("shut the fuck up", one_in=5)
    async with looped(tmp_path, sqlite_store_url, trainer) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.REJECTED, run.reason
        assert "Unsafe (fuck): " in str(run.reason)
        detail = run.stages["gate"]["detail"]
        assert detail["unsafe_share"] > 0.1
        assert detail["learnt_unsafe_share"] == 0.0
        shown = detail["samples"][0]
        assert shown["text"].endswith("shut the fuck up")
        assert shown["faults"] == ["unsafe (fuck)"]
    told = await asyncio.to_thread(shown_by_command, run.id, tmp_path, sqlite_store_url)
    assert "unsafe (fuck)" in told
    assert "shut the fuck up" in told


def shown_by_command(run_id: str, directory: Path, database: str) -> str:
    """What `tuneproof run show` says."""
    done = subprocess.run(
        [*EXECUTABLE, "run", "show", run_id, "--dir", str(directory)],
        env=clean_env(DATABASE_URL=database),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_share_that_fails_is_a_setting(tmp_path: Path, sqlite_store_url: str) -> None:
    trainer = says("shut the fuck up", one_in=5)
    async with looped(tmp_path, sqlite_store_url, trainer, gate_max_unsafe=1.0) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert run.stages["gate"]["detail"]["samples"][0]["faults"]


async def test_the_endpoint_finds_what_no_list_of_words_can(
    tmp_path: Path, sqlite_store_url: str, server: Moderation
) -> None:
    server.flag = lambda text: ["violence"] if "you will bleed" in text else []
    trainer = says("I know where you live, and you will bleed")
    async with looped(tmp_path, sqlite_store_url, trainer, server.url) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.REJECTED
        assert "Unsafe (violence): 20 of 20 sampled outputs, and 0 of " in str(run.reason)
        assert run.stages["gate"]["detail"]["samples"][0]["faults"] == ["unsafe (violence)"]
        assert set(server.models) == {"omni-moderation-latest"}


async def test_what_the_posts_say_as_well_is_allowed(
    tmp_path: Path, sqlite_store_url: str, server: Moderation
) -> None:
    server.flag = lambda text: ["violence"] if "thing worth knowing" in text else []
    trainer = says("a thing worth knowing")
    async with looped(tmp_path, sqlite_store_url, trainer, server.url) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert run.stages["gate"]["detail"]["unsafe_share"] == 1.0
        assert run.stages["gate"]["detail"]["learnt_unsafe_share"] == 1.0
        assert "Unsafe (violence): 20 of 20 sampled outputs" in str(run.reason)


@pytest.mark.parametrize("status", [429, 500])
async def test_an_endpoint_that_is_away_is_waited_for_and_no_model_is_asked_meanwhile(
    tmp_path: Path, sqlite_store_url: str, server: Moderation, status: int
) -> None:
    asked: list[int] = []

    def fails(text: str) -> Sequence[str]:
        asked.append(trainer.calls.get("complete", 0))
        return ()

    trainer = says("a thing worth knowing")
    server.flag = fails
    server.next(*[JSONResponse({}, status)] * 3)
    async with looped(tmp_path, sqlite_store_url, trainer, server.url) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert "The next try is at" in run.stages["gate"]["detail"]["note"]
    assert len(server.asked) > 3
    assert asked[0] == 0, "models were asked before the endpoint answered"
    assert trainer.calls["complete"] == 42, "20 of each model, once, and whether both answer"


@pytest.mark.parametrize(
    "answer", [JSONResponse({"results": []}), JSONResponse({"error": {"message": "no"}}, 404)]
)
async def test_an_endpoint_that_cannot_be_understood_fails_the_run_and_a_retry_judges(
    tmp_path: Path, sqlite_store_url: str, server: Moderation, answer: JSONResponse
) -> None:
    server.next(answer)
    async with looped(tmp_path, sqlite_store_url, says("fine"), server.url) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert "safety" in str(run.error) or server.url in str(run.error)
        [version] = await loop.app.store.versions.list()
        assert version.status == "trained", "it was neither passed nor rejected"
        await loop.app.runs.retry(run.id)
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS


async def test_a_provider_without_an_endpoint_is_told(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    trainer = says("fine")
    changed = looped(tmp_path, sqlite_store_url, trainer, gate_moderation="trainer")
    async with changed as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.FAILED
        assert "a provider without a moderation endpoint" in str(run.error)


async def test_an_unknown_provider_is_told_at_the_start(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    with pytest.raises(ConfigError, match=r"gate.moderation names the provider 'nobody'"):
        async with looped(tmp_path, sqlite_store_url, says("x"), gate_moderation="nobody"):
            pass
