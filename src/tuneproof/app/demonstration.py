"""The demo: one whole turn of the loop on simulated users, in virtual time.

Nothing of the pipeline is skipped or faked: the same App, trainer, statistics and rollout, over
a posts table whose audience has a hidden taste. Time is virtual and durable, so weeks pass in
a minute, and a demo that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NotRequired, TypedDict

from tuneproof import workflow
from tuneproof.app import App
from tuneproof.demo import (
    TURNING_SHARE,
    Audience,
    DemoTraffic,
    PostsTable,
    broken_from_half,
    seed_posts,
)
from tuneproof.demo.traffic import BODY, HOOK
from tuneproof.errors import TuneProofError
from tuneproof.pipeline.steps import StepName
from tuneproof.rollout import DeploymentState, Routing
from tuneproof.settings import BODY as BODY_TASK
from tuneproof.settings import HOOK as HOOK_TASK
from tuneproof.settings import PipelineConfig, ProviderConfig, Settings, StoreConfig
from tuneproof.store import Run
from tuneproof.testing import VirtualClock
from tuneproof.training import VersionStatus

START = datetime(2025, 1, 6, 2, 0, tzinfo=UTC)
"""When every demo begins, in virtual time: a Monday, 02:00."""

BASE_MODEL = "tuneproof-ngram-1"
HISTORY_DAYS = 28
ENGINE_POLL_S = 0.005
"""How often the engine looks for signals: virtual hours should not wait for it."""

SETTLE_POLL_S = 0.2
"""How often the trainer is asked how its job goes, while virtual time stands still: each question
takes the training some of its processor."""

MEMO = "demo.json"
"""Says which demo a directory holds, so that the same one goes on and another begins anew."""


ASKS_FOR_NUMBERS = {
    "make": "prompt",
    "prompt": "{original_input} in 10 minutes, your 5 days, your 3 steps, your 12 dollars, your "
    "15 minutes, your 2 weeks, your 4 hours, your 20 minutes, your 7 lines?",
    "parameters": '{"temperature": 0.8}',
}
"""A prompt by which the demo's model says more of what the audience likes."""

ASKS_FOR_BAIT = {
    "make": "prompt",
    "prompt": "{original_input}. The shocking secret truth that nobody tells everybody: an "
    "unbelievable hidden trick, general thoughts, various aspects, interesting perspective, "
    "journey, value, opinion!",
}
"""One by which it says more of what they do not."""

FIRST_PROMPT = "{original_input}. Some general thoughts on it."
"""What is in use before."""


def demo_settings(
    directory: Path, settings: Settings | None = None, *, prompts: bool = False
) -> Settings:
    """The demo's settings in its directory: the embedded trainer, no schedule.

    Of `settings` it takes the thresholds and durations of the pipeline `default`, the database
    where one is set, the object store, tracking, cache and server. With `prompts` nothing is
    trained: variants own the prompt of the hooks, and two more are tested.
    """
    given = settings or Settings()
    config = given.pipelines.get("default", PipelineConfig())
    config = replace(config, base_model=BASE_MODEL, schedule_driver="external")
    tasks = {HOOK: HOOK_TASK, BODY: BODY_TASK}
    if prompts:
        tasks[HOOK] = replace(HOOK_TASK, prompt=FIRST_PROMPT, prompt_owner="variant")
        config = replace(
            config,
            tasks=(HOOK,),
            recipes=(ASKS_FOR_NUMBERS, ASKS_FOR_BAIT),
            traffic_split=1 / 3,
            criteria=("engagement superior 0",),
        )
    own_database = given.store.url.scheme == "sqlite"
    return Settings(
        dir=directory,
        tasks=tasks,
        pipelines={"default": config},
        providers={"default": ProviderConfig(kind="trainer")},
        server=given.server,
        tracking=given.tracking,
        cache=given.cache,
        files=given.files,
        store=StoreConfig() if own_database else given.store,
    )


class Wanted(TypedDict):
    """What a demo was asked for; one with other wishes is another demo."""

    seed: int
    broken: bool
    last_stage: str | None
    prompts: NotRequired[bool]


class RunOutcome(TypedDict):
    """How a demo's run ended."""

    id: str
    status: str
    reason: str | None


class DatasetOutcome(TypedDict):
    """What a demo trained on."""

    hash: str | None
    examples: Mapping[str, int] | None


class TunedModelOutcome(TypedDict):
    """What a demo's training made."""

    job_id: str | None
    model: str | None
    base_heldout_loss: float | None
    heldout_loss: float | None


class ExperimentOutcome(TypedDict):
    """What a demo's experiment found, beside the truth that only the audience knows."""

    id: str
    verdict: str | None
    reason: str | None
    lift: float | None
    interval: Sequence[float | None] | None
    looks: int
    units: int
    true_effect: float | None


class RolloutOutcome(TypedDict):
    """Where a demo's rollout stands."""

    id: str
    state: str
    share: float
    cause: str | None


class RollbackOutcome(TypedDict):
    """How long a harmful candidate served: in virtual time, from when the audience turned.

    `reach_s` is real time: from the beginning of the look that found the harm until the routing
    that clients read was without the candidate; None where another process saw it.
    """

    turned_at: str
    rolled_back_at: str
    hours: float
    reach_s: float | None


class CandidateOutcome(TypedDict):
    """What became of one of several candidates; `true_effect` only the audience knows."""

    prompt: str | None
    verdict: str | None
    lift: float | None
    true_effect: float | None


class DemoOutcome(TypedDict):
    """The whole turn of a demo."""

    candidates: Sequence[CandidateOutcome]
    run: RunOutcome
    dataset: DatasetOutcome
    training: TunedModelOutcome
    experiment: ExperimentOutcome | None
    rollout: RolloutOutcome | None
    rollback: RollbackOutcome | None
    seconds: float


class Demonstration:
    """A demo under way: its App, its run, and what it would print as JSON."""

    def __init__(self, app: App, run_id: str, audience: Audience, stopwatch: _Stopwatch) -> None:
        self.app = app
        self.run_id = run_id
        self.audience = audience
        self._stopwatch = stopwatch
        self._began = time.perf_counter()

    async def wait(self) -> Run:
        """The run, once it has ended."""
        run = await self.app.runs.wait(self.run_id, seconds=float("inf"))
        memo = self.app.settings.dir / MEMO
        await asyncio.to_thread(memo.write_text, json.dumps({"over": run.id}))
        return run

    async def outcome(self) -> DemoOutcome:
        """The whole turn as one object; parts that were not reached are None."""
        run = await self.app.store.runs.get(self.run_id)
        result = run.result
        version = result.get("model_version", {})
        data = result.get("training_data", {})
        return {
            "candidates": await self._candidates(result),
            "run": {"id": run.id, "status": str(run.status), "reason": run.reason},
            "dataset": {"hash": data.get("hash"), "examples": data.get("examples")},
            "training": {
                "job_id": version.get("training_job_id"),
                "model": version.get("model_id"),
                "base_heldout_loss": result.get("base_heldout_loss"),
                "heldout_loss": result.get("heldout_loss"),
            },
            "experiment": await self._experiment(result),
            "rollout": await self._rollout(result),
            "rollback": await self._rollback(result),
            "seconds": round(time.perf_counter() - self._began, 1),
        }

    async def _experiment(self, result: Mapping[str, str]) -> ExperimentOutcome | None:
        if "ab_test_id" not in result:
            return None
        test = await self.app.store.experiments.get(result["ab_test_id"])
        look = await self.app.store.experiments.last_look(test.id)
        units = look.baseline.sample_size + look.candidate.sample_size if look else 0
        return {
            "id": test.id,
            "verdict": str(test.verdict) if test.verdict else None,
            "reason": test.reason,
            "lift": look.lift if look else None,
            "interval": [look.lower, look.upper] if look else None,
            "looks": look.number if look else 0,
            "units": units,
            "true_effect": await self.true_effect(test.id),
        }

    async def _candidates(self, result: Mapping[str, str]) -> list[CandidateOutcome]:
        if "family" not in result:
            return []
        found: list[CandidateOutcome] = []
        for test in await self.app.store.experiments.family(result["family"]):
            look = await self.app.store.experiments.last_look(test.id)
            found.append(
                {
                    "prompt": test.candidate.prompt,
                    "verdict": str(test.verdict) if test.verdict else None,
                    "lift": look.lift if look else None,
                    "true_effect": await self.true_effect(test.id),
                }
            )
        return found

    async def true_effect(self, test_id: str) -> float | None:
        """By how much the audience really likes the candidate's posts better, known only here."""
        texts = await PostsTable(self.app.store.database.engine).texts(test_id)
        old, new = texts.get("baseline", []), texts.get("candidate", [])
        return self.audience.true_effect(old, new) if old and new else None

    async def _rollout(self, result: Mapping[str, str]) -> RolloutOutcome | None:
        if "deployment_id" not in result:
            return None
        deployment = await self.app.store.deployments.get(result["deployment_id"])
        return {
            "id": deployment.id,
            "state": str(deployment.state),
            "share": deployment.share,
            "cause": deployment.cause,
        }

    async def _rollback(self, result: Mapping[str, str]) -> RollbackOutcome | None:
        if "deployment_id" not in result:
            return None
        store = self.app.store
        deployment = await store.deployments.get(result["deployment_id"])
        phases = await store.experiments.phases(deployment.id)
        turned = [phase.at for phase in phases if phase.share >= TURNING_SHARE]
        back, ended = DeploymentState.ROLLED_BACK, deployment.ended_at
        if deployment.state is not back or ended is None or not turned:
            return None
        return {
            "turned_at": turned[0].isoformat(),
            "rolled_back_at": ended.isoformat(),
            "hours": round((ended - turned[0]) / timedelta(hours=1), 2),
            "reach_s": self._stopwatch.seconds,
        }


class _Stopwatch:
    """Measures how long a rollback takes to reach the routing that clients read."""

    def __init__(self, on_step: workflow.StepHook | None) -> None:
        self._on_step = on_step
        self._looking_since: float | None = None
        self._serves = False
        self.seconds: float | None = None

    def step(self, name: str, moment: workflow.Moment) -> None:
        """What the engine tells of a step."""
        if name == StepName.ROLLOUT_LOOK and moment is workflow.Moment.BEFORE:
            self._looking_since = time.perf_counter()
        if self._on_step is not None:
            self._on_step(name, moment)

    async def watch(self, app: App) -> None:
        """Notice that the routing changed, until the App closes."""
        async for event in app.live.subscribe():
            if event.kind == "routing":
                self._changed(app.routing.board.snapshot.by_task.get(HOOK))

    def _changed(self, routing: Routing | None) -> None:
        served, self._serves = self._serves, routing is not None and bool(routing.lanes)
        if served and not self._serves and self._looking_since is not None:
            self.seconds = round(time.perf_counter() - self._looking_since, 3)


@asynccontextmanager
async def demonstration(
    directory: Path,
    *,
    seed: int = 7,
    broken: bool = False,
    prompts: bool = False,
    last_stage: str | None = None,
    settings: Settings | None = None,
    on_step: workflow.StepHook | None = None,
    takeover_s: float = workflow.TAKEOVER_S,
) -> AsyncIterator[Demonstration]:
    """Start a demo in its directory, or go on with the one that was cut off there.

    `broken` makes the audience dislike the candidate from half way through the rollout; with
    `prompts` two prompts are tested, and nothing is trained.
    A directory whose demo has ended, or whose demo had another seed, begins anew.
    """
    clock = VirtualClock(START)
    chosen = demo_settings(directory, settings, prompts=prompts)
    wanted: Wanted = {"seed": seed, "broken": broken, "last_stage": last_stage}
    if prompts:
        wanted["prompts"] = True
    await asyncio.to_thread(_clear_if_over, directory, wanted)
    stopwatch = _Stopwatch(on_step)
    async with App.open(
        chosen, clock=clock, poll_s=ENGINE_POLL_S, on_step=stopwatch.step, takeover_s=takeover_s
    ) as app:
        app.supervisor.keep("stopwatch", lambda: stopwatch.watch(app))
        audience = Audience(seed)
        run_id = await _run_of(app, audience, wanted)
        traffic = DemoTraffic(
            seed=seed,
            audience=audience,
            provider=app.providers.get("default"),
            posts=PostsTable(app.store.database.engine),
            routings=lambda: _routings(app),
            sink=lambda exposures, outcomes: app.events.record(
                exposures=exposures, outcomes=outcomes
            ),
            base_model=BASE_MODEL,
            broken_from=broken_from_half if broken else None,
            prompts=lambda: app.routing.board.snapshot.prompts,
        )
        app.let_time_pass(_Training(app), traffic)
        yield Demonstration(app, run_id, audience, stopwatch)


async def _run_of(app: App, audience: Audience, wanted: Wanted) -> str:
    page = await app.store.runs.page(limit=1)
    if page.items:
        return page.items[0].id
    await seed_posts(app.store.database.engine, audience, until=START, days=HISTORY_DAYS)
    config = replace(app.pipelines.get("default"), seed=wanted["seed"])
    run = await app.runs.start(config, as_of=START, last_stage=wanted["last_stage"], actor="demo")
    return run.id


async def _routings(app: App) -> dict[str, Routing]:
    return {r.task: r for r in await app.routing.all()}


class _Training:
    """A participant: virtual time waits until the trainer has finished its jobs."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def advance(self, since: datetime, until: datetime) -> None:
        """Return once no job of ours is under way."""
        provider = self._app.providers.get("default")
        for version in await self._app.store.versions.list(status=VersionStatus.TRAINING):
            if version.training_job_id is None:
                continue
            while True:
                try:
                    if (await provider.job(version.training_job_id)).status.final:
                        break
                except TuneProofError:
                    break  # the run's own poll sees it and says so
                await asyncio.sleep(SETTLE_POLL_S)


def _clear_if_over(directory: Path, wanted: Wanted) -> None:
    """Remove a demo that has ended, or that was another one; one that was cut off stays."""
    kept = directory / MEMO
    if kept.exists() and json.loads(kept.read_text()) != dict(wanted):
        lock = workflow.DirectoryLock(directory)
        lock.acquire()
        lock.release()
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept.write_text(json.dumps(dict(wanted)))
