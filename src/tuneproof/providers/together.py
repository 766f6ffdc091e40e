"""Together's own fine-tuning wire: `/v1/fine-tunes`, with states and files of its own.

As documented by the official Python SDK together 3.1.1 (November 2026) and
https://docs.together.ai/reference. What departs from OpenAI's wire:

- a file is asked for (`POST /files` answers 302 with where to put it), put there, then
  validated (`/files/ID/preprocess`, polled until `processing_status` is COMPLETED);
- a job keeps no metadata; its `suffix` (40 characters) comes back, so it carries what the job
  is found by;
- there is no learning rate multiplier, but a learning rate, and no "auto" but `batch_size`;
- prices are in billionths of a USD (`total_price`).

Answers come over the chat wire, which is OpenAI's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneproof.errors import (
    ConfigError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
)
from tuneproof.providers.native import Native, chunks, instant, size_of
from tuneproof.training import (
    Job,
    JobEvent,
    JobRequest,
    JobStatus,
    ModelInfo,
    TrainingReadiness,
)

URL = "https://api.together.ai/v1"

STATES: Mapping[str, JobStatus] = MappingProxyType(
    {
        "pending": JobStatus.QUEUED,
        "queued": JobStatus.QUEUED,
        "running": JobStatus.RUNNING,
        "compressing": JobStatus.RUNNING,
        "uploading": JobStatus.RUNNING,
        "cancel_requested": JobStatus.RUNNING,
        "cancelled": JobStatus.CANCELLED,
        "error": JobStatus.FAILED,
        "user_error": JobStatus.FAILED,
        "completed": JobStatus.SUCCEEDED,
    }
)
METHODS: Mapping[str, str] = MappingProxyType({"supervised": "sft", "dpo": "dpo"})
MAX_SUFFIX = 40
NANO_USD = 1e9
BASE_LEARNING_RATE = 1e-5
"""The wire's default learning rate, by which a multiplier is taken."""


class Together(Native):
    """A `Provider` over Together's wire."""

    # Files

    async def upload(self, path: Path, *, name: str) -> str:
        """Ask for a place, put the file there, and have it validated (`file_ready` says when)."""
        size, digest = size_of(path), await asyncio.to_thread(_digest, path)
        placed = await self._http.send(
            "POST",
            f"{self._http.base_url.reveal()}/files",
            redirects=True,
            files={
                field: (None, value)
                for field, value in (
                    ("purpose", "fine-tune"),
                    ("file_name", name),
                    ("file_type", "jsonl"),
                    ("checksum", digest),
                )
            },
        )
        place = placed.headers.get("location")
        file_id = placed.headers.get("x-together-file-id")
        if not place or not file_id:
            raise ProviderUnavailableError(
                f"Provider {self.name!r} answered an upload with {placed.status_code} and no place "
                "to put the file.",
                mend="The upload is made again.",
            )
        await self._put(path, place, size)
        await self._http.json("POST", f"/files/{file_id}/preprocess")
        return str(file_id)

    async def _put(self, path: Path, place: str, size: int) -> None:
        await self._http.send(
            "PUT",
            place,
            own=False,
            content=chunks(path),
            headers={"content-length": str(size)},
        )

    async def file_ready(self, file_id: str) -> bool:
        """Whether the file was validated. Raises `DataError` for one that is refused."""
        file = await self._http.json("GET", f"/files/{file_id}")
        status = file.get("processing_status")
        if status == "INVALID_FORMAT":
            report = file.get("validation_report") or {}
            raise DataError(
                f"Provider {self.name!r} refused file {file_id}: "
                f"{report.get('error') or 'it gave no reason'}.",
                mend="Mend the training file, then retry the run.",
            )
        if status == "FAILED":
            raise ProviderUnavailableError(
                f"Provider {self.name!r} could not validate file {file_id}.",
                mend="The file is uploaded again.",
            )
        return status in (None, "COMPLETED")

    async def find_file(self, name: str) -> str | None:
        """The id of the newest whole file with this name that was not refused, or None."""
        listed = await self._http.json("GET", "/files")
        found = [
            file
            for file in listed.get("data", [])
            if file.get("filename") == name
            and file.get("bytes") != 0  # asked for, and never put
            and file.get("processing_status") not in ("INVALID_FORMAT", "FAILED")
        ]
        return str(max(found, key=lambda f: f.get("created_at", 0))["id"]) if found else None

    # Jobs

    async def create_job(self, request: JobRequest) -> Job:
        """Start a job (LoRA); never retried inside."""
        return self._job(await self._http.json("POST", "/fine-tunes", json=_body(request)))

    async def find_job(self, key: str, value: str) -> Job | None:
        """The newest job that was made for `key` = `value`, told by its suffix."""
        listed = await self._http.json("GET", "/fine-tunes")
        mark = _mark(key, value)
        found = [
            job
            for job in listed.get("data", [])
            if str(job.get("suffix") or "").endswith(mark)
            or f"-{mark}" in str(job.get("model_output_name") or "")
        ]
        return self._job(max(found, key=lambda j: str(j.get("created_at")))) if found else None

    async def job(self, job_id: str) -> Job:
        """The job as it stands now, with the reason of a failed one."""
        found = await self._http.json("GET", f"/fine-tunes/{job_id}")
        job = self._job(found)
        if job.status is not JobStatus.FAILED:
            return job
        return self._job(found, error=_reason(await self._event_rows(job_id)))

    async def cancel_job(self, job_id: str) -> Job:
        """Ask for the job's end; a job that ended already is returned as it is."""
        try:
            return self._job(await self._http.json("POST", f"/fine-tunes/{job_id}/cancel"))
        except DataError:
            job = await self.job(job_id)
            if job.status.final:
                return job
            raise

    async def events(self, job_id: str) -> Sequence[JobEvent]:
        """All events of the job, oldest first; the last one carries its newest metrics."""
        rows = await self._event_rows(job_id)
        events = [_event(job_id, number, row) for number, row in enumerate(rows)]
        try:
            listed = await self._http.json("GET", f"/fine-tunes/{job_id}/metrics")
        except (NotFoundError, DataError):
            return events  # a job has none before its first step
        metrics: dict[str, float] = {}
        for row in listed.get("metrics") or []:
            metrics.update(row)
        if not metrics:
            return events
        at = events[-1].at if events else self._clock.now()
        last = JobEvent(
            id=f"{job_id}-metrics", at=at, level="info", message="metrics", data=_words(metrics)
        )
        return [*events, last]

    async def _event_rows(self, job_id: str) -> list[dict[str, Any]]:
        listed = await self._http.json("GET", f"/fine-tunes/{job_id}/events")
        return sorted(listed.get("data", []), key=lambda row: str(row.get("created_at")))

    def _job(self, row: Mapping[str, Any], *, error: str | None = None) -> Job:
        raw = str(row.get("status"))
        status = STATES.get(raw, JobStatus.UNKNOWN)
        price = row.get("total_price")
        progress = row.get("progress") or {}
        left = progress.get("seconds_remaining") if progress.get("estimate_available") else None
        return Job(
            id=str(row["id"]),
            model=str(row.get("model") or ""),
            status=status,
            raw_status=raw,
            fine_tuned_model=row.get("model_output_name")
            if status is JobStatus.SUCCEEDED
            else None,
            error_code=raw if status is JobStatus.FAILED else None,
            error_message=error,
            trained_tokens=row.get("token_count"),
            created_at=instant(row.get("created_at")),
            finished_at=instant(row.get("updated_at")) if status.final else None,
            estimated_finish=None if left is None else self._clock.now() + timedelta(seconds=left),
            hyperparameters={
                name: row[name]
                for name in ("n_epochs", "batch_size", "learning_rate")
                if row.get(name) is not None
            },
            cost_usd=None if not price else price / NANO_USD,
        )

    # Models

    async def readiness(self, model: str, method: str) -> TrainingReadiness:
        """Whether this model can be tuned: its limits are asked for, which costs nothing."""
        if method not in METHODS:
            return TrainingReadiness(
                model=model, tunable=False, detail=f"there is no method {method}"
            )
        try:
            limits = await self._http.json(
                "GET", "/fine-tunes/models/limits", params={"model_name": model}
            )
        except (NotFoundError, DataError) as e:
            return TrainingReadiness(model=model, tunable=False, detail=e.message.rstrip("."))
        lora = limits.get("lora_training") or {}
        most = lora.get("max_batch_size_dpo" if method == "dpo" else "max_batch_size", 0)
        detail = "" if most else f"it has no LoRA training by {method}"
        return TrainingReadiness(model=model, tunable=bool(most), detail=detail)

    async def models(self) -> Sequence[ModelInfo]:
        """The models that this account can call."""
        listed = await self._http.json("GET", "/models")
        rows = listed if isinstance(listed, list) else listed.get("data", [])
        return [
            ModelInfo(
                id=str(row.get("id") or row.get("name")),
                owned_by=str(row.get("organization") or row.get("owned_by") or ""),
                created_at=instant(row.get("created")),
            )
            for row in rows
        ]

    async def ping(self) -> None:
        """Raise unless the provider answers an authenticated call."""
        await self._http.json("GET", "/files")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mark(key: str, value: str) -> str:
    """What a suffix ends with: sixteen characters that stand for the key and its value."""
    return hashlib.sha256(f"{key}={value}".encode()).hexdigest()[:16]


def _body(request: JobRequest) -> dict[str, Any]:
    if request.method not in METHODS:
        raise ConfigError(
            f"Together does not train by {request.method!r}.",
            mend=f"Set training.method to one of: {', '.join(METHODS)}.",
        )
    chosen = {k: v for k, v in request.hyperparameters.items() if v != "auto"}
    multiplier = float(chosen.get("learning_rate_multiplier", 1.0))
    method: dict[str, Any] = {"method": METHODS[request.method]}
    if request.method == "supervised":
        method["train_on_inputs"] = "auto"
    elif "beta" in chosen:
        method["dpo_beta"] = float(chosen["beta"])
    body: dict[str, Any] = {
        "model": request.model,
        "training_file": request.training_file,
        "n_epochs": int(chosen.get("n_epochs", 1)),
        "batch_size": chosen.get("batch_size", "max"),
        "learning_rate": BASE_LEARNING_RATE * multiplier,
        "warmup_ratio": 0.0,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "n_checkpoints": 1,
        "training_method": method,
        "suffix": _suffix(request),
    }
    if request.validation_file is not None:
        body |= {"validation_file": request.validation_file, "n_evals": 1}
    if request.seed is not None:
        body["random_seed"] = request.seed
    return body


def _suffix(request: JobRequest) -> str | None:
    """The user's suffix, cut to leave room for what the job is found by."""
    if not request.metadata:
        return request.suffix[:MAX_SUFFIX] if request.suffix else None
    mark = _mark(*next(iter(request.metadata.items())))
    dashed = "".join(c if c.isalnum() else "-" for c in request.suffix or "")
    return f"{dashed[: MAX_SUFFIX - len(mark) - 1]}-{mark}".lstrip("-")


def _event(job_id: str, number: int, row: Mapping[str, Any]) -> JobEvent:
    wanted = ("step", "total_steps", "token_count")
    return JobEvent(
        id=f"{job_id}-{number:04d}",
        at=instant(row.get("created_at")) or datetime.fromtimestamp(0, UTC),
        level=str(row.get("level") or "info").removeprefix("legacy_").lower(),
        message=str(row.get("message") or row.get("type") or ""),
        data={name: row[name] for name in wanted if row.get(name) is not None},
    )


def _reason(rows: Sequence[Mapping[str, Any]]) -> str | None:
    failures = [r for r in rows if str(r.get("type")).lower() in ("job_error", "job_user_error")]
    return str(failures[-1].get("message")) if failures else None


def _words(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names that OpenAI's wire gives them, where they have one."""
    known = {
        "train/loss": "train_loss",
        "loss": "train_loss",
        "eval/loss": "valid_loss",
        "eval_loss": "valid_loss",
    }
    return {known.get(name, name): float(value) for name, value in metrics.items()}
