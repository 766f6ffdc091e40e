"""Calls that are paid from one purse: what each costs at most is taken before it is made.

So a kill leaves no call uncounted, and whoever goes on later spends no more than there was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from tuneproof.errors import (
    BudgetExceededError,
    CircuitBreakerError,
    CredentialsError,
    NotDeployedError,
    QuotaExhaustedError,
    RateLimitedError,
)
from tuneproof.evaluation.scorers import Messages, Scored, Scorer, ask, failed_usd, most_usd
from tuneproof.training import Answers, Completion, Price, Score

__all__ = ["MOST_TOKENS", "Paid", "Purse", "paid"]

MOST_TOKENS: Final = 1_024
"""How long an answer may be where nothing else is said of it."""

TEMPLATE_BYTES: Final = 64
"""What a chat template adds to each message, at most."""

_UNBILLED: Final = (
    CircuitBreakerError,
    CredentialsError,
    NotDeployedError,
    QuotaExhaustedError,
    RateLimitedError,
)
"""Who answers so has made nothing, and bills nothing."""


class Purse(Protocol):
    """A budget in USD that outlives this process."""

    async def take(self, usd: float) -> bool:
        """Take what a call may cost; False where there is less."""

    async def settle(self, taken_usd: float, cost_usd: float) -> None:
        """Put what the call did cost in place of what was taken."""


class Paid:
    """Whoever answers, paid for each answer. Raises `BudgetExceededError` before one that the
    purse may not bear."""

    def __init__(self, answers: Answers, price: Price, purse: Purse) -> None:
        self.name = answers.name
        self._answers = answers
        self._price = price
        self._purse = purse

    async def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Sequence[Completion]:
        """As the provider's, of `MOST_TOKENS` where the caller does not say how many."""
        longest = max_tokens or MOST_TOKENS
        size = _bytes(messages) + len(json.dumps(dict(parameters or {})))
        most = self._price.request_usd(prompt_tokens=size, completion_tokens=n * longest)
        await _take(self._purse, most)
        try:
            found = await self._answers.complete(
                model,
                messages,
                n=n,
                max_tokens=longest,
                temperature=temperature,
                seed=seed,
                timeout_s=timeout_s,
                **({"parameters": parameters} if parameters else {}),
            )
        except _UNBILLED:
            await self._purse.settle(most, 0.0)
            raise
        cost = self._price.request_usd(
            prompt_tokens=sum(one.prompt_tokens for one in found),
            completion_tokens=sum(one.completion_tokens for one in found),
        )
        await self._purse.settle(most, cost or most)  # who tells no tokens is paid the most
        return found

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """As the provider's; it is paid for the tokens that it reads."""
        most = self._price.request_usd(prompt_tokens=_bytes(messages), completion_tokens=1)
        await _take(self._purse, most)
        return await self._answers.score(model, messages, timeout_s=timeout_s)


def paid(scorer: Scorer, purse: Purse) -> Scorer:
    """This scorer, paid before each score: what it says that one costs at most, else what the
    dearest has cost until now."""
    dearest = 0.0

    async def score(messages: Messages, text: str) -> Scored:
        nonlocal dearest
        most = most_usd(scorer, messages, text) or dearest
        await _take(purse, most)
        try:
            found = await ask(scorer, messages, text)
        except _UNBILLED:
            await purse.settle(most, 0.0)
            raise
        except Exception as error:
            await purse.settle(most, failed_usd(error, most))
            raise
        await purse.settle(most, found.cost_usd)
        dearest = max(dearest, found.cost_usd)
        return found

    return score


async def _take(purse: Purse, usd: float) -> None:
    if not await purse.take(usd):
        raise BudgetExceededError(
            f"The budget has no room for a call of up to {usd:.6f} USD.",
            mend="Raise budget_usd of the recipe.",
        )


def _bytes(messages: Sequence[Mapping[str, str]]) -> int:
    """At least as many as the tokens of a chat."""
    said = sum(len(str(one.get("content", "")).encode(errors="replace")) for one in messages)
    return said + TEMPLATE_BYTES * len(messages)
