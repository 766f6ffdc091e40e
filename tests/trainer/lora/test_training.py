"""How the engine trains: seeds, weights, early stops, going on, and what goes wrong."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from tests.trainer.lora.conftest import Recorder, messages, task
from tests.trainer.lora.tiny import lines, pairs
from tests.waiting import until

from tuneproof_trainer.engines.lora.engine import LoraEngine
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.engines.protocol import EngineError, Generation, StopReason

pytestmark = pytest.mark.lora


def never() -> None:
    return None


@pytest.fixture
def engine(tiny: Path) -> LoraEngine:
    return made(tiny)


def made(tiny: Path, **options: Any) -> LoraEngine:
    values = LoraOptions(bases=named_bases([str(tiny)]), threads=1, **options)
    return LoraEngine(values, environment=os.environ)


def trained(engine: LoraEngine, folder: Path, *given: Any, **asked: Any) -> Recorder:
    """A training from beginning to end."""
    recorder = Recorder(folder / "kept")
    outcome = engine.train(task(folder / "work", *given, **asked), recorder, never)
    assert outcome.stopped is None
    assert outcome.steps == max(recorder.checkpoints)
    assert outcome.trained_tokens > 0
    return recorder


def test_equal_seeds_give_equal_losses_and_others_do_not(
    engine: LoraEngine, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"n_epochs": 1, "batch_size": 4}
    first = trained(engine, tmp_path / "1", lines(24, 1), **asked)
    again = trained(engine, tmp_path / "2", lines(24, 1), **asked)
    other = trained(engine, tmp_path / "3", lines(24, 1), **asked, seed=4)
    assert first.losses() == again.losses()
    assert first.losses() != other.losses()
    weights = [(one.checkpoints[6] / "adapter_model.safetensors") for one in (first, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert sorted(path.name for path in first.checkpoints[6].iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tuneproof.json",
    ]


def test_auto_values_suit_the_number_of_examples(engine: LoraEngine, tmp_path: Path) -> None:
    recorder = trained(engine, tmp_path, lines(12, 1))
    chosen = recorder.hyperparameters
    assert chosen is not None
    assert (chosen.n_epochs, chosen.batch_size) == (8, 1)
    assert chosen.learning_rate_multiplier == 25
    assert "guesses no better than chance" in " ".join(recorder.messages)


def test_training_stops_early_and_hands_out_the_best_epoch(
    engine: LoraEngine, tmp_path: Path
) -> None:
    """The validation asks for the opposite of what is taught: it becomes worse and worse."""
    recorder = trained(
        engine,
        tmp_path,
        lines(12, 1),
        lines(12, 2, wrong=True),
        learning_rate_multiplier=100,
    )
    told = [metrics for metrics in recorder.told if metrics.full_valid_loss is not None]
    final = recorder.final
    assert final is not None
    assert final.step == final.total_steps < 8 * 12
    losses = {metrics.step: metrics.valid_loss for metrics in told}
    assert final.full_valid_loss == min(loss for loss in losses.values() if loss is not None)
    assert "Stopped early" in " ".join(recorder.messages)
    best = min(losses, key=lambda step: losses[step] or 0)
    name = "adapter_model.safetensors"
    kept = recorder.checkpoints
    assert (kept[final.step] / name).read_bytes() == (kept[best] / name).read_bytes()


def test_a_later_job_goes_on_from_an_earlier_one(engine: LoraEngine, tmp_path: Path) -> None:
    first = trained(engine, tmp_path / "1", lines(200, 1), n_epochs=2, batch_size=4)
    earlier = first.checkpoints[100]
    second = trained(
        engine,
        tmp_path / "2",
        lines(40, 2),
        n_epochs=1,
        batch_size=4,
        learning_rate_multiplier=10,
        model="ft:tiny:local::1",
        model_path=earlier,
    )
    assert second.losses()[0] < first.losses()[0] / 3
    changed = second.checkpoints[10] / "adapter_model.safetensors"
    assert changed.read_bytes() != (earlier / "adapter_model.safetensors").read_bytes()


def test_messages_of_weight_0_are_not_learned(engine: LoraEngine, tmp_path: Path) -> None:
    def example(weight: int) -> bytes:
        said = [
            {"role": "user", "content": "red"},
            {"role": "assistant", "content": "grape grape", "weight": weight},
            {"role": "user", "content": "green"},
            {"role": "assistant", "content": "pear"},
        ]
        return orjson.dumps({"messages": said})

    answers = {}
    for weight in (0, 1):
        content = b"\n".join([example(weight)] * 40)
        asked: dict[str, Any] = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 50}
        recorder = trained(engine, tmp_path / str(weight), content, **asked)
        model = f"ft:tiny:weight-{weight}"
        engine.load(model, recorder.checkpoints[30])
        question = messages([{"role": "user", "content": "red"}])
        how = Generation(max_tokens=8, temperature=0)
        answers[weight] = "".join(token.text for token in engine.generate(model, question, how))
    assert answers[1] == "grape grape"
    assert answers[0] != "grape grape"
    for weight in (0, 1):
        engine.unload(f"ft:tiny:weight-{weight}")
    engine.load("tiny", None)
    assert list(engine.generate("tiny", question, Generation(max_tokens=1)))
    with pytest.raises(EngineError, match="was deleted"):
        list(engine.generate("ft:tiny:weight-1", question, how))


def test_examples_too_long_are_cut_and_told(tiny: Path, tmp_path: Path) -> None:
    long = [{"role": "user", "content": "apple " * 60}, {"role": "assistant", "content": "fig"}]
    content = lines(12, 1) + b"\n" + orjson.dumps({"messages": long})
    recorder = trained(made(tiny, max_tokens=40), tmp_path / "1", content, n_epochs=1)
    assert "1 of 13 examples of the training file are longer than 40" in recorder.messages[0]
    with pytest.raises(EngineError, match="fills 5 tokens") as failed:
        trained(made(tiny, max_tokens=5), tmp_path / "2", lines(12, 1), n_epochs=1)
    assert failed.value.code == "invalid_training_file"


def test_a_paused_training_goes_on_to_the_same_end(engine: LoraEngine, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"n_epochs": 2, "batch_size": 4}
    whole = trained(engine, tmp_path / "1", lines(40, 1), **asked)
    recorder = Recorder(tmp_path / "2" / "kept")
    job = task(tmp_path / "2" / "work", lines(40, 1), **asked)

    def soon() -> StopReason | None:
        return StopReason.PAUSE if recorder.told else None

    outcome = engine.train(job, recorder, soon)
    assert outcome.stopped is StopReason.PAUSE
    assert 0 < outcome.steps < 20
    outcome = engine.train(job, recorder, never)
    assert outcome.stopped is None
    assert recorder.losses() == whole.losses()


def test_a_paused_dpo_goes_on_against_the_same_reference(
    engine: LoraEngine, tmp_path: Path
) -> None:
    """The reference is the fine-tune that the job began from, also after a pause."""
    first = trained(engine, tmp_path / "0", lines(48, 1), n_epochs=1, batch_size=8)
    asked: dict[str, Any] = {
        "method": "dpo",
        "model": "ft:tiny:local::1",
        "model_path": first.checkpoints[6],
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate_multiplier": 50,
    }
    whole = trained(engine, tmp_path / "1", pairs(24, 1), pairs(8, 2), **asked)
    recorder = Recorder(tmp_path / "2" / "kept")
    job = task(tmp_path / "2" / "work", pairs(24, 1), pairs(8, 2), **asked)
    shutil.rmtree(first.checkpoints[6])  # a fine-tune that a job began from may be deleted

    def soon() -> StopReason | None:
        return StopReason.PAUSE if recorder.told else None

    with pytest.raises(EngineError) as gone:
        engine.train(job, recorder, soon)
    assert gone.value.code == "model_not_found"
    shutil.copytree(tmp_path / "1" / "work" / "parent", first.checkpoints[6])
    assert engine.train(job, recorder, soon).stopped is StopReason.PAUSE
    shutil.rmtree(first.checkpoints[6])
    assert engine.train(job, recorder, never).stopped is None
    assert recorder.losses() == whole.losses()
    assert recorder.told[0].train_loss == pytest.approx(math.log(2), abs=1e-3)
    assert recorder.final is not None
    assert recorder.final.full_valid_loss is not None


def test_a_cancelled_training_ends_at_once(engine: LoraEngine, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "kept")
    job = task(tmp_path / "work", lines(400, 1), n_epochs=50)
    begun = time.monotonic()
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    outcome = engine.train(job, recorder, lambda: StopReason.CANCEL if cancelled.is_set() else None)
    assert outcome.stopped is StopReason.CANCEL
    assert time.monotonic() - begun < 5
    assert not children()


def children() -> list[psutil.Process]:
    """Trainings that this process started."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if any("lora.child" in part for part in one.cmdline())]


@pytest.fixture
def hunter() -> Iterator[threading.Thread]:
    """Kills the first training that it sees, as the kernel does when memory runs out."""

    def hunt() -> None:
        until(children)[0].send_signal(signal.SIGKILL)

    thread = threading.Thread(target=hunt)
    thread.start()
    yield thread
    thread.join()


def test_a_training_that_the_system_kills_ran_out_of_memory(
    engine: LoraEngine, tmp_path: Path, hunter: threading.Thread
) -> None:
    with pytest.raises(EngineError) as failed:
        trained(engine, tmp_path, lines(40, 1))
    assert failed.value.code == "out_of_memory"


def test_a_model_that_is_not_there_fails_the_job(tmp_path: Path, tiny: Path) -> None:
    options = LoraOptions(bases=named_bases([f"tiny={tiny}"]), threads=1)
    engine = LoraEngine(options, environment=os.environ)
    gone = tmp_path / "gone"
    gone.mkdir()
    broken = LoraOptions(bases=named_bases([f"tiny={gone}"]), threads=1)
    with pytest.raises(EngineError) as failed:
        trained(LoraEngine(broken, environment=os.environ), tmp_path / "1", lines(12, 1))
    assert failed.value.code == "model_not_loadable"
    with pytest.raises(EngineError) as missing:
        trained(engine, tmp_path / "2", lines(12, 1), model="ft:x", model_path=tmp_path / "deleted")
    assert missing.value.code == "model_not_found"
