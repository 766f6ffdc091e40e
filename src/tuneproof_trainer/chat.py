"""POST /v1/chat/completions: plain and streamed, with log-probabilities and scoring.

Beside the original's parameters it takes two of vLLM's. `prompt_logprobs` adds to the answer a
list with one entry for each token of the conversation: null outside the last assistant message,
and `{"<id>": {logprob, rank, decoded_token}}` for each of its tokens and for its end. With
`add_generation_prompt: false` and `max_tokens: 1` that scores a given answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, cast

import orjson
from starlette.types import Receive, Send

from tuneproof_trainer.access import ApiCaller
from tuneproof_trainer.answers import (
    AnswerMessage,
    ChatCompletion,
    ChoiceObject,
    FinishReason,
    Logprob,
    PromptLogprob,
    TokenLogprob,
    TokenUsage,
)
from tuneproof_trainer.bounded import loads
from tuneproof_trainer.completions import CompletionStore
from tuneproof_trainer.engines.protocol import (
    CallingEngine,
    Generation,
    Message,
    Token,
    ToolCall,
)
from tuneproof_trainer.errors import bad_request
from tuneproof_trainer.features import needs_relay, refuse_unsupported, tools_of, uses_tools
from tuneproof_trainer.ids import new_id
from tuneproof_trainer.models import Models, Resolved
from tuneproof_trainer.parsing import parse
from tuneproof_trainer.relaying import RelayedAnswer, relay_of
from tuneproof_trainer.requests import ChatMessage, ChatRequest
from tuneproof_trainer.settings import TrainerSettings
from tuneproof_trainer.stops import Cut, cut_at_stops
from tuneproof_trainer.toolcalls import calls_of, texts_of, wire_calls
from tuneproof_trainer.turns import Turns, taking_turns, unless_gone

__all__ = ["Chat"]

_DEFAULT_TOKENS = 1024
_LEAST_TOP_P = 1e-9
"""The likeliest token is always among those that are drawn from."""

_SERVICE_TIER = "default"
Keep = Callable[[ChatCompletion], Awaitable[None]]


class Chat:
    """The route, as a plain ASGI function: it is the hot one."""

    def __init__(
        self,
        settings: TrainerSettings,
        models: Models,
        completions: CompletionStore,
        turns: Turns,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._models, self._clock = settings, models, clock
        self._completions, self._turns = completions, turns

    async def __call__(self, caller: ApiCaller, body: bytes, receive: Receive, send: Send) -> None:
        """Answer one request, for as long as its client is there."""
        request = parse(ChatRequest, body)
        model = self._models.resolve(caller.org, request.model)
        relay = relay_of(model.engine) if needs_relay(request) else None
        calls = relay is None and isinstance(model.engine, CallingEngine)
        refuse_unsupported(request, relayed=relay is not None, calls=calls)
        keep = self._keeper(caller.org, request)
        answer: _Answer | RelayedAnswer
        if relay is not None:
            answer = RelayedAnswer(relay, model.id, loads(body), self._turns, keep)
        else:
            generation, stops = self._generation(request)
            now = int(self._clock())
            answer = _Answer(request, model, generation, stops, now, self._turns, keep)
        await unless_gone(receive, self._make(answer, model, send))

    def _keeper(self, org: str, request: ChatRequest) -> Keep | None:
        """What keeps the answer, if it is to be kept."""
        policy = self._settings.keep_completions
        if policy == "all" or (policy == "asked" and request.store):
            return partial(self._completions.keep, org, request)
        return None

    async def _make(self, answer: _Answer | RelayedAnswer, model: Resolved, send: Send) -> None:
        async with self._turns.place():
            await self._models.ready(model)
            if isinstance(answer, _Answer) and answer.calls:
                await self._turns.run(cast(CallingEngine, model.engine).ensure_calls, model.id)
            await answer.send(send)

    def _generation(self, request: ChatRequest) -> tuple[Generation, tuple[str, ...]]:
        """The way to generate; raises ApiError 400 for what cannot be done here."""
        _refuse_contradictions(request)
        limit = request.max_completion_tokens
        limit = request.max_tokens if limit is None else limit
        most = self._settings.max_answer_tokens
        if limit is not None and limit > most:
            raise bad_request(
                f"max_tokens is too large: {limit}. This model supports at most {most} completion "
                "tokens.",
                "max_tokens",
                "invalid_value",
            )
        stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        generation = Generation(
            max_tokens=min(_DEFAULT_TOKENS, most) if limit is None else limit,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else max(request.top_p, _LEAST_TOP_P),
            seed=request.seed,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            tools=tools_of(request),
        )
        return generation, tuple(stop for stop in stops if stop)


def _refuse_contradictions(request: ChatRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        raise bad_request(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            "top_logprobs",
            "invalid_value",
        )
    if request.stream_options and request.stream_options.include_usage and not request.stream:
        raise bad_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )
    if request.prompt_logprobs is not None and request.stream:
        raise bad_request(
            "'prompt_logprobs' is not available when 'stream' is enabled.",
            "prompt_logprobs",
            "invalid_value",
        )


class _Answer:
    """One answer in the making."""

    def __init__(
        self,
        request: ChatRequest,
        model: Resolved,
        generation: Generation,
        stops: tuple[str, ...],
        now: int,
        turns: Turns,
        keep: Keep | None,
    ) -> None:
        self._request, self._model, self._keep = request, model, keep
        self._generation, self._stops = generation, stops
        self._engine, self._turns = model.engine, turns
        self._messages = _messages(request.messages)
        self.calls = uses_tools(request)
        self._id, self._created = new_id("chatcmpl-"), now
        self._fingerprint = f"fp_{zlib.crc32(model.id.encode()):08x}"

    def _of_choice(self, choice: int) -> Generation:
        """The way to generate one choice: each has a seed of its own."""
        seed = self._generation.seed
        if seed is None:
            return self._generation
        return dataclasses.replace(self._generation, seed=seed + choice * 1_000_003)

    def _pieces(self, choice: int) -> Generator[Cut, None, None]:
        tokens = self._engine.generate(self._model.id, self._messages, self._of_choice(choice))
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

    def _usage(self, completion_tokens: int) -> TokenUsage:
        said = [t for m in self._messages for t in (m.content, *texts_of(m.tool_calls))]
        said += [orjson.dumps(tool).decode() for tool in self._generation.tools]
        prompt = sum(map(self._engine.count_tokens, said))
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
        if self._request.stream:
            await self._stream(send)
        else:
            whole = await self._whole()
            await self._kept(whole)
            await _send_json(send, whole)

    async def _kept(self, completion: ChatCompletion) -> None:
        if self._keep is not None:
            await self._keep(completion)

    # -- plain ------------------------------------------------------------------------------

    async def _whole(self) -> ChatCompletion:
        """The answer as one object."""
        choices = []
        spent = 0
        for number in range(self._request.n or 1):
            choice, count = await self._choice(number)
            choices.append(choice)
            spent += count
        completion = self._completion(choices, spent)
        if self._request.prompt_logprobs is not None:
            completion["prompt_logprobs"] = await self._scored()
        return completion

    def _completion(self, choices: list[ChoiceObject], spent: int) -> ChatCompletion:
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model.id,
            "service_tier": _SERVICE_TIER,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
            "usage": self._usage(spent),
            "metadata": self._request.metadata,
            "moderation": None,
        }

    async def _choice(self, number: int) -> tuple[ChoiceObject, int]:
        text: list[str] = []
        logprobs: list[Logprob] = []
        count = 0
        finish: FinishReason = "length"
        calls: tuple[ToolCall, ...] = ()
        async with self._cuts(number) as cuts:
            async for cut in cuts:
                text.append(cut.text)
                logprobs += [_logprob(token) for token in cut.tokens if token.logprob is not None]
                count += len(cut.tokens)
                finish, calls = cut.finish or finish, cut.calls
        choice = _choice(number, "".join(text), finish, calls)
        if self._request.logprobs:
            choice["logprobs"] = {"content": logprobs, "refusal": None}
        return choice, count

    async def _scored(self) -> list[dict[str, PromptLogprob] | None]:
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
        spent, choices = 0, []
        for number in range(self._request.n or 1):
            delta = {"role": "assistant", "content": "", "refusal": None}
            await self._send_chunk(send, number, delta)
            choice, count = await self._stream_choice(send, number)
            choices.append(choice)
            spent += count
        await self._kept(self._completion(choices, spent))
        if self._request.stream_options and self._request.stream_options.include_usage:
            await _send_event(send, self._chunk([], self._usage(spent)))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _stream_choice(self, send: Send, number: int) -> tuple[ChoiceObject, int]:
        count, said = 0, []
        finish: FinishReason = "length"
        calls: tuple[ToolCall, ...] = ()
        async with self._cuts(number) as cuts:
            async for cut in cuts:
                count += len(cut.tokens)
                if cut.text:
                    logprobs = [_logprob(t) for t in cut.tokens] if self._request.logprobs else None
                    await self._send_chunk(send, number, {"content": cut.text}, logprobs)
                    said.append(cut.text)
                if cut.calls:
                    calls = cut.calls
                    delta = {"tool_calls": wire_calls(calls, streamed=True)}
                    await self._send_chunk(send, number, delta)
                if cut.finish:
                    finish = cut.finish
                    await self._send_chunk(send, number, {}, finish=finish)
        return _choice(number, "".join(said), finish, calls), count

    async def _send_chunk(
        self,
        send: Send,
        number: int,
        delta: dict[str, Any],
        logprobs: list[Logprob] | None = None,
        finish: str | None = None,
    ) -> None:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs is not None else None,
            "finish_reason": finish,
        }
        await _send_event(send, self._chunk([choice], None))

    def _chunk(self, choices: Sequence[dict[str, Any]], usage: TokenUsage | None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model.id,
            "service_tier": _SERVICE_TIER,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
            "moderation": None,
        }
        if self._request.stream_options and self._request.stream_options.include_usage:
            chunk["usage"] = usage
        return chunk


def _messages(said: Sequence[ChatMessage]) -> list[Message]:
    names: dict[str, str] = {}
    found = []
    for one in said:
        calls = calls_of({"tool_calls": one.tool_calls})
        names |= {call.id: call.name for call in calls}
        found.append(
            Message(
                role=one.role,
                content=one.text(),
                tool_calls=calls,
                tool_call_id=one.tool_call_id,
                name=names.get(one.tool_call_id or ""),
            )
        )
    return found


def _choice(
    number: int, text: str, finish: FinishReason, calls: Sequence[ToolCall]
) -> ChoiceObject:
    message: AnswerMessage = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if calls:
        message["tool_calls"] = wire_calls(calls)
    return {"index": number, "message": message, "logprobs": None, "finish_reason": finish}


def _logprob(token: Token) -> Logprob:
    top = [_token_logprob(text, logprob) for text, logprob in token.top]
    return {**_token_logprob(token.text, token.logprob), "top_logprobs": top}


def _token_logprob(text: str, logprob: float | None) -> TokenLogprob:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


async def _send_json(send: Send, content: ChatCompletion) -> None:
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
