"""What the server answers: the wire's objects, as the types of the functions that make them.

They are plain dicts at run time, so an answer costs nothing to check: the type checker holds the
functions to them, and the OpenAPI document shows them.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from tuneproof_trainer.requests import Purpose
from tuneproof_trainer.states import JobState

__all__ = [
    "AnswerMessage",
    "ChatCompletion",
    "CheckpointObject",
    "ChoiceObject",
    "DeletedObject",
    "EmbeddingList",
    "EmbeddingObject",
    "ErrorAnswer",
    "EventObject",
    "FileObject",
    "HealthAnswer",
    "HyperparametersObject",
    "JobObject",
    "Logprob",
    "MethodObject",
    "ModelList",
    "ModelObject",
    "ObjectPage",
    "PromptLogprob",
    "StoredMessage",
    "TokenUsage",
    "UploadObject",
    "UploadPartObject",
]

T = TypeVar("T")
FinishReason = Literal["stop", "length", "tool_calls"]


class ObjectPage(TypedDict, Generic[T]):
    """Some objects of a list; `last_id` is the next page's `after`, and empty where none are."""

    object: Literal["list"]
    data: list[T]
    first_id: str
    last_id: str
    has_more: bool


class DeletedObject(TypedDict):
    """What was deleted."""

    id: str
    object: Literal["file", "model", "chat.completion.deleted"]
    deleted: Literal[True]


class HealthAnswer(TypedDict):
    """The server answers."""

    status: Literal["ok"]


class ErrorDetails(TypedDict):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """The body of every status but 200."""

    error: ErrorDetails


class FileObject(TypedDict):
    """A file."""

    object: Literal["file"]
    id: str
    purpose: Purpose | Literal["fine-tune-results"]
    filename: str
    bytes: int
    created_at: int
    status: Literal["uploaded", "processed", "error"]
    expires_at: NotRequired[int]
    status_details: NotRequired[str]


UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


class UploadObject(TypedDict):
    """A file that is sent in parts; `file` once it is complete."""

    object: Literal["upload"]
    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: UploadStatus
    file: FileObject | None


class UploadPartObject(TypedDict):
    """One part of an upload."""

    object: Literal["upload.part"]
    id: str
    created_at: int
    upload_id: str


class HyperparametersObject(TypedDict):
    """Those in force; "auto" until the training has chosen.

    The last four are the engine's own (`lora`, `ray`), and no other server of this API has them.
    """

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]
    beta: NotRequired[float | Literal["auto"]]
    learning_rate: NotRequired[float]
    rank: NotRequired[int]
    max_example_tokens: NotRequired[int]
    threads: NotRequired[int]


class MethodDetails(TypedDict):
    """The hyperparameters once more, under their method."""

    hyperparameters: HyperparametersObject


class MethodObject(TypedDict):
    """How a job trains."""

    type: Literal["supervised", "dpo"]
    supervised: NotRequired[MethodDetails]
    dpo: NotRequired[MethodDetails]


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobObject(TypedDict):
    """A fine-tuning job."""

    object: Literal["fine_tuning.job"]
    id: str
    model: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    organization_id: str
    result_files: list[str]
    status: JobState
    validation_file: str | None
    training_file: str
    hyperparameters: HyperparametersObject
    method: MethodObject
    trained_tokens: int | None
    error: JobError | None
    user_provided_suffix: str | None
    seed: int
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None


class EventObject(TypedDict):
    """An event of a job; `data` has the figures of a step where `type` is metrics."""

    object: Literal["fine_tuning.job.event"]
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    data: dict[str, Any]
    type: Literal["message", "metrics"]


class CheckpointObject(TypedDict):
    """A model that a job made on its way."""

    object: Literal["fine_tuning.job.checkpoint"]
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class ModelObject(TypedDict):
    """A base model or a fine-tune."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    shutdown_date: str | None


class ModelList(TypedDict):
    """All models that a key may use."""

    object: Literal["list"]
    data: list[ModelObject]


class TokenLogprob(TypedDict):
    """One token and how likely it was."""

    token: str
    logprob: float | None
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class Logprob(TokenLogprob):
    """A token of an answer, with those that were as likely."""

    top_logprobs: list[TokenLogprob]


class ChoiceLogprobs(TypedDict):
    """The tokens of one answer."""

    content: list[Logprob]
    refusal: None


class AnswerMessage(TypedDict):
    """What the model said; nothing where it only calls tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[dict[str, Any]]
    tool_calls: NotRequired[list[dict[str, Any]]]


class ChoiceObject(TypedDict):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class PromptTokens(TypedDict):
    """What the prompt's tokens were."""

    audio_tokens: int
    cache_write_tokens: int
    cached_tokens: int
    image_tokens: int
    text_tokens: int


class CompletionTokens(TypedDict):
    """What the answers' tokens were."""

    text_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class TokenUsage(TypedDict):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


class EmbeddingObject(TypedDict):
    """One text as a vector of length 1: numbers, or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    """How many tokens the texts had."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """Texts as vectors, in the order of the request."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage


class PromptLogprob(TypedDict):
    """How likely a token of the conversation was, and how many were likelier."""

    logprob: float
    rank: int | None
    decoded_token: str


class StoredMessage(TypedDict):
    """A message of a kept completion."""

    id: str
    role: str
    content: str | None
    refusal: None
    content_parts: list[dict[str, Any]] | None
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]


class ChatCompletion(TypedDict):
    """Answers to one conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceObject]
    usage: TokenUsage
    service_tier: str
    system_fingerprint: str
    metadata: dict[str, str] | None
    moderation: None
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]
