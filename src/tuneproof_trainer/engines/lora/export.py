"""A fine-tune as one whole model, for servers that know nothing of adapters."""

from __future__ import annotations

from pathlib import Path

from tuneproof_trainer.engines.lora.adapters import adapter_base, merge
from tuneproof_trainer.engines.lora.loading import load_conversations, load_model
from tuneproof_trainer.engines.lora.options import LoraOptions

__all__ = ["export_merged"]


def export_merged(adapter: Path, options: LoraOptions, target: Path) -> None:
    """Write the fine-tune in the folder `adapter` into `target`: weights as safetensors, config
    and tokenizer with its chat template. Raises EngineError if its base cannot be loaded."""
    base = options.base(adapter_base(adapter))
    talk = load_conversations(base)
    target.mkdir(parents=True, exist_ok=True)
    merge(load_model(base, options), adapter, target, talk.tokenizer)
