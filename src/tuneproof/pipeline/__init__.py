"""The pipeline: one durable function that turns production outcomes into the next model.

    posts ─collect→ examples ─curate→ dataset ─train→ version ─gate→ report
          ─experiment→ verdict ─rollout→ live ─watch→ posts

`turn` is that line; `stages` makes the version, `serving` brings it to users, `records` says
what a run is given, gives back and needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tuneproof import workflow
from tuneproof.errors import ConfigError
from tuneproof.pipeline.records import (
    Hooks,
    NoHooks,
    Parts,
    PipelineResult,
    RunArguments,
    RunStore,
    Stage,
    StageStatus,
)
from tuneproof.pipeline.steps import StepName
from tuneproof.pipeline.turn import experiment_alone, rollout_alone, turn
from tuneproof.settings import PipelineConfig, Settings

__all__ = [
    "FineTuningPipeline",
    "Hooks",
    "NoHooks",
    "Parts",
    "PipelineResult",
    "RunArguments",
    "RunHandle",
    "RunStore",
    "Stage",
    "StageStatus",
    "StepName",
    "experiment_alone",
    "rollout_alone",
    "turn",
]


class RunHandle:
    """A run that was started: ask how it stands, wait for it, wake it, abort it."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id

    async def wait(self) -> PipelineResult:
        """The result, once the run has ended (weeks, maybe)."""
        result: PipelineResult = await workflow.engine().result(self.id)
        return result

    async def ended(self) -> bool:
        """Whether the run is over."""
        return await workflow.engine().ended(self.id)

    async def abort(self, reason: str, *, actor: str = "system") -> None:
        """Ask the run to end: its job is cancelled, its candidate loses its traffic."""
        await self.signal(workflow.Signal(kind="abort", reason=reason, actor=actor))

    async def signal(self, signal: workflow.Signal) -> None:
        """Wake the run."""
        await workflow.engine().send(self.id, signal)


class FineTuningPipeline:
    """The whole loop for one pipeline.

    `FineTuningPipeline(config=config).run()` needs nothing else: what is not given is built
    from the settings. `app` is the `App` whose adapters it uses; the keyword arguments in
    `adapters` (source, provider, targets, clock, ...) replace single ones.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        app: Any = None,
        settings: Settings | None = None,
        **adapters: Any,
    ) -> None:
        if not isinstance(config, PipelineConfig):
            raise ConfigError(
                f"A pipeline needs its config, not {config!r}.",
                mend="Pass PipelineConfig(), with the thresholds and durations that you want.",
            )
        self.config = config
        self._app = app
        self._settings = settings
        self._adapters = adapters

    async def run(self, **arguments: Any) -> PipelineResult:
        """One turn of the loop, waited for. `arguments` are those of `App.start_run`."""
        async with self._opened() as app:
            handle = await self._start(app, arguments)
            return await handle.wait()

    async def start(self, **arguments: Any) -> RunHandle:
        """Start one turn and return at once; needs an open `app`.

        Raises `ConfigError` without one, `StateError` where a run of this pipeline is under way.
        """
        if self._app is None:
            raise ConfigError(
                "start() returns before the run has ended, so it needs an App that lives on.",
                mend="Open one (`async with App.open(settings) as app`) and pass it as app=.",
            )
        return await self._start(self._app, arguments)

    async def _start(self, app: Any, arguments: dict[str, Any]) -> RunHandle:
        run = await app.start_run(self.config, **arguments)
        return RunHandle(run.id)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        if self._app is not None:
            yield self._app
            return
        settings = self._settings
        if settings is None:
            settings = await asyncio.to_thread(lambda: Settings.load())
        opened: Any = settings.adapter("app")
        async with opened.open(settings, **self._adapters) as app:
            yield app
