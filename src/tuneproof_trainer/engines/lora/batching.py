"""Answers of one base model and its adapters, several at a time, from one thread.

Requests for the same model form a batch. While others wait, a batch is broken off after a slice
of tokens; whatever is unfinished then goes on in a new batch together with what has come in. So
nobody waits for a long answer to end, and the event loop waits for nothing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from tuneproof_trainer.engines.lora.conversations import Encoded
from tuneproof_trainer.engines.lora.measures import answer_logits, mean_states
from tuneproof_trainer.engines.lora.sampling import Draw
from tuneproof_trainer.engines.protocol import EngineError, Token

__all__ = ["Batcher"]

_T = TypeVar("_T")
_AT_ONCE = 16
_SLICE = 32
"""Tokens that a batch makes before those who wait are let in."""

Use = Callable[[str], contextlib.AbstractContextManager[Any]]
"""Gives the network with the adapter of this model switched on."""


class _Request:
    """A prompt, and where its tokens go."""

    def __init__(self, model: str, prompt: Sequence[int], draw: Draw, limit: int) -> None:
        self.model, self.prompt, self.draw, self.limit = model, prompt, draw, limit
        self.out: queue.SimpleQueue[Token | Exception] = queue.SimpleQueue()
        self.over = False
        """Whether no more tokens are wanted."""

        self.exhausted = False
        """Whether its last token was taken."""

    def ids(self) -> list[int]:
        """The prompt and what was said so far."""
        return [*self.prompt, *self.draw.ids]

    def take(self, logits: Any) -> None:
        """One more token."""
        room = self.limit - len(self.prompt) - len(self.draw.ids)
        for token in self.draw.take(logits, room):
            self.out.put(token)
            self.over = self.over or token.finish is not None

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.over = True
        self.out.put(error)


class _Answer:
    """The tokens of a request as they are made. Nobody who waits for it any more ends it."""

    def __init__(self, request: _Request) -> None:
        self._request = request

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        if self._request.exhausted:
            raise StopIteration
        token = self._request.out.get()
        if isinstance(token, Exception):
            self._request.exhausted = True
            raise token
        self._request.exhausted = token.finish is not None
        return token

    def __del__(self) -> None:
        self._request.over = True


class Batcher:
    """Runs what is asked for, in one thread of its own, until it is closed."""

    def __init__(self, use: Use, padding: int, limit: int) -> None:
        self._use, self._padding, self._limit = use, padding, limit
        self._waiting: deque[_Request] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lora-answers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; what still waits fails."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def answer(self, model: str, prompt: Sequence[int], draw: Draw) -> Iterator[Token]:
        """The tokens of one answer as they are made; it is in line when this returns.

        Raises EngineError `context_length_exceeded` for a prompt that leaves no room.
        """
        self._check(prompt, "messages", "the messages have")
        request = _Request(model, prompt, draw, self._limit)
        with self._news:
            self._waiting.append(request)
            self._news.notify()
        return _Answer(request)

    def score(self, model: str, encoded: Encoded) -> list[tuple[float, int]]:
        """(log-probability, rank) of each learned token."""

        def work() -> list[tuple[float, int]]:
            with self._use(model) as network:
                return _scores(network, encoded)

        return self.call(work)

    def embed(self, model: str, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Each row's mean state, of length 1; answers get their turns in between.

        Raises EngineError `context_length_exceeded` for a row that leaves no room.
        """
        for row in rows:
            self._check(row, "input", "a text has")
        found: dict[int, list[float]] = {}
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]

            def work(batch: Sequence[Sequence[int]]) -> list[list[float]]:
                with self._use(model) as network:
                    return mean_states(network, batch)

            vectors = self.call(partial(work, [rows[place] for place in places]))
            found.update(zip(places, vectors, strict=True))
        return [found[place] for place in range(len(rows))]

    def _check(self, ids: Sequence[int], param: str, has: str) -> None:
        if not ids:
            raise EngineError("invalid_value", "A text without a token has no vector.", param)
        if len(ids) >= self._limit:
            raise EngineError(
                "context_length_exceeded",
                f"This model's maximum context length is {self._limit} tokens; {has} {len(ids)}. "
                "Shorten them.",
                param,
            )

    def call(self, work: Callable[[], _T]) -> _T:
        """Do something between two slices, when nothing else uses the network."""
        done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def run_work() -> None:
            try:
                done.put((True, work()))
            except Exception as error:
                done.put((False, error))

        with self._news:
            self._calls.append(run_work)
            self._news.notify()
        went_well, result = done.get()
        if not went_well:
            raise result
        return result  # type: ignore[no-any-return]

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._calls or self._waiting)
                if self._closed:
                    break
                calls, self._calls = self._calls, deque()
                batch = self._next_batch()
            for call in calls:
                call()
            if batch:
                self._slice(batch)
        for request in self._waiting:
            request.fail(EngineError("server_error", "The server stops."))

    def _next_batch(self) -> list[_Request]:
        """The oldest request and others for the same model, taken from those that wait."""
        living = [request for request in self._waiting if not request.over]
        batch = [r for r in living if r.model == living[0].model][:_AT_ONCE]
        self._waiting = deque(request for request in living if request not in batch)
        return batch

    def _slice(self, batch: list[_Request]) -> None:
        try:
            with self._use(batch[0].model) as network:
                self._advance(network, batch)
        except Exception as error:
            for request in batch:
                request.fail(_explained(error))
        with self._news:
            self._waiting.extend(request for request in batch if not request.over)

    def _advance(self, network: Any, batch: list[_Request]) -> None:
        import torch

        rows = [request.ids() for request in batch]
        longest = max(len(row) for row in rows)
        lengths = torch.tensor([len(row) for row in rows], device=network.device)
        ids = torch.tensor(
            [[self._padding] * (longest - len(row)) + row for row in rows], device=network.device
        )
        places = torch.arange(longest, device=network.device)
        mask = (places >= (longest - lengths)[:, None]).long()
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        cache, made = None, 0
        with torch.inference_mode():
            while not self._due(batch, made):
                output = network(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=position,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = output.past_key_values
                ids = self._next_ids(batch, output.logits[:, -1].cpu()).to(network.device)
                mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
                position = position[:, -1:] + 1
                made += 1

    def _next_ids(self, batch: list[_Request], logits: Any) -> Any:
        import torch

        for request, row in zip(batch, logits, strict=True):
            if not request.over:
                request.take(row)
        last = [r.draw.ids[-1] if r.draw.ids else self._padding for r in batch]
        return torch.tensor(last)[:, None]

    def _due(self, batch: list[_Request], made: int) -> bool:
        """Whether the batch is to end here: all are over, or others wait, or it is half empty."""
        over = sum(request.over for request in batch)
        if over == len(batch) or self._closed:
            return True
        if made < _SLICE:
            return False
        return bool(self._waiting or self._calls) or 2 * over >= len(batch)


def _scores(network: Any, encoded: Encoded) -> list[tuple[float, int]]:
    (logprobs, learned), *_ = answer_logits(network, [encoded])
    own = logprobs.gather(1, learned[:, None])
    ranks = (logprobs > own).sum(-1) + 1
    return list(zip(own[:, 0].tolist(), ranks.tolist(), strict=True))


def _explained(error: Exception) -> Exception:
    if "out of memory" in str(error) or "can't allocate memory" in str(error):
        return EngineError("out_of_memory", "The server ran out of memory; try again later.")
    return error
