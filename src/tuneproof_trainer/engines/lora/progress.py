"""What happens between the steps of a training: figures, snapshots, checkpoints, its end.

Each member of a team keeps one; the leader's decides, and it alone writes.

A snapshot is whole once its `whole.json` exists; that holds what is needed to go on, and the
checkpoint that was to be told, so that one which a kill left untold is told after it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from tuneproof_trainer.engines.lora.adapters import copy_adapter, mark_adapter
from tuneproof_trainer.engines.lora.choices import StepCount
from tuneproof_trainer.engines.lora.options import Base
from tuneproof_trainer.engines.lora.team import Team
from tuneproof_trainer.engines.protocol import StepMetrics, StopReason

__all__ = ["DurableReporter", "LoraProgress", "LoraSnapshot", "last_snapshot"]

_REPORTS = 200
_PATIENCE = 2
"""Epochs without a better validation loss after which a training stops."""

_WHOLE = "whole.json"
_BEST = "best"


class DurableReporter(Protocol):
    """Passes on to the server; each call is durable when it returns."""

    def metrics(self, metrics: StepMetrics) -> None:
        """One step was done."""

    def checkpoint(self, metrics: StepMetrics, folder: Path) -> None:
        """A model that can be used lies in `folder`."""

    def message(self, text: str) -> None:
        """Something to read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSnapshot:
    """What a whole snapshot says of itself."""

    step: int
    metrics: dict[str, Any] | None
    """The checkpoint at this step; None within an epoch."""

    model: str
    """The folder of the checkpoint's adapter."""

    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0
    """Epochs since the best."""

    ended: bool = False
    """Whether the training ended with it."""


def last_snapshot(folder: Path) -> tuple[Path, LoraSnapshot] | None:
    """The newest whole snapshot of a job; others are removed."""
    found: list[tuple[Path, LoraSnapshot]] = []
    for path in (folder / "snapshots").glob("checkpoint-*"):
        try:
            values = json.loads((path / _WHOLE).read_text())
        except FileNotFoundError:  # cut off by a kill
            shutil.rmtree(path)
            continue
        found.append((path, LoraSnapshot(**values)))
    return max(found, key=lambda one: one[1].step, default=None)


class LoraProgress(TrainerCallback):  # type: ignore[misc]
    """Decides after each step what is logged, measured and saved, and when to stop."""

    def __init__(
        self,
        *,
        schedule: StepCount,
        base: Base,
        teller: DurableReporter,
        stop: Callable[[], StopReason | None],
        folder: Path,
        validates: bool,
        stops_early: bool,
        save_every_s: float,
        team: Team,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedule, self._base, self._teller, self._stop = schedule, base, teller, stop
        self._folder, self._validates, self._stops_early = folder, validates, stops_early
        self._save_every_s, self._monotonic = save_every_s, monotonic
        self._team, self._leads = team, team.rank == 0
        self._every = max(1, schedule.steps // _REPORTS)
        self._saved_at = monotonic()
        self._pending: StepMetrics | None = None
        self._at = LoraSnapshot(step=0, metrics=None, model="")
        self._better = False
        self.stopped: StopReason | None = None
        self.ended_at: int | None = None
        """The last step, once the training has ended."""

    def resume(self, snapshot: LoraSnapshot) -> None:
        """Go on from this one; its checkpoint is told again, in case it was not yet."""
        self._at = snapshot
        if snapshot.metrics is not None:
            self._tell(StepMetrics(**snapshot.metrics), Path(snapshot.model))
        if snapshot.ended:
            self.ended_at = snapshot.step

    # -- the trainer's hooks ----------------------------------------------------------------

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Say what is due after this step."""
        step = state.global_step
        at_epoch = step % self._schedule.per_epoch == 0
        late = self._monotonic() - self._saved_at >= self._save_every_s
        reason, late = self._team.agree((self._stop(), late))
        if step == self._schedule.steps:
            reason = None
        control.should_evaluate = at_epoch and self._validates
        control.should_save = at_epoch or late or reason is not None
        control.should_log = control.should_save or step % self._every == 0 or step == 1
        if reason is not None:
            self.stopped = reason
            control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Keep the step's figures until it is known whether it is a checkpoint, too."""
        if "loss" not in logs:  # an evaluation's, which `on_evaluate` gets, too
            return
        self._flush()
        self._pending = StepMetrics(
            step=state.global_step,
            total_steps=self._schedule.steps,
            train_loss=float(logs["loss"]),
            train_mean_token_accuracy=float(logs["mean_token_accuracy"]),
            train_reward_accuracy=self._reward(logs, "accuracies"),
            train_reward_margin=self._reward(logs, "margins"),
        )

    def _reward(self, logs: dict[str, Any], name: str) -> float | None:
        """A reward of the step's pairs; a team's have fillers among them, and none is told."""
        return logs.get(f"rewards/{name}") if self._team.size == 1 else None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> Any:
        """Add the validation's figures; stop if they have not become better for long."""
        loss = metrics["eval_loss"]
        accuracy = metrics["eval_mean_token_accuracy"]
        assert self._pending is not None
        self._pending = dataclasses.replace(
            self._pending,
            valid_loss=loss,
            valid_mean_token_accuracy=accuracy,
            full_valid_loss=loss,
            full_valid_mean_token_accuracy=accuracy,
            full_valid_reward_accuracy=metrics.get("eval_reward_accuracy"),
            full_valid_reward_margin=metrics.get("eval_reward_margin"),
        )
        if self._stops_early:
            self._judge(loss, state.global_step)
            if self._at.worse >= _PATIENCE and state.global_step < self._schedule.steps:
                control.should_training_stop = True
        return control

    def _judge(self, loss: float, step: int) -> None:
        best = self._at.best_loss
        self._better = best is None or loss < best
        if self._better:
            self._at = dataclasses.replace(self._at, best_loss=loss, best_step=step, worse=0)
        else:
            self._at = dataclasses.replace(self._at, worse=self._at.worse + 1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the snapshot whole; at the end of an epoch it is a checkpoint."""
        step = state.global_step
        snapshot = Path(args.output_dir) / f"checkpoint-{step}"
        self._team.gather(step)  # until every member has written its part
        if self._leads:
            mark_adapter(snapshot, self._base)
        at_epoch = step % self._schedule.per_epoch == 0 and self._pending is not None
        ended = step == self._schedule.steps or (control.should_training_stop and not self.stopped)
        if not at_epoch:
            self._flush()
        metrics, model = self._pending, snapshot
        if at_epoch and self._stops_early:
            metrics, model = self._with_best(snapshot, ended)
        self._at = dataclasses.replace(
            self._at,
            step=step,
            metrics=dataclasses.asdict(metrics) if metrics else None,
            model=str(model),
            ended=ended,
        )
        if self._leads:
            _write(snapshot / _WHOLE, json.dumps(dataclasses.asdict(self._at)))
        self._saved_at = self._monotonic()
        if metrics is not None:
            self._pending = None
            self._tell(metrics, model)
        if ended:
            self.ended_at = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell what the last step left."""
        self._flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell what the last step left."""
        self._flush()

    # -- telling ----------------------------------------------------------------------------

    def _flush(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._teller.metrics(pending)

    def _tell(self, metrics: StepMetrics, model: Path) -> None:
        self._teller.checkpoint(metrics, model)
        self._teller.metrics(metrics)

    def _with_best(self, snapshot: Path, ended: bool) -> tuple[StepMetrics, Path]:
        """Keep the best epoch's adapter; a training that ends hands out that one."""
        assert self._pending is not None
        best = self._folder / _BEST
        if self._better and self._leads:
            _replace(snapshot, best)
        if not ended:
            return self._pending, snapshot
        step, at = self._pending.step, self._at
        if step < self._schedule.steps:
            self._teller.message(
                f"Stopped early at step {step} of {self._schedule.steps}: the validation loss has "
                f"not fallen for {_PATIENCE} epochs."
            )
        if at.best_step != step:
            self._teller.message(
                f"The model is that of step {at.best_step}, whose validation loss was the lowest "
                f"({at.best_loss:.4f})."
            )
        return (
            dataclasses.replace(self._pending, total_steps=step, full_valid_loss=at.best_loss),
            best,
        )


def _replace(snapshot: Path, best: Path) -> None:
    fresh = best.with_suffix(".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    copy_adapter(snapshot, fresh)
    shutil.rmtree(best, ignore_errors=True)
    fresh.replace(best)


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
