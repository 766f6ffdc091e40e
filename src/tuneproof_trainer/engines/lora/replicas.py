"""vLLM servers that answer for the same models: who is asked, and that each knows what it must.

Each adapter is loaded on every replica and believed once it has answered there. Who has the fewest
answers in the making is asked next. One that does not answer is left alone for a while; when it is
back, it is told what it missed before it is asked anything. An adapter's name is its model's, which
no other ever has: what a replica has cached under it stays true.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tuneproof_trainer.engines.protocol import EngineError

__all__ = ["Replica", "Replicas"]

T = TypeVar("T")
logger = logging.getLogger(__name__)
_TIMEOUT_S = 300.0
_LEFT_ALONE_S = 2.0
_AWAY, _REFUSED, _UNKNOWN = "engine_unavailable", "model_not_served", "model_not_found"
_REFUSAL = "refused_by_engine"


class Replica:
    """One vLLM server."""

    def __init__(self, url: str, key: str, retries: int) -> None:
        import httpx2
        from openai import OpenAI

        headers = {"authorization": f"Bearer {key}"}
        self._raw = httpx2.Client(timeout=_TIMEOUT_S, headers=headers, trust_env=False)
        self.client = OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=_TIMEOUT_S)
        self.url = url
        self.answering = 0
        """Answers that it is making for us."""

        self.away_until = 0.0
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def know(self, model: str, path: Path | None) -> None:
        """See to it that it serves a model, by a real answer. Raises EngineError."""
        if model in self._known:
            return
        with self._lock:
            if model in self._known:
                return
            if path is None:
                self._check_served(model)
            else:
                self._add(model, path)
            self._try(model)
            self._known.add(model)

    def forget(self, model: str) -> None:
        """Take it that it does not serve a model: it was restarted, or is to unload it."""
        with self._lock:
            self._known.discard(model)

    def unload(self, model: str) -> None:
        """Have it forget an adapter; raises EngineError where it does not."""
        from openai import BadRequestError

        self.forget(model)
        try:
            self.post("/unload_lora_adapter", {"lora_name": model})
        except BadRequestError as error:
            raise EngineError(_UNKNOWN, str(error), "model") from error

    def _served(self) -> list[str]:
        return [one.id for one in self.explaining(lambda: list(self.client.models.list()))]

    def _check_served(self, model: str) -> None:
        served = self._served()
        if model not in served:
            raise EngineError(
                _REFUSED,
                f"vLLM at {self.url} serves {', '.join(served) or 'nothing'}, not `{model}`. "
                f"Start it with --served-model-name {model}.",
                "model",
            )

    def _add(self, model: str, path: Path) -> None:
        from openai import BadRequestError

        body = {"lora_name": model, "lora_path": str(path.resolve())}
        try:
            self.post("/load_lora_adapter", body)
        except BadRequestError as error:
            if model not in self._served():  # else an earlier process has loaded it
                raise _refused(model, str(error)) from error

    def _try(self, model: str) -> None:
        """Ask for one token: what is listed may still not answer."""
        from openai import APIStatusError

        asked: Any = [{"role": "user", "content": "."}]
        try:
            self.explaining(
                lambda: self.client.chat.completions.create(
                    model=model, messages=asked, max_tokens=1
                )
            )
        except APIStatusError as error:
            raise _refused(model, f"it is loaded at {self.url}, but: {error}") from error

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """An endpoint of its own; returns the answer."""
        import httpx2

        return self.explaining(lambda: self.client.post(path, body=body, cast_to=httpx2.Response))

    def stream(self, path: str, body: dict[str, Any]) -> Any:
        """An answer whose body is still to come, and which the caller closes.

        Raises EngineError where it refuses the request, in its words.
        """
        import httpx2

        request = self._raw.build_request("POST", self.url.rstrip("/") + path, json=body)
        try:
            answer = self._raw.send(request, stream=True)
            if answer.status_code != 200:
                answer.read()
        except httpx2.TransportError as error:
            raise self._away() from error
        if answer.status_code == 200:
            return answer
        raise self._refusal(answer.status_code, answer.content)

    def _refusal(self, status: int, body: bytes) -> EngineError:
        message, code = _told(body)
        if status == 404:
            return EngineError(_UNKNOWN, f"vLLM: {message}", "model")
        if status == 429 or status >= 500:
            return EngineError(_AWAY, f"vLLM at {self.url} cannot answer now: {message}")
        return EngineError(code, f"vLLM: {message}")

    def _away(self) -> EngineError:
        return EngineError(
            _AWAY, f"vLLM at {self.url} does not answer. Start it, or leave --vllm out."
        )

    def explaining(self, ask: Callable[[], T]) -> T:
        """Do it, and say which server was not there."""
        from openai import APIConnectionError, NotFoundError

        try:
            return ask()
        except APIConnectionError as error:
            raise self._away() from error
        except NotFoundError as error:
            raise EngineError(_UNKNOWN, f"vLLM: {error.message}", "model") from error

    def answered(self, ask: Callable[[], T]) -> T:
        """Do it, and say what it was refused for: a prompt that is too long, say."""
        from openai import APIStatusError, InternalServerError, RateLimitError

        try:
            return self.explaining(ask)
        except (InternalServerError, RateLimitError) as error:
            raise EngineError(_AWAY, f"vLLM at {self.url} cannot answer now: {error}") from error
        except APIStatusError as error:
            code = error.code if isinstance(error.code, str) else _REFUSAL
            raise EngineError(code, f"vLLM: {error.message}", error.param) from error


class Replicas:
    """All of them."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str = "none",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        retries = 2 if len(urls) == 1 else 0  # else another is asked
        self._all = [Replica(url, key, retries) for url in urls]
        self._monotonic = monotonic
        self._paths: dict[str, Path | None] = {}
        self._lock = threading.Lock()

    def load(self, model: str, path: Path | None) -> None:
        """Make a model known to all that answer.

        Raises EngineError `model_not_served` where one refuses, `engine_unavailable` where none
        answers.
        """
        failures = [found for one in self._all if (found := self._told(one, model, path))]
        refused = next((found for found in failures if found.code != _AWAY), None)
        if refused is not None or len(failures) == len(self._all):
            raise refused or failures[0]
        for failure in failures:
            logger.warning("%s It is told of %s when it is back.", failure.message, model)
        self._paths[model] = path

    def _told(self, replica: Replica, model: str, path: Path | None) -> EngineError | None:
        try:
            replica.know(model, path)
        except EngineError as error:
            if error.code == _AWAY:
                self._leave_alone(replica)
            return error
        return None

    def unload(self, model: str) -> None:
        """Have all forget an adapter. That one does not know it, or does not answer, is no error:
        no request reaches the model any more."""
        self._paths.pop(model, None)
        for replica in self._all:
            try:
                replica.unload(model)
            except EngineError as error:
                logger.warning("vLLM keeps the adapter %s: %s", model, error)

    def loaded(self, model: str) -> bool:
        """Whether it was made known by this process."""
        return model in self._paths

    def ask(self, model: str, do: Callable[[Replica], T]) -> T:
        """What the replica says that has the least to do."""
        replica, answer = self.begin(model, do)
        self.end(replica)
        return answer

    def begin(self, model: str, do: Callable[[Replica], T]) -> tuple[Replica, T]:
        """The same for an answer that goes on: its replica is busy until `end`.

        Raises EngineError where none can answer.
        """
        tried: set[Replica] = set()
        while True:
            replica = self._least_busy(tried)
            try:
                return replica, self._known(replica, model, do)
            except BaseException as error:
                self.end(replica)
                if not isinstance(error, EngineError) or error.code not in (_AWAY, _REFUSED):
                    raise
                if error.code == _AWAY:
                    self._leave_alone(replica)
                tried.add(replica)
                if len(tried) == len(self._all):
                    raise

    def end(self, replica: Replica) -> None:
        """Its answer is over."""
        with self._lock:
            replica.answering -= 1

    def _least_busy(self, tried: set[Replica]) -> Replica:
        now = self._monotonic()
        with self._lock:
            left = [one for one in self._all if one not in tried]
            near = [one for one in left if one.away_until <= now] or left
            chosen = min(near, key=lambda one: one.answering)
            chosen.answering += 1
            return chosen

    def _known(self, replica: Replica, model: str, do: Callable[[Replica], T]) -> T:
        """Do it; once more with the adapter loaded anew if vLLM was restarted since."""
        path = self._paths.get(model)
        replica.know(model, path)
        try:
            return replica.answered(lambda: do(replica))
        except EngineError as error:
            if error.code != _UNKNOWN or path is None:
                raise
        replica.forget(model)
        replica.know(model, path)
        return replica.answered(lambda: do(replica))

    def _leave_alone(self, replica: Replica) -> None:
        replica.away_until = self._monotonic() + _LEFT_ALONE_S


def _told(body: bytes) -> tuple[str, str]:
    """The message and the code of an error."""
    try:
        told = orjson.loads(body)
        error = told.get("error", told)
        code = error.get("code")
        return str(error["message"]), code if isinstance(code, str) else _REFUSAL
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:500].decode("utf-8", "replace"), _REFUSAL


def _refused(model: str, why: str) -> EngineError:
    return EngineError(
        _REFUSED,
        f"vLLM refused the adapter `{model}`: {why}. Start it with --enable-lora and "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.",
        "model",
    )
