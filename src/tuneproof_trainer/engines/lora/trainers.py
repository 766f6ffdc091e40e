"""TRL's trainers, set up for one job on rows that were tokenised here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tuneproof_trainer.engines.lora.choices import learning_rate
from tuneproof_trainer.engines.lora.conversations import IGNORED, Encoded, Pair
from tuneproof_trainer.engines.lora.measures import tally
from tuneproof_trainer.engines.lora.shares import MemberBatches
from tuneproof_trainer.engines.lora.team import Team
from tuneproof_trainer.engines.protocol import Hyperparameters

if TYPE_CHECKING:
    from tuneproof_trainer.engines.lora.progress import LoraProgress

__all__ = ["preference_trainer", "supervised_trainer"]

_WARMUP = 0.03
_SNAPSHOTS_KEPT = 2


class _Loader(DataLoader):  # type: ignore[misc]
    """Passes the epoch on to its shares."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class _Member:
    """What both trainers do for their member of the team. They write no model cards."""

    team: Team
    shares: MemberBatches
    train_dataset: Any
    data_collator: Any
    args: Any
    callback_handler: Any
    state: Any
    control: Any

    def get_train_dataloader(self) -> DataLoader:
        """This member's share of each batch."""
        return _Loader(
            self.train_dataset,
            batch_sampler=self.shares,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a snapshot is no publication."""

    def _evaluated(self, loss: float, **figures: float) -> dict[str, float]:
        found = {"eval_loss": loss, **figures}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


class _Supervised(_Member, SFTTrainer):  # type: ignore[misc]
    """Measures validation exactly over tokens."""

    validation: Sequence[Encoded] = ()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and accuracy on the validation rows."""
        own = self.validation[self.team.rank :: self.team.size]
        loss, right, count = self.team.total(tally(self.model, own))
        return self._evaluated(loss / count, eval_mean_token_accuracy=right / count)


class _Preference(_Member, DPOTrainer):  # type: ignore[misc]
    """Takes rows that are tokenised already; a step's loss is the mean over all of its pairs,
    on whichever member and in whichever pass they are."""

    loss_is_scaled_for_ga = True
    validation: Sequence[Pair] = ()

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> float:
        """Pairs of the whole step."""
        own = sum(_count(inputs) for inputs in batch_samples)
        return self.team.total([own])[0]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: float | None = None,
    ) -> Any:
        """This pass's part in the loss of the step."""
        assert num_items_in_batch is not None
        return self._summed(model, inputs) * self.team.size / num_items_in_batch

    def _summed(self, model: Any, inputs: Any) -> Any:
        """The loss over this member's pairs; a filler's is log 2, and has no gradient."""
        held, pairs = len(inputs["input_ids"]) // 2, _count(inputs)
        mean = super().compute_loss(model, inputs)
        return mean * held - math.log(2) * (held - pairs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and rewards over pairs, and accuracy over tokens of preferred answers, on the
        validation. What TRL means over all members' pairs has fillers in it, whose reward is 0."""
        count = len(self.validation)
        shares = MemberBatches(count, self.shares.width * self.team.size, self.team, None)
        rows = _pairs(self.validation, filled=True)
        self.model.eval()
        loss, accuracies, tokens = 0.0, [], []
        gained = margin = 0.0
        measured = self._metrics["eval"]
        with torch.no_grad(), self.compute_loss_context_manager():
            for numbers in shares:
                collated = self.data_collator([rows[n] for n in numbers])
                loss += float(self._summed(self.model, self._prepare_inputs(collated)))
                held = len(collated["input_ids"]) // 2 * self.team.size
                gained += held * measured["rewards/accuracies"][-1]
                margin += held * measured["rewards/margins"][-1]
                accuracies.append(measured["mean_token_accuracy"][-1])
                tokens.append(float(collated["completion_mask"][: len(numbers)].sum()))
        measured.clear()
        self.model.train()
        total, *tokens = self.team.total([loss, *tokens])
        right = sum(share * of for share, of in zip(accuracies, tokens, strict=True))
        return self._evaluated(
            total / count,
            eval_mean_token_accuracy=right / sum(tokens),
            eval_reward_accuracy=gained / count,
            eval_reward_margin=margin / count,
        )


def supervised_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    validation: Sequence[Encoded],
    chosen: Hyperparameters,
    seed: int,
    folder: Path,
    progress: LoraProgress,
    team: Team,
) -> Any:
    """An SFTTrainer; `model` bears its adapter."""
    shares = MemberBatches(len(rows), chosen.batch_size or 1, team, seed)
    args = SFTConfig(
        **_arguments(model, chosen, "supervised", seed, folder, shares),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = _Supervised(
        model=model,
        args=args,
        train_dataset=_table(rows, filled=team.size > 1),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.team, trainer.shares, trainer.validation = team, shares, validation
    return trainer


def preference_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Pair],
    validation: Sequence[Pair],
    chosen: Hyperparameters,
    seed: int,
    folder: Path,
    progress: LoraProgress,
    team: Team,
) -> Any:
    """A DPOTrainer; the reference is the model as it is now."""
    shares = MemberBatches(len(rows), chosen.batch_size or 1, team, seed)
    args = DPOConfig(
        **_arguments(model, chosen, "dpo", seed, folder, shares),
        max_length=None,
        beta=chosen.beta,
    )
    trainer = _Preference(
        model=model,
        args=args,
        train_dataset=_pairs(rows, filled=team.size > 1),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.team, trainer.shares, trainer.validation = team, shares, validation
    return trainer


def _table(rows: Sequence[Encoded], *, filled: bool) -> Dataset:
    """The rows; `filled` adds one from which nothing is learned."""
    more = [Encoded(rows[0].ids[:2], [IGNORED] * len(rows[0].ids[:2]))] if filled else []
    every = [*rows, *more]
    return Dataset.from_dict(
        {"input_ids": [row.ids for row in every], "labels": [row.labels for row in every]}
    )


def _pairs(pairs: Sequence[Pair], *, filled: bool) -> Dataset:
    """The pairs; `filled` adds one without answers."""
    every = [*pairs, *([Pair((pairs[0].prompt + pairs[0].chosen)[:2], [], [])] if filled else [])]
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in every],
            "chosen_ids": [pair.chosen for pair in every],
            "rejected_ids": [pair.rejected for pair in every],
        }
    )


def _count(inputs: Any) -> int:
    """Pairs in what the collator made, without fillers."""
    return int(inputs["completion_mask"].any(dim=1).sum()) // 2


def _arguments(
    model: Any, chosen: Hyperparameters, method: Any, seed: int, folder: Path, shares: MemberBatches
) -> dict[str, Any]:
    """What both trainers are told. `progress` alone decides when to log, measure and save."""
    on_gpu = model.device.type == "cuda"
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    return {
        "output_dir": str(folder / "snapshots"),
        "num_train_epochs": chosen.n_epochs,
        "per_device_train_batch_size": shares.width,
        "gradient_accumulation_steps": shares.passes,
        "learning_rate": learning_rate(chosen, method),
        "lr_scheduler_type": "linear",
        "warmup_steps": _WARMUP,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not on_gpu,
        "bf16": bf16,
        "fp16": on_gpu and not bf16,
        "gradient_checkpointing": on_gpu,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": on_gpu,
        "prediction_loss_only": True,
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_total_limit": _SNAPSHOTS_KEPT,
        "report_to": [],
        "disable_tqdm": True,
    }
