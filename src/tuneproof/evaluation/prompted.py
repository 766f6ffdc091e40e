"""A model asked by another prompt: held-out inputs, that one prompt made, as another asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuneproof.prompts import Prompt
from tuneproof.training import Answers, Completion, Score

__all__ = ["Prompted"]


class Prompted:
    """Whoever answers, asked by `prompt` with its parameters, as users would be answered.

    Messages are given as `made_by` made them. What a caller says of an answer holds where the
    prompt's parameters do not say it.
    """

    def __init__(self, answers: Answers, prompt: Prompt, made_by: Prompt) -> None:
        self.name = answers.name
        self._answers = answers
        self._prompt = prompt
        self._made_by = made_by

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
        """As the provider's. Raises `InputError` for messages that the prompt did not make."""
        said = {**(parameters or {}), **self._prompt.parameters}
        return await self._answers.complete(
            model,
            self._asked(messages),
            n=n,
            max_tokens=said.pop("max_tokens", max_tokens),
            temperature=said.pop("temperature", temperature),
            seed=seed,
            timeout_s=timeout_s,
            parameters=said or None,
        )

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """As the provider's, of the last message."""
        asked = [*self._asked(messages[:-1]), messages[-1]]
        return await self._answers.score(model, asked, timeout_s=timeout_s)

    def _asked(self, messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
        if self._prompt.messages == self._made_by.messages:
            return messages
        return self._prompt.render(self._made_by.values_of(messages))
