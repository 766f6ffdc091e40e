"""Engines: what trains and answers behind the wire. `protocol` says what each must do."""

from __future__ import annotations

from tuneproof_trainer.engines.protocol import Engine
from tuneproof_trainer.errors import ServerError

__all__ = ["make_engine"]


def make_engine(name: str) -> Engine:
    """The engine of this name; raises ServerError if there is none."""
    if name == "ngram":
        from tuneproof_trainer.engines.ngram.engine import NgramEngine

        return NgramEngine()
    raise ServerError(f"There is no engine {name!r}; there is: ngram.")
