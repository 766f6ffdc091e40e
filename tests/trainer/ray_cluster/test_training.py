"""Trainings over two workers on two nodes: placed, equal to one worker's, and hard to kill."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from tests.trainer.integration.conftest import ended, reached, upload
from tests.trainer.lora.conftest import Recorder, task
from tests.trainer.lora.killing import Server, told, until_more
from tests.trainer.lora.tiny import lines, pairs
from tests.trainer.ray_cluster.nodes import Cluster, Node
from tests.waiting import until

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.lora.engine import LoraEngine
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.engines.protocol import EngineError, StopReason
from tuneproof_trainer.engines.ray.engine import RayEngine
from tuneproof_trainer.engines.ray.options import RayOptions
from tuneproof_trainer.settings import TrainerSettings

pytestmark = pytest.mark.ray
ASKED: dict[str, Any] = {"n_epochs": 4, "batch_size": 7}
"""163 examples make 24 steps an epoch; neither 7 nor the last batch of 2 divides well."""


def never() -> None:
    return None


def content() -> bytes:
    """Examples of which some hold an answer that is not to be learned."""
    silent = [
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "grape grape", "weight": 0},
        {"role": "user", "content": "green"},
        {"role": "assistant", "content": "pear"},
    ]
    return b"\n".join([lines(153, 1), *[orjson.dumps({"messages": silent})] * 10])


HELD = lines(9, 2)


@pytest.fixture(scope="module")
def options(tiny: Path) -> LoraOptions:
    return LoraOptions(bases=named_bases([str(tiny)]), threads=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all nodes see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def trainer(
    cluster: Cluster, tiny: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTrainer]:
    """A server whose jobs are trained on the cluster."""
    settings = TrainerSettings(
        dir=tmp_path_factory.mktemp("trainer"),
        engine="ray",
        models=(str(tiny),),
        ray_address=cluster.address,
        ray_storage=shared,
        workers=2,
    )
    with EmbeddedTrainer(settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(trainer: EmbeddedTrainer) -> OpenAI:
    return OpenAI(base_url=trainer.base_url, api_key="any", max_retries=0)


def begun(client: OpenAI) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, content()),
        validation_file=upload(client, HELD),
        seed=3,
        hyperparameters={"n_epochs": 4, "batch_size": 7},
    )


def succeeded(client: OpenAI, job: FineTuningJob) -> list[dict[str, Any]]:
    """The metrics of a job that ends well."""
    job = ended(client, job, timeout_s=180)
    assert job.status == "succeeded", job.error
    return told(client, job.id)


def said(client: OpenAI, job: FineTuningJob) -> str:
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    return "\n".join(event.message for event in events if event.type == "message")


@pytest.fixture(scope="module")
def whole(client: OpenAI, cluster: Cluster) -> FineTuningJob:
    """A job that nobody disturbs; it was seen to have a worker on each node."""
    job = begun(client)
    until(lambda: cluster.head.members() and cluster.other.members())
    succeeded(client, job)
    return client.fine_tuning.jobs.retrieve(job.id)


def close(found: list[float], wanted: list[float]) -> bool:
    return found == pytest.approx(wanted, rel=2e-4)


def test_workers_on_two_nodes_reach_the_losses_of_one_process(
    client: OpenAI, whole: FineTuningJob, options: LoraOptions, tmp_path: Path
) -> None:
    nodes = re.findall(r"\d on [\d.]+ \((\w+)\)", said(client, whole))
    assert len(nodes) == len(set(nodes)) == 2
    recorder = Recorder(tmp_path / "kept")
    job = task(tmp_path / "work", content(), HELD, **ASKED)
    outcome = LoraEngine(options, environment=os.environ).train(job, recorder, never)
    rows = told(client, whole.id)
    assert [row["step"] for row in rows] == list(range(1, 97))
    assert close([row["train_loss"] for row in rows], recorder.losses())
    valid = [metrics.full_valid_loss for metrics in recorder.told if metrics.full_valid_loss]
    assert close([row["full_valid_loss"] for row in rows if row.get("full_valid_loss")], valid)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 3
    assert whole.trained_tokens == outcome.trained_tokens
    assert len(client.fine_tuning.jobs.checkpoints.list(whole.id).data) == 3


def test_what_was_trained_on_the_cluster_answers_in_the_server(
    client: OpenAI, whole: FineTuningJob
) -> None:
    assert whole.fine_tuned_model is not None
    answer = client.chat.completions.create(
        model=whole.fine_tuned_model,
        messages=[{"role": "user", "content": "green red small"}],
        temperature=0,
        max_tokens=12,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    assert client.models.delete(whole.fine_tuned_model).deleted


def test_a_killed_worker_changes_nothing(
    client: OpenAI, whole: FineTuningJob, cluster: Cluster, shared: Path
) -> None:
    job = begun(client)
    until_more(client, job.id, 0)
    assert [path.name for path in shared.glob("*/*")] == [job.id]
    for worker in cluster.other.members():
        worker.kill()
    assert succeeded(client, job) == told(client, whole.id)
    assert said(client, job).count("were started anew") == 1


def test_a_killed_server_changes_nothing(
    client: OpenAI, whole: FineTuningJob, cluster: Cluster, tiny: Path, tmp_path: Path
) -> None:
    arguments = ["--engine", "ray", "--ray-address", cluster.address, "--workers", "2"]
    server = Server(tmp_path / "trainer", tiny, *arguments)
    server.start()
    job = begun(server.client)
    until_more(server.client, job.id, 0)
    workers = [*cluster.head.members(), *cluster.other.members()]
    assert len(workers) == 2
    server.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    server.start()
    assert succeeded(server.client, job) == told(client, whole.id)
    server.stop()


def test_a_cancelled_job_leaves_nobody_at_work(client: OpenAI, cluster: Cluster) -> None:
    job = begun(client)
    until(lambda: told(client, job.id))
    workers = [*cluster.head.members(), *cluster.other.members()]
    client.fine_tuning.jobs.cancel(job.id)
    assert reached(client, job, ("cancelled",)).status == "cancelled"
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    until(lambda: not cluster.titles("ray::Desk", "ray::TrainController", "ray::PlacementGroup"))


def on(cluster: Cluster, options: LoraOptions, **given: Any) -> RayEngine:
    ray = RayOptions(address=cluster.address, **given)
    return RayEngine(options, ray, environment=os.environ)


def test_a_dpo_may_pause_and_go_on_with_another_number_of_workers(
    cluster: Cluster, options: LoraOptions, tmp_path: Path
) -> None:
    given: Any = (pairs(27, 1), pairs(7, 2))
    asked: dict[str, Any] = {
        "method": "dpo",
        "n_epochs": 2,
        "batch_size": 5,
        "learning_rate_multiplier": 100,
    }
    alone = Recorder(tmp_path / "alone" / "kept")
    job = task(tmp_path / "alone" / "work", *given, **asked)
    LoraEngine(options, environment=os.environ).train(job, alone, never)
    recorder = Recorder(tmp_path / "kept")
    job = task(tmp_path / "work", *given, **asked)

    def soon() -> StopReason | None:
        return StopReason.PAUSE if len(recorder.told) >= 3 else None

    outcome = on(cluster, options).train(job, recorder, soon)
    assert outcome.stopped is StopReason.PAUSE
    assert 3 <= outcome.steps < 12
    assert on(cluster, options, workers=1).train(job, recorder, never).stopped is None
    assert recorder.losses()[0] == pytest.approx(math.log(2), abs=1e-5)
    assert close(recorder.losses(), alone.losses())
    assert recorder.final is not None
    assert alone.final is not None
    assert recorder.final.valid_loss == pytest.approx(alone.final.valid_loss, rel=2e-4)


def test_a_job_that_cannot_succeed_is_not_tried_again(
    cluster: Cluster, options: LoraOptions, tmp_path: Path
) -> None:
    small = LoraOptions(bases=options.bases, threads=1, max_tokens=5)
    recorder = Recorder(tmp_path / "kept")
    with pytest.raises(EngineError, match="fills 5 tokens") as failed:
        on(cluster, small, workers=1).train(task(tmp_path / "work", lines(12, 1)), recorder, never)
    assert failed.value.code == "invalid_training_file"
    assert "started anew" not in " ".join(recorder.messages)


def test_a_cluster_that_does_not_answer_fails_the_job(options: LoraOptions, tmp_path: Path) -> None:
    engine = RayEngine(options, RayOptions(address="127.0.0.1:9"), environment=os.environ)
    with pytest.raises(EngineError) as failed:
        engine.train(task(tmp_path / "work", lines(12, 1)), Recorder(tmp_path / "kept"), never)
    assert failed.value.code == "cluster_not_available"
    assert "127.0.0.1:9" in failed.value.message


def test_a_lost_node_leaves_the_work_to_the_other(
    client: OpenAI, whole: FineTuningJob, cluster: Cluster, options: LoraOptions, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path / "kept")
    lost: list[Node] = []

    def lose() -> None:
        if recorder.checkpoints and not lost and cluster.other.members():
            lost.append(cluster.other)
            cluster.other.kill()

    job = task(tmp_path / "work", content(), HELD, **ASKED)
    engine = on(cluster, options, fewest_workers=1)
    try:
        assert engine.train(job, recorder, lose).stopped is None
    finally:
        cluster.join()
    assert lost, recorder.messages
    # The first measurement follows once more where the node went before its snapshot was whole.
    moved = [said for said in recorder.messages if "Workers now" in said]
    assert moved, recorder.messages
    assert "Workers now: 0 on" in moved[-1]
    assert "1 on" not in moved[-1].partition("Workers now")[2]
    by_step = {metrics.step: metrics.train_loss for metrics in recorder.told}
    rows = told(client, whole.id)
    assert close([by_step[row["step"]] for row in rows], [row["train_loss"] for row in rows])
