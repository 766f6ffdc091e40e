"""The OpenAPI document: paths are written here, all shapes are those of requests and answers."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema

from tuneproof_trainer.answers import (
    ChatCompletion,
    CheckpointObject,
    DeletedObject,
    EmbeddingList,
    ErrorAnswer,
    EventObject,
    FileObject,
    HealthAnswer,
    JobObject,
    ModelList,
    ModelObject,
    ObjectPage,
    StoredMessage,
    UploadObject,
    UploadPartObject,
)
from tuneproof_trainer.requests import (
    ChatRequest,
    CheckpointsQuery,
    CompleteUpload,
    CompletionsQuery,
    CreateJob,
    CreateUpload,
    EmbeddingsRequest,
    EventsQuery,
    FileForm,
    FilesQuery,
    JobsQuery,
    MessagesQuery,
    PartForm,
    UpdateCompletion,
)

__all__ = ["document"]

Schema = dict[str, Any]
_REF = "#/components/schemas/"
_SHAPES = (
    *(ChatCompletion, ChatRequest, CompleteUpload, CreateJob, CreateUpload, DeletedObject),
    *(EmbeddingList, EmbeddingsRequest),
    *(ErrorAnswer, FileForm, FileObject, HealthAnswer, JobObject, ModelList, ModelObject),
    *(ObjectPage[CheckpointObject], ObjectPage[EventObject], ObjectPage[FileObject]),
    *(ObjectPage[ChatCompletion], ObjectPage[StoredMessage], UpdateCompletion),
    *(ObjectPage[JobObject], PartForm, UploadObject, UploadPartObject),
)
"""What requests and answers of JSON or forms consist of."""


class _Terse(GenerateJsonSchema):
    """Fields without a title, which would say their name again, and without the default null."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


@cache
def _schemas() -> tuple[dict[object, Schema], Schema]:
    """A reference to each shape, and the definitions that they refer to."""
    found, whole = TypeAdapter.json_schemas(
        [(shape, "validation", TypeAdapter(shape)) for shape in _SHAPES],
        ref_template=_REF + "{model}",
        schema_generator=_Terse,
    )
    return {shape: schema for (shape, _), schema in found.items()}, whole["$defs"]


def _ref(shape: object) -> Schema:
    return _schemas()[0][shape]


_MEANINGS = {
    "400": "The request is at fault.",
    "401": "The API key is missing or wrong.",
    "403": "This key may not do that, or a web page asks.",
    "404": "There is no such object.",
    "408": "The request did not come to its end.",
    "413": "The request is too large.",
    "415": "The body must be JSON, and say so.",
    "429": "Too many requests; see Retry-After.",
    "431": "The head of the request is too large.",
    "500": "The server is at fault.",
    "503": "Too much is asked for at once; see Retry-After.",
    "507": "The server's disk is full.",
}
_ALWAYS = "400 401 403 408 429 431 500 503"
_BYTES: Schema = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _query(shape: type[BaseModel]) -> list[Schema]:
    """The fields of a query as parameters; one that is an object comes as `name[key]=value`."""
    schema = shape.model_json_schema(schema_generator=_Terse)
    parameters = []
    for name, field in schema["properties"].items():
        parameter = {"name": name, "in": "query", "schema": field}
        parameter["description"] = field.pop("description")
        if field.get("type") == "object":
            parameter |= {"style": "deepObject", "explode": True}
        parameters.append(parameter)
    return parameters


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _form(shape: type[BaseModel]) -> Schema:
    return {"required": True, "content": {"multipart/form-data": {"schema": _ref(shape)}}}


def _json(shape: type[BaseModel]) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": _ref(shape)}}}


def _answer(shape: object) -> Schema:
    return {"application/json": {"schema": _ref(shape)}}


def _operation(
    name: str,
    summary: str,
    content: Schema,
    errors: str = "",
    parameters: list[Schema] | None = None,
    body: Schema | None = None,
) -> Schema:
    """One operation; `errors` names the statuses beside those that every one may have."""
    responses: Schema = {"200": {"description": "OK", "content": content}}
    json = ["413", "415"] if body and "application/json" in body["content"] else []
    for status in sorted({*errors.split(), *json, *_ALWAYS.split()}):
        responses[status] = {"description": _MEANINGS[status], "content": _answer(ErrorAnswer)}
    operation: Schema = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = body
    return operation


def _files() -> dict[str, Schema]:
    one, of_upload = [_path("file_id")], [_path("upload_id")]
    file, upload = _answer(FileObject), _answer(UploadObject)
    files, deleted = _answer(ObjectPage[FileObject]), _answer(DeletedObject)
    sent = _form(FileForm)
    begun, whole = _json(CreateUpload), _json(CompleteUpload)
    part, part_form = _answer(UploadPartObject), _form(PartForm)
    uploads = "/v1/uploads"
    return {
        "/v1/files": {
            "post": _operation("createFile", "Upload a file", file, "413 507", body=sent),
            "get": _operation("listFiles", "List files", files, "", _query(FilesQuery)),
        },
        "/v1/files/{file_id}": {
            "get": _operation("getFile", "One file", file, "404", one),
            "delete": _operation("deleteFile", "Delete a file", deleted, "404", one),
        },
        "/v1/files/{file_id}/content": {
            "get": _operation("getContent", "Its content", _BYTES, "404", one)
        },
        uploads: {"post": _operation("createUpload", "Begin an upload", upload, "413", body=begun)},
        f"{uploads}/{{upload_id}}/parts": {
            "post": _operation("addPart", "Add a part", part, "404 413 507", of_upload, part_form)
        },
        f"{uploads}/{{upload_id}}/complete": {
            "post": _operation(
                "completeUpload", "Make the parts a file", upload, "404 413 507", of_upload, whole
            )
        },
        f"{uploads}/{{upload_id}}/cancel": {
            "post": _operation("cancelUpload", "Give an upload up", upload, "404", of_upload)
        },
    }


def _jobs() -> dict[str, Schema]:
    one = [_path("job_id")]
    path = "/v1/fine_tuning/jobs/{job_id}"
    job, jobs = _answer(JobObject), _answer(ObjectPage[JobObject])
    events, checkpoints = _answer(ObjectPage[EventObject]), _answer(ObjectPage[CheckpointObject])
    of_events, of_checkpoints = [*one, *_query(EventsQuery)], [*one, *_query(CheckpointsQuery)]
    spec = _json(CreateJob)
    return {
        "/v1/fine_tuning/jobs": {
            "post": _operation("createJob", "Start a job", job, "403 404 413", body=spec),
            "get": _operation("listJobs", "List jobs", jobs, "", _query(JobsQuery)),
        },
        path: {"get": _operation("getJob", "One job", job, "404", one)},
        f"{path}/cancel": {"post": _operation("cancelJob", "Cancel a job", job, "404", one)},
        f"{path}/pause": {"post": _operation("pauseJob", "Pause a job", job, "404", one)},
        f"{path}/resume": {"post": _operation("resumeJob", "Resume a job", job, "404", one)},
        f"{path}/events": {"get": _operation("listEvents", "Its events", events, "404", of_events)},
        f"{path}/checkpoints": {
            "get": _operation(
                "listCheckpoints", "Its checkpoints", checkpoints, "404", of_checkpoints
            )
        },
    }


def _models() -> dict[str, Schema]:
    one = [_path("model")]
    model, models, deleted = _answer(ModelObject), _answer(ModelList), _answer(DeletedObject)
    completion = _answer(ChatCompletion) | {"text/event-stream": {}}
    kept, of_kept, update = (
        _answer(ChatCompletion),
        [_path("completion_id")],
        _json(UpdateCompletion),
    )
    chat, errors = _json(ChatRequest), "404 413 503"
    return {
        "/v1/models": {"get": _operation("listModels", "List models", models)},
        "/v1/models/{model}": {
            "get": _operation("getModel", "One model", model, "404", one),
            "delete": _operation("deleteModel", "Delete a fine-tune", deleted, "403 404", one),
        },
        "/v1/chat/completions": {
            "post": _operation(
                "createChatCompletion", "Answer a conversation", completion, errors, body=chat
            ),
            "get": _operation(
                "listChatCompletions",
                "Kept completions",
                _answer(ObjectPage[ChatCompletion]),
                "",
                _query(CompletionsQuery),
            ),
        },
        "/v1/chat/completions/{completion_id}": {
            "get": _operation("getChatCompletion", "A kept completion", kept, "404", of_kept),
            "post": _operation(
                "updateChatCompletion", "Change its metadata", kept, "404", of_kept, update
            ),
            "delete": _operation("deleteChatCompletion", "Delete it", deleted, "404", of_kept),
        },
        "/v1/chat/completions/{completion_id}/messages": {
            "get": _operation(
                "getChatCompletionMessages",
                "Its messages",
                _answer(ObjectPage[StoredMessage]),
                "404",
                [*of_kept, *_query(MessagesQuery)],
            )
        },
        "/v1/embeddings": {
            "post": _operation(
                "createEmbedding",
                "Texts as vectors",
                _answer(EmbeddingList),
                errors,
                body=_json(EmbeddingsRequest),
            )
        },
        "/health": {
            "get": _operation("health", "Whether the server answers", _answer(HealthAnswer))
        },
    }


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TuneProof trainer",
            "version": "1",
            "description": "The OpenAI fine-tuning API on your own machine.",
        },
        "paths": _files() | _jobs() | _models(),
        "components": {
            "schemas": _schemas()[1],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
