"""Who trains and answers: adapters of `tuneproof.training.Provider`.

OpenAI's wire (`openai_wire`), which several servers speak, whose differences are data
(`dialects`); and the wires of Together and Fireworks. `opening` makes the adapter that a
`ProviderConfig` describes, `prices` is a dated table of what they charge, `webhooks` checks
what they send. Knows no stage, no store and no settings file.
"""

from __future__ import annotations

from tuneproof.providers.dialects import DIALECTS, NATIVE, Dialect, dialect_for
from tuneproof.providers.fireworks import Fireworks
from tuneproof.providers.http import Breaker
from tuneproof.providers.openai_wire import OpenAIWire
from tuneproof.providers.opening import (
    Endpoint,
    address,
    callable_at,
    chat_address,
    default_price,
    key_header,
    length_field,
    open_provider,
    takes_n,
)
from tuneproof.providers.prices import price_of
from tuneproof.providers.together import Together
from tuneproof.providers.webhooks import JobEnded, read_webhook

__all__ = [
    "DIALECTS",
    "NATIVE",
    "Breaker",
    "Dialect",
    "Endpoint",
    "Fireworks",
    "JobEnded",
    "OpenAIWire",
    "Together",
    "address",
    "callable_at",
    "chat_address",
    "default_price",
    "dialect_for",
    "key_header",
    "length_field",
    "open_provider",
    "price_of",
    "read_webhook",
    "takes_n",
]
