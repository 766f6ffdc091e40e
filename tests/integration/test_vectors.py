"""Vectors in a whole run: the gate knows by them what no word says."""

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
from tests.embedding import Embedding, embedding_server, hidden
from tests.integration.loop import QUICK, STRIDE, T0, Loop, Traffic, posts, settings
from tests.line import EXECUTABLE, clean_env

from tuneproof.app import App
from tuneproof.collection import Post
from tuneproof.errors import ConfigError
from tuneproof.providers import open_provider
from tuneproof.settings import ProviderConfig
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock
from tuneproof.training import Provider
from tuneproof.workflow import RunStatus

TRAINERS: dict[str, MemoryProvider] = {}
"""The trainer of the test under way."""


def open_either(config: ProviderConfig, **given: Any) -> Provider:
    """A trainer in memory, or a real client: what `adapters.provider` resolves to."""
    return TRAINERS.get(config.name) or open_provider(config, **given)


class Engine(MemoryProvider):
    """A trainer whose engine makes vectors of its base model."""

    async def embed(
        self, model: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> Sequence[Sequence[float]]:
        assert model == "base"
        self._called("embed")
        return [hidden(text) for text in texts]


@pytest.fixture
def server() -> Iterator[Embedding]:
    with embedding_server() as made:
        yield made


def hook(number: int) -> str:
    return f"Hook {number} of it"


def judged() -> list[Post]:
    """Of each topic two hooks: readers like the one whose number is divisible by seven."""
    return [
        one._replace(
            original_input=f"topic {i // 2}",
            hook=hook(70_007 + 7 * i + i % 2),
            impressions=1000,
            engagement_rate=0.08 if i % 2 else 0.12,
        )
        for i, one in enumerate(posts(1600))
    ]


def answer(model: str, messages: Sequence[Mapping[str, str]], number: int) -> str:
    topic = int("".join(filter(str.isdigit, messages[-1]["content"])) or 0)
    return hook(700_007 + 7 * (topic + number) + (not model.startswith("ft:")))


@asynccontextmanager
async def looped(
    directory: Path, database: str, trainer: MemoryProvider, url: str | None = None, **gate: Any
) -> AsyncIterator[Loop]:
    """A loop that trains in memory; a provider named `vectors` is at `url`."""
    TRAINERS.clear()
    TRAINERS[trainer.name] = trainer
    clock = VirtualClock(T0, stride=STRIDE)
    config = replace(
        QUICK,
        provider="trainer",
        tasks=("hook",),
        engagement_threshold=0.06,
        gate_compared=100,
        **{f"gate_{name}": value for name, value in gate.items()},
    )
    addresses = {"trainer": "http://127.0.0.1:9/v1", **({"vectors": url} if url else {})}
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
    source = MemorySource(judged())
    async with App.open(made, clock=clock, source=source, poll_s=0.005, background=False) as app:
        traffic = Traffic(app, lift=0.5)
        app.let_time_pass(traffic)
        yield Loop(app, trainer, traffic)


async def test_by_the_trainers_own_vectors_the_gate_foresees_what_no_word_says(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    trainer = Engine(name="trainer", answer=answer)
    async with looped(tmp_path, sqlite_store_url, trainer) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        [found] = run.stages["gate"]["detail"]["predictions"]
        assert found["outcomes"]["vectors_of"] == "base"
        assert found["outcomes"]["accuracy"] > 0.9
        assert found["low"] > 0.5
        assert "the outcome model, with vectors of base, was right on" in run.reason
    assert 50 < trainer.calls["embed"] < 70, "32 at a time: 1,600 posts and the answers"


@pytest.mark.parametrize(
    ("trainer", "gate"),
    [(MemoryProvider, {}), (Engine, {"embeddings": "off"})],
)
async def test_without_vectors_it_knows_nothing_here_and_says_so(
    tmp_path: Path, sqlite_store_url: str, trainer: type[MemoryProvider], gate: dict[str, Any]
) -> None:
    made = trainer(name="trainer", answer=answer)
    async with looped(tmp_path, sqlite_store_url, made, **gate) as loop:
        run = await loop.turn(last_stage="gate")
        [found] = run.stages["gate"]["detail"]["predictions"]
        assert found["win_rate"] is None
        assert found["outcomes"]["vectors_of"] == ""
        assert "no better than a coin" in run.reason
    assert "embed" not in made.calls


NAMED = {"embeddings": "vectors", "embedding_model": "text-embedding-3-small"}


async def test_another_providers_vectors_are_used_and_waited_for(
    tmp_path: Path, sqlite_store_url: str, server: Embedding
) -> None:
    server.next(*[JSONResponse({}, 503)] * 3)
    trainer = MemoryProvider(name="trainer", answer=answer)
    async with looped(tmp_path, sqlite_store_url, trainer, server.url, **NAMED) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        [found] = run.stages["gate"]["detail"]["predictions"]
        assert found["outcomes"]["vectors_of"] == "text-embedding-3-small"
        assert found["low"] > 0.5
    assert set(server.models) == {"text-embedding-3-small"}
    answered = [text for batch in server.asked[3:] for text in batch if text != "Hello"]
    assert len(answered) == len(set(answered)), "a text was asked for twice"


async def test_a_named_model_that_makes_none_fails_the_run_by_name(
    tmp_path: Path, sqlite_store_url: str, server: Embedding
) -> None:
    server.next(*[JSONResponse({"error": {"message": "no such model"}}, 404)] * 2)
    trainer = MemoryProvider(name="trainer", answer=answer)
    async with looped(tmp_path, sqlite_store_url, trainer, server.url, **NAMED) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.FAILED
        assert "vectors gives no vectors of 'text-embedding-3-small'" in str(run.error)


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"embeddings": "nobody", "embedding_model": "m"}, "names the provider 'nobody'"),
        ({"embeddings": "vectors"}, "gate.embedding_model no model of it"),
    ],
)
async def test_what_cannot_be_is_told_at_the_start(
    tmp_path: Path, sqlite_store_url: str, gate: dict[str, Any], says: str
) -> None:
    trainer = MemoryProvider(name="trainer")
    with pytest.raises(ConfigError, match=says):
        async with looped(tmp_path, sqlite_store_url, trainer, "http://127.0.0.1:9/v1", **gate):
            pass


@pytest.mark.parametrize("answers", [True, False])
async def test_doctor_asks_as_a_run_does(tmp_path: Path, server: Embedding, answers: bool) -> None:
    if not answers:
        server.refuses = lambda text: True
    (tmp_path / "tuneproof.toml").write_text(
        f"""
[providers.vectors]
kind = "compatible"
base_url = "{server.url}"
[pipelines.default.gate]
embeddings = "vectors"
embedding_model = "e5"
"""
    )
    command = [
        *EXECUTABLE,
        "doctor",
        "--dir",
        str(tmp_path / ".tuneproof"),
        "--config",
        str(tmp_path / "tuneproof.toml"),
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env=clean_env(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    if answers:
        assert "e5 answers" in said
    else:
        assert "vectors gives no vectors of 'e5'" in said
    assert server.models[0] == "e5"
