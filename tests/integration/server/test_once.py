"""`Idempotency-Key` among workers: taken before the effect, whoever dies in between."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.chat import Chat
from tests.conftest import HandClock
from tests.integration.cli.test_commands import EXECUTABLE, clean_env
from tests.integration.server.conftest import Service

from tuneproof.errors import ConflictError
from tuneproof.experiments import Variant
from tuneproof.store import Claim, Idempotency, KeptAnswer, Store

TEST = {
    "baseline_model": {"model_id": "base", "version": None},
    "candidate_model": {"model_id": "cand", "version": None},
    "traffic_split": 0.2,
    "duration_hours": 48,
}


@asynccontextmanager
async def worker(
    directory: Path, database: str, provider: str
) -> AsyncIterator[httpx2.AsyncClient]:
    """`tuneproof serve` in a process of its own."""
    directory.mkdir()
    command = [*EXECUTABLE, "serve", "--port", "0", "--json", "--dir", str(directory)]
    env = clean_env(
        DATABASE_URL=database,
        OPENAI_API_KEY="key",
        OPENAI_BASE_URL=provider,
        PROMETHEUS_METRICS_ENABLED="false",
    )
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        address = json.loads(await process.stdout.readline())["address"]
        async with httpx2.AsyncClient(base_url=address, timeout=60, trust_env=False) as http:
            yield http
    finally:
        process.kill()
        await process.wait()


@pytest.mark.postgres
async def test_a_key_at_two_workers_at_once_has_one_effect(
    tmp_path: Path, chat: Chat, postgres_store_url: str
) -> None:
    """Seen: both workers did it, and half of the answers were 409, refused by the other half."""
    async with (
        worker(tmp_path / "one", postgres_store_url, chat.url) as one,
        worker(tmp_path / "two", postgres_store_url, chat.url) as two,
    ):

        async def sent(path: str, body: Any, key: str) -> list[httpx2.Response]:
            headers = {"Idempotency-Key": key}
            posted = [http.post(path, json=body, headers=headers) for http in (one, two, one, two)]
            return await asyncio.gather(*posted)

        for number in range(5):
            answers = await sent("/evaluation/create-ab-test", TEST, f"declare-{number}")
            assert [a.status_code for a in answers] == [201] * 4, [a.text for a in answers]
            assert all(a.json() == answers[0].json() for a in answers)
            assert sum("idempotency-replayed" in a.headers for a in answers) == 3
            tests = (await two.get("/evaluation/tests")).json()["items"]
            assert len(tests) == number + 1
            id = answers[0].json()["ab_test_id"]
            await one.post(f"/evaluation/end/{id}", json={"reason": "the next"})

        answers = await sent("/fine-tuning/start", {}, "run")
        assert {a.status_code for a in answers} == {202}
        assert all(a.json() == answers[0].json() for a in answers)


def hashed(path: str, body: Any) -> str:
    """How the service knows a request again."""
    # As httpx writes JSON.
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return hashlib.sha256(f"POST {path}\n".encode() + content).hexdigest()


async def taken_long_ago(store: Store, path: str, body: Any, key: str) -> Claim:
    """The key of a request whose worker died two minutes ago."""
    clock = HandClock(datetime.now(UTC) - timedelta(minutes=2))
    claim = await Idempotency(store.database, clock).take(f"local:{key}", hashed(path, body))
    assert isinstance(claim, Claim)
    return claim


async def test_a_key_whose_worker_died_before_the_effect_is_taken_over(service: Service) -> None:
    claim = await taken_long_ago(service.app.store, "/fine-tuning/start", {}, "k")
    answer = await service.post("/fine-tuning/start", {}, Idempotency_Key="k")
    assert (answer.status_code, "idempotency-replayed" in answer.headers) == (202, False)
    # It was only slow, and goes on: nothing more is made.
    base, candidate = Variant(model_id="base"), Variant(model_id="cand")
    with pytest.raises(ConflictError, match="begun again elsewhere"):
        await service.app.experiments.create(
            baseline=base, candidates=[candidate], tasks=["body"], claim=claim
        )
    assert (await service.http.get("/evaluation/tests")).json()["items"] == []
    runs = (await service.http.get("/fine-tuning/runs")).json()["items"]
    assert [run["pipeline_id"] for run in runs] == [answer.json()["pipeline_id"]]


async def test_a_key_whose_worker_died_after_the_effect_answers_for_what_was_made(
    service: Service,
) -> None:
    app, store = service.app, service.app.store
    claim = await taken_long_ago(store, "/fine-tuning/start", {}, "run")
    run = await app.runs.start(claim=claim)
    claim = await taken_long_ago(store, "/evaluation/create-ab-test", TEST, "test")
    base, candidate = Variant(model_id="base"), Variant(model_id="cand")
    [test] = await app.experiments.create(baseline=base, candidates=[candidate], claim=claim)
    for path, asked, key, made in (
        ("/fine-tuning/start", {}, "run", run.id),
        ("/evaluation/create-ab-test", TEST, "test", test.id),
    ):
        first = await service.post(path, asked, Idempotency_Key=key)
        again = await service.post(path, asked, Idempotency_Key=key)
        assert made in first.text
        assert first.headers["idempotency-replayed"] == "true"
        assert (first.status_code, first.json()) == (again.status_code, again.json())


async def test_a_key_is_taken_noted_answered_and_let_go_of(store: Store, clock: HandClock) -> None:
    keys = store.idempotency
    claim = await keys.take("k", "hash")
    assert isinstance(claim, Claim)
    known = await keys.take("k", "hash")
    assert isinstance(known, KeptAnswer)
    assert (known.at_work, known.made) == (True, None)
    await claim.release()
    assert await keys.get("k") is None

    slow = await keys.take("k", "hash")
    assert isinstance(slow, Claim)
    clock.move(seconds=61)
    assert isinstance(await keys.take("k", "other"), KeptAnswer)  # not for another request
    claim = await keys.take("k", "hash")
    assert isinstance(claim, Claim)
    with pytest.raises(ConflictError):
        async with store.database.begin() as tx:
            await slow.made("x", tx=tx)
    async with store.database.begin() as tx:
        await claim.made("made", tx=tx)
    await slow.release()
    await claim.release()
    clock.move(seconds=61)
    known = await keys.take("k", "hash")
    assert isinstance(known, KeptAnswer)
    assert known.made == "made"
    await slow.answered(202, {"of": "slow"})
    await claim.answered(202, {"id": "made"})
    await keys.answer_for(known, 202, {"of": "somebody else"})
    kept = await keys.get("k")
    assert kept is not None
    assert (kept.at_work, kept.made, kept.status, kept.body) == (False, None, 202, {"id": "made"})
