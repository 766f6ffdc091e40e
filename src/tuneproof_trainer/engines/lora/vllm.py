"""Answers by a vLLM server, through its endpoints for adapters.

vLLM must be started with `--enable-lora`, with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and with
each base model under the id that it has here (`--served-model-name`), and must see the trainer's
folder under the same path. An adapter that was loaded answers from the next request on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneproof_trainer.engines.protocol import (
    Embedded,
    EngineError,
    Generation,
    Message,
    Token,
    TokenScore,
    no_embeddings,
)

__all__ = ["VllmAnswers"]

logger = logging.getLogger(__name__)
_TIMEOUT_S = 300.0


class VllmAnswers:
    """Generates and scores through `url`, e.g. `http://127.0.0.1:8000/v1`."""

    def __init__(self, url: str, key: str = "none") -> None:
        from openai import OpenAI

        self._client = OpenAI(base_url=url, api_key=key, max_retries=2, timeout=_TIMEOUT_S)
        self._url = url
        self._paths: dict[str, Path | None] = {}
        self._lock = threading.Lock()

    # -- models -----------------------------------------------------------------------------

    def load(self, model: str, path: Path | None) -> None:
        """Tell vLLM of an adapter; for a base model, see that it is served.

        Raises EngineError `model_not_served` where vLLM refuses.
        """
        with self._lock:
            if path is None:
                self._check_served(model)
            else:
                self._add(model, path)
            self._paths[model] = path

    def _served(self) -> list[str]:
        return [
            one.id for one in self._explaining_failures(lambda: list(self._client.models.list()))
        ]

    def _check_served(self, model: str) -> None:
        served = self._served()
        if model not in served:
            raise EngineError(
                "model_not_served",
                f"vLLM at {self._url} serves {', '.join(served) or 'nothing'}, not `{model}`. "
                f"Start it with --served-model-name {model}.",
                "model",
            )

    def _add(self, model: str, path: Path) -> None:
        from openai import BadRequestError

        body = {"lora_name": model, "lora_path": str(path.resolve())}
        try:
            self._post("/load_lora_adapter", body)
        except BadRequestError as error:
            if model not in self._served():  # else an earlier process has loaded it
                raise _refused(model, error) from error

    def unload(self, model: str) -> None:
        """Tell vLLM to forget an adapter. That it does not know it, or does not answer, is no
        error: no request reaches the model any more."""
        from openai import BadRequestError

        with self._lock:
            self._paths.pop(model, None)
            try:
                self._post("/unload_lora_adapter", {"lora_name": model})
            except (BadRequestError, EngineError) as error:
                logger.warning("vLLM keeps the adapter %s: %s", model, error)

    def loaded(self, model: str) -> bool:
        """Whether vLLM was told of it by this process."""
        return model in self._paths

    def _post(self, path: str, body: dict[str, Any]) -> None:
        import httpx2

        self._explaining_failures(
            lambda: self._client.post(path, body=body, cast_to=httpx2.Response)
        )

    # -- answers ----------------------------------------------------------------------------

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """The tokens of one answer as vLLM streams them."""
        optional: dict[str, Any] = {}
        if how.seed is not None:
            optional["seed"] = how.seed
        if how.top_logprobs is not None:
            optional |= {"logprobs": True, "top_logprobs": how.top_logprobs}
        stream = self._known(
            model,
            lambda: self._client.chat.completions.create(
                model=model,
                messages=_wire(messages),
                max_tokens=how.max_tokens,
                temperature=how.temperature,
                top_p=how.top_p,
                stream=True,
                **optional,
            ),
        )
        with stream:
            for chunk in stream:
                for choice in chunk.choices:
                    yield from _tokens(choice)
                    if choice.finish_reason is not None:
                        yield Token("", finish=_finish(choice.finish_reason))
                        return
        raise EngineError("server_error", f"vLLM at {self._url} broke off its answer.")

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
        answer = self._known(
            model,
            lambda: self._client.chat.completions.create(
                model=model,
                messages=_wire(messages),
                max_tokens=1,
                extra_body={"prompt_logprobs": 0, "add_generation_prompt": False},
            ),
        )
        found: list[dict[str, Any] | None] = answer.model_extra["prompt_logprobs"]
        return [_score(entry) for entry in found]

    def _asked_length(self, model: str, messages: Sequence[Message]) -> int:
        """Tokens that stand before an answer to `messages`."""
        import httpx2

        body = {"model": model, "messages": _wire(messages), "add_generation_prompt": True}
        url = self._url.rstrip("/").removesuffix("/v1") + "/tokenize"
        answer = self._explaining_failures(
            lambda: self._client.post(url, body=body, cast_to=httpx2.Response)
        )
        return int(answer.json()["count"])

    def _known(self, model: str, ask: Any) -> Any:
        """Ask; once more with the adapter loaded anew if vLLM was restarted since."""
        try:
            return self._explaining_failures(ask)
        except EngineError as error:
            path = self._paths.get(model)
            if error.code != "model_not_found" or path is None:
                raise
            self.load(model, path)
            return self._explaining_failures(ask)

    def _explaining_failures(self, ask: Any) -> Any:
        """Do it, and say which server was not there."""
        from openai import APIConnectionError, NotFoundError

        try:
            return ask()
        except APIConnectionError as error:
            raise EngineError(
                "engine_unavailable",
                f"vLLM at {self._url} does not answer. Start it, or leave --vllm out.",
            ) from error
        except NotFoundError as error:
            raise EngineError("model_not_found", f"vLLM: {error.message}", "model") from error


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


def _refused(model: str, error: Exception) -> EngineError:
    return EngineError(
        "model_not_served",
        f"vLLM refused the adapter `{model}`: {error}. Start it with --enable-lora and "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
        "model",
    )
