"""POST /v1/chat/completions: plain and streamed, with log-probabilities and scoring.

Beside the original's parameters it takes two of vLLM's. `prompt_logprobs` adds to the answer a
list with one entry for each token of the conversation: null outside the last assistant message,
and `{"<id>": {logprob, rank, decoded_token}}` for each of its tokens and for its end. With
`add_generation_prompt: false` and `max_tokens: 1` that scores a given answer.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Literal

import orjson
from starlette.types import Receive, Send

from tuneproof_trainer.access import Caller
from tuneproof_trainer.engines.protocol import Generation, Message, Token
from tuneproof_trainer.errors import bad_request
from tuneproof_trainer.ids import new_id
from tuneproof_trainer.models import Models, Resolved
from tuneproof_trainer.requests import ChatRequest, parse
from tuneproof_trainer.settings import Settings
from tuneproof_trainer.stops import Cut, cut_at_stops
from tuneproof_trainer.turns import Turns, taking_turns, unless_gone
from tuneproof_trainer.wire import read_body

__all__ = ["Chat"]

_DEFAULT_TOKENS = 1024


class Chat:
    """The route, as a plain ASGI function: it is the hot one."""

    def __init__(self, settings: Settings, models: Models, clock: Callable[[], float]) -> None:
        self._settings, self._models, self._clock = settings, models, clock
        self._turns = Turns(settings.answers_at_once, settings.answers_waiting)

    async def __call__(self, caller: Caller, receive: Receive, send: Send) -> None:
        """Answer one request, for as long as its client is there."""
        asked = parse(ChatRequest, await read_body(receive))
        model = self._models.resolve(caller.org, asked.model)
        how, stops = self._how(asked)
        answer = _Answer(asked, model, how, stops, int(self._clock()), self._turns)
        await unless_gone(receive, self._answered(answer, model, send))

    async def _answered(self, answer: _Answer, model: Resolved, send: Send) -> None:
        async with self._turns.place():
            await self._models.ready(model)
            await answer.send(send)

    def close(self) -> None:
        """Make no more answers."""
        self._turns.close()

    def _how(self, asked: ChatRequest) -> tuple[Generation, tuple[str, ...]]:
        """The way to generate; raises ApiError 400 for what cannot be done here."""
        _refuse_unsupported(asked)
        limit = asked.max_completion_tokens
        limit = asked.max_tokens if limit is None else limit
        most = self._settings.max_answer_tokens
        if limit is not None and limit > most:
            raise bad_request(
                f"max_tokens is too large: {limit}. This model supports at most {most} completion "
                "tokens.",
                "max_tokens",
                "invalid_value",
            )
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        how = Generation(
            max_tokens=min(_DEFAULT_TOKENS, most) if limit is None else limit,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )
        return how, tuple(stop for stop in stops if stop)


def _refuse_unsupported(asked: ChatRequest) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise bad_request(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            "top_logprobs",
            "invalid_value",
        )
    if asked.stream_options is not None and not asked.stream:
        raise bad_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(asked, name):
            raise bad_request(
                f"'{name}' is not supported by the models of this server; leave it out or send 0.",
                name,
                "unsupported_parameter",
            )
    if asked.prompt_logprobs is not None and asked.stream:
        raise bad_request(
            "'prompt_logprobs' is not available when 'stream' is enabled.",
            "prompt_logprobs",
            "invalid_value",
        )


class _Answer:
    """One answer in the making."""

    def __init__(
        self,
        asked: ChatRequest,
        model: Resolved,
        how: Generation,
        stops: tuple[str, ...],
        now: int,
        turns: Turns,
    ) -> None:
        self._asked, self._model, self._how, self._stops = asked, model, how, stops
        self._engine, self._turns = model.engine, turns
        self._messages = [Message(role=m.role, content=m.text()) for m in asked.messages]
        self._head = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion",
            "created": now,
            "model": model.id,
            "service_tier": "default",
            "system_fingerprint": f"fp_{zlib.crc32(model.id.encode()):08x}",
        }

    def _way(self, choice: int) -> Generation:
        how = self._how
        seed = None if how.seed is None else how.seed + choice * 1_000_003
        return Generation(
            max_tokens=how.max_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=seed,
            top_logprobs=how.top_logprobs,
        )

    def _pieces(self, choice: int) -> Generator[Cut, None, None]:
        tokens = self._engine.generate(self._model.id, self._messages, self._way(choice))
        return cut_at_stops(tokens, self._stops)

    @contextlib.asynccontextmanager
    async def _cuts(self, choice: int) -> AsyncIterator[AsyncIterator[Cut]]:
        """The pieces of one choice; the engine stops making them when they are left."""
        if self._engine.quick:
            yield taking_turns(self._pieces(choice))
            return
        made = self._turns.in_threads(lambda: self._pieces(choice))
        async with contextlib.aclosing(made) as cuts:
            yield cuts

    def _usage(self, completion_tokens: int) -> dict[str, Any]:
        prompt = sum(self._engine.count_tokens(m.content) for m in self._messages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
            "prompt_tokens_details": {
                "audio_tokens": 0,
                "cache_write_tokens": 0,
                "cached_tokens": 0,
                "image_tokens": 0,
                "text_tokens": prompt,
            },
            "completion_tokens_details": {
                "text_tokens": completion_tokens,
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    async def send(self, send: Send) -> None:
        """Make the answer and send it, whole or as it is made."""
        if self._asked.stream:
            await self._stream(send)
        else:
            await _send_json(send, await self._whole())

    # -- plain ------------------------------------------------------------------------------

    async def _whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = []
        spent = 0
        for number in range(self._asked.n or 1):
            choice, count = await self._choice(number)
            choices.append(choice)
            spent += count
        answer = self._head | {
            "choices": choices,
            "usage": self._usage(spent),
            "metadata": self._asked.metadata,
            "moderation": None,
        }
        if self._asked.prompt_logprobs is not None:
            answer["prompt_logprobs"] = await self._scored()
        return answer

    async def _choice(self, number: int) -> tuple[dict[str, Any], int]:
        text: list[str] = []
        said: list[dict[str, Any]] = []
        count = 0
        finish: Literal["stop", "length"] = "length"
        async with self._cuts(number) as cuts:
            async for cut in cuts:
                text.append(cut.text)
                said += [_logprob(token) for token in cut.tokens if token.logprob is not None]
                count += len(cut.tokens)
                finish = cut.finish or finish
        choice = {
            "index": number,
            "message": {
                "role": "assistant",
                "content": "".join(text),
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
            },
            "logprobs": {"content": said, "refusal": None} if self._asked.logprobs else None,
            "finish_reason": finish,
        }
        return choice, count

    async def _scored(self) -> list[dict[str, Any] | None]:
        score = self._engine.score
        if self._engine.quick:
            scores = score(self._model.id, self._messages)
        else:
            scores = await self._turns.run(score, self._model.id, self._messages)
        return [
            None
            if s.logprob is None
            else {str(s.id): {"logprob": s.logprob, "rank": s.rank, "decoded_token": s.text}}
            for s in scores
        ]

    # -- streamed ---------------------------------------------------------------------------

    async def _stream(self, send: Send) -> None:
        """The answer as server-sent events."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        spent = 0
        for number in range(self._asked.n or 1):
            delta = {"role": "assistant", "content": "", "refusal": None}
            await self._send_chunk(send, number, delta)
            spent += await self._stream_choice(send, number)
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            await _send_event(send, self._chunk([], self._usage(spent)))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _stream_choice(self, send: Send, number: int) -> int:
        count = 0
        async with self._cuts(number) as cuts:
            async for cut in cuts:
                count += len(cut.tokens)
                if cut.text:
                    said = [_logprob(t) for t in cut.tokens] if self._asked.logprobs else None
                    await self._send_chunk(send, number, {"content": cut.text}, said)
                if cut.finish:
                    await self._send_chunk(send, number, {}, finish=cut.finish)
        return count

    async def _send_chunk(
        self,
        send: Send,
        number: int,
        delta: dict[str, Any],
        said: list[dict[str, Any]] | None = None,
        finish: str | None = None,
    ) -> None:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": {"content": said, "refusal": None} if said is not None else None,
            "finish_reason": finish,
        }
        await _send_event(send, self._chunk([choice], None))

    def _chunk(
        self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        chunk = self._head | {
            "object": "chat.completion.chunk",
            "choices": choices,
            "moderation": None,
        }
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            chunk["usage"] = usage
        return chunk


def _logprob(token: Token) -> dict[str, Any]:
    def shown(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    top = [shown(text, logprob) for text, logprob in token.top]
    return shown(token.text, token.logprob) | {"top_logprobs": top}


async def _send_json(send: Send, content: dict[str, Any]) -> None:
    body = orjson.dumps(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_event(send: Send, content: dict[str, Any]) -> None:
    body = b"data: " + orjson.dumps(content) + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})
