"""One job where it is trained: examples to tokens, model and adapter, train, tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from tuneproof_trainer.engines.lora import choices, pipe
from tuneproof_trainer.engines.lora.adapters import continued_adapter, new_adapter
from tuneproof_trainer.engines.lora.conversations import Conversations, Encoded, Pair
from tuneproof_trainer.engines.lora.loading import limit_of, load_conversations, load_model
from tuneproof_trainer.engines.lora.measures import knows_nothing, measure
from tuneproof_trainer.engines.lora.options import Device, LoraOptions
from tuneproof_trainer.engines.lora.progress import DurableReporter, LoraProgress, last_snapshot
from tuneproof_trainer.engines.lora.team import Alone, Team
from tuneproof_trainer.engines.lora.trainers import preference_trainer, supervised_trainer
from tuneproof_trainer.engines.protocol import (
    EngineError,
    Hyperparameters,
    StopReason,
    TrainingExample,
    TrainingOutcome,
)

__all__ = ["LoraTraining", "Parent", "train_prepared"]


class Parent(DurableReporter, Protocol):
    """Who hears of a training, and may stop it."""

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """The values in force."""

    def stop(self) -> StopReason | None:
        """Whether to stop."""


class LoraTraining:
    """Trains one task, as one member of a team."""

    def __init__(
        self, task: pipe.ChildTask, options: LoraOptions, parent: Parent, team: Team
    ) -> None:
        self._task, self._options, self._parent, self._team = task, options, parent, team
        self._folder = Path(task.folder)
        self._base = options.base(task.base)
        self._resumed = False

    def run(
        self, training: Sequence[TrainingExample], validation: Sequence[TrainingExample]
    ) -> TrainingOutcome:
        """Train to the end, or until told to stop; from the last snapshot if there is one.

        Raises EngineError for a job that cannot succeed.
        """
        snapshot = self._team.agree(last_snapshot(self._folder) if self._team.rank == 0 else None)
        self._resumed = snapshot is not None
        conversations = load_conversations(self._base)
        model = load_model(self._base, self._options)
        model.config.use_cache = False
        limit = min(self._options.max_tokens, limit_of(model))
        rows = self._rows(conversations, training, limit, "training_file")
        held = self._rows(conversations, validation, limit, "validation_file")
        model, chosen = self._adapted(model, rows, len(rows))
        schedule = choices.schedule(chosen, len(rows))
        progress = self._progress(schedule, bool(held))
        make: Any = supervised_trainer if self._task.method == "supervised" else preference_trainer
        trainer = make(
            model,
            conversations.tokenizer,
            rows,
            held,
            chosen,
            self._task.seed,
            self._folder,
            progress,
            self._team,
        )
        if trainer.train_dataset.num_rows < len(rows):
            raise RuntimeError(f"the trainer dropped rows: {trainer.train_dataset.num_rows}")
        if snapshot is None:
            self._introduce(model, rows, held, chosen, schedule)
        else:
            progress.resume(snapshot[1])
        if progress.ended_at is None:
            trainer.train(resume_from_checkpoint=str(snapshot[0]) if snapshot else None)
        return self._outcome(progress, schedule, rows, trainer.state.global_step)

    # -- rows -------------------------------------------------------------------------------

    def _rows(
        self,
        conversations: Conversations,
        examples: Sequence[TrainingExample],
        limit: int,
        param: str,
    ) -> list[Any]:
        """Tokenised rows within `limit`; tells of those that were cut or left out."""
        if self._task.method == "dpo":
            whole: list[Any] = [conversations.pair(example) for example in examples]
            rows: list[Any] = [_cut_pair(pair, limit) for pair in whole]
            usable = [row for row in rows if row.chosen and row.rejected and row.prompt]
        else:
            whole = [
                row for one in examples for row in conversations.encode(one.messages, one.tools)
            ]
            rows = [row.cut(limit) for row in whole]
            usable = [row for row in rows if row.learned]
        name = param.replace("_", " ")
        cut = sum(row != full for row, full in zip(rows, whole, strict=True))
        if cut and not self._resumed:
            self._parent.message(
                f"{cut} of {len(rows)} examples of the {name} are longer than {limit} tokens and "
                f"were cut; {len(rows) - len(usable)} of them had nothing left to learn and are "
                "left out."
            )
        if examples and not usable:
            raise EngineError(
                f"invalid_{param}",
                f"Every example of the {name} fills {limit} tokens before its answer begins. "
                "Shorten the prompts.",
                param,
            )
        return usable

    # -- the model --------------------------------------------------------------------------

    def _adapted(self, model: Any, rows: Sequence[Any], count: int) -> tuple[Any, Hyperparameters]:
        """The model with its adapter, and the values in force."""
        from transformers import set_seed

        set_seed(self._task.seed)
        requested, method = self._task.hyperparameters, self._task.method
        untrained = False
        if self._task.adapter is not None:
            model = continued_adapter(model, Path(self._task.adapter))
        else:
            sample = [_as_encoded(row) for row in rows[:8]]
            untrained = self._team.agree(knows_nothing(model, sample))
            model = new_adapter(model, self._options.rank, untrained=untrained)
        chosen = self._told(
            choices.choose(requested, method, count, untrained=untrained), model, rows
        )
        self._parent.chosen(chosen)
        if untrained and not self._resumed:
            self._parent.message(
                "The base model guesses no better than chance, so its embeddings and output layer "
                "are trained, too."
            )
        return model, chosen

    def _told(self, chosen: Hyperparameters, model: Any, rows: Sequence[Any]) -> Hyperparameters:
        """The values in force, with those that no job can ask for."""
        import torch

        return dataclasses.replace(
            chosen,
            learning_rate=choices.learning_rate(chosen, self._task.method),
            rank=model.peft_config["default"].r,
            max_example_tokens=max(_length(row) for row in rows),
            threads=torch.get_num_threads(),
        )

    def _introduce(
        self,
        model: Any,
        rows: Sequence[Any],
        held: Sequence[Any],
        chosen: Hyperparameters,
        schedule: choices.StepCount,
    ) -> None:
        """Say what is about to happen, and from where."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        bits = 4 if getattr(model, "is_loaded_in_4bit", False) else 8 * model.dtype.itemsize
        self._parent.message(
            f"Training {trained:,} weights on {len(rows)} examples of at most "
            f"{chosen.max_example_tokens:,} tokens: {schedule.epochs} epochs of "
            f"{schedule.per_epoch} steps, batch size {chosen.batch_size}, learning rate "
            f"{chosen.learning_rate:.2g}, rank {chosen.rank}, on {model.device.type} in {bits} "
            f"bits, threads: {chosen.threads}."
        )
        if held and self._task.method == "supervised":
            loss, accuracy = measure(model, held)
            self._parent.message(
                f"Before training: validation loss {loss:.4f}, token accuracy {accuracy:.4f}."
            )

    def _progress(self, schedule: choices.StepCount, validates: bool) -> LoraProgress:
        return LoraProgress(
            schedule=schedule,
            base=self._base,
            teller=self._parent,
            stop=self._parent.stop,
            folder=self._folder,
            validates=validates,
            stops_early=validates and self._task.hyperparameters.n_epochs is None,
            save_every_s=self._options.save_every_s,
            team=self._team,
        )

    def _outcome(
        self, progress: LoraProgress, schedule: choices.StepCount, rows: Sequence[Any], step: int
    ) -> TrainingOutcome:
        steps = step if progress.ended_at is None else progress.ended_at
        tokens = sum(_size(row) for row in rows)
        return TrainingOutcome(
            stopped=progress.stopped if progress.ended_at is None else None,
            trained_tokens=tokens * steps // schedule.per_epoch,
            steps=steps,
        )


def train_prepared(
    folder: Path, parent: Parent, team: Team | None = None, device: Device | None = None
) -> TrainingOutcome:
    """Train what `process.prepare` wrote into `folder`, on `device` if that is given."""
    stored = orjson.loads((folder / "task.json").read_bytes())
    task = pipe.ChildTask.from_dict(stored["task"])
    options = LoraOptions.from_dict(stored["options"])
    if device is not None:
        options = dataclasses.replace(options, device=device)
    validation = list(_examples(folder / "validation.jsonl")) if task.validation else []
    training = list(_examples(folder / "training.jsonl"))
    return LoraTraining(task, options, parent, team or Alone()).run(training, validation)


def _examples(path: Path) -> Iterator[TrainingExample]:
    with path.open("rb") as file:
        for line in file:
            yield pipe.read_example(line)


def _cut_pair(pair: Pair, limit: int) -> Pair:
    room = max(0, limit - len(pair.prompt))
    return Pair(pair.prompt, pair.chosen[:room], pair.rejected[:room])


def _as_encoded(row: Encoded | Pair) -> Encoded:
    """A pair's preferred side, as a conversation."""
    if isinstance(row, Encoded):
        return row
    return Encoded(row.prompt + row.chosen, [-100] * len(row.prompt) + row.chosen)


def _length(row: Encoded | Pair) -> int:
    """Tokens of a row, of a pair's longer side."""
    if isinstance(row, Encoded):
        return len(row.ids)
    return len(row.prompt) + max(len(row.chosen), len(row.rejected))


def _size(row: Encoded | Pair) -> int:
    if isinstance(row, Encoded):
        return len(row.ids)
    return 2 * len(row.prompt) + len(row.chosen) + len(row.rejected)
