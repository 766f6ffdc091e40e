"""Fireworks' own fine-tuning wire: `supervisedFineTuningJobs` and `dpoJobs` of an account.

As documented by the official Python SDK fireworks-ai 1.2.30 (November 2026) and
https://docs.fireworks.ai/api-reference. What departs from OpenAI's wire:

- everything belongs to an account, whose id stands in each path; it is the setting
  `organization`, or the only account that the key can see;
- datasets and jobs bear ids that the caller chooses, so making one again is refused (409) and
  finding one is a GET: a job's id is a hash of what it was made for;
- files up to 150 MB are posted, larger ones put at a signed address;
- states are `JOB_STATE_*`; a job that Fireworks stopped early has succeeded;
- a fine-tune answers only once it is deployed (`deployedModelRefs`).

Answers come over the chat wire, which is OpenAI's, under `/inference/v1`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tuneproof.errors import (
    ConfigError,
    ConflictError,
    DataError,
    NotFoundError,
    ProviderUnavailableError,
)
from tuneproof.providers.http import Http
from tuneproof.providers.native import Native, chunks, instant, size_of
from tuneproof.providers.openai_wire import OpenAIWire
from tuneproof.training import (
    Job,
    JobEvent,
    JobRequest,
    JobStatus,
    ModelInfo,
    TrainingReadiness,
)
from tuneproof.workflow import Clock

URL = "https://api.fireworks.ai/v1"
PUBLIC = "accounts/fireworks/models/"
"""The prefix of the models that Fireworks itself offers."""

STATES: Mapping[str, JobStatus] = MappingProxyType(
    {
        "JOB_STATE_CREATING": JobStatus.QUEUED,
        "JOB_STATE_PENDING": JobStatus.QUEUED,
        "JOB_STATE_RE_QUEUEING": JobStatus.QUEUED,
        "JOB_STATE_VALIDATING": JobStatus.VALIDATING_FILES,
        "JOB_STATE_CREATING_INPUT_DATASET": JobStatus.VALIDATING_FILES,
        "JOB_STATE_RUNNING": JobStatus.RUNNING,
        "JOB_STATE_WRITING_RESULTS": JobStatus.RUNNING,
        "JOB_STATE_IDLE": JobStatus.RUNNING,
        "JOB_STATE_CANCELLING": JobStatus.RUNNING,
        "JOB_STATE_PAUSED": JobStatus.PAUSED,
        "JOB_STATE_COMPLETED": JobStatus.SUCCEEDED,
        "JOB_STATE_EARLY_STOPPED": JobStatus.SUCCEEDED,
        "JOB_STATE_FAILED": JobStatus.FAILED,
        "JOB_STATE_EXPIRED": JobStatus.FAILED,
        "JOB_STATE_CANCELLED": JobStatus.CANCELLED,
        "JOB_STATE_DELETING": JobStatus.CANCELLED,
        "JOB_STATE_DELETING_CLEANING_UP": JobStatus.CANCELLED,
    }
)
COLLECTIONS: Mapping[str, str] = MappingProxyType(
    {"supervised": "supervisedFineTuningJobs", "dpo": "dpoJobs"}
)
JOB_ID: Mapping[str, str] = MappingProxyType(
    {"supervised": "supervisedFineTuningJobId", "dpo": "dpoJobId"}
)
POSTED_UP_TO = 150 * 1000 * 1000
"""Files above this many bytes go to a signed address."""
BASE_LEARNING_RATE = 1e-4
"""The documented default learning rate for LoRA, by which a multiplier is taken."""


class Fireworks(Native):
    """A `Provider` over Fireworks' wire. File ids are dataset names, job ids job names."""

    def __init__(
        self, *, name: str, http: Http, chat: OpenAIWire, clock: Clock, account: str | None = None
    ) -> None:
        super().__init__(name=name, http=http, chat=chat, clock=clock)
        self._account = account
        self._whole: set[str] = set()  # datasets that got all their bytes from this process

    async def _root(self) -> str:
        """`/accounts/ID`, asked for once where the settings do not name it."""
        if self._account is None:
            listed = await self._http.json("GET", "/accounts")
            names = [str(row["name"]) for row in listed.get("accounts", [])]
            if len(names) != 1:
                raise ConfigError(
                    f"The key of providers.{self.name} can see {len(names)} accounts.",
                    mend=f"Set providers.{self.name}.organization to the account's id"
                    + (
                        f", one of: {', '.join(n.rpartition('/')[2] for n in names)}."
                        if names
                        else "."
                    ),
                )
            self._account = names[0].rpartition("/")[2]
        return f"/accounts/{self._account}"

    # Files

    async def upload(self, path: Path, *, name: str) -> str:
        """Make the dataset of this name (or take up the one whose upload was cut off)."""
        size = size_of(path)
        root, dataset = await self._root(), _dataset_id(name)
        lines = await _count_lines(path)
        body = {
            "datasetId": dataset,
            "dataset": {"displayName": name[:63], "userUploaded": {}, "exampleCount": str(lines)},
        }
        try:
            await self._http.json("POST", f"{root}/datasets", json=body)
        except ConflictError:
            found = await self._http.json("GET", f"{root}/datasets/{dataset}")
            if found.get("state") == "READY":
                return str(found["name"])
        if size > POSTED_UP_TO:
            await self._put_signed(f"{root}/datasets/{dataset}", path, size)
        else:
            with path.open("rb") as file:
                await self._http.json(
                    "POST",
                    f"{root}/datasets/{dataset}:upload",
                    files={"file": (name, file, "application/jsonl")},
                )
        made = f"{root}/datasets/{dataset}".removeprefix("/")
        self._whole.add(made)
        return made

    async def _put_signed(self, dataset: str, path: Path, size: int) -> None:
        body = {"filenameToSize": {path.name: str(size)}}
        signed = await self._http.json("POST", f"{dataset}:getUploadEndpoint", json=body)
        place = (signed.get("filenameToSignedUrls") or {}).get(path.name)
        if not place:
            raise ProviderUnavailableError(
                f"Provider {self.name!r} named no address for {path.name}.",
                mend="The upload is made again.",
            )
        await self._http.send(
            "PUT",
            place,
            own=False,
            content=chunks(path),
            headers={
                "content-type": "application/octet-stream",
                "content-length": str(size),
                "x-goog-content-length-range": f"{size},{size}",
            },
        )
        await self._http.json("POST", f"{dataset}:validateUpload", json={})

    async def file_ready(self, file_id: str) -> bool:
        """Whether the dataset was read. Raises `DataError` for one that is refused."""
        found = await self._http.json("GET", f"/{file_id}")
        if found.get("state") == "READY":
            return True
        if _refused(found):
            raise DataError(
                f"Provider {self.name!r} refused dataset {found.get('name')}: "
                f"{found['status'].get('message') or found['status']['code']}.",
                mend="Mend the training file, then retry the run.",
            )
        return False

    async def find_file(self, name: str) -> str | None:
        """The dataset that was made of a file of this name, or None while it is not whole.

        Whether a dataset in state UPLOADING was cut off or is being read cannot be told from
        it: only what this process uploaded is taken to be whole, else it is uploaded again, into
        the same dataset.
        """
        root = await self._root()
        try:
            found = await self._http.json("GET", f"{root}/datasets/{_dataset_id(name)}")
        except NotFoundError:
            return None
        name = str(found["name"])
        whole = found.get("state") == "READY" or (name in self._whole and not _refused(found))
        return name if whole else None

    # Jobs

    async def create_job(self, request: JobRequest) -> Job:
        """Start a job (LoRA) under an id that stands for its metadata; never retried inside.

        Where a job of that id exists, it is that job.
        """
        if request.method not in COLLECTIONS:
            raise ConfigError(
                f"Fireworks does not train by {request.method!r}.",
                mend=f"Set training.method to one of: {', '.join(COLLECTIONS)}.",
            )
        root = await self._root()
        path = f"{root}/{COLLECTIONS[request.method]}"
        job_id = _job_id(*next(iter(request.metadata.items()), ("", "")))
        params = {JOB_ID[request.method]: job_id} if request.metadata else {}
        try:
            made = await self._http.json("POST", path, params=params, json=_body(request))
        except ConflictError:
            made = await self._http.json("GET", f"{path}/{job_id}")
        return self._job(made)

    async def find_job(self, key: str, value: str) -> Job | None:
        """The job that was made for `key` = `value`, or None."""
        root = await self._root()
        for collection in COLLECTIONS.values():
            try:
                found = await self._http.json("GET", f"{root}/{collection}/{_job_id(key, value)}")
            except NotFoundError:
                continue
            return self._job(found)
        return None

    async def job(self, job_id: str) -> Job:
        """The job as it stands now."""
        return self._job(await self._http.json("GET", f"/{job_id}"))

    async def cancel_job(self, job_id: str) -> Job:
        """Ask for the job's end; a job that ended already is returned as it is."""
        try:
            await self._http.json("POST", f"/{job_id}:cancel", json={})
        except (DataError, ConflictError):
            job = await self.job(job_id)
            if job.status.final:
                return job
            raise
        return await self.job(job_id)

    async def events(self, job_id: str) -> Sequence[JobEvent]:
        """This wire keeps no events: one line with the job's state, progress and metrics."""
        found = await self._http.json("GET", f"/{job_id}")
        progress = found.get("jobProgress") or {}
        data = {
            ours: progress[theirs]
            for theirs, ours in (("percent", "percent"), ("epoch", "epoch"))
            if progress.get(theirs) is not None
        }
        at = instant(found.get("updateTime")) or instant(found.get("createTime"))
        return [
            JobEvent(
                id=f"{job_id}#{found.get('state')}",
                at=at or self._clock.now(),
                level="info",
                message=str(found.get("state")),
                data=data,
            )
        ]

    def _job(self, row: Mapping[str, Any]) -> Job:
        raw = str(row.get("state"))
        status = STATES.get(raw, JobStatus.UNKNOWN)
        details = row.get("status") or {}
        training = row.get("trainingConfig") or row
        progress = row.get("jobProgress") or {}
        failed = status is JobStatus.FAILED
        return Job(
            id=str(row["name"]),
            model=str(training.get("baseModel") or ""),
            status=status,
            raw_status=raw,
            fine_tuned_model=training.get("outputModel") if status is JobStatus.SUCCEEDED else None,
            error_code=str(details.get("code") or raw) if failed else None,
            error_message=details.get("message") if failed else None,
            trained_tokens=progress.get("inputTokens"),
            created_at=instant(row.get("createTime")),
            finished_at=instant(row.get("completedTime")) if status.final else None,
            hyperparameters={
                ours: training[theirs]
                for theirs, ours in (
                    ("epochs", "n_epochs"),
                    ("batchSizeSamples", "batch_size"),
                    ("learningRate", "learning_rate"),
                )
                if training.get(theirs) is not None
            },
            cost_usd=_money(row.get("estimatedCost")),
        )

    # Models

    async def readiness(self, model: str, method: str) -> TrainingReadiness:
        """Whether the account may train, and this model can be tuned and until when."""
        root = await self._root()
        account = await self._http.json("GET", root)
        suspended = account.get("suspendState") or "UNSUSPENDED"
        if suspended != "UNSUSPENDED":
            return TrainingReadiness(
                model=model, account=False, detail=f"the account is {suspended}"
            )
        if method not in COLLECTIONS:
            return TrainingReadiness(
                model=model, tunable=False, detail=f"there is no method {method}"
            )
        found = await self._described(model)
        if found is None:
            return TrainingReadiness(model=model, tunable=False, detail="there is no such model")
        tunable = bool(found.get("tunable"))
        return TrainingReadiness(
            model=model,
            account=True,
            tunable=tunable,
            detail="" if tunable else "the model is not tunable",
            shutdown_at=_day(found.get("deprecationDate")),
        )

    async def model(self, model: str) -> ModelInfo | None:
        """What Fireworks says of one model; None for one that it does not know."""
        found = await self._described(model)
        return replace(_model(found), id=model) if found else None

    async def _described(self, model: str) -> dict[str, Any] | None:
        path = model if model.startswith("accounts/") else f"{PUBLIC}{model}"
        try:
            found: dict[str, Any] = await self._http.json("GET", f"/{path}")
        except NotFoundError:
            return None
        return found

    async def models(self) -> Sequence[ModelInfo]:
        """The account's own models; those that Fireworks offers are asked for by name."""
        root = await self._root()
        found: list[ModelInfo] = []
        token = ""
        while True:
            params = {"pageSize": "200", **({"pageToken": token} if token else {})}
            page = await self._http.json("GET", f"{root}/models", params=params)
            found += [_model(row) for row in page.get("models", [])]
            token = str(page.get("nextPageToken") or "")
            if not token:
                return found

    async def ping(self) -> None:
        """Raise unless the provider answers an authenticated call."""
        await self._http.json("GET", "/accounts")


def chat_url(base_url: str) -> str:
    """Where Fireworks answers chat requests: beside its control plane, under /inference/v1."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(path="/inference/v1"))


def _dataset_id(name: str) -> str:
    """A dataset's id: lower case letters, digits and hyphens, at most 63."""
    dashed = "".join(c if c.isalnum() else "-" for c in name.lower().removesuffix(".jsonl"))
    return dashed.strip("-")[:63]


def _job_id(key: str, value: str) -> str:
    return "tp-" + hashlib.sha256(f"{key}={value}".encode()).hexdigest()[:24]


def _body(request: JobRequest) -> dict[str, Any]:
    chosen = {k: v for k, v in request.hyperparameters.items() if v != "auto"}
    training: dict[str, Any] = {"baseModel": request.model}
    if "n_epochs" in chosen:
        training["epochs"] = int(chosen["n_epochs"])
    if "batch_size" in chosen:
        training["batchSizeSamples"] = int(chosen["batch_size"])
    if "learning_rate_multiplier" in chosen:
        multiplier = float(chosen["learning_rate_multiplier"])
        training["learningRate"] = BASE_LEARNING_RATE * multiplier
    body: dict[str, Any] = {"dataset": request.training_file}
    if request.suffix:
        body["displayName"] = request.suffix[:63]
    if request.method == "dpo":
        beta = {"dpo": {"beta": float(chosen["beta"])}} if "beta" in chosen else {}
        return {
            **body,
            "trainingConfig": training,
            "lossConfig": {"method": "DPO", **beta},
        }
    if request.validation_file is not None:
        body["evaluationDataset"] = request.validation_file
    return {**body, **training}


def _model(row: Mapping[str, Any]) -> ModelInfo:
    return ModelInfo(
        id=str(row.get("name")),
        owned_by=str(row.get("name", "")).removeprefix("accounts/").partition("/")[0],
        created_at=instant(row.get("createTime")),
        shutdown_at=_day(row.get("deprecationDate")),
    )


def _refused(dataset: Mapping[str, Any]) -> bool:
    """Whether Fireworks has said that it cannot use a dataset."""
    return (dataset.get("status") or {}).get("code") not in (None, "OK")


async def _count_lines(path: Path) -> int:
    lines = 0
    async for data in chunks(path):
        lines += data.count(b"\n")
    return lines


def _money(value: Mapping[str, Any] | None) -> float | None:
    """A google.type.Money in USD; None for another currency."""
    if not value or value.get("currencyCode") not in (None, "USD"):
        return None
    return round(int(value.get("units") or 0) + int(value.get("nanos") or 0) / 1e9, 9)


def _day(value: Any) -> datetime | None:
    """A google.type.Date as the beginning of that day, UTC."""
    if not isinstance(value, dict) or not value.get("year"):
        return None
    found = date(value["year"], value.get("month") or 1, value.get("day") or 1)
    return datetime(found.year, found.month, found.day, tzinfo=UTC)
