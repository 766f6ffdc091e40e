"""One answer in the making: draws its tokens and turns them into text."""

from __future__ import annotations

import random
from typing import Any

from tuneproof_trainer.engines.protocol import Generation, Token

__all__ = ["Draw"]


class Draw:
    """Draws one answer's tokens by its own temperature, top_p and seed.

    Log-probabilities are the model's own, before temperature and top_p, as on the wire.
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], how: Generation) -> None:
        import torch
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stop_ids, self._how = tokenizer, stop_ids, how
        self._random = torch.Generator()
        self._random.manual_seed(random.getrandbits(63) if how.seed is None else how.seed)
        self._stream = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []

    def take(self, logits: Any, room: int) -> list[Token]:
        """The next token, and the end after it if it comes: `room` more fit into the context."""
        logprobs = logits.float().log_softmax(-1)
        number = self._choose(logprobs)
        if number in self._stop_ids:
            return [Token("", finish="stop")]
        self.ids.append(number)
        text = self._stream.step(self._tokenizer.backend_tokenizer, number) or ""
        token = Token(text)
        if self._how.top_logprobs is not None:
            best = self._best(logprobs, self._how.top_logprobs)
            token = Token(text, float(logprobs[number]), best)
        if len(self.ids) >= self._how.max_tokens or room <= 1:
            return [token, Token("", finish="length")]
        return [token]

    def _choose(self, logprobs: Any) -> int:
        import torch

        if self._how.temperature == 0:
            return int(logprobs.argmax())
        shares = (logprobs / self._how.temperature).softmax(-1)
        if self._how.top_p < 1:
            shares = _nucleus(shares, self._how.top_p)
        return int(torch.multinomial(shares, 1, generator=self._random))

    def _best(self, logprobs: Any, count: int) -> tuple[tuple[str, float], ...]:
        if not count:
            return ()
        found = logprobs.topk(count)
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return tuple((self._tokenizer.decode([number]), logprob) for number, logprob in pairs)


def _nucleus(shares: Any, top_p: float) -> Any:
    """The likeliest tokens that together reach `top_p`, and no others."""
    ordered, order = shares.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered[before >= top_p] = 0
    return shares.new_zeros(shares.shape).scatter(0, order, ordered)
