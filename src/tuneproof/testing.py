"""What tests of loops need, shipped: a virtual clock and in-memory twins of the adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from tuneproof import workflow
from tuneproof.collection import Post, PostQuery, SourceCheck
from tuneproof.errors import DataError, NotFoundError
from tuneproof.rollout import Routing
from tuneproof.training import (
    Completion,
    Job,
    JobEvent,
    JobRequest,
    JobStatus,
    ModelInfo,
    Score,
)


class Participant(Protocol):
    """Somebody whose work fills virtual time: the audience, the trainer, the store."""

    async def advance(self, since: datetime, until: datetime) -> None:
        """Finish all that comes before `until`; may be asked again for a stretch after a kill."""


class VirtualClock:
    """Time that jumps to the next deadline once everybody has finished what comes before it.

    It moves only while every durable run it knows is waiting; then it asks each participant,
    in order, to fill the stretch up to the nearest deadline (at most `stride` at once), makes
    the new instant durable by `save`, and wakes who waited for it by `wake`. The same seed
    therefore gives the same figures on any machine, also after a kill: a stretch that was
    cut off is asked for again from the last saved instant.
    """

    def __init__(
        self,
        start: datetime,
        *,
        participants: Sequence[Participant] = (),
        save: Callable[[datetime], Awaitable[None]] | None = None,
        wake: Callable[[str], Awaitable[None]] | None = None,
        stride: timedelta = timedelta(hours=1),
    ) -> None:
        self._now = self._told_until = start.astimezone(UTC)
        self.participants = list(participants)
        self.save = save
        self.wake = wake
        self._stride = stride
        self._sleepers: dict[str, datetime] = {}
        self._busy: set[str] = set()
        self._naps: dict[int, tuple[datetime, asyncio.Event]] = {}
        self._nap = 0
        self._changed = asyncio.Event()

    def now(self) -> datetime:
        """The virtual instant."""
        return self._now

    def told_until(self) -> datetime:
        """Up to when events may have happened: the end of the stretch that is being filled."""
        return max(self._now, self._told_until)

    def restore(self, at: datetime) -> None:
        """Go on from a saved instant, if it is later."""
        self._now = max(self._now, at.astimezone(UTC))

    async def sleep_until(self, at: datetime) -> None:
        """Return once virtual time is at or after `at`; such a sleep is a deadline too."""
        if at <= self._now:
            return
        self._nap += 1
        key, event = self._nap, asyncio.Event()
        self._naps[key] = (at, event)
        self._changed.set()
        try:
            await event.wait()
        finally:
            self._naps.pop(key, None)

    def waiting(self, run_id: str, until: datetime) -> None:
        """A durable run begins to wait."""
        self._busy.discard(run_id)
        self._sleepers[run_id] = until
        self._changed.set()

    def awake(self, run_id: str) -> None:
        """A durable run is at work: time stands still."""
        self._sleepers.pop(run_id, None)
        self._busy.add(run_id)

    def ended(self, run_id: str) -> None:
        """A durable run is over."""
        self._sleepers.pop(run_id, None)
        self._busy.discard(run_id)
        self._changed.set()

    @property
    def idle(self) -> bool:
        """Whether nobody works and nobody waits."""
        return not (self._sleepers or self._busy or self._naps)

    async def drive(self) -> None:
        """Let time pass for as long as this task lives."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (target := self._next_deadline()) is not None:
                await self._advance_to(target)

    def _next_deadline(self) -> datetime | None:
        if self._busy:
            return None
        deadlines = [*self._sleepers.values(), *(at for at, _ in self._naps.values())]
        return min(deadlines, default=None)

    async def _advance_to(self, target: datetime) -> None:
        while self._now < target:
            until = min(target, _floor(self._now, self._stride) + self._stride)
            self._told_until = until
            for participant in self.participants:
                await participant.advance(self._now, until)
            if self._busy or (self._next_deadline() or target) < target:
                return  # a signal woke somebody meanwhile; the stretch is asked for again
            if self.save is not None:
                await self.save(until)
            self._now = until
        await self._wake_due()

    async def _wake_due(self) -> None:
        for at, event in list(self._naps.values()):
            if at <= self._now:
                event.set()
        self._naps = {k: v for k, v in self._naps.items() if v[0] > self._now}
        for run_id in sorted(r for r, until in self._sleepers.items() if until <= self._now):
            self.awake(run_id)
            if self.wake is not None:
                await self.wake(run_id)
        await asyncio.sleep(0)


def _floor(at: datetime, stride: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (at - epoch) // stride * stride


# --- in-memory twins --------------------------------------------------------------------


class MemorySource:
    """A `collection.Source` over posts in memory, with the semantics of a real one.

    `fail` is raised by the next read, once: an outage.
    """

    def __init__(self, posts: Sequence[Post]) -> None:
        self.rows = list(posts)
        self.queries: list[PostQuery] = []
        self.closed = False
        self.fail: Exception | None = None

    async def check(self, query: PostQuery) -> SourceCheck:
        """All columns are there, and no index is needed."""
        newest = max((post.ts for post in self.rows), default=None)
        return SourceCheck(found=Post._fields, rows=len(self.rows), newest=newest)

    async def posts(self, query: PostQuery) -> AsyncIterator[list[Post]]:
        """The posts of the window at or above the threshold, best first, in chunks."""
        self.queries.append(query)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        window = query.window
        found = [
            post
            for post in self.rows
            if window.since <= post.ts < window.until
            and (post.engagement_rate or 0.0) >= query.threshold
        ]
        found.sort(key=lambda post: (-(post.engagement_rate or 0.0), post.id))
        found = found[: query.max_records]
        for start in range(0, len(found), query.chunk_size):
            yield found[start : start + query.chunk_size]

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


Answer = Callable[[str, Sequence[Mapping[str, str]], int], str]
"""(model, messages, index among the replies) -> text."""

Scorer = Callable[[str, Sequence[Mapping[str, str]]], "Score | None"]
"""(model, messages) -> how likely the model finds the last one."""


def echo(model: str, messages: Sequence[Mapping[str, str]], index: int) -> str:
    """A reply that names the request and how its model ends: as long whichever model says it."""
    return f"{messages[-1]['content']} [{index} by {model[-4:]}]"


def tuned_scores_better(model: str, messages: Sequence[Mapping[str, str]]) -> Score:
    """2 nats a word from a base model, 1.5 from a fine-tuned one."""
    words = len(messages[-1]["content"].split())
    return Score(tokens=words, logprob=-(1.5 if model.startswith("ft:") else 2.0) * words)


class MemoryProvider:
    """A deterministic `training.Provider`: jobs succeed after `polls` polls, a function answers.

    `fail_job` (code, message) lets jobs fail instead. `raises` maps a method's name to the
    error that each call of it raises until it is removed. `calls` counts the calls by method.
    Tokens are words.
    """

    def __init__(
        self,
        *,
        clock: workflow.Clock | None = None,
        name: str = "memory",
        base_models: Sequence[str] = ("base",),
        polls: int = 2,
        answer: Answer = echo,
        score: Scorer = tuned_scores_better,
        latency_ms: float = 50.0,
    ) -> None:
        self.name = name
        self.files: dict[str, tuple[str, bytes]] = {}
        self.requests: dict[str, JobRequest] = {}
        self.calls: dict[str, int] = {}
        self.raises: dict[str, Exception] = {}
        self.fail_job: tuple[str, str] | None = None
        self.closed = False
        self._clock = clock or workflow.SystemClock()
        self._base_models = tuple(base_models)
        self._polls = polls
        self._polled: dict[str, int] = {}
        self._jobs: dict[str, Job] = {}
        self._answer = answer
        self._score = score
        self._latency_ms = latency_ms

    def _called(self, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        if method in self.raises:
            raise self.raises[method]

    async def upload(self, path: Path, *, name: str) -> str:
        """Keep the file's bytes."""
        self._called("upload")
        file_id = f"file-{self.name}-{self.calls['upload']:04d}"
        self.files[file_id] = (name, path.read_bytes())
        return file_id

    async def find_file(self, name: str) -> str | None:
        """The id of the newest file with this name, or None."""
        self._called("find_file")
        return next((i for i in reversed(self.files) if self.files[i][0] == name), None)

    async def create_job(self, request: JobRequest) -> Job:
        """Queue a job. Raises `DataError` for a file that was never uploaded."""
        self._called("create_job")
        for file_id in (request.training_file, request.validation_file):
            if file_id is not None and file_id not in self.files:
                raise DataError(f"File {file_id} does not exist.", mend="Upload it first.")
        job = Job(
            id=f"ftjob-{self.name}-{len(self._jobs) + 1:04d}",
            model=request.model,
            status=JobStatus.QUEUED,
            raw_status="queued",
            created_at=self._clock.now(),
            hyperparameters=dict(request.hyperparameters),
            metadata=dict(request.metadata),
        )
        self._jobs[job.id], self.requests[job.id] = job, request
        return job

    async def find_job(self, key: str, value: str) -> Job | None:
        """The newest job whose metadata has `key` = `value`, or None."""
        self._called("find_job")
        jobs = reversed(self._jobs.values())
        return next((job for job in jobs if job.metadata.get(key) == value), None)

    async def job(self, job_id: str) -> Job:
        """The job, one poll nearer to its end."""
        self._called("job")
        job = self._job(job_id)
        if job.status.final:
            return job
        polled = self._polled[job_id] = self._polled.get(job_id, 0) + 1
        self._jobs[job_id] = moved = self._moved(job, ended=polled >= self._polls)
        return moved

    def _job(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise NotFoundError(f"Job {job_id} does not exist.")
        return self._jobs[job_id]

    def _moved(self, job: Job, *, ended: bool) -> Job:
        if not ended:
            return replace(job, status=JobStatus.RUNNING, raw_status="running")
        now, request = self._clock.now(), self.requests[job.id]
        if self.fail_job is not None:
            code, message = self.fail_job
            failed = replace(job, status=JobStatus.FAILED, raw_status="failed", finished_at=now)
            return replace(failed, error_code=code, error_message=message)
        number = job.id.rpartition("-")[2]
        return replace(
            job,
            status=JobStatus.SUCCEEDED,
            raw_status="succeeded",
            finished_at=now,
            fine_tuned_model=f"ft:{job.model}:{self.name}:{request.suffix or ''}:{number}",
            trained_tokens=len(self.files.get(request.training_file, ("", b""))[1].split()),
        )

    async def cancel_job(self, job_id: str) -> Job:
        """End the job; a job that ended already is returned as it is."""
        self._called("cancel_job")
        job = self._job(job_id)
        if not job.status.final:
            job = replace(job, status=JobStatus.CANCELLED, raw_status="cancelled")
            self._jobs[job_id] = job
        return job

    async def events(self, job_id: str) -> Sequence[JobEvent]:
        """One line for each poll, with a loss that falls."""
        self._called("events")
        at = self._job(job_id).created_at or self._clock.now()
        return [
            JobEvent(
                id=f"{job_id}-event-{step}",
                at=at,
                level="info",
                message=f"Step {step}",
                data={
                    "step": step,
                    "total_steps": self._polls,
                    "train_loss": 2.0 / (step + 1),
                },
            )
            for step in range(self._polled.get(job_id, 0))
        ]

    async def models(self) -> Sequence[ModelInfo]:
        """The base models and what was trained."""
        self._called("models")
        tuned = [job.fine_tuned_model for job in self._jobs.values() if job.fine_tuned_model]
        return [ModelInfo(id=model, owned_by=self.name) for model in (*self._base_models, *tuned)]

    async def complete(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        timeout_s: float | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Sequence[Completion]:
        """The function's answers. Raises `NotFoundError` for a model that does not exist."""
        self._called("complete")
        self._require(model)
        prompt = sum(len(message["content"].split()) for message in messages)
        texts = [self._answer(model, messages, index) for index in range(n)]
        return [
            Completion(
                text=text,
                model=model,
                prompt_tokens=prompt if index == 0 else 0,
                completion_tokens=len(text.split()),
                latency_ms=self._latency_ms,
            )
            for index, text in enumerate(texts)
        ]

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        """What the scoring function says."""
        self._called("score")
        self._require(model)
        return self._score(model, messages)

    def _require(self, model: str) -> None:
        trained = (job.fine_tuned_model for job in self._jobs.values())
        if model not in self._base_models and model not in trained:
            raise NotFoundError(f"Model {model} does not exist.", mend="Train it first.")

    async def ping(self) -> None:
        """Answer, unless told to fail."""
        self._called("ping")

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class MemoryTarget:
    """A `rollout.Target` that remembers what was applied; `fail` is raised by each apply."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.applied: list[Routing] = []
        self.serving: dict[str, Routing] = {}
        self.fail: Exception | None = None

    async def apply(self, routing: Routing) -> None:
        """Serve this routing; applying it again changes nothing."""
        if self.fail is not None:
            raise self.fail
        self.applied.append(routing)
        self.serving[routing.task] = routing

    async def observe(self, task: str) -> Mapping[str, Any] | None:
        """What is served now."""
        routing = self.serving.get(task)
        if routing is None:
            return None
        lane = routing.only
        candidate = None if lane is None else lane.candidate
        return {
            "baseline": routing.baseline.model_id,
            "candidate": None if candidate is None else candidate.model_id,
            "share": 0.0 if lane is None else lane.share,
            "version": routing.version,
        }
