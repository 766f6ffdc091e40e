"""Answers by vLLM servers, through their endpoints for adapters.

Each must be started with `--enable-lora`, with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and with
each base model under the id that it has here (`--served-model-name`), and must see the trainer's
folder under the same path. An adapter that was loaded answers from the next request on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneproof_trainer.engines.lora.replicas import Replica, Replicas
from tuneproof_trainer.engines.protocol import (
    Embedded,
    EngineError,
    Generation,
    Message,
    Relayed,
    Token,
    TokenScore,
    no_embeddings,
)

__all__ = ["VllmAnswers"]


class VllmAnswers:
    """Generates and scores through `urls`, e.g. `http://127.0.0.1:8000/v1`."""

    def __init__(self, *urls: str, key: str = "none") -> None:
        self._replicas = Replicas(urls, key)

    # -- models -----------------------------------------------------------------------------

    def load(self, model: str, path: Path | None) -> None:
        """Tell each vLLM of an adapter; for a base model, see that it is served.

        Raises EngineError `model_not_served` where one refuses.
        """
        self._replicas.load(model, path)

    def unload(self, model: str) -> None:
        """Tell each vLLM to forget an adapter."""
        self._replicas.unload(model)

    def loaded(self, model: str) -> bool:
        """Whether they were told of it by this process."""
        return self._replicas.loaded(model)

    # -- answers ----------------------------------------------------------------------------

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """The tokens of one answer as vLLM streams them."""
        optional: dict[str, Any] = {}
        if how.seed is not None:
            optional["seed"] = how.seed
        if how.top_logprobs is not None:
            optional |= {"logprobs": True, "top_logprobs": how.top_logprobs}
        replica, stream = self._replicas.begin(
            model,
            lambda one: one.client.chat.completions.create(
                model=model,
                messages=_wire(messages),
                max_tokens=how.max_tokens,
                temperature=how.temperature,
                top_p=how.top_p,
                stream=True,
                **optional,
            ),
        )
        try:
            with stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        yield from _tokens(choice)
                        if choice.finish_reason is not None:
                            yield Token("", finish=_finish(choice.finish_reason))
                            return
        finally:
            self._replicas.end(replica)
        raise EngineError("server_error", f"vLLM at {replica.url} broke off its answer.")

    def relay(self, model: str, body: dict[str, Any]) -> Relayed:
        """vLLM's answer to a request as the client wrote it, body or stream."""
        body = body | {"model": model}
        replica, answer = self._replicas.begin(
            model, lambda one: one.stream("/chat/completions", body)
        )
        return Relayed(
            content_type=answer.headers.get("content-type", "application/json"),
            pieces=self._pieces(replica, answer),
        )

    def _pieces(self, replica: Replica, answer: Any) -> Iterator[bytes]:
        try:
            yield from answer.iter_bytes()
        finally:
            answer.close()
            self._replicas.end(replica)

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """vLLM gives none of a model that generates."""
        raise no_embeddings(model)

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """vLLM's `prompt_logprobs`, of the last answer and its end only."""
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        scores = self._prompt_scores(model, messages)
        if last is None:
            return [TokenScore(s.id, s.text, None) for s in scores]
        before = self._asked_length(model, messages[:last])
        return [
            score if at >= before else TokenScore(score.id, score.text, None)
            for at, score in enumerate(scores)
        ]

    def _prompt_scores(self, model: str, messages: Sequence[Message]) -> list[TokenScore]:
        answer = self._replicas.ask(
            model,
            lambda one: one.client.chat.completions.create(
                model=model,
                messages=_wire(messages),
                max_tokens=1,
                extra_body={"prompt_logprobs": 0, "add_generation_prompt": False},
            ),
        )
        found: list[dict[str, Any] | None] = (answer.model_extra or {})["prompt_logprobs"]
        return [_score(entry) for entry in found]

    def _asked_length(self, model: str, messages: Sequence[Message]) -> int:
        """Tokens that stand before an answer to `messages`."""
        body = {"model": model, "messages": _wire(messages), "add_generation_prompt": True}
        answer = self._replicas.ask(
            model, lambda one: one.post(one.url.rstrip("/").removesuffix("/v1") + "/tokenize", body)
        )
        return int(answer.json()["count"])


def _wire(messages: Sequence[Message]) -> Any:
    return [{"role": message.role, "content": message.content} for message in messages]


def _finish(reason: str) -> Any:
    return "length" if reason == "length" else "stop"


def _tokens(choice: Any) -> Iterator[Token]:
    text = choice.delta.content or ""
    tokens = choice.logprobs.content if choice.logprobs else None
    if not tokens:
        if text:
            yield Token(text)
        return
    for one in tokens:
        yield Token(one.token, one.logprob, tuple((t.token, t.logprob) for t in one.top_logprobs))


def _score(entry: dict[str, Any] | None) -> TokenScore:
    """The prompt's own token comes first in vLLM's list of candidates."""
    if not entry:
        return TokenScore(0, "", None)
    number, values = next(iter(entry.items()))
    return TokenScore(int(number), values["decoded_token"], values["logprob"], values["rank"])
