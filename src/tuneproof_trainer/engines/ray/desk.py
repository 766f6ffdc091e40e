"""Where workers and the driver meet: an actor beside the driver, and the leader's way to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import ray

from tuneproof_trainer.engines.protocol import (
    EngineError,
    Hyperparameters,
    StepMetrics,
    StopReason,
    TrainingOutcome,
)

__all__ = ["Desk", "Leader", "Silent"]


class Desk:
    """An actor: workers tell, the driver hears and says when what it heard is durable."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, str, dict[str, Any]]] = asyncio.Queue()
        self._durable: dict[int, asyncio.Event] = {}
        self._count = 0
        self._reason: StopReason | None = None
        self._stopping = asyncio.Event()

    async def tell(self, kind: str, content: dict[str, Any]) -> None:
        """A worker's: returns when the server has it."""
        self._count += 1
        durable = self._durable[self._count] = asyncio.Event()
        self._queue.put_nowait((self._count, kind, content))
        await durable.wait()

    async def hear(self) -> tuple[int, str, dict[str, Any]]:
        """The driver's: the number, kind and content of what is told next."""
        return await self._queue.get()

    async def acknowledge(self, number: int) -> None:
        """The driver's: this is durable."""
        self._durable.pop(number).set()

    async def stop(self, reason: StopReason) -> None:
        """The driver's: the job is to stop."""
        self._reason = reason
        self._stopping.set()

    async def stopped(self) -> StopReason | None:
        """The leader's: why the job is to stop, once it is."""
        await self._stopping.wait()
        return self._reason


class Leader:
    """What a training tells goes over the desk, and waits until it is durable."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._stopped = desk.stopped.remote()

    def stop(self) -> StopReason | None:
        """Whether the training is to stop, and why."""
        ready, _ = ray.wait([self._stopped], timeout=0)
        reason: StopReason | None = ray.get(self._stopped) if ready else None
        return reason

    def begun(self, places: list[str]) -> None:
        """A worker group has come together; where each member is."""
        self._tell("begun", places=places)

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """The values in force."""
        self._tell("chosen", hyperparameters=hyperparameters)

    def metrics(self, metrics: StepMetrics) -> None:
        """One step was done."""
        self._tell("metrics", metrics=metrics)

    def checkpoint(self, metrics: StepMetrics, folder: Path) -> None:
        """A model that can be used lies in `folder`."""
        self._tell("checkpoint", metrics=metrics, folder=folder)

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        """Something to read."""
        self._tell("message", text=text, level=level)

    def done(self, outcome: TrainingOutcome) -> None:
        """The training ended."""
        self._tell("done", outcome=outcome)

    def failed(self, error: EngineError) -> None:
        """The training cannot succeed."""
        self._tell("failed", error=error)

    def _tell(self, kind: str, **content: Any) -> None:
        ray.get(self._desk.tell.remote(kind, content))


class Silent:
    """What the other members tell: nothing."""

    def stop(self) -> None:
        """The leader knows."""

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """The leader tells it."""

    def metrics(self, metrics: StepMetrics) -> None:
        """The leader tells it."""

    def checkpoint(self, metrics: StepMetrics, folder: Path) -> None:
        """The leader tells it."""

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        """The leader tells it."""
