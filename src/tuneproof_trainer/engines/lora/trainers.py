"""TRL's trainers, set up for one job on rows that were tokenised here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tuneproof_trainer.engines.lora.choices import learning_rate
from tuneproof_trainer.engines.lora.conversations import Encoded, Pair
from tuneproof_trainer.engines.lora.measures import measure
from tuneproof_trainer.engines.protocol import Hyperparameters

if TYPE_CHECKING:
    from tuneproof_trainer.engines.lora.progress import Progress

__all__ = ["preference_trainer", "supervised_trainer"]

_AT_ONCE = 8
"""Rows that a device holds at once; larger batches are gathered over several passes."""

_WARMUP = 0.03
_SNAPSHOTS_KEPT = 2


class _Supervised(SFTTrainer):  # type: ignore[misc]
    """Measures validation exactly over tokens, and writes no model cards."""

    validation: Sequence[Encoded] = ()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and accuracy on the validation rows."""
        loss, accuracy = measure(self.model, self.validation)
        found = {"eval_loss": loss, "eval_mean_token_accuracy": accuracy}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a snapshot is no publication."""


class _Preference(DPOTrainer):  # type: ignore[misc]
    """Takes rows that are tokenised already, and writes no model cards."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a snapshot is no publication."""


def supervised_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    validation: Sequence[Encoded],
    chosen: Hyperparameters,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Any:
    """An SFTTrainer; `model` bears its adapter."""
    args = SFTConfig(
        **_arguments(model, chosen, "supervised", seed, folder),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = _Supervised(
        model=model,
        args=args,
        train_dataset=_table(rows),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.validation = validation
    return trainer


def preference_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Pair],
    validation: Sequence[Pair],
    chosen: Hyperparameters,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Any:
    """A DPOTrainer; the reference is the model as it is now."""
    args = DPOConfig(
        **_arguments(model, chosen, "dpo", seed, folder),
        max_length=None,
        beta=chosen.beta,
    )
    return _Preference(
        model=model,
        args=args,
        train_dataset=_pairs(rows),
        eval_dataset=_pairs(validation) if validation else None,
        processing_class=tokenizer,
        callbacks=[progress],
    )


def _table(rows: Sequence[Encoded]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}
    )


def _pairs(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )


def _arguments(
    model: Any, chosen: Hyperparameters, method: Any, seed: int, folder: Path
) -> dict[str, Any]:
    """What both trainers are told. `progress` alone decides when to log, measure and save."""
    import torch

    on_gpu = model.device.type == "cuda"
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    batch = chosen.batch_size or 1
    at_once = max(n for n in range(1, min(batch, _AT_ONCE) + 1) if batch % n == 0)
    return {
        "output_dir": str(folder / "snapshots"),
        "num_train_epochs": chosen.n_epochs,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch // at_once,
        "per_device_eval_batch_size": at_once,
        "learning_rate": learning_rate(chosen, method),
        "lr_scheduler_type": "linear",
        "warmup_steps": _WARMUP,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not on_gpu,
        "bf16": bf16,
        "fp16": on_gpu and not bf16,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "prediction_loss_only": True,
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_total_limit": _SNAPSHOTS_KEPT,
        "report_to": [],
        "disable_tqdm": True,
    }
