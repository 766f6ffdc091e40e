"""From the SDK's records of the fine-tuning wire to ours. Verified against openai 3.51."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tuneproof.training import Completion, Job, JobEvent, JobStatus, ModelInfo

if TYPE_CHECKING:
    from openai.types import (
        CreateEmbeddingResponse,
        Model,
        Moderation,
        ModerationCreateResponse,
    )
    from openai.types.chat import ChatCompletion
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent


def job_of(job: FineTuningJob) -> Job:
    """A job as the wire describes it; a state that it does not document is passed through."""
    known = job.status in JobStatus._value2member_map_
    return Job(
        id=job.id,
        model=job.model,
        status=JobStatus(job.status) if known else JobStatus.UNKNOWN,
        raw_status=job.status,
        fine_tuned_model=job.fine_tuned_model,
        # A healthy job carries an empty object, so the code decides, not the object.
        error_code=getattr(job.error, "code", None),
        error_message=getattr(job.error, "message", None),
        trained_tokens=job.trained_tokens,
        created_at=_instant(job.created_at),
        finished_at=_instant(job.finished_at),
        estimated_finish=_instant(job.estimated_finish),
        hyperparameters=_hyperparameters(job),
        metadata=dict(job.metadata or {}),
    )


def _hyperparameters(job: FineTuningJob) -> dict[str, Any]:
    """What the job really trained with: the method's own values, else the old top-level ones."""
    method = getattr(job.method, job.method.type, None) if job.method else None
    chosen = getattr(method, "hyperparameters", None) or job.hyperparameters
    return {} if chosen is None else {k: v for k, v in chosen.to_dict().items() if v is not None}


def event_of(event: FineTuningJobEvent) -> JobEvent:
    """One line of a job's log."""
    return JobEvent(
        id=event.id,
        at=datetime.fromtimestamp(event.created_at, UTC),
        level=event.level,
        message=event.message,
        data=dict(event.data) if isinstance(event.data, Mapping) else {},
    )


def model_of(model: Model) -> ModelInfo:
    """A model with its shutdown date, where one is announced."""
    return ModelInfo(
        id=model.id,
        owned_by=getattr(model, "owned_by", None) or "",
        created_at=_instant(getattr(model, "created", None)),
        shutdown_at=_day(model.shutdown_date),
    )


def completions_of(answer: ChatCompletion, latency_ms: float) -> list[Completion]:
    """The replies of an answer, among which its tokens are shared out."""
    texts = [choice.message.content or "" for choice in answer.choices]
    usage = answer.usage
    tokens = _share_out(usage.completion_tokens if usage else 0, [len(text) for text in texts])
    return [
        Completion(
            text=text,
            model=answer.model,
            prompt_tokens=usage.prompt_tokens if usage and i == 0 else 0,
            completion_tokens=tokens[i],
            latency_ms=latency_ms,
            finish_reason=answer.choices[i].finish_reason or "stop",
        )
        for i, text in enumerate(texts)
    ]


def _share_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers that sum to `total`, each near its weight's share of it."""
    weight = sum(weights)
    if weight == 0:
        weights, weight = [1] * len(weights), len(weights)
    ends, seen = [], 0
    for part in weights:
        seen += part
        ends.append(round(total * seen / weight))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def chosen_logprob(entry: Mapping[str, Any]) -> float:
    """The log-probability of the token that stands there (the first one named)."""
    chosen = next(iter(entry.values()))
    return float(chosen["logprob"] if isinstance(chosen, Mapping) else chosen)


def _instant(seconds: int | None) -> datetime | None:
    """An instant of the wire; None where it is absent or lies outside all years."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _day(text: str | None) -> datetime | None:
    """A date or an instant of the wire as UTC; None where it is absent or no date."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC) if found else None


def vectors_of(answer: CreateEmbeddingResponse, texts: int) -> list[list[float]]:
    """The vector of each of so many texts.

    Raises `ValueError` where the answer has not one of each, of one size, all finite.
    """
    found = {one.index: one.embedding for one in answer.data}
    if sorted(found) != list(range(texts)):
        raise ValueError(f"{len(answer.data)} vectors for {texts} texts")
    vectors = [found[place] for place in range(texts)]
    if len({len(vector) for vector in vectors}) > 1 or not all(vectors):
        raise ValueError("its vectors are of different sizes")
    if not all(math.isfinite(value) for vector in vectors for value in vector):
        raise ValueError("a vector has a value that is no number")
    return vectors


def flagged_of(answer: ModerationCreateResponse, texts: int) -> list[tuple[str, ...]]:
    """The categories in which each of so many texts was flagged.

    Raises `ValueError` where the answer does not say it of each text.
    """
    found = [_flagged(result) for result in answer.results]
    if len(found) != texts:
        raise ValueError(f"{len(found)} results of moderation for {texts} texts")
    return found


def _flagged(result: Moderation) -> tuple[str, ...]:
    if not isinstance(result.flagged, bool):
        raise ValueError(f"a result of moderation has flagged = {result.flagged!r}")
    named = [name for name, yes in result.categories.to_dict().items() if yes is True]
    return tuple(sorted(named)) or (("flagged",) if result.flagged else ())
