"""Bodies of requests, checked; mistakes are told in the words of the original."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneproof_trainer.errors import ApiError, bad_request

__all__ = ["ChatRequest", "CompleteUpload", "CreateJob", "CreateUpload", "parse"]

T = TypeVar("T", bound=BaseModel)
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
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^:]*$")] | None = None
    seed: Seed | None = None
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    integrations: list[dict[str, Any]] | None = None


class ExpiresAfter(_Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class CreateUpload(_Body):
    """POST /v1/uploads."""

    filename: Annotated[str, Field(min_length=1, max_length=512)]
    purpose: Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
    bytes: Annotated[int, Field(ge=1)]
    mime_type: Annotated[str, Field(min_length=1, max_length=256)]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(_Body):
    """POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    weight: int | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: list[Any] | None = None

    def text(self) -> str:
        """The content as one string."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Body):
    type: Literal["text"]


class ChatRequest(_Body):
    """POST /v1/chat/completions, with vLLM's `prompt_logprobs` and `add_generation_prompt`."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool = True
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    response_format: ResponseFormat | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None


def parse(kind: type[T], body: bytes) -> T:
    """The body as `kind`; raises ApiError 400 in the words of the original."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(
            f"We could not parse the JSON body of your request: {error}.", code="invalid_json"
        ) from None
    if not isinstance(data, dict):
        raise bad_request("The body of the request must be a JSON object.", code="invalid_type")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _told(error) from None


_RULES = {
    "greater_than_equal": ("below_min_value", "Expected a value >= {ge}"),
    "greater_than": ("below_min_value", "Expected a value > {gt}"),
    "less_than_equal": ("above_max_value", "Expected a value <= {le}"),
    "less_than": ("above_max_value", "Expected a value < {lt}"),
    "string_too_long": ("string_above_max_length", "Expected at most {max_length} characters"),
    "string_too_short": ("empty_string", "Expected at least {min_length} character(s)"),
    "too_long": ("above_max_length", "Expected at most {max_length} items"),
    "too_short": ("empty_array", "Expected at least {min_length} item(s)"),
    "string_pattern_mismatch": ("invalid_value", "Expected a match of {pattern}"),
    "literal_error": ("invalid_value", "Expected {expected}"),
}


def _told(error: ValidationError) -> ApiError:
    found = sorted(error.errors(include_url=False), key=lambda e: _order(e["type"]))[0]
    param = _param(found["loc"])
    kind = found["type"]
    if kind == "missing":
        return bad_request(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    rule = _RULES.get(kind)
    got = found["input"]
    if rule is not None:
        expected = rule[1].format(**found.get("ctx", {}))
        return bad_request(f"Invalid '{param}': {expected}, but got {_shown(got)}.", param, rule[0])
    return bad_request(
        f"Invalid type for '{param}': {found['msg']}, but got {_named(got)} instead.",
        param,
        "invalid_type",
    )


def _order(kind: str) -> int:
    """Mistakes in the order in which a caller wants to hear of them."""
    order = {"missing": 0, "extra_forbidden": 1}
    return order.get(kind, 2 if kind in _RULES and kind != "literal_error" else 3)


def _param(place: tuple[int | str, ...]) -> str:
    """`messages[1].content` for ("messages", 1, "content"), without the names of alternatives."""
    shown = ""
    for step in place:
        if isinstance(step, int):
            shown += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "float"):
            shown += f".{step}" if shown else step
    return shown


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"a string with length {len(value)}"
    if isinstance(value, list | dict):
        return f"{len(value)}"
    return str(value)


def _named(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal"}
    names |= {list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
