"""What the server does with an engine that is slow, breaks, or runs out of something."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from openai import BadRequestError, InternalServerError, NotFoundError
from tests.trainer.integration.conftest import client_of, ended, lines, reached, upload

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.protocol import (
    BaseModel,
    Embedded,
    EngineError,
    Generation,
    Hyperparameters,
    Message,
    Reporter,
    ShouldStop,
    StepMetrics,
    Token,
    TokenScore,
    TrainingOutcome,
    TrainingTask,
)
from tuneproof_trainer.settings import TrainerSettings


class Scripted:
    """An engine that raises what it was given, or trains until it is let go."""

    name = "scripted"
    quick = False
    methods = frozenset({"supervised"})
    trains_tools = False

    def __init__(self, raises: Exception | None = None) -> None:
        self._raises = raises
        self.go = threading.Event()
        self.training = 0
        self.most = 0
        self._lock = threading.Lock()

    def base_models(self) -> Sequence[BaseModel]:
        return [BaseModel(id="scripted-1", owned_by="test", created=1, shutdown_date="2027-01-06")]

    def train(
        self, task: TrainingTask, report: Reporter, should_stop: ShouldStop
    ) -> TrainingOutcome:
        with self._lock:
            self.training += 1
            self.most = max(self.most, self.training)
        try:
            report.chosen(Hyperparameters(n_epochs=1, batch_size=1, learning_rate_multiplier=1.0))
            if self._raises is not None:
                raise self._raises
            while not self.go.wait(0.005):
                reason = should_stop()
                if reason is not None:
                    return TrainingOutcome(stopped=reason, trained_tokens=0, steps=0)
            metrics = StepMetrics(
                step=1, total_steps=1, train_loss=1.0, train_mean_token_accuracy=0.5
            )
            report.checkpoint(1, metrics, lambda path: None)
            report.metrics(metrics)
            return TrainingOutcome(stopped=None, trained_tokens=5, steps=1)
        finally:
            with self._lock:
                self.training -= 1

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def load(self, model: str, path: Path | None) -> None: ...

    def unload(self, model: str) -> None: ...

    def loaded(self, model: str) -> bool:
        return True

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        yield from (Token("slow"), Token(" answer"))
        yield Token("", finish="stop")

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        return [TokenScore(7, "x", -0.5)]

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        return Embedded([(0.36, 0.48, 0.8)] * len(texts), sum(map(len, texts)))


def served(tmp_path: Path, engine: Scripted, **settings: int) -> EmbeddedTrainer:
    return EmbeddedTrainer(TrainerSettings(dir=tmp_path, **settings), engines=[engine])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MemoryError(), "out_of_memory", "out of memory"),
        (OSError(errno.ENOSPC, "no space"), "disk_full", "disk is full"),
        (EngineError("bad_model", "It cannot be tuned."), "bad_model", "cannot be tuned"),
        (RuntimeError("odd"), "server_error", "RuntimeError: odd"),
    ],
)
def test_an_engine_that_fails_fails_the_one_job(
    tmp_path: Path, error: Exception, code: str, told: str
) -> None:
    with served(tmp_path, Scripted(error)) as trainer:
        client = client_of(trainer)
        file_id = upload(client, lines())
        for _ in range(2):
            job = client.fine_tuning.jobs.create(model="scripted-1", training_file=file_id)
            job = ended(client, job)
            assert job.status == "failed"
            assert job.error is not None
            assert job.error.code == code
            assert told in job.error.message
        assert client.models.list().data[0].shutdown_date == "2027-01-06"


def test_jobs_never_train_beyond_the_concurrency_and_use_all_of_it(tmp_path: Path) -> None:
    engine = Scripted()
    with served(tmp_path, engine, concurrency=2) as trainer:
        client = client_of(trainer)
        file_id = upload(client, lines())
        jobs = [
            client.fine_tuning.jobs.create(model="scripted-1", training_file=file_id)
            for _ in range(5)
        ]
        reached(client, jobs[1], ("running",))
        states = [client.fine_tuning.jobs.retrieve(job.id).status for job in jobs]
        assert states.count("running") == 2
        engine.go.set()
        assert {ended(client, job).status for job in jobs} == {"succeeded"}
    assert engine.most == 2


def test_a_slow_engine_answers_from_threads(tmp_path: Path) -> None:
    with served(tmp_path, Scripted()) as trainer:
        client = client_of(trainer)
        answer = client.chat.completions.create(
            model="scripted-1",
            messages=[{"role": "user", "content": "x"}],
            extra_body={"prompt_logprobs": 0},
        )
        assert answer.choices[0].message.content == "slow answer"
        scored = answer.prompt_logprobs  # type: ignore[attr-defined]
        assert scored[0]["7"]["logprob"] == -0.5


def test_an_engine_that_breaks_while_it_answers_ends_that_answer_only(tmp_path: Path) -> None:
    class Breaking(Scripted):
        def generate(self, *_: object) -> Iterator[Token]:
            raise RuntimeError("odd")

    with served(tmp_path, Breaking()) as trainer:
        client = client_of(trainer)
        for _ in range(2):
            with pytest.raises(InternalServerError) as refused:
                client.chat.completions.create(
                    model="scripted-1", messages=[{"role": "user", "content": "x"}]
                )
            assert (refused.value.status_code, refused.value.code) == (500, "internal_error")
            assert str(refused.value.request_id) in refused.value.message
        assert client.models.list().data


def test_a_method_that_the_engine_lacks_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, Scripted()) as trainer:
        client = client_of(trainer)
        with pytest.raises(Exception, match="use one of: supervised"):
            client.fine_tuning.jobs.create(
                model="scripted-1",
                training_file=upload(client, lines()),
                method={"type": "dpo"},
            )


def test_a_stopping_server_leaves_the_job_to_the_next(tmp_path: Path) -> None:
    with served(tmp_path, Scripted()) as trainer:
        client = client_of(trainer)
        job = client.fine_tuning.jobs.create(
            model="scripted-1", training_file=upload(client, lines())
        )
        reached(client, job, ("running",))
    engine = Scripted()
    engine.go.set()
    with served(tmp_path, engine) as trainer:
        assert ended(client_of(trainer), job).status == "succeeded"


def test_a_job_during_which_the_server_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    with served(tmp_path, Scripted()) as trainer:
        client = client_of(trainer)
        job = client.fine_tuning.jobs.create(
            model="scripted-1", training_file=upload(client, lines())
        )
        reached(client, job, ("running",))
    for _ in range(5):
        with served(tmp_path, Scripted()) as trainer:
            reached(client_of(trainer), job, ("running",))
    with served(tmp_path, Scripted()) as trainer:
        job = ended(client_of(trainer), job)
        assert job.error is not None
        assert (job.status, job.error.code) == ("failed", "server_error")
        assert "5 times" in job.error.message


class SlowReader(Scripted):
    """Takes a while over each text of a training file, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.hurry = threading.Event(), threading.Event()

    def count_tokens(self, text: str) -> int:
        self.reading.set()
        self.hurry.wait(0.1)
        return 1


def test_a_job_whose_files_end_the_server_is_given_up_and_no_other(tmp_path: Path) -> None:
    """Restarts were counted while it trained only: here it was checked again for ever."""
    with served(tmp_path, first := SlowReader()) as trainer:
        client = client_of(trainer)
        file = upload(client, lines())
        jobs = [
            client.fine_tuning.jobs.create(model="scripted-1", training_file=file) for _ in "ab"
        ]
        assert first.reading.wait(30)
    for _ in range(4):
        with served(tmp_path, engine := SlowReader()):
            assert engine.reading.wait(30)
    engine = SlowReader()
    engine.hurry.set()
    engine.go.set()
    with served(tmp_path, engine) as trainer:
        guilty, other = (ended(client_of(trainer), job) for job in jobs)
        assert guilty.error is not None
        assert (guilty.status, guilty.error.code) == ("failed", "server_error")
        assert "5 times" in guilty.error.message
        assert other.status == "succeeded"


def test_texts_are_vectors_in_both_formats_and_cut_to_length_1(tmp_path: Path) -> None:
    with served(tmp_path, Scripted()) as trainer:
        client = client_of(trainer)
        plain = client.embeddings.create(
            model="scripted-1", input=["a", "bcd"], encoding_format="float"
        )
        assert [one.embedding for one in plain.data] == [[0.36, 0.48, 0.8]] * 2
        assert [one.index for one in plain.data] == [0, 1]
        assert (plain.usage.prompt_tokens, plain.usage.total_tokens) == (4, 4)
        packed = client.embeddings.create(
            model="scripted-1", input="a"
        )  # base64, which it asks for
        assert packed.data[0].embedding == pytest.approx([0.36, 0.48, 0.8])
        cut = client.embeddings.create(model="scripted-1", input="a", dimensions=2)
        assert cut.data[0].embedding == pytest.approx([0.6, 0.8])
        for asked, told in (({"dimensions": 4}, "3 dimensions"), ({"input": ""}, "input")):
            with pytest.raises(BadRequestError, match=told):
                client.embeddings.create(**{"model": "scripted-1", "input": "a", **asked})
        with pytest.raises(NotFoundError):
            client.embeddings.create(model="another", input="a")
