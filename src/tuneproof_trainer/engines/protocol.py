"""What the server asks of an engine: train a job, generate an answer, score one.

An engine knows nothing of HTTP, files' ids or the database. Training runs in a worker thread (or
in processes that the engine starts), reports through `Reporter`, asks `should_stop` often, and
can go on from its last snapshot after the process was killed.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = [
    "BaseModel",
    "CallingEngine",
    "Embedded",
    "EngineError",
    "Examples",
    "Generation",
    "Hyperparameters",
    "Message",
    "Relayed",
    "RelayingEngine",
    "Reporter",
    "ShouldStop",
    "StepMetrics",
    "StopReason",
    "Token",
    "TokenScore",
    "ToolCall",
    "TrainingEngine",
    "TrainingExample",
    "TrainingOutcome",
    "TrainingTask",
    "no_embeddings",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call in an answer: the tool's name, and a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a conversation. A message of the role `tool` says what the call
    `tool_call_id` gave back, that of the tool `name`."""

    role: str
    content: str
    weight: int = 1
    """0 keeps an assistant message out of the loss."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingExample:
    """One training line.

    Supervised: `messages`, with answers among them. DPO: `messages` is the input, and
    `preferred` and `rejected` are the two answers. `tools` are the definitions that answers may
    call, as the wire has them.
    """

    messages: tuple[Message, ...]
    preferred: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def calls(self) -> bool:
        """Whether tools play a part in it."""
        said = (*self.messages, *self.preferred, *self.rejected)
        return bool(self.tools) or any(m.tool_calls or m.role == "tool" for m in said)


class Examples(Protocol):
    """Training lines by number, read from disk as they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingExample: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """What the job asked for; None where it said "auto".

    Those after `beta` cannot be asked for: engines that choose them say what they took.
    """

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    beta: float | None = None
    learning_rate: float | None = None
    """The highest of the training."""

    rank: int | None = None
    """Of the adapter."""

    max_example_tokens: int | None = None
    """Tokens of the longest example, as far as it was not cut."""

    threads: int | None = None
    """Of the processor, for each member of a team."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTask:
    """All that an engine needs to train one job."""

    job_id: str
    model: str
    """The base model, or the earlier fine-tune to go on from."""

    model_path: Path | None
    """The folder of the earlier fine-tune; None for a base model."""

    method: Literal["supervised", "dpo"]
    hyperparameters: Hyperparameters
    seed: int
    training: Examples
    validation: Examples | None
    folder: Path
    """The job's own folder: snapshots go here, and stay until the job ends."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """Loss (nats per token) and accuracy (share of tokens guessed) at one step.

    Of preference training also the rewards of the pairs: the share of them whose preferred answer
    gained on the other, against the model that the training began with, and by how much in the
    mean (nats, times beta).
    """

    step: int
    total_steps: int
    train_loss: float
    train_mean_token_accuracy: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = None
    train_reward_margin: float | None = None
    full_valid_reward_accuracy: float | None = None
    full_valid_reward_margin: float | None = None


class StopReason(enum.Enum):
    """Why a running job should stop at the next chance."""

    CANCEL = "cancel"
    """The job is cancelled: nothing of it is kept."""

    PAUSE = "pause"
    """The job is paused: save a snapshot and return."""

    SHUTDOWN = "shutdown"
    """The server stops: save a snapshot and return; the next server goes on from it."""


ShouldStop = Callable[[], StopReason | None]


class Reporter(Protocol):
    """Where an engine tells what it does; each call is durable when it returns."""

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """The values in force, with "auto" resolved."""

    def metrics(self, metrics: StepMetrics) -> None:
        """One step was done."""

    def checkpoint(self, step: int, metrics: StepMetrics, save: Callable[[Path], None]) -> None:
        """A model that can be used: `save` writes it into an empty folder."""

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        """Something that the job's owner should read."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOutcome:
    """How a training ended; `stopped` says that it did not finish, and why."""

    stopped: StopReason | None
    trained_tokens: int
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """How to answer: defaults are those of the wire."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    """Report log-probabilities, with this many alternatives; None reports none."""

    tools: tuple[dict[str, Any], ...] = ()
    """What the answer may call, as the wire defines it; the answer then comes at its end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer. The last one has an empty text and says why it is the last; of an
    answer that calls tools it has the calls."""

    text: str
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    finish: Literal["stop", "length", "tool_calls"] | None = None
    calls: tuple[ToolCall, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a conversation; `logprob` is None outside the last assistant message."""

    id: int
    text: str
    logprob: float | None
    rank: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Embedded:
    """Texts as vectors of length 1, all of one size; `tokens` is how many the texts had."""

    vectors: Sequence[Sequence[float]]
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """A model that the engine brings."""

    id: str
    owned_by: str
    created: int
    shutdown_date: str | None = None


class EngineError(Exception):
    """A training that cannot succeed; `code` and `param` go into the job's error."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.message, self.param)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Relayed:
    """What a server behind an engine answers, as it comes."""

    content_type: str
    pieces: Iterator[bytes]


@runtime_checkable
class RelayingEngine(Protocol):
    """An engine that may have a server behind it, which does more than the engine could say."""

    relays: bool
    """Whether it has one."""

    def relay(self, model: str, body: dict[str, Any]) -> Relayed:
        """The server's answer to a request as the client wrote it. Raises EngineError."""


@runtime_checkable
class CallingEngine(Protocol):
    """An engine whose models may answer by calls of the tools that they are shown."""

    def ensure_calls(self, model: str) -> None:
        """Return where calls of a loaded model can be told from its text.

        Raises EngineError `unsupported_parameter` where they cannot.
        """


def no_embeddings(model: str) -> EngineError:
    """What is raised by an engine that makes no vectors of texts."""
    return EngineError(
        "unsupported_endpoint",
        f"The model `{model}` is served by an engine that makes no embeddings; the engine lora, "
        "where it answers itself, makes them.",
        "model",
    )


class TrainingEngine(Protocol):
    """Trains, generates and scores. All methods block; the server calls them off its loop,
    except `generate` and `score` of an engine that says `quick`."""

    name: str
    quick: bool
    """Whether one token takes so little time that the event loop may wait for it."""

    methods: frozenset[str]
    """Methods of training that it can do: of `supervised`, `dpo`."""

    trains_tools: bool
    """Whether examples may have tools and calls of them."""

    def base_models(self) -> Sequence[BaseModel]:
        """The models that jobs may start from."""

    def train(
        self,
        task: TrainingTask,
        report: Reporter,
        should_stop: ShouldStop,
    ) -> TrainingOutcome:
        """Train one job, from its last snapshot if there is one.

        Raises EngineError for a job that cannot succeed; anything else is the server's fault.
        """

    def count_tokens(self, text: str) -> int:
        """How many tokens `text` has."""

    def load(self, model: str, path: Path | None) -> None:
        """Make a model ready to answer; `path` is None for a base model. Idempotent."""

    def unload(self, model: str) -> None:
        """Forget a model that was deleted."""

    def loaded(self, model: str) -> bool:
        """Whether `generate` can start at once."""

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        """The tokens of one answer, the last one with `finish`."""

    def score(self, model: str, messages: Sequence[Message]) -> Sequence[TokenScore]:
        """Each token of the conversation, with log-probabilities of the last answer's."""

    def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """The texts as vectors. Raises EngineError `unsupported_endpoint` where it makes none."""
