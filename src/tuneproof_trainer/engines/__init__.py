"""Engines: what trains and answers behind the wire. `protocol` says what each must do."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tuneproof_trainer.engines.protocol import Engine
from tuneproof_trainer.errors import ServerError

if TYPE_CHECKING:
    from tuneproof_trainer.settings import Settings

__all__ = ["make_engine"]

_NEEDED = ("torch", "transformers", "trl", "peft", "datasets")


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name; raises ServerError if it cannot be had."""
    if settings.engine == "ngram":
        from tuneproof_trainer.engines.ngram.engine import NgramEngine

        return NgramEngine()
    if settings.engine == "lora":
        return _lora(settings)
    raise ServerError(f"There is no engine {settings.engine!r}; there are: ngram, lora.")


def _lora(settings: Settings) -> Engine:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ServerError(
            f"The lora engine needs {', '.join(missing)}: pip install 'tuneproof[lora]'."
        )
    from tuneproof_trainer.engines.lora.engine import LoraEngine
    from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
    from tuneproof_trainer.engines.lora.vllm import VllmAnswers

    options = LoraOptions(
        bases=named_bases(settings.models),
        device=settings.device,
        quantize=settings.quantize,
        rank=settings.lora_rank,
        max_tokens=settings.max_example_tokens,
        threads=settings.training_threads,
    )
    answers = VllmAnswers(settings.vllm) if settings.vllm else None
    return LoraEngine(options, answers, environment=os.environ)
