"""Whole turns of the loop over each provider's wire, on loopback, with what departs from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.fireworks_wire import KEY as FIREWORKS_KEY
from tests.fireworks_wire import FireworksWire, fireworks_server
from tests.integration.loop import T0
from tests.integration.switching import open_wires, provider
from tests.together_wire import KEY as TOGETHER_KEY
from tests.together_wire import TogetherWire, together_server
from tests.waiting import eventually
from tests.wire import Wire, wire_server

from tuneproof.app import App
from tuneproof.errors import RetryableError
from tuneproof.resilience import State
from tuneproof.store import RunStatus


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wire_server() as made:
        yield made


class Watcher:
    """A participant that notes what the overview says a person must do, while time passes."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.said: list[str] = []

    async def advance(self, since: datetime, until: datetime) -> None:
        for pipeline in (await self.app.overview.status())["pipelines"]:
            self.said += pipeline["waits_for_person"]


async def test_azure_reads_files_for_minutes_and_answers_once_deployed(
    tmp_path: Path, database_url: str, wire: Wire
) -> None:
    wire.file_states = ["pending"] * 3 + ["running", "processed"]
    wire.fail("POST /chat/completions", status=404, code="DeploymentNotFound", times=3)
    azure = provider("azure", wire.url, kind="azure", api_key="k")
    async with open_wires(tmp_path, database_url, azure, changes={"suffix": "weekly"}) as loop:
        watcher = Watcher(loop.app)
        loop.app.let_time_pass(watcher)
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert wire.count("POST /files") == 2  # training and validation, once each
        assert wire.count("POST /fine_tuning/jobs") == 1
        [body] = [b for b in wire.bodies if "training_file" in b]
        assert body["trainingType"] == "Standard"
        assert "suffix" not in body  # a deployment is named after the model, in 64 characters
        assert any("make a deployment whose name is the model's" in said for said in watcher.said)
        assert (await loop.app.overview.status())["pipelines"][0]["waits_for_person"] == []


async def test_model_that_nobody_deploys_ends_the_run_after_a_day(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    azure = provider("azure", wire.url, kind="azure", api_key="k")
    wire.fail("POST /chat/completions", status=404, code="DeploymentNotFound")
    async with open_wires(tmp_path, sqlite_store_url, azure) as loop:
        run = await loop.turn()
        assert run.error is not None
        assert (run.error["type"], run.error["stage"]) == ("not-deployed", "gate")
        assert "make a deployment" in run.error["mend"]
        wire.heal()
        await loop.app.runs.retry(run.id, stage="gate")
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        assert wire.count("POST /fine_tuning/jobs") == 1


async def test_nebius_gets_its_hyperparameters_where_it_reads_them(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    nebius = provider("nebius", wire.url, kind="nebius", api_key="k")
    changes = {"n_epochs": 2, "learning_rate_multiplier": 0.00002}
    async with open_wires(tmp_path, sqlite_store_url, nebius, changes=changes) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS
        body = next(b for b in wire.bodies if "training_file" in b)
        assert body["hyperparameters"] == {"n_epochs": 2, "learning_rate_multiplier": 0.00002}
        assert "method" not in body


async def test_nebius_is_not_asked_for_preferences(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    nebius = provider("nebius", wire.url, kind="nebius", api_key="k")
    async with open_wires(tmp_path, sqlite_store_url, nebius, changes={"method": "dpo"}) as loop:
        found = {f.name: f for f in await loop.app.doctor.examine()}
        assert found["default: base model"].status == "failed"
        assert "trains by supervised only" in found["default: base model"].detail


@pytest.fixture
def together() -> Iterator[TogetherWire]:
    with together_server() as made:
        yield made


@pytest.fixture
def fireworks() -> Iterator[FireworksWire]:
    with fireworks_server() as made:
        yield made


async def test_together_turns_the_whole_loop(
    tmp_path: Path, sqlite_store_url: str, together: TogetherWire
) -> None:
    together.file_states = ["QUEUED"] * 4 + ["COMPLETED"]
    server = provider("together", together.url, kind="together", api_key=TOGETHER_KEY)
    changes = {"base_model": "meta-llama/Llama-3.1-8B-Instruct"}
    async with open_wires(tmp_path, sqlite_store_url, server, changes=changes) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        assert together.count("POST /files") == 2
        assert together.count("POST /fine-tunes") == 1
        assert run.result["cost"]["final"] is True


async def test_fireworks_turns_the_whole_loop(
    tmp_path: Path, sqlite_store_url: str, fireworks: FireworksWire
) -> None:
    fireworks.dataset_states = ["UPLOADING"] * 4 + ["READY"]
    server = provider("fireworks", fireworks.url, kind="fireworks", api_key=FIREWORKS_KEY)
    changes = {"base_model": next(iter(fireworks.models))}
    async with open_wires(tmp_path, sqlite_store_url, server, changes=changes) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
        assert fireworks.count("POST /accounts/acme/datasets") == 2
        assert fireworks.count("POST /accounts/acme/supervisedFineTuningJobs") == 1
        assert run.result["cost"]["final"] is True


async def test_server_without_events_still_gives_a_version(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    wire.job_states = ["queued", "succeeded"]

    async with open_wires(tmp_path, sqlite_store_url, provider("lite", wire.url)) as loop:
        wire.fail("GET /fine_tuning/jobs/ftjob-000003/events", status=404)
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert wire.count("GET /fine_tuning/jobs/ftjob-000003/events") >= 1


async def test_closed_account_without_a_probe_uploads_nothing_twice(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    wire.fail("POST /fine_tuning/jobs", status=403, code="training_not_available")
    async with open_wires(tmp_path, sqlite_store_url, provider("lite", wire.url)) as loop:
        run = await loop.turn(last_stage="gate")
        assert (run.error or {})["type"] == "training-not-available"
        assert wire.count("POST /fine_tuning/jobs") == 1  # refused at once, not asked again
        wire.heal()
        await loop.app.runs.retry(run.id)
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        assert wire.count("POST /files") == 2


async def test_provider_that_is_away_at_the_gate_is_waited_for(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    wire.fail("POST /chat/completions", status=503, times=2)
    async with open_wires(tmp_path, sqlite_store_url, provider("lite", wire.url)) as loop:
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.reason
        assert "failed" in run.stages["gate"]["detail"]["note"]


class Frozen:
    """Time that stops once a run waits for long: only a signal can wake it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def advance(self, since: datetime, until: datetime) -> None:
        if until > T0 + timedelta(minutes=4):
            self.reached.set()
            await asyncio.Event().wait()


async def test_run_goes_on_as_soon_as_its_provider_is_back(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    wire.fail("GET /models", status=503)
    async with open_wires(tmp_path, sqlite_store_url, provider("lite", wire.url)) as loop:
        frozen = Frozen()
        loop.app.clock.participants.append(frozen)  # type: ignore[attr-defined]
        run = await loop.app.runs.start(last_stage="gate")
        await asyncio.wait_for(frozen.reached.wait(), 60)
        breaker = loop.app.providers.breaker_of("lite")
        assert breaker.state is State.OPEN
        asked = wire.count("GET /models")
        assert await loop.app.providers.probe() == []  # its pause is not over
        assert wire.count("GET /models") == asked
        wire.heal()
        wire.job_states = ["succeeded"]
        breaker._reopen_at = 0.0
        assert await loop.app.providers.probe() == ["lite"]
        assert breaker.state is State.CLOSED
        await eventually(lambda: wire.count("POST /fine_tuning/jobs"))
        await loop.app.runs.abort(run.id, reason="seen enough")


async def test_provider_that_is_away_holds_nobody_else_back(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    with wire_server() as other:
        servers = provider("away", wire.url), provider("well", other.url)
        async with open_wires(
            tmp_path, sqlite_store_url, *servers, changes={"provider": "well"}
        ) as loop:
            wire.fail("GET /models", status=503)
            for _ in range(4):
                with pytest.raises(RetryableError):
                    await loop.app.providers.get("away").ping()
            assert loop.app.providers.breaker_of("away").state is State.OPEN
            assert loop.app.providers.breaker_of("well").state is State.CLOSED
            assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS


async def test_retry_follows_the_job_that_is_still_under_way(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    wire.job_states = ["running"] * 4 + ["succeeded"]
    wire.fail("GET /fine_tuning/jobs/ftjob", status=401)
    async with open_wires(tmp_path, sqlite_store_url, provider("lite", wire.url)) as loop:
        run = await loop.turn(last_stage="gate")
        assert (run.error or {})["type"] == "credentials"
        wire.heal()
        await loop.app.runs.retry(run.id)
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        assert wire.count("POST /fine_tuning/jobs") == 1
        wire.job_states = ["failed"]
        wire.job_error = {"code": "server_error", "message": "tired"}
        run = await loop.turn(last_stage="gate")
        wire.job_states = ["queued", "succeeded"]
        await loop.app.runs.retry(run.id)
        assert (await loop.end(run.id)).status is RunStatus.SUCCESS
        assert wire.count("POST /fine_tuning/jobs") == 3  # one that failed is not followed


async def test_waiting_counts_for_no_stage(
    tmp_path: Path, sqlite_store_url: str, wire: Wire
) -> None:
    wire.job_states = ["running"] * 30 + ["succeeded"]
    async with open_wires(tmp_path, sqlite_store_url, provider("lite", wire.url)) as loop:
        slow = Slow()
        loop.app.let_time_pass(slow)
        began = time.perf_counter()
        run = await loop.turn(last_stage="gate")
        elapsed = time.perf_counter() - began
        assert run.status is RunStatus.SUCCESS
        assert slow.seconds > 3
        assert run.result["execution_time_seconds"] < elapsed - 0.9 * slow.seconds


class Slow:
    """A participant that takes real time for each stretch of virtual time."""

    seconds = 0.0

    async def advance(self, since: datetime, until: datetime) -> None:
        began = time.perf_counter()
        await eventually(lambda: time.perf_counter() - began > 0.1)
        self.seconds += 0.1
