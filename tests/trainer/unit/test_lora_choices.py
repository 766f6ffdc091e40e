"""What the lora engine decides before torch is loaded: models, values, messages to its child."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof_trainer.engines import make_engine
from tuneproof_trainer.engines.lora import pipe
from tuneproof_trainer.engines.lora.choices import choose, learning_rate, schedule
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.engines.protocol import (
    Hyperparameters,
    Message,
    StepMetrics,
    StopReason,
    TrainingExample,
    TrainingOutcome,
)
from tuneproof_trainer.errors import ServerError
from tuneproof_trainer.settings import TrainerSettings

AUTO = Hyperparameters()


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [(10, 10, 1), (34, 3, 1), (400, 3, 8), (5_000, 3, 16), (20_000, 1, 16)],
)
def test_auto_values_follow_the_number_of_examples(examples: int, epochs: int, batch: int) -> None:
    chosen = choose(AUTO, "supervised", examples, untrained=False)
    assert (chosen.n_epochs, chosen.batch_size) == (epochs, batch)
    assert (chosen.learning_rate_multiplier, chosen.beta) == (1, None)


def test_what_was_asked_for_is_taken() -> None:
    asked = Hyperparameters(n_epochs=2, batch_size=4, learning_rate_multiplier=0.5, beta=0.3)
    assert choose(asked, "dpo", 100, untrained=True) == asked
    assert learning_rate(asked, "dpo") == pytest.approx(5e-6)
    assert choose(AUTO, "dpo", 100, untrained=False).beta == 0.1


def test_an_untrained_base_gets_a_higher_rate() -> None:
    assert choose(AUTO, "supervised", 100, untrained=True).learning_rate_multiplier == 25


@given(examples=st.integers(1, 100_000), batch=st.integers(1, 256) | st.none())
def test_every_example_is_seen_in_every_epoch(examples: int, batch: int | None) -> None:
    chosen = choose(Hyperparameters(batch_size=batch), "supervised", examples, untrained=False)
    plan = schedule(chosen, examples)
    assert chosen.batch_size is not None
    assert (plan.per_epoch - 1) * chosen.batch_size < examples <= plan.per_epoch * chosen.batch_size
    assert plan.steps == plan.per_epoch * plan.epochs


def test_models_are_named_by_folder_file_or_hub(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "it.Q4.gguf").write_bytes(b"")
    bases = named_bases(
        [
            str(tmp_path / "small"),
            str(tmp_path / "small" / "it.Q4.gguf"),
            "Org/Model-1B",
            f"mine={tmp_path / 'small'}",
        ]
    )
    assert [base.id for base in bases] == ["small", "it.Q4", "Org/Model-1B", "mine"]
    assert [base.gguf_file for base in bases] == [None, "it.Q4.gguf", None, None]
    assert bases[3].source == str(tmp_path / "small")
    options = LoraOptions(bases=bases)
    assert LoraOptions.from_dict(options.as_dict()) == options
    assert options.base("mine") == bases[3]


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ([], "needs a model"),
        (["a/b", "x=c/d", "x=e/f"], "Two models are named 'x'"),
        (["./nowhere"], "neither a folder nor a .gguf file"),
        (["a b=org/model"], "cannot be a model's id"),
    ],
)
def test_models_that_cannot_be_are_refused(models: list[str], told: str) -> None:
    with pytest.raises(ServerError, match=told):
        named_bases(models)


def test_an_engine_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="there are: ngram, lora"):
        make_engine(TrainerSettings(dir=tmp_path, engine="magic"))


def test_messages_arrive_as_they_were_sent() -> None:
    metrics = StepMetrics(step=1, total_steps=2, train_loss=0.5, train_mean_token_accuracy=0.25)
    outcome = TrainingOutcome(stopped=StopReason.PAUSE, trained_tokens=7, steps=1)
    sent = {"metrics": metrics, "outcome": outcome, "hyperparameters": AUTO, "text": "so"}
    line = io.BytesIO()
    pipe.write(line, "all", **sent)
    assert pipe.read(line.getvalue()) == {"kind": "all", **sent}


@given(
    st.builds(
        TrainingExample,
        messages=st.lists(
            st.builds(
                Message,
                role=st.sampled_from(["user", "assistant"]),
                content=st.text(st.characters(exclude_categories=["Cs"])),
                weight=st.integers(0, 1),
            )
        ).map(tuple),
    )
)
def test_examples_arrive_as_they_were_sent(example: TrainingExample) -> None:
    line = pipe.write_example(example)
    assert line.count(b"\n") == 1
    assert pipe.read_example(line) == example
