"""What a run is given and what it gives back; the protocols of what it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tuneproof import workflow
from tuneproof.collection import Dataset, Source, Task, TrainingDataBatch, Window
from tuneproof.curation import ShelvedDatasets
from tuneproof.evaluation import (
    Form,
    FormFigure,
    GateReport,
    OutcomeModel,
    OutcomeReport,
    Prediction,
    Sample,
    Scorer,
)
from tuneproof.experiments import (
    ABTest,
    Arm,
    ArmMetrics,
    Criteria,
    Criterion,
    CriterionResult,
    EvaluationResult,
    ExpectedLift,
    ExperimentStatus,
    ExperimentStore,
    Halves,
    Look,
    Part,
    Segment,
    Variant,
    Verdict,
)
from tuneproof.experiments.planning import CyclePlan, Prices
from tuneproof.experiments.store import DatasetRecords, ExperimentRecords, LookEvidence
from tuneproof.prompts import Prompt
from tuneproof.rollout import (
    Advice,
    Deployment,
    DeploymentState,
    Plan,
    RolloutStore,
    Target,
    Watch,
)
from tuneproof.rollout.store import MoveRecords, PromptTexts, RolloutEvidence
from tuneproof.settings import Declaration, PipelineConfig
from tuneproof.settings.former import of_now
from tuneproof.training import (
    Job,
    JobProgress,
    JobStatus,
    ModelVersion,
    Price,
    Provider,
    TrainingTime,
    VersionStatus,
)
from tuneproof.workflow import RunStatus, Tx


class Stage(StrEnum):
    """The stages of a run, in order."""

    COLLECT = "collect"  # posts to examples
    CURATE = "curate"  # examples to a dataset
    TRAIN = "train"  # dataset to version
    GATE = "gate"  # the offline check
    EXPERIMENT = "experiment"  # the online test
    ROLLOUT = "rollout"  # traffic, step by step


class StageStatus(StrEnum):
    """Where a stage stands."""

    IN_PROGRESS = "in_progress"  # at work, or waiting
    COMPLETED = "completed"  # done; the next one begins
    FAILED = "failed"  # its run ended here, or its candidate was refused
    SKIPPED = "skipped"  # its run ended here, and nothing was spent


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What this run alone was told. `posts` replaces the pipeline's source by a file or address."""

    until: datetime | None = None
    force: bool = False
    posts: str | None = None
    only: Stage | None = None
    """The last stage to do: `gate` trains and checks, and serves nothing."""


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """How a run ended. `seconds` is how long its stages worked, waits left out."""

    run_id: str
    status: RunStatus
    reason: str
    training_data: TrainingDataBatch | None = None
    model_version: ModelVersion | None = None
    gate: GateReport | None = None
    experiment: ABTest | None = None
    look: Look | None = None
    deployment: Deployment | None = None
    family: tuple[ABTest, ...] = ()
    """All tests where several candidates were tested at once; `experiment` is the winner's."""
    error: Mapping[str, object] | None = None
    seconds: float = 0.0
    memory_peak_mb: float | None = None


class RunRecords(Protocol):
    """Where runs are written down."""

    async def progress(self, id: str, stage: str, detail: Mapping[str, object]) -> None:
        """Record how far a stage is; nothing where it is not at work (any more)."""

    async def stage(
        self,
        id: str,
        stage: str,
        status: str,
        detail: Mapping[str, object] | None = None,
        at: datetime | None = None,
        *,
        tx: Tx | None = None,
    ) -> object:
        """Where a stage stands; `detail` is merged into what is known."""

    async def mark(
        self,
        id: str,
        status: RunStatus,
        *,
        at: datetime,
        reason: str | None = None,
        error: Mapping[str, object] | None = None,
        result: Mapping[str, object] | None = None,
        tx: Tx | None = None,
    ) -> object:
        """Where the run stands; `result` is merged into what is known."""

    async def last_detail(
        self, pipeline: str, stage: str, *, but: str
    ) -> Mapping[str, object] | None:
        """What the newest of a pipeline's other runs that completed a stage wrote of it."""

    async def attempt(self, id: str, *, tx: Tx | None = None) -> int:
        """How often this run was retried, plus one."""

    async def spent_usd(
        self, pipeline: str, *, since: datetime | None = None, run_id: str | None = None
    ) -> float:
        """What a pipeline's runs (or one) have spent on training, those under way included."""

    async def training_times(self, provider: str) -> Sequence[TrainingTime]:
        """How long the newest trainings at a provider took, newest first, of all pipelines."""


class VersionRecords(DatasetRecords, Protocol):
    """Where versions are written down."""

    async def find(self, id: str, *, tx: Tx | None = None) -> ModelVersion | None:
        """A version by its id, where it is one of ours."""

    async def declare(self, version: ModelVersion, *, tx: Tx | None = None) -> ModelVersion:
        """Keep a new version under its pipeline's next number."""

    async def save(self, version: ModelVersion, *, tx: Tx | None = None) -> None:
        """Write what training and gate change of a version."""

    async def taken_back(self, model_id: str, *, tx: Tx | None = None) -> Sequence[ModelVersion]:
        """The versions of this model that did harm."""

    async def put_live(self, id: str | None, pipeline: str, *, tx: Tx | None = None) -> None:
        """Make a version the model in use; the one before is retired."""


class KeptPrompt(Protocol):
    """A prompt as it was kept."""

    @property
    def prompt(self) -> Prompt:
        """What it says."""


class PromptRecords(PromptTexts, Protocol):
    """Where prompts are kept."""

    async def keep(
        self, prompt: Prompt, *, origin: str, parent: str | None = None, tx: Tx | None = None
    ) -> bool:
        """Keep a prompt under its hash; whether it was new."""

    async def get(self, hash: str, *, tx: Tx | None = None) -> KeptPrompt:
        """The prompt with this hash. Raises `NotFoundError`."""


class Budgets(Protocol):
    """Budgets from which a call is taken before it is made."""

    async def reserve(
        self,
        pipeline: str,
        day: str,
        cost_usd: float,
        *,
        max_calls: int,
        max_cost_usd: float | None,
        tx: Tx | None = None,
    ) -> bool:
        """Take one call of at most `cost_usd`; False where it does not fit."""

    async def settle(
        self,
        pipeline: str,
        day: str,
        reserved_usd: float,
        cost_usd: float,
        *,
        called: bool = True,
        tx: Tx | None = None,
    ) -> None:
        """Put what a call really cost in place of what was reserved for it."""

    async def spent(self, pipeline: str, day: str, *, tx: Tx | None = None) -> Spent:
        """What was taken until now."""


class Spent(Protocol):
    """What was taken of a budget."""

    @property
    def cost_usd(self) -> float:
        """In USD."""


class TrackingOutbox(Protocol):
    """What the tracking server is to be told, written with the change that it tells of."""

    async def add(
        self, key: str, kind: str, payload: Mapping[str, object], *, tx: Tx | None = None
    ) -> object:
        """Add an item, once per key."""


class ActivityNotes(Protocol):
    """Where it is noted what happened to a test or rollout that no run drives."""

    async def add(
        self,
        at: datetime,
        actor: str,
        action: str,
        object_id: str,
        reason: str = "",
        *,
        tx: Tx | None = None,
    ) -> None:
        """Note a deed."""


class WatchNotes(Protocol):
    """Where it is noted that a watch goes on."""

    async def looked(self, ids: Sequence[str], at: datetime, *, tx: Tx | None = None) -> None:
        """A look at these tests or rollouts succeeded."""

    async def failed(self, id: str, why: str, at: datetime, *, tx: Tx | None = None) -> None:
        """A look of a family or rollout raised; an empty `why`: the one after it succeeded."""


class RunMoves(MoveRecords, Protocol):
    """What rollouts and routing change together."""

    async def supersede_holds(self, pipeline: str, at: datetime, tx: Tx | None = None) -> list[str]:
        """Complete the rollouts that only hold; the ids of those who drive them."""


class RunEvidence(LookEvidence, RolloutEvidence, Protocol):
    """What events add up to."""


class RunStore(ExperimentStore, RolloutStore, Protocol):
    """What a run writes down as it goes; every write takes the transaction it belongs to."""

    @property
    def runs(self) -> RunRecords:
        """The runs."""

    @property
    def experiments(self) -> ExperimentRecords:
        """The tests and their looks."""

    @property
    def events(self) -> RunEvidence:
        """What events add up to."""

    @property
    def versions(self) -> VersionRecords:
        """The versions."""

    @property
    def prompts(self) -> PromptRecords:
        """The prompts."""

    @property
    def scores(self) -> Budgets:
        """The budgets of scores."""

    @property
    def moves(self) -> RunMoves:
        """What rollouts and routing change together."""

    @property
    def outbox(self) -> TrackingOutbox:
        """What the tracking server is to be told."""

    @property
    def activity(self) -> ActivityNotes:
        """Who did what."""

    @property
    def watches(self) -> WatchNotes:
        """When tests and rollouts were last looked at."""


class MemoryUsage(Protocol):
    """What a stage's work took of this process's memory, in MiB."""

    def to_dict(self) -> dict[str, float]:
        """`initial_mb`, `peak_mb`, `final_mb`."""


class MemoryWatched(Protocol):
    """A watch over this process's memory, with what it saw until now."""

    @property
    def usage(self) -> MemoryUsage:
        """The figures until now."""


class Hooks(Protocol):
    """Who wants to know what a run does: metrics, live events. Must not raise."""

    def memory(self, run_id: str, limit_mb: float) -> AbstractContextManager[MemoryWatched]:
        """Watch memory while a stage works; warns at the limit."""

    def stage_finished(self, run_id: str, stage: str, seconds: float) -> None:
        """A stage ended after working this long."""

    def run_changed(self, run_id: str) -> None:
        """Something about the run can be read anew."""

    def collected(self, batch: TrainingDataBatch) -> None:
        """A dataset was made."""

    def run_ended(self, result: PipelineResult, pipeline: str, seconds: float) -> None:
        """A run ended, `seconds` after its start, waits included."""

    def experiment_looked(self, test: ABTest, look: Look) -> None:
        """A look was taken."""

    def look_failed(self, subject: str, why: str, at: datetime) -> None:
        """A look at this test, family or rollout raised; it is tried again at the next interval."""

    def rollout_moved(self, deployment: Deployment) -> None:
        """A rollout is at another step or state."""

    def routing_changed(self, tasks: Sequence[str]) -> None:
        """These tasks may be served by other models or shares now."""


@dataclass(frozen=True)
class _Unwatched:
    """Stands where nobody measures memory."""

    @property
    def usage(self) -> _Unwatched:
        return self

    def to_dict(self) -> dict[str, float]:
        return {"initial_mb": 0.0, "peak_mb": 0.0, "final_mb": 0.0}


class NoHooks:
    """Nobody listens."""

    def memory(self, run_id: str, limit_mb: float) -> AbstractContextManager[MemoryWatched]:
        """Nothing is measured."""
        return nullcontext(_Unwatched())

    def stage_finished(self, run_id: str, stage: str, seconds: float) -> None:
        """Ignored."""

    def run_changed(self, run_id: str) -> None:
        """Ignored."""

    def collected(self, batch: TrainingDataBatch) -> None:
        """Ignored."""

    def run_ended(self, result: PipelineResult, pipeline: str, seconds: float) -> None:
        """Ignored."""

    def experiment_looked(self, test: ABTest, look: Look) -> None:
        """Ignored."""

    def look_failed(self, subject: str, why: str, at: datetime) -> None:
        """Ignored."""

    def rollout_moved(self, deployment: Deployment) -> None:
        """Ignored."""

    def routing_changed(self, tasks: Sequence[str]) -> None:
        """Ignored."""


async def _no_prices(config: PipelineConfig, in_use: Variant) -> Prices:
    return Prices()


async def _unknown(pipeline: str) -> PipelineConfig | None:
    """The settings of a pipeline that stands in none."""
    return None


async def _none_older() -> int:
    """There is one process."""
    return 0


async def _forgets(task: str, model: OutcomeModel, run_id: str) -> None:
    """Stands where nobody uses the model beyond its run."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The adapters of this process that runs work with; `workflow.resources()` of a run.

    `provider(name)` and `source(config, posts)` open what the settings describe, `prices(config)`
    says what training and answers cost, `price(provider, model, method)` what training does;
    `scorers` are asked by every gate, `scorer(name)` is one that a pipeline's settings name;
    `serves(model)` is the provider that answers for a model (None: the pipeline's for all),
    `settings_now(pipeline)` is what a run that started now would be given;
    `place(provider)` a name that finds the provider also after it has moved; `asks(tasks)` whether
    checks may ask the models of any of these tasks; `older_workers()` how many workers live that
    serve no variant by its prompt; `directory` holds datasets and temporary files,
    `shelved` are the datasets that all workers share (None: those of the directory are all).
    Of the tasks in `picked` the gateway picks answers by a model of their outcomes, so each run
    trains one; `keep_outcomes(task, model, run_id)` keeps such a model.
    """

    store: RunStore
    directory: Path
    clock: workflow.Clock
    provider: Callable[[str], Provider]
    source: Callable[[PipelineConfig, str | None], Source]
    tasks: Mapping[str, Task]
    shelved: ShelvedDatasets | None = None
    targets: Sequence[Target] = ()
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    min_scores: Mapping[str, float] = field(default_factory=dict)
    scorer: Callable[[str], Scorer] | None = None
    models_in_use: Mapping[str, Variant] = field(default_factory=dict)
    settings_now: Callable[[str], Awaitable[PipelineConfig | None]] = _unknown
    hooks: Hooks = field(default_factory=NoHooks)
    prices: Callable[[PipelineConfig, Variant], Awaitable[Prices]] = _no_prices
    price: Callable[[str, str, str], Price | None] = lambda provider, model, method: None
    serves: Callable[[Variant], Awaitable[Provider]] | None = None
    place: Callable[[str], str] = str
    asks: Callable[[Sequence[str]], bool] = lambda tasks: True
    tracks_runs: bool = True
    older_workers: Callable[[], Awaitable[int]] = _none_older
    picked: Collection[str] = ()
    keep_outcomes: Callable[[str, OutcomeModel, str], Awaitable[None]] = _forgets


@dataclass(frozen=True, kw_only=True)
class Optimised:
    """What a recipe's search for a prompt came to.

    `prompt` is the hash of what it found; None where there is nothing to test. `said` tells a
    person why, with the figures.
    """

    recipe: int
    said: str
    prompt: str | None = None
    spent_usd: float = 0.0


workflow.register_as("ModelRef", Variant)
workflow.register_as("PipelineConfig", PipelineConfig, upgrade=of_now)
workflow.register(
    ABTest,
    Advice,
    Arm,
    ArmMetrics,
    Criteria,
    Criterion,
    CriterionResult,
    CyclePlan,
    Dataset,
    Declaration,
    Deployment,
    DeploymentState,
    EvaluationResult,
    ExpectedLift,
    ExperimentStatus,
    Form,
    FormFigure,
    GateReport,
    Halves,
    Job,
    JobStatus,
    Look,
    ModelVersion,
    Optimised,
    OutcomeReport,
    Part,
    PipelineResult,
    Plan,
    Prediction,
    JobProgress,
    RunArguments,
    Sample,
    Segment,
    Stage,
    TrainingDataBatch,
    Verdict,
    VersionStatus,
    Watch,
    Window,
)
