"""The lora engine behind the `TrainingEngine` protocol: trains in a child, answers by `Answers`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tuneproof_trainer.engines.lora.adapters import adapter_base
from tuneproof_trainer.engines.lora.conversations import Conversations
from tuneproof_trainer.engines.lora.options import LoraOptions
from tuneproof_trainer.engines.lora.process import prepare, train_in_child
from tuneproof_trainer.engines.protocol import (
    BaseModel,
    Embedded,
    Generation,
    Message,
    Relayed,
    Reporter,
    ShouldStop,
    Token,
    TokenScore,
    TrainingOutcome,
    TrainingTask,
)

__all__ = ["Answers", "LoraEngine"]

_CHILD = "tuneproof_trainer.engines.lora.child"


class Answers(Protocol):
    """What generates and scores; as in `TrainingEngine`."""

    def load(self, model: str, path: Path | None) -> None:
        """Make a model ready."""

    def unload(self, model: str) -> None:
        """Forget a model."""

    def loaded(self, model: str) -> bool:
        """Whether it is ready."""

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """The tokens of one answer."""

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """The tokens of a conversation."""

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """The texts as vectors."""


@runtime_checkable
class RelayingAnswers(Protocol):
    """Answers of a server that may be asked as the client wrote it."""

    def relay(self, model: str, body: dict[str, Any]) -> Relayed:
        """The server's answer."""


@runtime_checkable
class CallingAnswers(Protocol):
    """Answers of models in this process, which may call tools."""

    def ensure_calls(self, model: str) -> None:
        """As the engine's."""


class LoraEngine:
    """Low-rank adapters on the base models that it was given."""

    name = "lora"
    quick = False
    methods = frozenset({"supervised", "dpo"})
    trains_tools = True

    def __init__(
        self,
        options: LoraOptions,
        answers: Answers | None = None,
        *,
        environment: Mapping[str, str],
        created: int | None = None,
    ) -> None:
        from tuneproof_trainer.engines.lora.local import LocalAnswers

        self._options = options
        self._answers: Answers = answers or LocalAnswers(options)
        self._created = int(time.time()) if created is None else created
        threads = str(options.training_threads())
        self._environment = {
            "OMP_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        }
        self.relays = isinstance(self._answers, RelayingAnswers)
        self._lock = threading.Lock()
        self._talk: Conversations | None = None

    def base_models(self) -> Sequence[BaseModel]:
        """The models that the engine was given."""
        return [
            BaseModel(id=base.id, owned_by="local", created=self._created)
            for base in self._options.bases
        ]

    # -- training ---------------------------------------------------------------------------

    def train(
        self, task: TrainingTask, report: Reporter, should_stop: ShouldStop
    ) -> TrainingOutcome:
        """Train an adapter in a process of its own."""
        self._prepare(task)
        return train_in_child(_CHILD, task.folder, report, should_stop, self._environment)

    def _prepare(self, task: TrainingTask) -> None:
        base = task.model if task.model_path is None else self._base_of(task)
        prepare(task, self._options, base, task.model_path)

    def _base_of(self, task: TrainingTask) -> str:
        assert task.model_path is not None
        pinned = task.folder / "parent"
        return adapter_base(pinned if (task.folder / "task.json").exists() else task.model_path)

    # -- answers ----------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Tokens by the first base model's tokenizer."""
        return self._conversations().count(text)

    def _conversations(self) -> Conversations:
        from tuneproof_trainer.engines.lora.loading import load_conversations

        with self._lock:
            if self._talk is None:
                self._talk = load_conversations(self._options.bases[0])
            return self._talk

    def load(self, model: str, path: Path | None) -> None:
        """Make a model ready to answer."""
        self.count_tokens("")
        self._answers.load(model, path)

    def unload(self, model: str) -> None:
        """Forget a model that was deleted."""
        self._answers.unload(model)

    def loaded(self, model: str) -> bool:
        """Whether it can answer at once."""
        return self._answers.loaded(model)

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """The tokens of one answer."""
        return self._answers.generate(model, messages, how)

    def ensure_calls(self, model: str) -> None:
        """Return where the model's calls can be told from its text; raises EngineError."""
        if isinstance(self._answers, CallingAnswers):
            self._answers.ensure_calls(model)

    def relay(self, model: str, body: dict[str, Any]) -> Relayed:
        """What vLLM answers to the request as it is; only where `relays`."""
        assert isinstance(self._answers, RelayingAnswers)
        return self._answers.relay(model, body)

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """Each token of the conversation, with log-probabilities of the last answer's."""
        return self._answers.score(model, messages)

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """The texts as vectors: what the model makes of their tokens, in the mean."""
        return self._answers.embed(model, texts)
