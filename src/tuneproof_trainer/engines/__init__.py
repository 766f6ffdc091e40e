"""Engines: what trains and answers behind the wire. `protocol` says what each must do."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tuneproof_trainer.engines.protocol import TrainingEngine
from tuneproof_trainer.errors import ServerError

if TYPE_CHECKING:
    from tuneproof_trainer.settings import TrainerSettings

__all__ = ["make_engine"]

_NEEDED = {
    "lora": ("torch", "transformers", "trl", "peft", "datasets"),
    "ray": ("torch", "transformers", "trl", "peft", "datasets", "ray", "pandas", "pyarrow"),
}


def make_engine(settings: TrainerSettings) -> TrainingEngine:
    """The engine that the settings name; raises ServerError if it cannot be had."""
    if settings.engine == "ngram":
        from tuneproof_trainer.engines.ngram.engine import NgramEngine

        return NgramEngine()
    if settings.engine in _NEEDED:
        return _trained_apart(settings)
    raise ServerError(f"There is no engine {settings.engine!r}; there are: ngram, lora, ray.")


def _trained_apart(settings: TrainerSettings) -> TrainingEngine:
    """The lora engine, or the ray engine, which is the same on a cluster."""
    name = settings.engine
    missing = [package for package in _NEEDED[name] if find_spec(package) is None]
    if missing:
        raise ServerError(
            f"The {name} engine needs {', '.join(missing)}: pip install 'tuneproof[{name}]'."
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
    answers = VllmAnswers(*settings.vllm) if settings.vllm else None
    if name == "lora":
        return LoraEngine(options, answers, environment=os.environ)
    from tuneproof_trainer.engines.ray.engine import RayEngine
    from tuneproof_trainer.engines.ray.options import RayOptions

    cluster = RayOptions(
        address=settings.ray_address,
        workers=settings.workers,
        fewest_workers=settings.min_workers,
        cpus=settings.worker_cpus,
        losses=settings.worker_losses,
        storage=str(settings.ray_storage) if settings.ray_storage else None,
        owner=_owner(settings.dir / "ray-storage-owner"),
    )
    return RayEngine(options, cluster, answers, environment=os.environ)


def _owner(path: Path) -> str:
    """A name that no other server has, made once."""
    if not path.exists():
        path.write_text(f"trainer-{secrets.token_hex(8)}")
    return path.read_text()
