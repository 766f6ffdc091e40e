"""Who trains and answers: adapters of `tuneproof.training.Provider`.

One wire so far, OpenAI's, which several servers speak; what differs between those servers is
data (`dialects.py`). Knows no stage, no store and no settings file: `open_provider` takes what
it needs from a `ProviderConfig`.
"""

from __future__ import annotations

from tuneproof.providers.dialects import DIALECTS, Dialect, dialect_for
from tuneproof.providers.openai_wire import Breaker, Endpoint, OpenAIWire, open_provider

__all__ = [
    "DIALECTS",
    "Breaker",
    "Dialect",
    "Endpoint",
    "OpenAIWire",
    "dialect_for",
    "open_provider",
]
