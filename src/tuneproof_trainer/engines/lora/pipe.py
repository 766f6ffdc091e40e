"""Messages between the server's process and the child that trains: JSON, one a line.

The child tells `chosen`, `metrics`, `checkpoint`, `message`, and last `done` or `failed`; each is
answered with `ack` once it is durable. The parent may say `stop` at any time.
"""

from __future__ import annotations

import dataclasses
from typing import IO, Any, Literal

import orjson

from tuneproof_trainer.engines.protocol import (
    Hyperparameters,
    Message,
    StepMetrics,
    StopReason,
    ToolCall,
    TrainingExample,
    TrainingOutcome,
)

__all__ = ["ChildTask", "read", "read_example", "write", "write_example"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ChildTask:
    """What the child is told to train; paths are text. Examples lie beside, as JSON lines."""

    base: str
    adapter: str | None
    method: Literal["supervised", "dpo"]
    hyperparameters: Hyperparameters
    seed: int
    folder: str
    validation: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ChildTask:
        """The task that `as_dict` wrote."""
        hyperparameters = Hyperparameters(**values["hyperparameters"])
        return cls(**{**values, "hyperparameters": hyperparameters})


def write(to: IO[bytes], kind: str, **content: Any) -> None:
    """Send one message."""
    shown = {name: _plain(value) for name, value in content.items()}
    to.write(orjson.dumps({"kind": kind, **shown}) + b"\n")
    to.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, StopReason):
        return value.value
    if isinstance(value, TrainingOutcome):
        return {**dataclasses.asdict(value), "stopped": value.stopped and value.stopped.value}
    if isinstance(value, Hyperparameters | StepMetrics):
        return dataclasses.asdict(value)
    return value


def read(line: bytes) -> dict[str, Any]:
    """One message, with its records made again."""
    data: dict[str, Any] = orjson.loads(line)
    if "metrics" in data:
        data["metrics"] = StepMetrics(**data["metrics"])
    if "hyperparameters" in data:
        data["hyperparameters"] = Hyperparameters(**data["hyperparameters"])
    if "outcome" in data:
        outcome = data["outcome"]
        stopped = StopReason(outcome["stopped"]) if outcome["stopped"] else None
        data["outcome"] = TrainingOutcome(**{**outcome, "stopped": stopped})
    return data


def write_example(example: TrainingExample) -> bytes:
    """One example as a line."""
    return orjson.dumps(dataclasses.asdict(example)) + b"\n"


def read_example(line: bytes) -> TrainingExample:
    """The example that `write_example` wrote."""
    data = orjson.loads(line)
    tools = tuple(data.pop("tools"))
    return TrainingExample(
        **{name: tuple(_message(said) for said in found) for name, found in data.items()},
        tools=tools,
    )


def _message(said: dict[str, Any]) -> Message:
    return Message(**{**said, "tool_calls": tuple(ToolCall(**c) for c in said["tool_calls"])})
