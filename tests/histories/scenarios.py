"""What is recorded: each stage of a run interrupted, and the other ways that a watch can go."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dbos import DBOS
from tests.histories.databases import dump, restore
from tests.integration.loop import QUICK, Loop, open_loop

from tuneproof import workflow
from tuneproof.errors import ProviderUnavailableError, TrainingNotAvailableError
from tuneproof.experiments import Variant
from tuneproof.pipeline import StepName
from tuneproof.settings import BODY, HOOK, TaskConfig
from tuneproof.testing import MemoryProvider
from tuneproof.training import JobRequest
from tuneproof.workflow import Moment, RecordSerializer

RECORDED = Path(__file__).parent / "recorded"
DATABASES = ("sqlite", "postgres")

CONFIG = replace(
    QUICK,
    a_b_test_duration_hours=24,
    increment_interval_hours=4,
    min_units=50,
    min_units_phase=10,
)
SEARCH = {"search": {"n_epochs": [1, 2]}}
SEVERAL = {**SEARCH, "candidates": 2, "traffic_split": 0.3}
OWNED = {
    "hook": replace(HOOK, prompt="A hook about {original_input}.", prompt_owner="variant"),
    "body": BODY,
}
VARIANTS = {
    "tasks": ("hook",),
    "traffic_split": 0.3,
    "recipes": ({"make": "train"}, {"make": "prompt", "prompt": "Ask about {original_input}."}),
}
PER_HOUR = 12
"""Units an hour: few, so that a history stays small."""

workflow.register(JobRequest)


class Interruptions:
    """A step hook that takes down what is committed when steps were recorded.

    Who was away comes back then, so that what goes on is the same with and without a kill.
    """

    def __init__(self, at: Mapping[str, tuple[StepName, int]], url: str, directory: Path) -> None:
        self._at = at
        self._url = url
        self._directory = directory
        self._seen: dict[str, int] = {}
        self.provider = MemoryProvider(base_models=("base", "candidate"))
        self.taken: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, moment: Moment) -> None:
        if moment is not Moment.AFTER:
            return
        self._seen[name] = number = self._seen.get(name, 0) + 1
        for history, (step, wanted) in self._at.items():
            if name == step and number == wanted:
                self.taken[history] = {
                    "databases": dump(self._url, self._directory),
                    "provider": provider_state(self.provider),
                }
                self.provider.raises.clear()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A loop under way, and when it is interrupted: the step's name and which time by history."""

    start: Callable[[Loop], Awaitable[str]]
    interrupted: Mapping[str, tuple[StepName, int]]
    changes: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, TaskConfig] | None = None


async def _run(loop: Loop) -> str:
    run = await loop.app.runs.start()
    await loop.end(run.id)
    return run.id


async def _waits(loop: Loop) -> str:
    """The provider is away until the run has noted that it waits."""
    loop.provider.raises["create_job"] = ProviderUnavailableError("The provider is away.")
    return await _run(loop)


async def _retried(loop: Loop) -> str:
    loop.provider.raises["create_job"] = TrainingNotAvailableError("Closed.", mend="Wait.")
    run = await loop.turn()
    del loop.provider.raises["create_job"]
    await loop.app.runs.retry(run.id)
    await loop.end(run.id)
    return run.id


async def _tested(loop: Loop) -> str:
    """A test that no run drives."""
    baseline, candidate = Variant(model_id="base"), Variant(model_id="candidate")
    [test] = await loop.app.experiments.create(baseline=baseline, candidates=[candidate])
    await loop.app.engine.result(test.id)
    return test.id


async def _rolled_out(loop: Loop) -> str:
    """A rollout that no run drives."""
    test_id = await _tested(loop)
    test = await loop.app.store.experiments.get(test_id)
    deployment = await loop.app.rollouts.deploy(model=test.candidate, ab_test_id=test_id)
    await loop.app.engine.result(deployment.id)
    return deployment.id


SCENARIOS = {
    "run": Scenario(
        start=_run,
        interrupted={
            "run-collected": (StepName.COLLECT_END, 1),
            "run-training": (StepName.TRAIN_POLL, 1),
            "run-gate": (StepName.GATE_CHECK, 1),
            "run-experiment": (StepName.EXPERIMENT_LOOK, 2),
            "run-rollout": (StepName.ROLLOUT_LOOK, 2),
        },
    ),
    "waits": Scenario(start=_waits, interrupted={"run-waits": (StepName.TRAIN_NOTE, 1)}),
    "search": Scenario(
        start=_run,
        interrupted={"run-search": (StepName.TRAIN_RECORD_TRIAL, 1)},
        changes=SEARCH,
    ),
    "several": Scenario(
        start=_run,
        interrupted={"run-two-candidates": (StepName.EXPERIMENT_LOOK, 2)},
        changes=SEVERAL,
    ),
    "variants": Scenario(
        start=_run,
        interrupted={
            "variants-gate": (StepName.GATE_CHECK, 2),
            "variants-experiment": (StepName.EXPERIMENT_LOOK, 2),
            "variants-rollout": (StepName.ROLLOUT_LOOK, 2),
        },
        changes=VARIANTS,
        tasks=OWNED,
    ),
    "retried": Scenario(start=_retried, interrupted={"run-retried": (StepName.TRAIN_START, 1)}),
    "test": Scenario(start=_tested, interrupted={"test-alone": (StepName.EXPERIMENT_LOOK, 2)}),
    "rollout": Scenario(
        start=_rolled_out, interrupted={"rollout-alone": (StepName.ROLLOUT_LOOK, 2)}
    ),
}


# --- recording and replaying ------------------------------------------------------------------


async def record(scenario: Scenario, url: str, directory: Path) -> dict[str, dict[str, Any]]:
    """Each history of a scenario: what stood there, and the end to which it went on."""
    interruptions = Interruptions(scenario.interrupted, url, directory)
    async with _opened(scenario, url, directory, interruptions.provider, interruptions) as loop:
        subject = await scenario.start(loop)
        end = await end_of(loop, subject)
    missing = set(scenario.interrupted) - set(interruptions.taken)
    assert not missing, f"never interrupted at {missing}"
    found = interruptions.taken.items()
    return {name: {**taken, "subject": subject, "end": end} for name, taken in found}


async def replay(
    scenario: Scenario, history: Mapping[str, Any], url: str, directory: Path
) -> dict[str, Any]:
    """Open what was left behind, wait for the end, and say of it what the history says."""
    restore(history["databases"], url, directory)
    provider = provider_of(history["provider"])
    async with _opened(scenario, url, directory, provider) as loop:
        await loop.app.engine.result(history["subject"])
        end = await end_of(loop, history["subject"])
        return {told: end.get(told) for told in history["end"]}


@asynccontextmanager
async def _opened(
    scenario: Scenario,
    url: str,
    directory: Path,
    provider: MemoryProvider,
    on_step: workflow.StepHook | None = None,
) -> AsyncIterator[Loop]:
    async with open_loop(
        directory,
        url,
        config=CONFIG,
        lift=1.0,
        changes=scenario.changes,
        tasks=scenario.tasks,
        provider=provider,
        on_step=on_step,
        takeover_s=0.1,
    ) as loop:
        loop.traffic.per_hour = PER_HOUR
        yield loop


async def end_of(loop: Loop, subject: str) -> dict[str, Any]:
    """How it ended: states, verdicts and effects, and each step in its order."""
    app = loop.app
    tests = (await app.store.experiments.page()).items
    lifts = {t.id: [x.lift for x in await app.experiments.looks(t.id)] for t in tests}
    runs = [await app.store.runs.get(subject)] if subject.startswith("ft-pipeline") else []
    rollouts = (await app.store.deployments.page()).items
    versions = await app.store.versions.list()
    found = {
        "runs": [[str(r.status), {k: v["status"] for k, v in r.stages.items()}] for r in runs],
        "tests": [[t.id, str(t.status), t.verdict and str(t.verdict)] for t in tests],
        "lifts": {id: [x and round(x, 4) for x in each] for id, each in lifts.items()},
        "rollouts": [[d.id, str(d.state), d.share] for d in rollouts],
        "versions": [[v.version, str(v.status), v.model_id] for v in versions],
        "routing": {r.task: r.baseline.model_id for r in await app.routing.all()},
        "prompts": {v.version: v.prompt for v in versions},
        "jobs": loop.provider.calls.get("create_job", 0),
        "steps": await steps_of(subject),
    }
    normal: dict[str, Any] = json.loads(json.dumps(found))
    return normal


async def steps_of(subject: str) -> list[str]:
    """The names of a durable function's steps in order, waits and clocks left out."""
    known = {str(name) for name in StepName}
    steps = await DBOS.list_workflow_steps_async(subject)
    return [s["function_name"] for s in steps if s["function_name"] in known]


def provider_state(provider: MemoryProvider) -> str:
    """What a provider in memory knows, as text."""
    files = {id: [name, data.decode()] for id, (name, data) in provider.files.items()}
    known = (provider._jobs, provider._polled, provider.requests, files, provider.calls)
    return RecordSerializer().serialize(list(known))


def provider_of(state: str) -> MemoryProvider:
    """The provider that knows what `provider_state` told."""
    provider = MemoryProvider(base_models=("base", "candidate"))
    jobs, polled, requests, files, calls = RecordSerializer().deserialize(state)
    provider._jobs, provider._polled, provider.requests = jobs, polled, requests
    provider.files = {id: (name, text.encode()) for id, (name, text) in files.items()}
    provider.calls = calls
    return provider


def path_of(name: str, database: str, schema: str) -> Path:
    """Where a history is kept that a version with this schema recorded."""
    return RECORDED / schema / f"{name}.{database}.json.gz"


def write(path: Path, history: Mapping[str, Any]) -> None:
    """Keep a history; the same one gives the same bytes."""
    text = json.dumps(history, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def read(path: Path) -> dict[str, Any]:
    """A history that was kept."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found
