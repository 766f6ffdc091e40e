"""What providers charge, as their pages said: a dated table of defaults.

Prices change without notice, so each row names the page that publishes it and the month for
which the figure is known; the settings' own (`[providers.NAME.prices]` and `training_prices`)
go before. A model that no row knows has no price: then nothing is estimated, and a pipeline
with a budget refuses to train until one is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tuneproof.training import Price, size_b

_OPENAI = "https://developers.openai.com/api/docs/pricing"
_TOGETHER = "https://www.together.ai/pricing"
_FIREWORKS = "https://fireworks.ai/pricing"

DPO = "dpo"


def _openai(training: float | None, answers: tuple[float, float]) -> Price:
    prompt, completion = answers
    return Price(
        training=training,
        prompt=prompt,
        completion=completion,
        source=_OPENAI,
        as_of="2026-03" if training is None else "2025-07",
    )


OPENAI_TUNED: Mapping[str, Price] = MappingProxyType(
    {
        "gpt-4.1-nano": _openai(1.50, (0.20, 0.80)),
        "gpt-4.1-mini": _openai(5.00, (0.80, 3.20)),
        "gpt-4.1": _openai(25.00, (3.00, 12.00)),
        "gpt-4o-mini": _openai(3.00, (0.30, 1.20)),
        "gpt-4o": _openai(25.00, (3.75, 15.00)),
        "gpt-3.5-turbo": _openai(8.00, (3.00, 6.00)),
    }
)
"""OpenAI's fine-tunes by the prefix of their base: training, and answers of the fine-tune."""

OPENAI_BASE: Mapping[str, Price] = MappingProxyType(
    {
        "gpt-4.1-nano": _openai(None, (0.10, 0.40)),
        "gpt-4.1-mini": _openai(None, (0.40, 1.60)),
        "gpt-4.1": _openai(None, (2.00, 8.00)),
        "gpt-4o-mini": _openai(None, (0.15, 0.60)),
        "gpt-4o": _openai(None, (2.50, 10.00)),
        "gpt-3.5-turbo": _openai(None, (0.50, 1.50)),
    }
)
"""Answers of OpenAI's base models."""


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """What training costs up to a size of model: USD per million tokens, LoRA."""

    up_to_b: float
    supervised: float
    dpo: float


TOGETHER: tuple[Bracket, ...] = (
    Bracket(up_to_b=16, supervised=0.48, dpo=1.20),
    Bracket(up_to_b=69, supervised=1.50, dpo=3.75),
    Bracket(up_to_b=100, supervised=2.90, dpo=7.25),
)
"""Together, LoRA. Billed for (epochs × training + evaluations × validation) tokens."""

FIREWORKS: tuple[Bracket, ...] = (
    Bracket(up_to_b=16, supervised=0.50, dpo=1.00),
    Bracket(up_to_b=80, supervised=3.00, dpo=6.00),
    Bracket(up_to_b=300, supervised=6.00, dpo=12.00),
    Bracket(up_to_b=10_000, supervised=10.00, dpo=20.00),
)
"""Fireworks, LoRA. A fine-tune is served on hardware of your own, billed by the second."""

AUTO_EPOCHS: Mapping[str, int] = MappingProxyType({"together": 1, "fireworks": 1, "openai": 3})
"""How many epochs a provider trains where it may choose, as its reference says; OpenAI's
choice depends on the file and is 3 for some hundred examples."""


def price_of(vendor: str, model: str, method: str = "supervised") -> Price | None:
    """The default price of a model at a vendor (`openai`, `azure`, `together`, `fireworks`).

    Our own trainer (`trainer`) costs nothing. None where no row knows the model.
    """
    if vendor == "trainer":
        return Price(training=0.0, prompt=0.0, completion=0.0, source="your own machine")
    if vendor in ("openai", "azure"):
        table = OPENAI_TUNED if model.startswith("ft:") or method != "answers" else OPENAI_BASE
        return _by_prefix(table, model.removeprefix("ft:"))
    if vendor in ("together", "fireworks"):
        return _by_size(vendor, model, method)
    return None


def _by_prefix(table: Mapping[str, Price], model: str) -> Price | None:
    found = [prefix for prefix in table if model.startswith(prefix)]
    return table[max(found, key=len)] if found else None


def _by_size(vendor: str, model: str, method: str) -> Price | None:
    size = size_b(model)
    brackets = TOGETHER if vendor == "together" else FIREWORKS
    bracket = next((b for b in brackets if size is not None and size <= b.up_to_b), None)
    if bracket is None:
        return None
    return Price(
        training=bracket.dpo if method == DPO else bracket.supervised,
        source=_TOGETHER if vendor == "together" else _FIREWORKS,
        as_of="2025-11",
        auto_epochs=AUTO_EPOCHS[vendor],
        evaluations=1 if vendor == "together" else 0,  # `n_evals` of our jobs
    )
