"""Every route but the hot one: what comes in is checked, what goes out is the wire's objects."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from tuneproof_trainer.access import Caller
from tuneproof_trainer.engines.protocol import StopReason
from tuneproof_trainer.errors import ApiError, bad_request
from tuneproof_trainer.files import PURPOSES, file_object
from tuneproof_trainer.forms import read_form
from tuneproof_trainer.ids import new_id, new_tag
from tuneproof_trainer.jobs import (
    ENDED,
    Status,
    checkpoint_object,
    event_object,
    job_object,
)
from tuneproof_trainer.requests import CompleteUpload, CreateJob, CreateUpload, parse
from tuneproof_trainer.service import Service
from tuneproof_trainer.wire import JsonResponse, limit_of, page, read_body

__all__ = ["make_routes"]

Handler = Callable[[Request], Awaitable[Response]]


def make_routes(service: Service) -> list[Route]:
    """All routes of `service`."""
    files, uploads, jobs = _Files(service), _Uploads(service), _Jobs(service)
    models = _Models(service)
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
        _route("/v1/models", GET=models.list),
        _route("/v1/models/{model:path}", GET=models.get, DELETE=models.delete),
        *(_route(f"/v1/{name}", POST=_refusal(why)) for name, why in _ABSENT.items()),
        _route("/health", GET=_health),
        _route("/openapi.json", GET=_openapi),
    ]


def _route(path: str, **handlers: Handler) -> Route:
    """One route for all methods of a path, so that a refusal names them all."""

    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](request)

    return Route(path, handle, methods=list(handlers))


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


async def _body(request: Request) -> bytes:
    return await read_body(request.receive)


class _Files:
    def __init__(self, service: Service) -> None:
        self._service, self._store = service, service.files

    async def create(self, request: Request) -> Response:
        landing = self._store.landing(self._service.settings.max_file_bytes)
        form = await read_form(request, "file", landing)
        try:
            purpose = _purpose(form.fields.get("purpose"))
            lifetime = _lifetime(form.fields)
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
                purpose=purpose,
                lifetime_s=lifetime,
            )

        await self._service.database.awrite(record)
        return self._answer(request, form.landed.id)

    def _answer(self, request: Request, file_id: str) -> Response:
        row = self._store.get(_caller(request).org, file_id)
        return JsonResponse(file_object(row), headers={"x-content-sha256": row["sha256"]})

    async def list(self, request: Request) -> Response:
        limit = limit_of(request, 10_000, 10_000)
        query = request.query_params
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise bad_request(
                f"Invalid 'order': Expected 'asc' or 'desc', but got {order!r}.",
                "order",
                "invalid_value",
            )
        rows = self._store.find(
            _caller(request).org,
            after=query.get("after"),
            limit=limit + 1,
            ascending=order == "asc",
            purpose=query.get("purpose"),
        )
        return page(rows, limit, file_object)

    async def get(self, request: Request) -> Response:
        return self._answer(request, request.path_params["file_id"])

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        await self._store.delete(_caller(request).org, file_id)
        return JsonResponse({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        row = self._store.get(_caller(request).org, request.path_params["file_id"])
        return FileResponse(
            self._store.path(row["id"]),
            media_type="application/octet-stream",
            filename=row["filename"],
            headers={"x-content-sha256": row["sha256"]},
        )


def _purpose(value: object) -> str:
    if value is None:
        raise bad_request(
            "Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter"
        )
    if value not in PURPOSES:
        raise bad_request(
            f"{value!r} is not one of {list(PURPOSES)} - 'purpose'", "purpose", "invalid_value"
        )
    return str(value)


def _lifetime(form: dict[str, str]) -> int | None:
    seconds, anchor = form.get("expires_after[seconds]"), form.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return None
    valid = isinstance(seconds, str) and seconds.isdecimal() and len(seconds) < 9
    if anchor != "created_at" or not valid or not 3600 <= int(str(seconds)) <= 2592000:
        raise bad_request(
            "Invalid 'expires_after': Expected the anchor 'created_at' and between 3600 and "
            "2592000 seconds.",
            "expires_after",
            "invalid_value",
        )
    return int(str(seconds))


class _Uploads:
    def __init__(self, service: Service) -> None:
        self._service, self._store = service, service.uploads

    async def create(self, request: Request) -> Response:
        asked = parse(CreateUpload, await _body(request))
        org = _caller(request).org
        return JsonResponse(await asyncio.to_thread(self._store.create, org, asked))

    async def add_part(self, request: Request) -> Response:
        org, upload_id = _caller(request).org, request.path_params["upload_id"]
        self._store.pending(org, upload_id)
        form = await read_form(request, "data", self._store.landing())
        part = await asyncio.to_thread(self._store.add_part, org, upload_id, form.landed)
        return JsonResponse(part)

    async def complete(self, request: Request) -> Response:
        asked = parse(CompleteUpload, await _body(request))
        org, upload_id = _caller(request).org, request.path_params["upload_id"]
        return JsonResponse(await asyncio.to_thread(self._store.complete, org, upload_id, asked))

    async def cancel(self, request: Request) -> Response:
        org, upload_id = _caller(request).org, request.path_params["upload_id"]
        return JsonResponse(await asyncio.to_thread(self._store.cancel, org, upload_id))


class _Jobs:
    def __init__(self, service: Service) -> None:
        self._service, self._store = service, service.jobs

    async def create(self, request: Request) -> Response:
        asked = parse(CreateJob, await _body(request))
        caller = _caller(request)
        if not caller.may_train:
            raise ApiError(
                403,
                "Fine-tuning is not available to this API key. Use a key that was made without "
                "`--no-training`.",
                code="training_not_available",
            )
        row = self._row(caller, asked)
        await self._service.database.awrite(lambda c: self._store.create(c, row))
        self._service.runner.drive(row["id"])
        return self._answer(request, row["id"])

    def _row(self, caller: Caller, asked: CreateJob) -> dict[str, Any]:
        method, values = _method(asked)
        model = self._service.models.resolve(caller.org, asked.model)
        if method not in model.engine.methods:
            raise bad_request(
                f"The model `{asked.model}` cannot be trained by the method '{method}'; use one "
                f"of: {', '.join(sorted(model.engine.methods))}.",
                "method",
                "unsupported_method",
            )
        if asked.integrations:
            raise bad_request(
                "This server has no integrations; leave 'integrations' out.",
                "integrations",
                "unsupported_parameter",
            )
        for name in ("training_file", "validation_file"):
            self._check_file(caller, name, getattr(asked, name))
        auto = {k: "auto" if v is None else v for k, v in values.items()}
        return {
            "id": new_id("ftjob-"),
            "org": caller.org,
            "status": Status.VALIDATING.value,
            "model": asked.model,
            "training_file": asked.training_file,
            "validation_file": asked.validation_file,
            "suffix": asked.suffix,
            "tag": new_tag(),
            "seed": secrets.randbelow(2**31) if asked.seed is None else asked.seed,
            "method": method,
            "asked": orjson.dumps(values).decode(),
            "chosen": orjson.dumps(auto).decode(),
            "metadata": orjson.dumps(asked.metadata).decode() if asked.metadata else None,
            "created_at": self._store.now(),
            "result_files": "[]",
        }

    def _check_file(self, caller: Caller, name: str, file_id: str | None) -> None:
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
        limit = limit_of(request, 20, 100)
        metadata, none = _metadata_filter(request)
        rows = self._store.find(
            _caller(request).org,
            after=request.query_params.get("after"),
            limit=limit + 1,
            metadata=metadata,
            no_metadata=none,
        )
        return page(rows, limit, job_object)

    async def get(self, request: Request) -> Response:
        return self._answer(request, request.path_params["job_id"])

    async def events(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])
        limit = limit_of(request, 20, 100)
        rows = self._store.events(job["id"], request.query_params.get("after"), limit + 1)
        return page(rows, limit, event_object)

    async def checkpoints(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])
        limit = limit_of(request, 10, 100)
        rows = self._store.checkpoints(job["id"], request.query_params.get("after"), limit + 1)
        return page(rows, limit, checkpoint_object)

    async def cancel(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])
        now = self._store.now()
        moved = await self._service.database.awrite(
            lambda c: self._store.move(
                c,
                job["id"],
                Status.CANCELLED,
                since=tuple(s for s in Status if s not in ENDED),
                message="The job has been cancelled",
                finished_at=now,
                estimated_finish=None,
            )
        )
        if not moved:
            raise self._wrong_state(job["id"], "cancelled")
        self._service.runner.interrupt(job["id"], StopReason.CANCEL)
        await self._service.runner.discard(job["id"])
        return self._answer(request, job["id"])

    async def pause(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])

        def work(connection: Any) -> bool:
            move, job_id = self._store.move, job["id"]
            told = "The job has been paused"
            if move(connection, job_id, Status.PAUSED, since=(Status.QUEUED,), message=told):
                return True
            told = "The job is being paused"
            return move(connection, job_id, Status.PAUSING, since=(Status.RUNNING,), message=told)

        if not await self._service.database.awrite(work):
            raise self._wrong_state(job["id"], "paused")
        self._service.runner.interrupt(job["id"], StopReason.PAUSE)
        return self._answer(request, job["id"])

    async def resume(self, request: Request) -> Response:
        job = self._store.get(_caller(request).org, request.path_params["job_id"])
        moved = await self._service.database.awrite(
            lambda c: self._store.move(
                c,
                job["id"],
                Status.QUEUED,
                since=(Status.PAUSED,),
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


def _method(asked: CreateJob) -> tuple[str, dict[str, Any]]:
    """The method and its hyperparameters, None where "auto"."""
    kind = asked.method.type if asked.method else "supervised"
    given: Any = asked.hyperparameters
    if asked.method is not None:
        others = [n for n in ("supervised", "dpo", "reinforcement") if n != kind]
        wrong = next((n for n in others if getattr(asked.method, n) is not None), None)
        if wrong is not None:
            raise bad_request(
                f"'method.{wrong}' does not belong to the method '{kind}'.",
                f"method.{wrong}",
                "invalid_value",
            )
        own = getattr(asked.method, kind) if kind != "reinforcement" else None
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
    """`metadata[k]=v` pairs, and whether `metadata=null` was asked for."""
    found: dict[str, str] = {}
    wrong = False
    for name, value in request.query_params.multi_items():
        match = re.fullmatch(r"metadata\[([^\[\]]{1,64})\]", name)
        if match:
            found[match[1]] = value
        elif name.startswith("metadata["):
            wrong = True
    plain = request.query_params.get("metadata")
    if wrong or plain not in (None, "", "null"):
        raise bad_request(
            "Invalid 'metadata': Expected `metadata[key]=value`, or `metadata=null`.",
            "metadata",
            "invalid_value",
        )
    return found, plain == "null"


class _Models:
    def __init__(self, service: Service) -> None:
        self._models = service.models

    async def list(self, request: Request) -> Response:
        return JsonResponse({"object": "list", "data": self._models.list(_caller(request).org)})

    async def get(self, request: Request) -> Response:
        name = request.path_params["model"]
        return JsonResponse(self._models.show(_caller(request).org, name))

    async def delete(self, request: Request) -> Response:
        name = request.path_params["model"]
        await self._models.delete(_caller(request).org, name)
        return JsonResponse({"id": name, "object": "model", "deleted": True})


_ABSENT = {
    "embeddings": "This server trains and serves chat models; it makes no embeddings.",
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
