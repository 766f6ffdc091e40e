"""Runs over HTTP: start, status, abort, retry, list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ConfigDict, Field

from tuneproof.errors import ConflictError
from tuneproof.pipeline import Stage, StageStatus
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.models import (
    HASH,
    Answer,
    Cursor,
    IdempotencyKey,
    IfMatch,
    Instant,
    Limit,
    OptionalReason,
    Paged,
    Strict,
    When,
    etag,
    expected,
    instant,
)
from tuneproof.server.once import once
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp
from tuneproof.store import RunStatus

if TYPE_CHECKING:
    from tuneproof.store import Claim, Run

PARTS: Mapping[str, tuple[str, ...]] = {
    "data_collection": ("collect", "curate"),
    "model_training": ("train", "gate"),
    "evaluation": ("experiment",),
    "deployment": ("rollout",),
}
"""The four parts of a run that callers know -> the stages in each."""

EXAMPLE_RUN = "ft-pipeline-20261120-001"

SUCCESS = "success"
"""What a start answers for a run that was accepted."""

TRAINING = "training"
"""How a run stands while its job trains."""

USER_REQUESTED = "user_requested"
"""The reason of an abort that gives none."""


class RecipeRequest(Strict):
    """How a run makes one candidate: it takes a model as it is, asks one by another prompt,
    or trains one. Of a prompt, what is not said is as in use."""

    make: Literal["as_is", "prompt", "train"] = "train"
    model: str | None = Field(default=None, min_length=1, max_length=500)
    provider: str | None = Field(default=None, min_length=1, max_length=200)
    hash: str | None = Field(default=None, pattern=HASH, description="A prompt that was kept.")
    prompt: str | None = Field(default=None, min_length=1, max_length=100_000)
    system: str | None = Field(default=None, min_length=1, max_length=100_000)
    parameters: dict[str, Any] | None = Field(
        default=None, description="How the model is to answer; not said: as in use."
    )
    optimise: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description='Look for a prompt by this scorer, or by "outcomes".',
    )
    reflection: str | None = Field(
        default=None, min_length=3, max_length=700, description="MODEL@PROVIDER that proposes."
    )
    budget_usd: float | None = Field(default=None, gt=0, description="What all of it may cost.")
    prompt_max_tokens: int | None = Field(default=None, ge=16)
    calls: int | None = Field(default=None, ge=20)


class StartRequest(Strict):
    """What a new run is told. `config` may set thresholds and durations, never addresses."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "config": {
                    "training_data_threshold": 100,
                    "engagement_threshold": 0.06,
                    "a_b_test_duration_hours": 168,
                },
                "force_run": False,
            }
        }
    )

    config: dict[str, Any] = Field(default_factory=dict, max_length=100)
    force_run: bool = Field(
        default=False, description="Go on with fewer examples than the threshold."
    )
    pipeline: str = Field(default="default", max_length=200)
    as_of: When | None = Field(default=None, description="Collect as if it were this instant.")
    recipes: list[RecipeRequest] = Field(
        default_factory=list,
        max_length=20,
        description="How candidates are made, instead of as the settings say.",
    )


class Version(Answer):
    """The version that a run trained."""

    model_id: str | None = None
    version: str | None = None
    training_job_id: str | None = None
    base_model: str | None = None
    status: str | None = None


class TrainingData(Answer):
    """The run's examples after curation; `total_records` are those of all its tasks."""

    hook_examples: int | None = None
    body_examples: int | None = None
    total_records: int | None = None
    examples: dict[str, int] | None = None


class Memory(Answer):
    """The process's resident memory over the run."""

    initial_mb: float | None = None
    peak_mb: float | None = None
    final_mb: float | None = None


class Started(Answer):
    """A run that was accepted: known fields filled, the others null until they come.

    `status` is `success` unless the run has ended otherwise by now; `state` is where it stands.
    """

    status: str = Field(examples=["success"])
    state: str = Field(examples=["running"])
    pipeline_id: str = Field(examples=[EXAMPLE_RUN])
    model_version: Version
    training_data: TrainingData
    execution_time_seconds: float | None
    memory_usage: Memory


class Progress(Answer):
    """Each part: pending, in_progress, completed, failed or skipped."""

    data_collection: str
    model_training: str
    evaluation: str
    deployment: str


class RunMetrics(Answer):
    """Figures of a run."""

    training_examples: int | None = None
    training_duration_minutes: float | None = None
    memory_efficiency_mb_per_example: float | None = None


class RunState(Answer):
    """Where a run stands: `status` is its `state`, but `training` while a job trains."""

    pipeline_id: str = Field(examples=[EXAMPLE_RUN])
    status: str = Field(examples=["training"])
    state: str = Field(examples=["running"])
    progress: Progress
    current_stage: str | None = Field(
        examples=["model_training"], description="one of the four of `progress`"
    )
    stage: str | None = Field(examples=["train"], description="one of `stages`")
    estimated_completion: Instant | None
    metrics: RunMetrics
    reason: str | None
    pipeline: str
    stages: dict[str, dict[str, Any]]
    error: dict[str, Any] | None
    model_version: Version
    training_data: TrainingData
    result: dict[str, Any]
    created_at: Instant
    ended_at: Instant | None
    version: int


class Aborted(Answer):
    """What an abort did; `resources_cleaned` names only what really happened."""

    pipeline_id: str = Field(examples=[EXAMPLE_RUN])
    status: str = Field(examples=["aborted"])
    cleanup_status: str = Field(examples=["completed"])
    reason: str
    resources_cleaned: list[str] = Field(examples=[["temporary_files", "openai_job_cancelled"]])


class RetryRequest(Strict):
    """From which stage to go on; by default from the one that failed."""

    stage: str | None = Field(default=None, max_length=50, examples=["train"])


class LogLine(Answer):
    """One line of a run's log."""

    at: Instant
    level: str
    stage: str
    message: str


def router() -> APIRouter:
    """The routes under `/fine-tuning`."""
    routes = APIRouter(prefix="/fine-tuning", tags=["fine-tuning"], responses=RESPONSES)

    @routes.post("/start", status_code=202, response_model=Started, summary="Start a run")
    async def start(
        request: Request,
        app: TheApp,
        caller: Writer,
        asked: StartRequest,
        key: IdempotencyKey = None,
        wait: Annotated[
            float | None, Query(ge=0, le=3600, description="Seconds to wait for its end.")
        ] = None,
    ) -> Response:
        async def begin(claim: Claim | None) -> Started:
            run = await app.runs.start(
                asked.pipeline,
                config_overrides=asked.config or None,
                recipes=[one.model_dump(exclude_none=True) for one in asked.recipes],
                force=asked.force_run,
                as_of=asked.as_of,
                actor=caller.actor,
                claim=claim,
            )
            return await answered(run.id)

        async def answered(id: str) -> Started:
            return started(await app.runs.wait(id, seconds=wait or 0))

        return await once(request, caller, key, begin, answered, status=202)

    @routes.get("/status/{pipeline_id}", summary="Where a run stands")
    async def status(app: TheApp, _: Reader, pipeline_id: str, response: Response) -> RunState:
        run = await app.store.runs.get(pipeline_id)
        response.headers.update(etag(run.version))
        return state(run, app.clock.now())

    @routes.post("/abort/{pipeline_id}", summary="End a run")
    async def abort(
        app: TheApp,
        caller: Writer,
        pipeline_id: str,
        asked: OptionalReason | None = None,
        if_match: IfMatch = None,
    ) -> Aborted:
        await _expect(app, pipeline_id, expected(if_match))
        reason = (asked.reason if asked else "") or USER_REQUESTED
        done = await app.runs.abort(pipeline_id, reason=reason, actor=caller.actor)
        return Aborted(
            pipeline_id=done.run.id,
            status=str(done.run.status),
            cleanup_status=done.cleanup_status,
            reason=done.run.reason or reason,
            resources_cleaned=list(done.resources_cleaned),
        )

    @routes.post("/retry/{pipeline_id}", summary="Take a failed run up again")
    async def retry(
        app: TheApp,
        caller: Writer,
        pipeline_id: str,
        asked: RetryRequest | None = None,
        if_match: IfMatch = None,
    ) -> RunState:
        seen = expected(if_match)
        await _expect(app, pipeline_id, seen)
        stage = asked.stage if asked else None
        run = await app.runs.retry(
            pipeline_id, stage=stage, actor=caller.actor, expected_version=seen
        )
        return state(run, app.clock.now())

    @routes.get("/runs", summary="All runs, newest first")
    async def runs(
        app: TheApp,
        _: Reader,
        pipeline: str | None = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Paged[RunState]:
        page = await app.store.runs.page(pipeline=pipeline, cursor=cursor, limit=limit)
        now = app.clock.now()
        return Paged(items=[state(run, now) for run in page.items], next_cursor=page.next_cursor)

    @routes.get("/log/{pipeline_id}", summary="A run's log, oldest first")
    async def log(app: TheApp, _: Reader, pipeline_id: str) -> list[LogLine]:
        return [LogLine.model_validate(line) for line in await app.runs.log(pipeline_id)]

    return routes


async def _expect(app: TheApp, run_id: str, version: int | None) -> None:
    """Raise `ConflictError`, with what the run is now, where it is not at `version`."""
    if version is None:
        return
    run = await app.store.runs.get(run_id)
    if run.version != version:
        raise ConflictError(
            f"Run {run_id} is at version {run.version}, not {version}.",
            mend="Read it again, then decide.",
            version=run.version,
            run_status=str(run.status),
            stage=run.current_stage,
            changed=await app.runs.last_deed(run_id),
        )


def started(run: Run) -> Started:
    """A run as `POST /fine-tuning/start` answers it."""
    ended_otherwise = run.status.final and run.status is not RunStatus.SUCCESS
    return Started(
        status=str(run.status) if ended_otherwise else SUCCESS,
        state=str(run.status),
        pipeline_id=run.id,
        model_version=_version(run),
        training_data=_training_data(run),
        execution_time_seconds=run.result.get("execution_time_seconds"),
        memory_usage=Memory.model_validate(run.result.get("memory") or {}),
    )


def state(run: Run, now: datetime) -> RunState:
    """A run as `GET /fine-tuning/status` answers it at this instant."""
    return RunState(
        pipeline_id=run.id,
        status=TRAINING if _trains(run) else str(run.status),
        state=str(run.status),
        progress=Progress(**{part: _part(run, stages) for part, stages in PARTS.items()}),
        current_stage=next((p for p, s in PARTS.items() if run.current_stage in s), None),
        stage=run.current_stage,
        estimated_completion=instant(run.result.get("estimated_completion")),
        metrics=_metrics(run, now),
        reason=run.reason,
        pipeline=run.pipeline,
        stages={name: dict(stage) for name, stage in run.stages.items()},
        error=None if run.error is None else dict(run.error),
        model_version=_version(run),
        training_data=_training_data(run),
        result=dict(run.result),
        created_at=run.created_at,
        ended_at=run.ended_at,
        version=run.version,
    )


def _trains(run: Run) -> bool:
    """Whether its job is at work."""
    stage = run.stages.get(str(Stage.TRAIN), {})
    return run.status is RunStatus.RUNNING and stage.get("status") == StageStatus.IN_PROGRESS


def _part(run: Run, stages: tuple[str, ...]) -> str:
    """What the stages of a part amount to: the worst, then the first that is not done."""
    found = [str(run.stages.get(stage, {}).get("status", "pending")) for stage in stages]
    if "failed" in found:
        return "failed"
    if len(set(found)) == 1:
        return found[0]
    done = all(status in ("completed", "skipped") for status in found)
    return "completed" if done else "in_progress"


def _version(run: Run) -> Version:
    return Version.model_validate(run.result.get("model_version") or {})


def _training_data(run: Run) -> TrainingData:
    data = run.result.get("training_data")
    if not data:
        return TrainingData()
    examples = dict(data.get("examples") or {})
    return TrainingData(
        hook_examples=examples.get("hook", 0),
        body_examples=examples.get("body", 0),
        total_records=sum(examples.values()),
        examples=examples,
    )


def _metrics(run: Run, now: datetime) -> RunMetrics:
    examples = sum((_training_data(run).examples or {}).values()) or None
    train = run.stages.get("train", {})
    begun, ended = instant(train.get("started_at")), instant(train.get("ended_at"))
    minutes = ((ended or now) - begun).total_seconds() / 60 if begun else None
    memory = Memory.model_validate(run.result.get("memory") or {})
    grown = None
    if memory.peak_mb is not None and memory.initial_mb is not None and examples:
        grown = max(0.0, memory.peak_mb - memory.initial_mb) / examples
    return RunMetrics(
        training_examples=examples,
        training_duration_minutes=minutes,
        memory_efficiency_mb_per_example=grown,
    )
