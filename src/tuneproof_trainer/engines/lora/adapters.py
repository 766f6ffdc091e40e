"""Adapters: made for a base model, gone on with from an earlier fine-tune, merged into one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tuneproof_trainer.engines.lora.options import Base
from tuneproof_trainer.engines.protocol import EngineError

__all__ = [
    "adapter_base",
    "continued_adapter",
    "copy_adapter",
    "mark_adapter",
    "merge",
    "new_adapter",
]

_MARK = "tuneproof.json"
_FILES = ("adapter_config.json", "adapter_model.safetensors", _MARK)


def new_adapter(model: Any, rank: int, *, untrained: bool) -> Any:
    """The model with a new adapter on all linear layers.

    For an untrained base the embeddings and the output layer are trained whole: no adapter on
    random ones could learn.
    """
    from peft import LoraConfig, get_peft_model

    whole = _ends(model) if untrained else None
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=whole,
        ensure_weight_tying=bool(whole) and _tied(model),
    )
    return get_peft_model(_prepared(model), config)


def continued_adapter(model: Any, folder: Path) -> Any:
    """The model with an earlier adapter, which is trained on."""
    from peft import PeftModel

    return PeftModel.from_pretrained(_prepared(model), str(folder), is_trainable=True)


def mark_adapter(folder: Path, base: Base) -> None:
    """Note in an adapter's folder which base it belongs to."""
    (folder / _MARK).write_text(json.dumps({"engine": "lora", "base": base.id}))


def adapter_base(folder: Path) -> str:
    """The id of the base that an adapter belongs to; raises EngineError if it was deleted."""
    try:
        found: str = json.loads((folder / _MARK).read_text())["base"]
    except FileNotFoundError:
        raise _deleted() from None
    return found


def copy_adapter(source: Path, target: Path) -> None:
    """Copy an adapter, without what only its training needs, so that it survives a loss of
    power; `target` exists and is empty. Raises EngineError if the source was deleted."""
    adapter_base(source)
    for name in _FILES:
        try:
            shutil.copyfile(source / name, target / name)
        except FileNotFoundError:
            raise _deleted() from None  # at this moment
        with (target / name).open("rb") as written:
            os.fsync(written.fileno())


def _deleted() -> EngineError:
    return EngineError("model_not_found", "The model was deleted.", "model")


def merge(model: Any, adapter: Path, target: Path, tokenizer: Any) -> None:
    """Write a whole model, with the adapter worked into its weights, as safetensors."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(str(target), safe_serialization=True)
    tokenizer.save_pretrained(str(target))


def _prepared(model: Any) -> Any:
    """4-bit weights need their norms in float32 and gradients at the input."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return model
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model)


def _ends(model: Any) -> list[str]:
    """Names of the embeddings and, where it has weights of its own, the output layer."""
    modules = [model.get_input_embeddings()]
    if not _tied(model):
        modules.append(model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)].rpartition(".")[2] for module in modules if module is not None]


def _tied(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
