"""A run between its stages: what all of them share, given to each by its constructor."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TypeVar, TypeVarTuple, Unpack

from tuneproof import workflow
from tuneproof.errors import NotDeployedError, RetryableError
from tuneproof.pipeline.records import Parts, RunArguments, Stage, StageStatus
from tuneproof.pipeline.steps import StepName
from tuneproof.settings import PipelineConfig
from tuneproof.workflow import RunStatus, Tx

Wait = Callable[[datetime], Awaitable[workflow.Signal | None]]
"""Waits until an instant or a signal, as `workflow.wait` does."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger(__name__)

FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
PATIENCE = timedelta(hours=24)
"""How long a stage goes on trying while a provider is away, and how often."""


LOOK_NOTE = "look"
"""The action under which the activity notes a failed look that no run's stage can."""

JITTER = 0.2
"""Pauses differ from run to run by up to this share, so that runs do not ask all at once."""


def jitter(what: str, number: int) -> float:
    """A factor around 1 that is always the same for this pause of this run."""
    digest = hashlib.sha256(f"{what}:{number}".encode()).digest()
    return 1.0 + JITTER * (int.from_bytes(digest[:4], "big") / 2**32 - 0.5)


class RunContext:
    """One run, rebuilt by replay after a kill: its id, settings, marks, patience and memory.

    `config` may change once, where a retry trains as the settings say then. `subjects` are the
    tests and rollouts that serve its candidates, `units_per_hour` what its plan expects. Where a
    test or rollout is followed that no run drives (`alone`), nothing is marked of a run, and notes
    go into the activity.
    """

    def __init__(
        self,
        parts: Parts,
        id: str,
        config: PipelineConfig,
        arguments: RunArguments | None = None,
        *,
        wait: Wait = workflow.wait,
        alone: bool = False,
    ) -> None:
        self.parts = parts
        self.id = id
        self.config = config
        self.arguments = arguments or RunArguments()
        self.wait = wait
        self.stage = Stage.COLLECT
        self.subjects: list[str] = []
        self.units_per_hour: float | None = None
        self.seconds = 0.0
        self.memory: dict[str, float] = {}
        self._alone = alone
        self._rested_s = 0.0
        self._last_look_failed = False

    @property
    def now(self) -> datetime:
        """The present instant, for what a transaction or a step writes."""
        return self.parts.clock.now()

    # --- stages -----------------------------------------------------------------------

    async def begin(self, stage: Stage) -> int:
        """Enter a stage, recorded as `STAGE.begin`; how often the run was tried, this time too."""
        self.stage = stage
        return await workflow.transaction(StepName(f"{stage}.begin"), self._begin, stage)

    async def _begin(self, tx: Tx, stage: Stage) -> int:
        await self.mark_stage(tx, stage, StageStatus.IN_PROGRESS, {})
        await self.mark_run(tx, {})
        return await self.parts.store.runs.attempt(self.id, tx=tx)

    @asynccontextmanager
    async def timed(self) -> AsyncIterator[None]:
        """Measure the seconds and the memory that the stage works, its waits left out."""
        stage, hooks = self.stage, self.parts.hooks
        began, rested_s = time.perf_counter(), self._rested_s
        with hooks.memory(self.id, self.config.memory_warning_mb) as watch:
            try:
                yield
            finally:
                seconds = time.perf_counter() - began - (self._rested_s - rested_s)
                self.seconds += seconds
                hooks.stage_finished(self.id, stage, seconds)
        self._remember(watch.usage.to_dict())

    def _remember(self, usage: Mapping[str, float]) -> None:
        """Memory over the run's stages: the first's start, the highest peak, the last's end."""
        self.memory = {
            "initial_mb": self.memory.get("initial_mb", usage["initial_mb"]),
            "peak_mb": max(self.memory.get("peak_mb", 0.0), usage["peak_mb"]),
            "final_mb": usage["final_mb"],
        }

    # --- patience ---------------------------------------------------------------------

    async def patiently(
        self, name: StepName, fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts
    ) -> T:
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
                again, tries = now + pause * jitter(f"{self.id}:{name}", tries), tries + 1
                needs = e.mend if isinstance(e, NotDeployedError) else ""
                await self.note(
                    f"{e.message} The next try is at {again:%Y-%m-%d %H:%M} UTC.", needs
                )
                await self.rest(again)
                pause *= 2

    async def rest(self, until: datetime) -> None:
        """Wait; the time counts for no stage."""
        began = time.perf_counter()
        try:
            await self.wait(until)
        finally:
            self._rested_s += time.perf_counter() - began

    async def note(self, text: str, needs: str = "") -> None:
        """Keep why the stage waits, and what a person must do about it, if one must."""
        await workflow.transaction(StepName(f"{self.stage}.note"), self._note, text, needs)

    async def _note(self, tx: Tx, text: str, needs: str) -> None:
        if self._alone:
            said = text or "The look succeeded again."
            await self.parts.store.activity.add(self.now, "system", LOOK_NOTE, self.id, said, tx=tx)
            return
        detail = {"note": text, "needs": needs}
        await self.mark_stage(tx, self.stage, StageStatus.IN_PROGRESS, detail)
        if text:
            await self.tell(tx, "note", {"text": text}, f"note:{self.now.isoformat()}")

    async def attempt(
        self,
        subject: str,
        at: datetime,
        look: Callable[[Unpack[Ts]], Awaitable[T]],
        *args: *Ts,
    ) -> T | None:
        """The look at a test or rollout that was due at `at`; None where it raised.

        That is kept and told, and the watch goes on: no failed look ends it. `at` is the same on
        replay, so the same failure is told once.
        """
        try:
            found = await look(*args)
        except workflow.EngineError:
            raise
        except Exception as e:  # whatever it is, users still meet the candidate
            await self._look_failed(subject, e, at)
            return None
        if self._last_look_failed:
            self._last_look_failed = False
            await self._note_look(subject, "", "")
        return found

    async def _look_failed(self, subject: str, error: Exception, at: datetime) -> None:
        log.error("the look at %s failed", subject, exc_info=error)
        self._last_look_failed = True
        first = next(iter(str(error).splitlines()), "")  # a database's error goes on for pages
        why = f"{type(error).__name__}: {first}"
        self.parts.hooks.look_failed(subject, why, at)
        said = f"The look at {at:%Y-%m-%d %H:%M} UTC failed, {why}"
        try:
            hours = self.config.look_interval_hours
            said += f" The next one is tried within {hours:g} h."
            await self._note_look(subject, said, why)
        except workflow.EngineError:
            raise
        except Exception:
            log.exception("that the look at %s failed could not be kept", subject)

    async def _note_look(self, subject: str, text: str, why: str) -> None:
        """Keep that a look failed and why, or by empty texts that the one after it succeeded."""
        name = StepName(f"{self.stage}.note")
        await workflow.transaction(name, self._write_look, subject, text, why)

    async def _write_look(self, tx: Tx, subject: str, text: str, why: str) -> None:
        await self._note(tx, text, "")
        await self.parts.store.watches.failed(subject, why, self.now, tx=tx)

    # --- inside a transaction -----------------------------------------------------------

    async def mark_stage(
        self, tx: Tx, stage: Stage, status: StageStatus, detail: Mapping[str, object]
    ) -> None:
        """Where a stage stands, and what is known of it."""
        if not self._alone:
            await self.parts.store.runs.stage(self.id, stage, status, detail, self.now, tx=tx)

    async def progress(self, stage: Stage, detail: Mapping[str, object]) -> None:
        """How far a stage is (`step`, `total_steps`, ...), recorded in the middle of one of its
        steps."""
        if not self._alone:
            await self.parts.store.runs.progress(self.id, stage, detail)
            self.changed()

    async def mark_run(
        self, tx: Tx, result: Mapping[str, object], status: RunStatus = RunStatus.RUNNING
    ) -> None:
        """Where the run stands; `result` is merged into what is known of it."""
        if not self._alone:
            await self.parts.store.runs.mark(self.id, status, at=self.now, result=result, tx=tx)

    async def tell(
        self, tx: Tx, kind: str, payload: Mapping[str, object], key: str | None = None
    ) -> None:
        """Tell the tracking server something of this run, once per try and `key`."""
        attempt = await self.parts.store.runs.attempt(self.id, tx=tx)
        await self.tell_once(tx, f"{self.id}:{attempt}:{key or kind}", kind, payload)

    async def tell_once(self, tx: Tx, key: str, kind: str, payload: Mapping[str, object]) -> None:
        """Tell the tracking server something of this run, once per `key`."""
        if self.parts.tracks_runs and not self._alone:
            known = {"run_id": self.id, **payload}
            await self.parts.store.outbox.add(key, kind, known, tx=tx)

    # --- who listens ------------------------------------------------------------------

    def changed(self) -> None:
        """Tell who listens that the run can be read anew."""
        if not self._alone:
            self.parts.hooks.run_changed(self.id)
