"""Bodies, forms and queries of requests: what is checked, and what the OpenAPI document shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

__all__ = [
    "PURPOSES",
    "ChatMessage",
    "ChatRequest",
    "CheckpointsQuery",
    "CompleteUpload",
    "CompletionsQuery",
    "CreateJob",
    "CreateUpload",
    "EmbeddingsRequest",
    "EventsQuery",
    "FileForm",
    "FilesQuery",
    "JobsQuery",
    "ListQuery",
    "MessagesQuery",
    "PartForm",
    "Purpose",
    "UpdateCompletion",
]

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
"""What files may be uploaded for; result files have purposes of their own."""

_LIFETIME = Field(ge=3600, le=2592000)
Auto = Literal["auto"]
Epochs = Annotated[int, Field(ge=1, le=50)] | Auto
BatchSize = Annotated[int, Field(ge=1, le=256)] | Auto
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto
Beta = Annotated[float, Field(gt=0, le=2)] | Auto
Seed = Annotated[int, Field(ge=0, le=2147483647)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SupervisedHyperparameters(_Body):
    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: LearningRate = "auto"


class DpoHyperparameters(SupervisedHyperparameters):
    beta: Beta = "auto"


class Supervised(_Body):
    hyperparameters: SupervisedHyperparameters | None = None


class Dpo(_Body):
    hyperparameters: DpoHyperparameters | None = None


class Method(_Body):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, Any] | None = None


class CreateJob(_Body):
    """POST /v1/fine_tuning/jobs."""

    model: Annotated[str, Field(min_length=1)]
    training_file: Annotated[str, Field(min_length=1)]
    validation_file: Annotated[str, Field(min_length=1)] | None = None
    suffix: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9 _.+@-]*$")] | None
    ) = None
    seed: Seed | None = None
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    integrations: list[dict[str, Any]] | None = None


class ExpiresAfter(_Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, _LIFETIME]


class CreateUpload(_Body):
    """POST /v1/uploads."""

    filename: Annotated[str, Field(min_length=1, max_length=512)]
    purpose: Purpose
    bytes: Annotated[int, Field(ge=1)]
    mime_type: Annotated[str, Field(min_length=1, max_length=256)]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(_Body):
    """POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class ContentPart(_Body):
    """A part of a message; `features` says which are done."""

    type: Literal["text", "refusal", "image_url", "input_audio", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: dict[str, Any] | None = None
    input_audio: dict[str, Any] | None = None
    file: dict[str, Any] | None = None

    @property
    def said(self) -> str | None:
        """Its words."""
        return self.refusal if self.type == "refusal" else self.text


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    weight: int | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    annotations: list[Any] | None = None

    def text(self) -> str:
        """The content as one string."""
        if self.content is None or isinstance(self.content, str):
            return self.content or self.refusal or ""
        return "".join(part.said or "" for part in self.content)


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]


class ChatRequest(_Body):
    """POST /v1/chat/completions, with vLLM's `prompt_logprobs` and `add_generation_prompt`."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | dict[str, Any] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None


class UpdateCompletion(_Body):
    """POST /v1/chat/completions/{id}."""

    metadata: Metadata | None


_TEXT = Annotated[str, Field(min_length=1)]


class EmbeddingsRequest(_Body):
    """POST /v1/embeddings. Input that is tokens already is not taken: which would they be?"""

    model: Annotated[str, Field(min_length=1)]
    input: _TEXT | Annotated[list[_TEXT], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """The texts, in their order."""
        return [self.input] if isinstance(self.input, str) else self.input


_Binary = Annotated[bytes, Field(json_schema_extra={"type": "string", "format": "binary"})]
_FROM_TEXT = BeforeValidator(int)
"""A number that comes as text."""


class FileForm(BaseModel):
    """POST /v1/files, a form. Its file goes to the disk before its fields are checked."""

    model_config = ConfigDict(frozen=True)

    file: _Binary
    purpose: Purpose
    anchor: Literal["created_at"] | SkipJsonSchema[None] = Field(
        None, alias="expires_after[anchor]"
    )
    lifetime_s: Annotated[int, _LIFETIME, _FROM_TEXT] | SkipJsonSchema[None] = Field(
        None, alias="expires_after[seconds]"
    )

    @model_validator(mode="after")
    def _has_both_or_none(self) -> Self:
        if (self.anchor is None) != (self.lifetime_s is None):
            raise ValueError("the anchor and the seconds belong together")
        return self


class PartForm(BaseModel):
    """POST /v1/uploads/{id}/parts, a form."""

    data: _Binary


class ListQuery(BaseModel):
    """Query parameters come as text, and those that mean nothing are passed over."""

    model_config = ConfigDict(frozen=True)

    after: str | SkipJsonSchema[None] = Field(None, description="The last id of the page before.")


_PAGE = "How many objects a page has."


class FilesQuery(ListQuery):
    """GET /v1/files."""

    limit: Annotated[int, Field(ge=1, le=10_000, description=_PAGE), _FROM_TEXT] = 10_000
    order: Annotated[Literal["asc", "desc"], Field(description="By time of creation.")] = "desc"
    purpose: str | SkipJsonSchema[None] = Field(None, description="Only files of this purpose.")


class JobsQuery(ListQuery):
    """GET /v1/fine_tuning/jobs."""

    limit: Annotated[int, Field(ge=1, le=100, description=_PAGE), _FROM_TEXT] = 20
    metadata: dict[str, object] = Field(
        default_factory=dict,
        description="Only jobs with these values, as `metadata[key]=value`; all are read as text.",
    )


class CompletionsQuery(ListQuery):
    """GET /v1/chat/completions."""

    limit: Annotated[int, Field(ge=1, le=100, description=_PAGE), _FROM_TEXT] = 20
    order: Annotated[Literal["asc", "desc"], Field(description="By time of creation.")] = "asc"
    model: str | SkipJsonSchema[None] = Field(None, description="Only answers of this model.")
    metadata: dict[str, object] = Field(
        default_factory=dict,
        description="Only those with these values, as `metadata[key]=value`; read as text.",
    )


class MessagesQuery(ListQuery):
    """GET /v1/chat/completions/{id}/messages."""

    limit: Annotated[int, Field(ge=1, le=100, description=_PAGE), _FROM_TEXT] = 20
    order: Annotated[Literal["asc", "desc"], Field(description="As asked, or backwards.")] = "asc"


class EventsQuery(ListQuery):
    """GET /v1/fine_tuning/jobs/{id}/events."""

    limit: Annotated[int, Field(ge=1, le=100, description=_PAGE), _FROM_TEXT] = 20


class CheckpointsQuery(ListQuery):
    """GET /v1/fine_tuning/jobs/{id}/checkpoints."""

    limit: Annotated[int, Field(ge=1, le=100, description=_PAGE), _FROM_TEXT] = 10
