"""The components by themselves: what they were not given is the settings', a call long."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.chat import Chat, chat_server
from tests.documents import ROOT
from tests.servers import free_port

from tuneproof import (
    App,
    ConnectionPoolManager,
    DeploymentManager,
    MLflowExperimentTracker,
    ModelEvaluator,
    ModelTrainer,
    Settings,
)
from tuneproof.errors import ProviderUnavailableError, StoreUnavailableError
from tuneproof.experiments import Arm, EvaluationResult, Exposure, Outcome
from tuneproof.rollout import DeploymentState
from tuneproof.store import open_store
from tuneproof_trainer.embedded import serve


@pytest.fixture(scope="module")
def answering() -> Iterator[Chat]:
    with chat_server() as chat:
        yield chat


@pytest.fixture
def settings(tmp_path: Path, database_url: str, answering: Chat) -> Settings:
    return Settings.load(
        dir=tmp_path / "data", env={}, database_url=database_url, base_url=answering.url,
        api_key="any", base_model="base",
    )  # fmt: skip


async def promoted(settings: Settings) -> tuple[ModelEvaluator, EvaluationResult]:
    """A test that was declared, and judged, by evaluators without a store."""
    evaluator = ModelEvaluator(settings=settings)
    test = await evaluator.create_a_b_test("base", "cand", 0.5, 168)
    rng = np.random.default_rng(1)
    store = await open_store(settings.store.url.reveal())
    shown, told = [], []
    for i in range(2000):
        arm = (Arm.BASELINE, Arm.CANDIDATE)[i % 2]
        mean, at = (0.068, 0.1)[i % 2], test.start_at + timedelta(minutes=5 * i)
        one = {"subject": test.id, "unit": f"u{i}", "at": at}
        cost = (0.01, 0.005)[i % 2]
        shown.append(Exposure(id=f"e{i}", phase=1, arm=arm, tokens=9, cost_usd=cost, **one))
        value = float(rng.beta(mean * 20, (1 - mean) * 20))
        told.append(Outcome(id=f"o{i}", value=value, **one))
    await store.events.ingest(shown, told)
    await store.close()
    await evaluator.look(test.family, at=test.start_at + timedelta(hours=300))
    return evaluator, await evaluator.evaluate_performance(test.id, 0.05)


async def test_evaluator_and_manager_need_nothing_but_the_settings(settings: Settings) -> None:
    """`ModelEvaluator()` was a TypeError, and so was `DeploymentManager()`."""
    _, result = await promoted(settings)
    assert result.recommendation == "promote", result.reason
    manager = DeploymentManager(settings=settings)
    begun = await manager.deploy_model("cand", result, "gradual_rollout")
    assert (begun.status, begun.current_traffic) == (DeploymentState.STEPPING, 0.1)
    away = Settings.load(
        dir=settings.dir, env={}, database_url=settings.store.url.reveal(), base_model="base",
        base_url=f"http://127.0.0.1:{free_port()}/v1",
    )  # fmt: skip
    back = await DeploymentManager(settings=away).rollback_model(begun.deployment_id, "complaints")
    assert (back.status, back.restored_model) == (DeploymentState.ROLLED_BACK, "base")


async def test_a_rollout_that_was_begun_alone_is_watched_by_the_next_service(
    settings: Settings,
) -> None:
    _, result = await promoted(settings)
    begun = await DeploymentManager(settings=settings).deploy_model("cand", result)
    async with App.open(settings, background=False) as app:
        for _ in range(2):  # what is seen once may only just have begun
            await app.watchdog.look()
        assert await app.engine.exists(begun.deployment_id)


async def test_many_calls_share_what_is_kept_open(settings: Settings) -> None:
    async with ModelEvaluator(settings=settings).opened() as evaluator:
        test = await evaluator.create_a_b_test("base", "cand", 0.1, 168)
        async with evaluator.opened() as same:
            assert same is evaluator
        found = await evaluator.evaluate_performance(test.id)
    assert found.recommendation == "continue"


async def test_pools_are_opened_as_the_settings_say(settings: Settings) -> None:
    """There was no `initialize_pools`, and no `get_pool_stats`."""
    manager = ConnectionPoolManager()
    assert set(manager.get_pool_stats().values()) == {0}
    await manager.initialize_pools(settings)
    assert manager.get_pool_stats()["db_connections_idle"] == 1
    await manager.initialize_pools(settings)  # is held already
    await manager.close()


async def test_nothing_stays_open_where_one_pool_does_not_answer(tmp_path: Path) -> None:
    settings = Settings.load(dir=tmp_path, env={}, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    manager = ConnectionPoolManager()
    with pytest.raises(StoreUnavailableError, match="Redis did not answer"):
        await manager.initialize_pools(settings)
    assert set(manager.get_pool_stats().values()) == {0}
    assert "database" not in manager


async def test_the_embedded_trainer_runs_in_one_process_at_a_time(tmp_path: Path) -> None:
    settings = Settings.load(dir=tmp_path, env={})
    assert await ModelTrainer(settings=settings).base() == "tuneproof-ngram-1"
    async with serve(tmp_path / "trainer"):
        with pytest.raises(ProviderUnavailableError, match="cannot run in this process") as refused:
            await ModelTrainer(settings=settings).base()
    assert "tuneproof serve" in refused.value.mend
    assert await ModelTrainer(settings=settings).base() == "tuneproof-ngram-1"


# --- MLflow without a server ---------------------------------------------------------------


@pytest.mark.parametrize("address", ["sqlite:///{}/mlflow.db", "file:{}/mlruns"])
async def test_mlflow_keeps_what_it_is_told_on_this_machine(tmp_path: Path, address: str) -> None:
    """`file:` was refused by MLflow itself, at each delivery."""
    settings = Settings.load(
        dir=tmp_path / "data", env={"MLFLOW_TRACKING_URI": address.format(tmp_path)}
    )
    settings.dir.mkdir()
    store = await open_store(settings.store.url.reveal())
    told = {"run_id": "ft-pipeline-20250120-001", "params": {"seed": 1}, "at": None}
    await store.outbox.add("started", "run_started", told)
    await store.close()
    tracker = MLflowExperimentTracker(settings=settings)
    assert await tracker.deliver_once() == 1
    assert await tracker.deliver_once() == 0
    found = await tracker.find_run("ft-pipeline-20250120-001")
    assert found is not None
    assert found.params == {"seed": "1"}


@pytest.mark.parametrize(("address", "code"), [("sqlite:///m.db", 2), ("http://mlflow:5000", 0)])
def test_a_local_mlflow_needs_the_whole_of_it(tmp_path: Path, address: str, code: int) -> None:
    """Where only the client is installed, `config check` said that all is well."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not (entry.name.startswith("mlflow-") and entry.name.endswith(".dist-info")):
            (packages / entry.name).symlink_to(entry)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tuneproof", "config", "check"],
        env={
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": address,
            "PYTHONPATH": f"{ROOT / 'src'}:{packages}",
        },
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code:
        assert "pip install tuneproof[mlflow]" in done.stderr + done.stdout
