"""How the lora engine runs: which models it brings, and on what."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tuneproof_trainer.errors import ServerError

__all__ = ["Base", "Device", "LoraOptions", "Quantize", "named_bases"]

Device = Literal["auto", "cpu", "cuda"]
Quantize = Literal["auto", "4bit", "none"]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model that jobs may start from."""

    id: str
    """Its name on the wire."""

    source: str
    """A folder, or the name of a model on the hub."""

    gguf_file: str | None = None
    """The file within `source` that holds the weights, where they are in GGUF."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """All that the engine needs to know; it goes to the child process as it is."""

    bases: tuple[Base, ...]
    device: Device = "auto"
    quantize: Quantize = "auto"
    """`auto` loads in 4 bits where a CUDA device has too little memory for 16."""

    rank: int = 16
    max_tokens: int = 2048
    """Longest example in tokens; longer ones are cut."""

    threads: int | None = None
    """CPU threads of one training; None takes half the cores: on a busy machine, threads that
    wait for each other can make a training 25 times as slow."""

    save_every_s: float = 120.0
    """Time between snapshots within an epoch; the end of an epoch always makes one."""

    def training_threads(self) -> int:
        """The number in force."""
        return self.threads or max(1, (os.cpu_count() or 1) // 2)

    def base(self, id: str) -> Base:
        """The base of this id; raises KeyError."""
        return next(base for base in self.bases if base.id == id)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoraOptions:
        """The options that `as_dict` wrote."""
        bases = tuple(Base(**base) for base in values["bases"])
        return cls(**{**values, "bases": bases})


def named_bases(models: Sequence[str]) -> tuple[Base, ...]:
    """The models that a user named: `PATH_OR_NAME` or `ID=PATH_OR_NAME`.

    A path is a folder of Hugging Face's format or a GGUF file; its id is its own name. Raises
    ServerError for an empty list, a bad or repeated id, or a path that does not exist.
    """
    if not models:
        raise ServerError(
            "The lora engine needs a model to start from: name a folder or a model of the hub, "
            "e.g. --model HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    bases = tuple(_named(model) for model in models)
    ids = [base.id for base in bases]
    for id in ids:
        if ids.count(id) > 1:
            raise ServerError(f"Two models are named {id!r}; tell them apart with ID=PATH.")
    return bases


def _named(model: str) -> Base:
    id, _, source = model.rpartition("=")
    path = Path(source).expanduser()
    if path.is_dir():
        base = Base(id=id or path.resolve().name, source=str(path.resolve()))
    elif path.is_file() and path.suffix == ".gguf":
        folder = str(path.resolve().parent)
        base = Base(id=id or path.stem, source=folder, gguf_file=path.name)
    elif source.startswith((".", "/", "~")) or path.exists():
        raise ServerError(
            f"The model {source!r} is neither a folder nor a .gguf file. Name a folder with "
            "config.json and weights, or a model of the hub."
        )
    else:
        base = Base(id=id or source, source=source)
    if not _ID.fullmatch(base.id):
        raise ServerError(
            f"{base.id!r} cannot be a model's id: use letters, digits and . _ / -, "
            "as in --model ID=PATH."
        )
    return base
