"""The OpenAPI document: written beside the routes, and tested against them request by request."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from tuneproof_trainer.files import PURPOSES
from tuneproof_trainer.jobs import Status
from tuneproof_trainer.requests import ChatRequest, CompleteUpload, CreateJob, CreateUpload

__all__ = ["document"]

Schema = dict[str, Any]
_REF = "#/components/schemas/"
_BODIES = (ChatRequest, CompleteUpload, CreateJob, CreateUpload)
_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_BOOLEAN: Schema = {"type": "boolean"}
_ANY: Schema = {}


def _ref(name: str) -> Schema:
    return {"$ref": f"{_REF}{name}"}


def _null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _one(value: str) -> Schema:
    return {"type": "string", "const": value}


def _object(needed: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": needed | (optional or {}),
        "required": list(needed),
    }


def _page(of: str) -> Schema:
    return _object(
        {
            "object": _one("list"),
            "data": _list(_ref(of)),
            "first_id": _null(_STRING),
            "last_id": _null(_STRING),
            "has_more": _BOOLEAN,
        }
    )


_FILE = _object(
    {
        "object": _one("file"),
        "id": _STRING,
        "purpose": {"type": "string", "enum": [*PURPOSES, "fine-tune-results"]},
        "filename": _STRING,
        "bytes": _INTEGER,
        "created_at": _INTEGER,
        "expires_at": _null(_INTEGER),
        "status": {"type": "string", "enum": ["uploaded", "processed", "error"]},
        "status_details": _null(_STRING),
    }
)
_UPLOAD = _object(
    {
        "object": _one("upload"),
        "id": _STRING,
        "bytes": _INTEGER,
        "created_at": _INTEGER,
        "expires_at": _INTEGER,
        "filename": _STRING,
        "purpose": _STRING,
        "status": {"type": "string", "enum": ["pending", "completed", "cancelled", "expired"]},
        "file": _null(_ref("File")),
    }
)
_AUTO_INTEGER = {"anyOf": [_INTEGER, _one("auto")]}
_AUTO_NUMBER = {"anyOf": [_NUMBER, _one("auto")]}
_HYPERPARAMETERS = _object(
    {
        "n_epochs": _AUTO_INTEGER,
        "batch_size": _AUTO_INTEGER,
        "learning_rate_multiplier": _AUTO_NUMBER,
    },
    {"beta": {"anyOf": [_NUMBER, _one("auto"), {"type": "null"}]}},
)
_STATES = [status.value for status in Status]
_JOB = _object(
    {
        "object": _one("fine_tuning.job"),
        "id": _STRING,
        "model": _STRING,
        "created_at": _INTEGER,
        "finished_at": _null(_INTEGER),
        "estimated_finish": _null(_INTEGER),
        "fine_tuned_model": _null(_STRING),
        "organization_id": _STRING,
        "result_files": _list(_STRING),
        "status": {"type": "string", "enum": _STATES},
        "validation_file": _null(_STRING),
        "training_file": _STRING,
        "hyperparameters": _ref("Hyperparameters"),
        "method": {"type": "object", "properties": {"type": _STRING}, "required": ["type"]},
        "trained_tokens": _null(_INTEGER),
        "error": {
            "type": "object",
            "description": "Empty while nothing is wrong.",
            "properties": {"code": _STRING, "message": _STRING, "param": _null(_STRING)},
        },
        "user_provided_suffix": _null(_STRING),
        "seed": _INTEGER,
        "integrations": _list(_ANY),
        "metadata": _null({"type": "object", "additionalProperties": _STRING}),
    }
)
_EVENT = _object(
    {
        "object": _one("fine_tuning.job.event"),
        "id": _STRING,
        "created_at": _INTEGER,
        "level": {"type": "string", "enum": ["info", "warn", "error"]},
        "message": _STRING,
        "data": {"type": "object"},
        "type": {"type": "string", "enum": ["message", "metrics"]},
    }
)
_CHECKPOINT = _object(
    {
        "object": _one("fine_tuning.job.checkpoint"),
        "id": _STRING,
        "created_at": _INTEGER,
        "fine_tuned_model_checkpoint": _STRING,
        "fine_tuning_job_id": _STRING,
        "metrics": {"type": "object", "additionalProperties": _null(_NUMBER)},
        "step_number": _INTEGER,
    }
)
_MODEL = _object(
    {
        "id": _STRING,
        "object": _one("model"),
        "created": _INTEGER,
        "owned_by": _STRING,
        "shutdown_date": _null(_STRING),
    }
)
_DELETED = _object({"id": _STRING, "object": _STRING, "deleted": _BOOLEAN})
_CHAT = _object(
    {
        "id": _STRING,
        "object": _one("chat.completion"),
        "created": _INTEGER,
        "model": _STRING,
        "choices": _list(
            _object(
                {
                    "index": _INTEGER,
                    "message": {"type": "object"},
                    "logprobs": _null({"type": "object"}),
                    "finish_reason": {"type": "string", "enum": ["stop", "length"]},
                }
            )
        ),
        "usage": {"type": "object"},
        "service_tier": _STRING,
        "system_fingerprint": _STRING,
    },
    {
        "metadata": _null({"type": "object", "additionalProperties": _STRING}),
        "moderation": {"type": "null"},
        "prompt_logprobs": _list(_null({"type": "object"})),
    },
)
_ERROR = _object(
    {
        "error": _object(
            {
                "message": _STRING,
                "type": _STRING,
                "param": _null(_STRING),
                "code": _null(_STRING),
            }
        )
    }
)
_SCHEMAS: dict[str, Schema] = {
    "File": _FILE,
    "FilePage": _page("File"),
    "Upload": _UPLOAD,
    "UploadPart": _object(
        {
            "object": _one("upload.part"),
            "id": _STRING,
            "created_at": _INTEGER,
            "upload_id": _STRING,
        }
    ),
    "Hyperparameters": _HYPERPARAMETERS,
    "Job": _JOB,
    "JobPage": _page("Job"),
    "Event": _EVENT,
    "EventPage": _page("Event"),
    "Checkpoint": _CHECKPOINT,
    "CheckpointPage": _page("Checkpoint"),
    "Model": _MODEL,
    "ModelList": _object({"object": _one("list"), "data": _list(_ref("Model"))}),
    "Deleted": _DELETED,
    "ChatCompletion": _CHAT,
    "Health": _object({"status": _STRING}),
    "Error": _ERROR,
}


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _limit(default: int, most: int) -> Schema:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return _query("limit", schema, "How many objects a page has.")


_AFTER = _query("after", _STRING, "The last id of the page before.")
_METADATA = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": True},
    "description": "Only jobs with these values, as `metadata[key]=value`; all are read as text.",
}


def _multipart(name: str, others: dict[str, Schema], required: list[str]) -> Schema:
    binary = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "properties": {name: binary} | others,
        "required": [name, *required],
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _json(name: str) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _operation(
    name: str,
    summary: str,
    answer: str | Schema,
    errors: str = "",
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
) -> Schema:
    """One operation; `errors` names the statuses beside those that every one may have."""
    content = answer if isinstance(answer, dict) else {"application/json": {"schema": _ref(answer)}}
    responses: Schema = {"200": {"description": "OK", "content": content}}
    for status in sorted({*errors.split(), *["400", "401", "429", "500"]}):
        responses[status] = {
            "description": _MEANINGS[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    operation: Schema = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = body
    return operation


_MEANINGS = {
    "400": "The request is at fault.",
    "401": "The API key is missing or wrong.",
    "403": "This key may not do that.",
    "404": "There is no such object.",
    "413": "The request is too large.",
    "429": "Too many requests; see Retry-After.",
    "500": "The server is at fault.",
    "503": "Too many answers are wanted at once; see Retry-After.",
    "507": "The server's disk is full.",
}
_EXPIRY: dict[str, Schema] = {
    "purpose": {"type": "string", "enum": list(PURPOSES)},
}
_BYTES: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_CHAT_ANSWER: Schema = {
    "application/json": {"schema": _ref("ChatCompletion")},
    "text/event-stream": {"schema": _STRING},
}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _files() -> dict[str, Schema]:
    one = [_path("file_id")]
    order = _query("order", {"type": "string", "enum": ["asc", "desc"]}, "By time of creation.")
    purpose = _query("purpose", _STRING, "Only files of this purpose.")
    listed = [_AFTER, _limit(10_000, 10_000), order, purpose]
    sent = _multipart("file", _EXPIRY, ["purpose"])
    part = _multipart("data", {}, [])
    upload = [_path("upload_id")]
    return {
        "/v1/files": {
            "post": _operation("createFile", "Upload a file", "File", "413 507", body=sent),
            "get": _operation("listFiles", "List files", "FilePage", parameters=listed),
        },
        "/v1/files/{file_id}": {
            "get": _operation("getFile", "One file", "File", "404", one),
            "delete": _operation("deleteFile", "Delete a file", "Deleted", "404", one),
        },
        "/v1/files/{file_id}/content": {
            "get": _operation("getContent", "Its content", _BYTES, "404", one)
        },
        "/v1/uploads": {
            "post": _operation(
                "createUpload", "Begin an upload", "Upload", "413", body=_json("CreateUpload")
            )
        },
        "/v1/uploads/{upload_id}/parts": {
            "post": _operation("addPart", "Add a part", "UploadPart", "404 413 507", upload, part)
        },
        "/v1/uploads/{upload_id}/complete": {
            "post": _operation(
                "completeUpload",
                "Make the parts a file",
                "Upload",
                "404 413 507",
                upload,
                _json("CompleteUpload"),
            )
        },
        "/v1/uploads/{upload_id}/cancel": {
            "post": _operation("cancelUpload", "Give an upload up", "Upload", "404", upload)
        },
    }


def _jobs() -> dict[str, Schema]:
    one = [_path("job_id")]
    path = "/v1/fine_tuning/jobs/{job_id}"
    listed = [_AFTER, _limit(20, 100), _METADATA]
    made = _operation("createJob", "Start a job", "Job", "403 404 413", body=_json("CreateJob"))
    events = _operation(
        "listEvents", "Its events", "EventPage", "404", [*one, _AFTER, _limit(20, 100)]
    )
    checkpoints = _operation(
        "listCheckpoints",
        "Its checkpoints",
        "CheckpointPage",
        "404",
        [*one, _AFTER, _limit(10, 100)],
    )
    return {
        "/v1/fine_tuning/jobs": {
            "post": made,
            "get": _operation("listJobs", "List jobs", "JobPage", parameters=listed),
        },
        path: {"get": _operation("getJob", "One job", "Job", "404", one)},
        f"{path}/cancel": {"post": _operation("cancelJob", "Cancel a job", "Job", "404", one)},
        f"{path}/pause": {"post": _operation("pauseJob", "Pause a job", "Job", "404", one)},
        f"{path}/resume": {"post": _operation("resumeJob", "Resume a job", "Job", "404", one)},
        f"{path}/events": {"get": events},
        f"{path}/checkpoints": {"get": checkpoints},
    }


def _models() -> dict[str, Schema]:
    one = [_path("model")]
    chat = _operation(
        "createChatCompletion",
        "Answer a conversation",
        _CHAT_ANSWER,
        "404 413 503",
        body=_json("ChatRequest"),
    )
    return {
        "/v1/models": {"get": _operation("listModels", "List models", "ModelList")},
        "/v1/models/{model}": {
            "get": _operation("getModel", "One model", "Model", "404", one),
            "delete": _operation("deleteModel", "Delete a fine-tune", "Deleted", "403 404", one),
        },
        "/v1/chat/completions": {"post": chat},
        "/health": {"get": _operation("health", "Whether the server answers", "Health")},
    }


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    _, bodies = models_json_schema(
        [(body, "validation") for body in _BODIES], ref_template=_REF + "{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TuneProof trainer",
            "version": "1",
            "description": "The OpenAI fine-tuning API on your own machine.",
        },
        "paths": _files() | _jobs() | _models(),
        "components": {
            "schemas": _SCHEMAS | bodies["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
