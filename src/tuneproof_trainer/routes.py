"""Every route but the hot one: what comes in is checked, what goes out is the wire's objects."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from tuneproof_trainer.access import ApiCaller
from tuneproof_trainer.completions import completion_object
from tuneproof_trainer.database import Row
from tuneproof_trainer.engines.protocol import StopReason
from tuneproof_trainer.errors import ApiError, bad_request
from tuneproof_trainer.files import check_name, file_object
from tuneproof_trainer.forms import read_form
from tuneproof_trainer.ids import new_id, new_tag
from tuneproof_trainer.jobs import checkpoint_object, event_object, job_object
from tuneproof_trainer.models import Resolved
from tuneproof_trainer.parsing import parse, parse_file_form, parse_query
from tuneproof_trainer.requests import (
    CheckpointsQuery,
    CompleteUpload,
    CompletionsQuery,
    CreateJob,
    CreateUpload,
    EventsQuery,
    FilesQuery,
    JobsQuery,
    MessagesQuery,
    UpdateCompletion,
)
from tuneproof_trainer.service import TrainerService
from tuneproof_trainer.states import ENDED, JobState
from tuneproof_trainer.wire import BodyReader, JsonResponse, page

__all__ = ["make_routes"]

_MOST_METADATA = 16
"""What a job may have, and so what a list of jobs may be asked for."""

Handler = Callable[[Request], Awaitable[Response]]


def make_routes(service: TrainerService) -> list[Route]:
    """All routes of `service`."""
    files, uploads, jobs = _Files(service), _Uploads(service), _Jobs(service)
    models, kept = _Models(service), _Completions(service)
    one = "/v1/chat/completions/{completion_id}"
    job = "/v1/fine_tuning/jobs/{job_id}"
    return [
        _route("/v1/files", GET=files.list, POST=files.create),
        _route("/v1/files/{file_id}", GET=files.get, DELETE=files.delete),
        _route("/v1/files/{file_id}/content", GET=files.content),
        _route("/v1/uploads", POST=uploads.create),
        _route("/v1/uploads/{upload_id}/parts", POST=uploads.add_part),
        _route("/v1/uploads/{upload_id}/complete", POST=uploads.complete),
        _route("/v1/uploads/{upload_id}/cancel", POST=uploads.cancel),
        _route("/v1/fine_tuning/jobs", GET=jobs.list, POST=jobs.create),
        _route(job, GET=jobs.get),
        _route(f"{job}/cancel", POST=jobs.cancel),
        _route(f"{job}/pause", POST=jobs.pause),
        _route(f"{job}/resume", POST=jobs.resume),
        _route(f"{job}/events", GET=jobs.events),
        _route(f"{job}/checkpoints", GET=jobs.checkpoints),
        _route("/v1/chat/completions", GET=kept.list),
        _route(one, GET=kept.get, POST=kept.update, DELETE=kept.delete),
        _route(f"{one}/messages", GET=kept.messages),
        _route("/v1/models", GET=models.list),
        _route("/v1/models/{model:path}", GET=models.get, DELETE=models.delete),
        *(_route(f"/v1/{name}", POST=_refusal(why)) for name, why in _UNSUPPORTED.items()),
        _route("/health", GET=_health),
        _route("/openapi.json", GET=_openapi),
    ]


def _route(path: str, **handlers: Handler) -> Route:
    """One route for all methods of a path, so that a refusal names them all."""

    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](request)

    return Route(path, handle, methods=list(handlers))


def _caller(request: Request) -> ApiCaller:
    caller: ApiCaller = request.scope["caller"]
    return caller


def _trainer(request: Request) -> ApiCaller:
    """The caller, who must not be one that may only ask; raises ApiError 403."""
    caller = _caller(request)
    if not caller.may_train:
        raise ApiError(
            403,
            "Fine-tuning is not available to this API key. Use a key that was made without "
            "`--no-training`.",
            code="training_not_available",
        )
    return caller


async def _body(request: Request) -> bytes:
    reader: BodyReader = request.scope["body"]
    return await reader.read(request.scope, request.receive)


class _Files:
    def __init__(self, service: TrainerService) -> None:
        self._service, self._store = service, service.files

    async def create(self, request: Request) -> Response:
        landing = self._store.landing(self._service.settings.max_file_bytes)
        form = await read_form(request, "file", landing)
        try:
            fields = parse_file_form(form.fields)
            check_name(form.filename, fields.purpose)
            _check_not_empty(form.landed.bytes)
        except ApiError:
            self._store.path(form.landed.id).unlink()
            raise
        caller = _caller(request)

        def record(connection: Any) -> None:
            self._store.record(
                connection,
                form.landed,
                org=caller.org,
                filename=form.filename,
                purpose=fields.purpose,
                lifetime_s=fields.lifetime_s,
            )

        await self._service.database.awrite(record)
        return self._answer(request, form.landed.id)

    def _answer(self, request: Request, file_id: str) -> Response:
        row = self._store.get(_caller(request).org, file_id)
        return JsonResponse(file_object(row), headers={"x-content-sha256": row["sha256"]})

    async def list(self, request: Request) -> Response:
        query = parse_query(FilesQuery, request.query_params)
        rows = self._store.find(
            _caller(request).org,
            after=query.after,
            limit=query.limit + 1,
            ascending=query.order == "asc",
            purpose=query.purpose,
        )
        return page(rows, query.limit, file_object)

    async def get(self, request: Request) -> Response:
        return self._answer(request, request.path_params["file_id"])

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        await self._store.delete(_trainer(request).org, file_id)
        return JsonResponse({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        row = self._store.get(_caller(request).org, request.path_params["file_id"])
        return FileResponse(
            self._store.path(row["id"]),
            media_type="application/octet-stream",
            filename=row["filename"],
            headers={"x-content-sha256": row["sha256"]},
        )


def _check_not_empty(size: int) -> None:
    if not size:
        raise bad_request("The file is empty.", "file", "empty_file")


class _Uploads:
    def __init__(self, service: TrainerService) -> None:
        self._service, self._store = service, service.uploads

    async def create(self, request: Request) -> Response:
        upload = parse(CreateUpload, await _body(request))
        org = _caller(request).org
        return JsonResponse(await asyncio.to_thread(self._store.create, org, upload))

    async def add_part(self, request: Request) -> Response:
        org, upload_id = _caller(request).org, request.path_params["upload_id"]
        upload = self._store.pending(org, upload_id)
        form = await read_form(request, "data", self._store.landing(upload["bytes"]))
        part = await asyncio.to_thread(self._store.add_part, org, upload_id, form.landed)
        return JsonResponse(part)

    async def complete(self, request: Request) -> Response:
        completion = parse(CompleteUpload, await _body(request))
        org, upload_id = _caller(request).org, request.path_params["upload_id"]
        return JsonResponse(
            await asyncio.to_thread(self._store.complete, org, upload_id, completion)
        )

    async def cancel(self, request: Request) -> Response:
        org, upload_id = _caller(request).org, request.path_params["upload_id"]
        return JsonResponse(await asyncio.to_thread(self._store.cancel, org, upload_id))


class _Jobs:
    def __init__(self, service: TrainerService) -> None:
        self._service, self._store = service, service.jobs

    async def create(self, request: Request) -> Response:
        body = await _body(request)
        spec, caller = parse(CreateJob, body), _trainer(request)
        row = self._row(caller, spec)
        key = request.headers.get("idempotency-key")
        digest = hashlib.sha256(body).hexdigest()

        def work(connection: Any) -> str | None:
            before = (
                self._store.made_before(connection, caller.org, key, digest, row["id"])
                if (key)
                else None
            )
            if before is None:
                self._store.create(connection, row)
            return before

        before = await self._service.database.awrite(work)
        if before is None:
            self._service.runner.drive(row["id"])
        return self._answer(request, before or row["id"])

    def _row(self, caller: ApiCaller, spec: CreateJob) -> dict[str, Any]:
        method, values = _method(spec)
        model = self._model(caller, spec.model)
        if method not in model.engine.methods:
            raise bad_request(
                f"The model `{spec.model}` cannot be trained by the method '{method}'; use one "
                f"of: {', '.join(sorted(model.engine.methods))}.",
                "method",
                "unsupported_method",
            )
        if spec.integrations:
            raise bad_request(
                "This server has no integrations; leave 'integrations' out.",
                "integrations",
                "unsupported_parameter",
            )
        for name in ("training_file", "validation_file"):
            self._check_file(caller, name, getattr(spec, name))
        auto = {k: "auto" if v is None else v for k, v in values.items()}
        return {
            "id": new_id("ftjob-"),
            "org": caller.org,
            "status": JobState.VALIDATING.value,
            "model": spec.model,
            "training_file": spec.training_file,
            "validation_file": spec.validation_file,
            "suffix": spec.suffix,
            "tag": new_tag(),
            "seed": secrets.randbelow(2**31) if spec.seed is None else spec.seed,
            "method": method,
            "requested": orjson.dumps(values).decode(),
            "effective": orjson.dumps(auto).decode(),
            "metadata": orjson.dumps(spec.metadata).decode() if spec.metadata else None,
            "created_at": self._store.now(),
            "result_files": "[]",
        }

    def _model(self, caller: ApiCaller, name: str) -> Resolved:
        try:
            return self._service.models.resolve(caller.org, name)
        except ApiError as error:
            message = (
                f"Model {name} is not available for fine-tuning or does not exist. {error.message}"
            )
            raise bad_request(message, "model", "model_not_available") from None

    def _check_file(self, caller: ApiCaller, name: str, file_id: str | None) -> None:
        if file_id is None:
            return
        try:
            row = self._service.files.get(caller.org, file_id)
        except ApiError:
            raise bad_request(f"invalid {name}: {file_id}", name, "file_not_found") from None
        if row["purpose"] != "fine-tune":
            raise bad_request(
                f"The file {file_id} has the purpose '{row['purpose']}', but '{name}' needs "
                "'fine-tune'. Upload it again with that purpose.",
                name,
                "invalid_file_purpose",
            )

    def _answer(self, request: Request, job_id: str) -> Response:
        return JsonResponse(job_object(self._store.get(_caller(request).org, job_id)))

    async def list(self, request: Request) -> Response:
        metadata, none = _metadata_filter(request)
        query = parse_query(JobsQuery, {**request.query_params, "metadata": metadata})
        rows = self._store.find(
            _caller(request).org,
            after=query.after,
            limit=query.limit + 1,
            metadata=metadata,
            no_metadata=none,
        )
        return page(rows, query.limit, job_object)

    async def get(self, request: Request) -> Response:
        return self._answer(request, request.path_params["job_id"])

    async def events(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])
        query = parse_query(EventsQuery, request.query_params)
        rows = self._store.events(job["id"], query.after, query.limit + 1)
        return page(rows, query.limit, event_object)

    async def checkpoints(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])
        query = parse_query(CheckpointsQuery, request.query_params)
        rows = self._store.checkpoints(job["id"], query.after, query.limit + 1)
        return page(rows, query.limit, checkpoint_object)

    async def cancel(self, request: Request) -> Response:
        job = self._store.get(_trainer(request).org, request.path_params["job_id"])
        now = self._store.now()
        moved = await self._service.database.awrite(
            lambda c: self._store.move(
                c,
                job["id"],
                JobState.CANCELLED,
                since=tuple(s for s in JobState if s not in ENDED),
                message="The job has been cancelled",
                finished_at=now,
                estimated_finish=None,
            ),
            frees=True,
        )
        if not moved:
            raise self._wrong_state(job["id"], "cancelled")
        self._service.runner.interrupt(job["id"], StopReason.CANCEL)
        await self._service.runner.discard(job["id"])
        return self._answer(request, job["id"])

    async def pause(self, request: Request) -> Response:
        job = self._store.get(_trainer(request).org, request.path_params["job_id"])

        def work(connection: Any) -> bool:
            move, job_id = self._store.move, job["id"]
            queued, running = (JobState.QUEUED,), (JobState.RUNNING,)
            done, begun = "The job has been paused", "The job is being paused"
            return move(connection, job_id, JobState.PAUSED, since=queued, message=done) or move(
                connection, job_id, JobState.PAUSING, since=running, message=begun
            )

        if not await self._service.database.awrite(work):
            raise self._wrong_state(job["id"], "paused")
        self._service.runner.interrupt(job["id"], StopReason.PAUSE)
        return self._answer(request, job["id"])

    async def resume(self, request: Request) -> Response:
        job = self._store.get(_trainer(request).org, request.path_params["job_id"])
        moved = await self._service.database.awrite(
            lambda c: self._store.move(
                c,
                job["id"],
                JobState.QUEUED,
                since=(JobState.PAUSED,),
                message="The job has been resumed",
            )
        )
        if not moved:
            raise self._wrong_state(job["id"], "resumed")
        self._service.runner.drive(job["id"])
        return self._answer(request, job["id"])

    def _wrong_state(self, job_id: str, what: str) -> ApiError:
        row = self._service.database.row("SELECT status FROM jobs WHERE id = ?", job_id)
        status = row["status"] if row is not None else "gone"
        return bad_request(
            f"The job {job_id} is {status} and cannot be {what}.",
            "fine_tuning_job_id",
            "invalid_job_state",
        )


def _method(spec: CreateJob) -> tuple[str, dict[str, Any]]:
    """The method and its hyperparameters, None where "auto"."""
    kind = spec.method.type if spec.method else "supervised"
    given: Any = spec.hyperparameters
    if spec.method is not None:
        others = [n for n in ("supervised", "dpo", "reinforcement") if n != kind]
        wrong = next((n for n in others if getattr(spec.method, n) is not None), None)
        if wrong is not None:
            raise bad_request(
                f"'method.{wrong}' does not belong to the method '{kind}'.",
                f"method.{wrong}",
                "invalid_value",
            )
        own = getattr(spec.method, kind) if kind != "reinforcement" else None
        if own is not None and own.hyperparameters is not None:
            if given is not None:
                raise bad_request(
                    "Give hyperparameters in 'method' or in 'hyperparameters', not in both.",
                    "hyperparameters",
                    "invalid_value",
                )
            given = own.hyperparameters
    names = ["n_epochs", "batch_size", "learning_rate_multiplier"]
    names += ["beta"] if kind == "dpo" else []
    values = {name: getattr(given, name, "auto") for name in names}
    return kind, {name: None if value == "auto" else value for name, value in values.items()}


def _metadata_filter(request: Request) -> tuple[dict[str, str], bool]:
    """`metadata[k]=v` pairs, and whether `metadata=null` was spec for."""
    found: dict[str, str] = {}
    wrong = False
    for name, value in request.query_params.multi_items():
        match = re.fullmatch(r"metadata\[([^\[\]]{1,64})\]", name)
        if match:
            found[match[1]] = value
        elif name.startswith("metadata["):
            wrong = True
    if len(found) > _MOST_METADATA:
        raise bad_request(
            f"Invalid 'metadata': too many properties. Expected at most {_MOST_METADATA}, but got "
            f"{len(found)} instead.",
            "metadata",
            "object_above_max_properties",
        )
    plain = request.query_params.get("metadata")
    if wrong or plain not in (None, "", "null"):
        raise bad_request(
            "Invalid 'metadata': Expected `metadata[key]=value`, or `metadata=null`.",
            "metadata",
            "invalid_value",
        )
    return found, plain == "null"


class _Models:
    def __init__(self, service: TrainerService) -> None:
        self._models = service.models

    async def list(self, request: Request) -> Response:
        return JsonResponse({"object": "list", "data": self._models.list(_caller(request).org)})

    async def get(self, request: Request) -> Response:
        name = request.path_params["model"]
        return JsonResponse(self._models.show(_caller(request).org, name))

    async def delete(self, request: Request) -> Response:
        name = request.path_params["model"]
        await self._models.delete(_trainer(request).org, name)
        return JsonResponse({"id": name, "object": "model", "deleted": True})


class _Completions:
    def __init__(self, service: TrainerService) -> None:
        self._store = service.completions

    def _row(self, request: Request) -> Row:
        return self._store.get(_caller(request).org, request.path_params["completion_id"])

    async def list(self, request: Request) -> Response:
        metadata, _ = _metadata_filter(request)
        query = parse_query(CompletionsQuery, {**request.query_params, "metadata": metadata})
        rows = self._store.find(
            _caller(request).org,
            after=query.after,
            limit=query.limit + 1,
            ascending=query.order == "asc",
            model=query.model,
            metadata=metadata,
        )
        return page(rows, query.limit, completion_object)

    async def get(self, request: Request) -> Response:
        return JsonResponse(completion_object(self._row(request)))

    async def messages(self, request: Request) -> Response:
        row = self._row(request)
        query = parse_query(MessagesQuery, request.query_params)
        asked = self._store.messages(row)
        asked = asked if query.order == "asc" else asked[::-1]
        places = [number for number, one in enumerate(asked) if one["id"] == query.after]
        if query.after is not None and not places:
            raise bad_request(f"No such message: {query.after}", "after", "invalid_value")
        begin = places[0] + 1 if places else 0
        return page(asked[begin : begin + query.limit + 1], query.limit, dict)

    async def update(self, request: Request) -> Response:
        change = parse(UpdateCompletion, await _body(request))
        row = await self._store.update(
            _caller(request).org, self._row(request)["id"], change.metadata or {}
        )
        return JsonResponse(completion_object(row))

    async def delete(self, request: Request) -> Response:
        completion_id = request.path_params["completion_id"]
        await self._store.delete(_caller(request).org, completion_id)
        return JsonResponse(
            {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}
        )


_UNSUPPORTED = {
    "completions": "This server serves chat models; ask them by /v1/chat/completions.",
    "responses": "This server has no responses API; ask its models by /v1/chat/completions.",
}
"""What clients of the original may try, and what to tell them."""


def _refusal(why: str) -> Handler:
    async def refuse(request: Request) -> Response:
        raise bad_request(why, code="unsupported_endpoint")

    return refuse


async def _health(request: Request) -> Response:
    return JsonResponse({"status": "ok"})


async def _openapi(request: Request) -> Response:
    from tuneproof_trainer.openapi import document

    return JsonResponse(document())
