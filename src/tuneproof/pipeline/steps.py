"""What the stages that make a version share: their marks, patience, outbox and memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from tuneproof import workflow
from tuneproof.errors import NotDeployedError, RetryableError
from tuneproof.pipeline.records import Parts, RunArguments, Stage
from tuneproof.settings import PipelineConfig

Wait = Callable[[datetime], Awaitable[workflow.Signal | None]]

FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
PATIENCE = timedelta(hours=24)
"""How long a stage goes on trying while a provider is away, and how often."""


JITTER = 0.2
"""Pauses differ from run to run by up to this share, so that runs do not ask all at once."""


def jitter(what: str, number: int) -> float:
    """A factor around 1 that is always the same for this pause of this run."""
    digest = hashlib.sha256(f"{what}:{number}".encode()).digest()
    return 1.0 + JITTER * (int.from_bytes(digest[:4], "big") / 2**32 - 0.5)


class Steps:
    """A run between its stages; rebuilt by replay after a kill."""

    def __init__(
        self, parts: Parts, run_id: str, config: PipelineConfig, arguments: RunArguments
    ) -> None:
        self._parts = parts
        self._id = run_id
        self._config = config
        self._arguments = arguments
        self.stage = Stage.COLLECT
        self.seconds = 0.0
        self._rested_s = 0.0
        self.memory: dict[str, float] = {}

    @property
    def config(self) -> PipelineConfig:
        """The settings that the run goes by; a retry may have changed those of its training."""
        return self._config

    async def _begin(self, tx: Any, stage: Stage) -> int:
        at = self._parts.clock.now()
        await self._parts.store.mark_stage(self._id, stage, "in_progress", {}, at, tx)
        await self._parts.store.mark_run(self._id, "running", at=at, tx=tx)
        return await self._parts.store.attempt(self._id, tx)

    async def _patiently(
        self, name: str, wait: Wait, fn: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """A step that goes on trying, minutes apart, while its provider is away."""
        began = await workflow.now()
        pause, tries = FIRST_PAUSE, 0
        while True:
            try:
                return await workflow.step(name, fn, *args)
            except RetryableError as e:
                now = await workflow.now()
                if now - began >= PATIENCE:
                    raise
                hint = timedelta(seconds=float(e.details.get("retry_after_s") or 0))
                pause = min(max(pause, hint), LONGEST_PAUSE)
                again, tries = now + pause * jitter(f"{self._id}:{name}", tries), tries + 1
                note = f"{e.message} The next try is at {again:%Y-%m-%d %H:%M} UTC."
                needs = e.mend if isinstance(e, NotDeployedError) else ""
                await workflow.transaction(f"{name}.note", self._note, note, needs)
                await self._rest(wait, again)
                pause *= 2

    async def _rest(self, wait: Wait, until: datetime) -> None:
        """Wait; the time counts for no stage."""
        began = time.perf_counter()
        try:
            await wait(until)
        finally:
            self._rested_s += time.perf_counter() - began

    async def _note(self, tx: Any, note: str, needs: str = "") -> None:
        """Keep why the run waits, and what a person must do about it, if one must."""
        at = self._parts.clock.now()
        await self._parts.store.mark_stage(
            self._id, self.stage, "in_progress", {"note": note, "needs": needs}, at, tx
        )
        await self._tell(tx, "note", {"text": note}, f"note:{at.isoformat()}")

    async def _tell(
        self, tx: Any, kind: str, payload: Mapping[str, Any], key: str | None = None
    ) -> None:
        attempt = await self._parts.store.attempt(self._id, tx)
        await self._parts.store.tell(
            f"{self._id}:{attempt}:{key or kind}", kind, {"run_id": self._id, **payload}, tx
        )

    @asynccontextmanager
    async def _timed(self, stage: Stage) -> Any:
        began, rested_s = time.perf_counter(), self._rested_s
        with self._parts.hooks.memory(self._config.memory_warning_mb) as watch:
            try:
                yield
            finally:
                seconds = time.perf_counter() - began - (self._rested_s - rested_s)
                self.seconds += seconds
                self._parts.hooks.stage_finished(self._id, stage, seconds)
        self._remember(watch.usage.to_dict())

    def _remember(self, usage: Mapping[str, float]) -> None:
        """Memory over the run's stages: the first's start, the highest peak, the last's end."""
        self.memory = {
            "initial_mb": self.memory.get("initial_mb", usage["initial_mb"]),
            "peak_mb": max(self.memory.get("peak_mb", 0.0), usage["peak_mb"]),
            "final_mb": usage["final_mb"],
        }
