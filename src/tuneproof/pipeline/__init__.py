"""The pipeline: one durable function that turns production outcomes into the next model.

    posts ─collect→ examples ─curate→ dataset ─train→ version ─gate→ report
          ─experiment→ verdict ─rollout→ live ─watch→ posts

`turn` is that line; each stage is an object with the run's context (`collecting`, `planning`,
`training`, `gating`, `experimenting`, `rolling_out`, `ending`); `steps` names what is recorded,
`records` says what a run is given, gives back and needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Protocol, TypedDict, Unpack, cast

from tuneproof import workflow
from tuneproof.collection import Source
from tuneproof.errors import ConfigError
from tuneproof.evaluation import Scorer
from tuneproof.pipeline.prompting import SETTINGS, ensure_all_know, ensure_asks_for
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
from tuneproof.rollout import Target
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.training import Provider

__all__ = [
    "SETTINGS",
    "Adapters",
    "FineTuningPipeline",
    "Hooks",
    "NoHooks",
    "OpenApp",
    "Parts",
    "PipelineResult",
    "RunArguments",
    "RunHandle",
    "RunRequest",
    "RunStarter",
    "RunStore",
    "Stage",
    "StageStatus",
    "StepName",
    "ensure_all_know",
    "ensure_asks_for",
    "experiment_alone",
    "rollout_alone",
    "turn",
]


class StartedRun(Protocol):
    """What was started."""

    @property
    def id(self) -> str:
        """The run's id."""


class RunRequest(TypedDict, total=False):
    """What one run is told beside its pipeline."""

    config_overrides: Mapping[str, object] | None
    """Settings of the pipeline that this run has otherwise."""
    force: bool
    """Go on with fewer examples than the threshold."""
    posts: str | None
    """A file or an address that replaces the pipeline's source."""
    as_of: datetime | None
    """Posts are those known at this instant; now, where it is not said."""
    last_stage: str | None
    """The last one to do: "gate" trains and checks, and serves nothing."""
    actor: str
    """Who starts it, for the activity; "system", where it is not said."""


class RunStarter(Protocol):
    """Who starts runs."""

    async def start(self, pipeline: PipelineConfig, **request: Unpack[RunRequest]) -> StartedRun:
        """Start one turn of the loop and return at once."""


class OpenApp(Protocol):
    """An open `App`."""

    @property
    def runs(self) -> RunStarter:
        """Who starts runs."""


class Adapters(TypedDict, total=False):
    """What replaces the adapters that the settings describe, one by one."""

    store: object
    """The database, opened: `tuneproof.store.Store`."""
    clock: workflow.Clock
    provider: Provider
    """One for all names of providers."""
    source: Source
    """One for all pipelines."""
    targets: Sequence[Target]
    scorers: Mapping[str, Scorer]
    min_scores: Mapping[str, float]
    on_step: workflow.StepHook
    poll_s: float
    takeover_s: float
    background: bool


class _AppClass(Protocol):
    """How an `App` is opened; pipeline stands below it, so the settings name the class."""

    def open(
        self, settings: Settings, **adapters: Unpack[Adapters]
    ) -> AbstractAsyncContextManager[OpenApp]:
        """An App with everything running."""


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
    from the settings. `app` is the open `App` whose adapters it uses; the keyword arguments in
    `adapters` (source, provider, targets, clock, ...) replace single ones where it opens its own.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        *,
        app: OpenApp | None = None,
        settings: Settings | None = None,
        **adapters: Unpack[Adapters],
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

    async def run(self, **request: Unpack[RunRequest]) -> PipelineResult:
        """One turn of the loop, waited for.

        Raises `StateError` where a run of this pipeline is under way.
        """
        async with self._opened() as app:
            started = await app.runs.start(self.config, **request)
            return await RunHandle(started.id).wait()

    async def start(self, **request: Unpack[RunRequest]) -> RunHandle:
        """Start one turn, as `run` does, and return at once; needs an open `app`.

        Raises `ConfigError` without one, `StateError` where a run of this pipeline is under way.
        """
        if self._app is None:
            raise ConfigError(
                "start() returns before the run has ended, so it needs an App that lives on.",
                mend="Open one (`async with App.open(settings) as app`) and pass it as app=.",
            )
        started = await self._app.runs.start(self.config, **request)
        return RunHandle(started.id)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[OpenApp]:
        if self._app is not None:
            yield self._app
            return
        settings = self._settings
        if settings is None:
            settings = await asyncio.to_thread(lambda: Settings.load())
        opens = cast(_AppClass, settings.adapter("app"))
        async with opens.open(settings, **self._adapters) as app:
            yield app
