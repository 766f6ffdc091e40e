"""What a preflight learns over OpenAI's wire: account, model, shutdown; no job comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.wire import Fault, Wire, wire_server

from tuneproof.errors import ConfigError, CredentialsError, TrainingNotAvailableError
from tuneproof.providers import DIALECTS, OpenAIWire, open_provider
from tuneproof.providers.openai_wire import ABSENT_FILE
from tuneproof.training import find_model, preflight
from tuneproof_trainer.embedded import serve

NOW = datetime(2026, 11, 20, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "default"
    kind: str = "trainer"
    base_url: str | None = None
    api_key: str | None = None
    organization: str | None = None


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wire_server() as made:
        yield made


def opened(wire: Wire, kind: str = "trainer") -> OpenAIWire:
    made = open_provider(Config(base_url=wire.url, kind=kind), timeout_s=5)
    assert isinstance(made, OpenAIWire)
    return made


async def test_open_account_is_told_by_the_refusal_of_the_absent_file(wire: Wire) -> None:
    found = await preflight(opened(wire), "base-model", "supervised", now=NOW)
    assert (found.account, found.tunable) == (True, True)
    assert found.shutdown_at == datetime(2027, 1, 14, tzinfo=UTC)
    assert not wire.jobs
    assert not wire.files


async def test_closed_account_is_found_before_anything_is_uploaded(wire: Wire) -> None:
    wire.fail("POST /fine_tuning/jobs", status=403, code="training_not_available")
    with pytest.raises(TrainingNotAvailableError, match="does not train for this account") as e:
        await preflight(opened(wire), "base-model", "supervised", now=NOW)
    assert "nothing was uploaded" in e.value.mend
    assert wire.count("POST /files") == 0


async def test_model_that_cannot_be_tuned_is_named_with_those_that_can(wire: Wire) -> None:
    error = {"message": "Model gpt-5 is not available.", "param": "model", "code": None}
    wire.faults.append(Fault(call="POST /fine_tuning/jobs", status=400, error=error))
    with pytest.raises(ConfigError, match="cannot be tuned by supervised") as e:
        await preflight(opened(wire), "gpt-5", "supervised", now=NOW)
    assert "base-model" in e.value.mend


async def test_wrong_key_is_told_as_such(wire: Wire) -> None:
    wire.fail("GET /models", status=401, code="invalid_api_key")
    with pytest.raises(CredentialsError):
        await preflight(opened(wire), "base-model", "supervised", now=NOW)


async def test_server_that_makes_the_job_all_the_same_gets_it_cancelled(wire: Wire) -> None:
    wire.files[ABSENT_FILE] = {"id": ABSENT_FILE}
    found = await opened(wire).readiness("base-model", "supervised")
    assert (found.account, found.tunable) == (True, True)
    assert [job["status"] for job in wire.jobs.values()] == ["cancelled"]


async def test_servers_of_unknown_manners_are_not_probed(wire: Wire) -> None:
    for kind in ("azure", "nebius", "compatible"):
        assert not DIALECTS[kind].probes_training
        found = await opened(wire, kind).readiness("base-model", "supervised")
        assert (found.account, found.tunable) == (None, None)
    assert wire.count("POST /fine_tuning/jobs") == 0


async def test_shut_down_model_is_refused(wire: Wire) -> None:
    with pytest.raises(ConfigError, match="was shut down by default on 2027-01-14"):
        await preflight(
            opened(wire), "base-model", "supervised", now=datetime(2027, 2, 1, tzinfo=UTC)
        )


async def test_own_trainer_answers_a_preflight(tmp_path: Path) -> None:
    async with serve(tmp_path / "trainer", port=0) as trainer:
        provider = open_provider(Config(base_url=trainer.base_url))
        found = await preflight(provider, "tuneproof-ngram-1", "supervised", now=NOW)
        assert (found.account, found.tunable) == (True, True)
        with pytest.raises(ConfigError, match="cannot be tuned"):
            await preflight(provider, "nothing", "supervised", now=NOW)
        known = await find_model(provider, "tuneproof-ngram-1")
        assert known is not None
        assert await find_model(provider, "nothing") is None
        assert await provider.find_job("tuneproof_run", "r1") is None
        await provider.close()
