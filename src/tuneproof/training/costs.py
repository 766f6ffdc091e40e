"""What training costs: tokens counted before, priced by a dated table, recorded after.

A provider bills tokens × epochs, and some the validation file, too. Tokens are counted by
`rs-bpe` (extra `[tokens]`; the encoding o200k_base, which is OpenAI's; other models' counts
differ by some percent). Without it they are estimated at four UTF-8 bytes each, which errs on
the high side for English prose: on headlines and their bodies by 11 and 15 % against
o200k_base. Each message adds `MESSAGE_TOKENS` for its role and separators.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tuneproof.errors import DataError

MESSAGE_TOKENS = 4
"""What a chat template adds to each message, about: role, start and end."""

BYTES_A_TOKEN = 4
"""UTF-8 bytes of one token, where nothing counts them."""

AUTO_EPOCHS = 3
"""Assumed where neither the settings nor the price table know how many epochs "auto" is."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """USD per million tokens, as a page said on a day. None: that page names no such price.

    `auto_epochs` is how many epochs the provider trains when it may choose; `evaluations` how
    often the tokens of the validation file are billed as if they were trained.
    """

    training: float | None = None
    prompt: float | None = None
    completion: float | None = None
    source: str = ""
    as_of: str = ""
    auto_epochs: int = AUTO_EPOCHS
    evaluations: int = 0

    def request_usd(self, *, prompt_tokens: int, completion_tokens: int) -> float:
        """What one request costs; a price that is not known counts as nothing."""
        usd = (self.prompt or 0.0) * prompt_tokens + (self.completion or 0.0) * completion_tokens
        return usd / 1e6


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a job will cost. `cost_usd` is None where its training has no known price.

    `trained_tokens` = tokens of the training file × epochs + `evaluated_tokens`, those of the
    validation file where they are billed; `counted` says whether tokens were counted or
    estimated from bytes.
    """

    tokens: int
    epochs: int
    trained_tokens: int
    cost_usd: float | None
    counted: bool
    evaluated_tokens: int = 0
    price_source: str = ""
    price_as_of: str = ""


def estimate_training(
    path: Path,
    price: Price | None,
    *,
    n_epochs: int | str = "auto",
    validation: Path | None = None,
) -> CostEstimate:
    """What training on this file will cost. Raises `DataError` for a file that is no JSONL."""
    tokens, counted = count_file(path)
    chosen = price.auto_epochs if price else AUTO_EPOCHS
    epochs = n_epochs if isinstance(n_epochs, int) else chosen
    evaluated = 0
    if price is not None and price.evaluations and validation is not None:
        evaluated = price.evaluations * count_file(validation)[0]
    trained = tokens * epochs + evaluated
    return CostEstimate(
        tokens=tokens,
        epochs=epochs,
        trained_tokens=trained,
        cost_usd=cost_of_training(trained, price),
        counted=counted,
        evaluated_tokens=evaluated,
        price_source=price.source if price else "",
        price_as_of=price.as_of if price else "",
    )


def cost_of_training(trained_tokens: int | None, price: Price | None) -> float | None:
    """USD for this many trained tokens, to the micro-USD; None where either is unknown."""
    if trained_tokens is None or price is None or price.training is None:
        return None
    return round(trained_tokens * price.training / 1e6, 6)


def count_file(path: Path) -> tuple[int, bool]:
    """The tokens of a training file, and whether they were counted or estimated from bytes."""
    count = _counter()
    tokens = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                for text in _texts(_parsed(path, number, line)):
                    tokens += MESSAGE_TOKENS
                    tokens += count(text) if count else -(-len(text.encode()) // BYTES_A_TOKEN)
    except OSError as e:
        raise DataError(
            f"The training file {path} cannot be read: {e.strerror}.",
            mend="Retry the run from its collection; it builds the file again.",
        ) from e
    return tokens, count is not None


def count_messages(messages: Iterable[Mapping[str, str]]) -> int:
    """The tokens of a chat, counted or estimated from bytes."""
    count = _counter()
    return sum(
        MESSAGE_TOKENS + (count(text) if count else -(-len(text.encode()) // BYTES_A_TOKEN))
        for text in (message["content"] for message in messages)
    )


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError as e:
        raise DataError(
            f"Line {number} of {path} is no JSON: {e}.",
            mend="Retry the run from its collection; it builds the file again.",
        ) from e
    return parsed if isinstance(parsed, dict) else {}


def _texts(line: dict[str, Any]) -> Iterator[str]:
    """The texts of a supervised line, or of a preference line: its request counts twice."""
    if "messages" in line:
        yield from _contents(line["messages"])
        return
    prompt = list(_contents(line.get("input", {}).get("messages", [])))
    for side in ("preferred_output", "non_preferred_output"):
        yield from prompt
        yield from _contents(line.get(side, []))


def _contents(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        yield str(message.get("content") or "")


@cache
def _counter() -> Callable[[str], int] | None:
    try:
        from rs_bpe import openai
    except ImportError:
        return None
    encoding = openai.o200k_base()
    count: Callable[[str], int] = encoding.count
    return count
