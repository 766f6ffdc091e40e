"""What several routes take and give: models, pages, reasons."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from fastapi import Header, Query
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
)

from tuneproof.errors import InputError
from tuneproof.experiments import Variant
from tuneproof.settings import Option, options
from tuneproof.training import ModelVersion, VersionStatus

if TYPE_CHECKING:
    from tuneproof.app import App

T = TypeVar("T")


def utc(at: datetime) -> datetime:
    """An instant in UTC; a naive one is read as UTC.

    Raises `InputError` for one whose UTC lies outside the years 1 to 9999.
    """
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError as error:
        raise InputError(
            f"The time {at.isoformat()} is in UTC outside the years 1 to 9999.",
            mend="Send a time within them.",
        ) from error


def kept_text(what: str, text: str) -> str:
    """A text that every database keeps. Raises `InputError` for any other."""
    if not _is_kept(text):
        raise InputError(f"{what} is {text[:60]!r}; {_RULE}", mend="Leave that character out.")
    return text


def _is_kept(text: str) -> bool:
    if "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


_RULE = "no database keeps a NUL or a lone surrogate"


def rfc3339(at: datetime) -> str:
    """An instant as RFC 3339 in UTC, to the millisecond."""
    return utc(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Instant = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
When = Annotated[
    datetime,
    Field(strict=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "description": "Seconds since 1970."},
            ]
        }
    ),
]
"""An instant as a request names it."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of a page.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key with the same request is done once; its answer is repeated.",
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        max_length=50,
        description="The version that was read (its ETag); 409 when it is no longer that.",
    ),
]


def bounds_of(option: Option) -> dict[str, Any]:
    """What a field of a request that sets an option may be, as the option says."""
    bounds: dict[str, Any] = {"gt": option.above, "ge": option.at_least, "le": option.at_most}
    if option.kind is float:
        bounds["allow_inf_nan"] = False
    return {name: bound for name, bound in bounds.items() if bound is not None}


def setting(record: type[Any], name: str) -> Option:
    """The option of this name of a record of settings."""
    return next(option for option in options(record) if option.name == name)


class Bulk(BaseModel):
    """Part of a request with thousands of parts: unknown fields are refused, not ignored."""

    model_config = ConfigDict(extra="forbid", str_max_length=10_000, protected_namespaces=())


class Strict(Bulk):
    """A request: fields that nobody knows, values of another type than the document says, and
    texts that cannot be kept, are refused."""

    model_config = ConfigDict(strict=True)

    @field_validator("*")
    @classmethod
    def _kept(cls, value: Any) -> Any:
        if isinstance(value, str) and not _is_kept(value):
            raise ValueError(f"{value[:60]!r} cannot be kept: {_RULE}; leave that character out")
        return value


HASH = "^[0-9a-f]{16}$"
"""The name of a prompt."""


class Answer(BaseModel):
    """A response."""

    model_config = ConfigDict(protected_namespaces=(), from_attributes=True)


class Model(Strict):
    """A model by the provider's name, and our version's id where it is one of ours.

    A version that is none of ours is kept as it was told, and shown again.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model_id": "ft:ngram:hook:7f3a", "version": "1.4.0"}}
    )

    model_id: str = Field(min_length=1, max_length=500)
    version: str | None = Field(default=None, max_length=100)
    prompt: str | None = Field(
        default=None,
        pattern=HASH,
        exclude_if=lambda prompt: prompt is None,
        description="The hash of the prompt that it is asked by, where variants own that.",
    )

    async def ref(self, app: App) -> Variant:
        """As a record; `version` is our id where the model is one that we made.

        Of several with one model it is the one that is named, else that in use, else the newest. A
        base model that was tested by a prompt is meant as such where the prompt, or the version, is
        said too, or where it is in use: by its name alone it is asked as the model in use is.
        """
        known = await app.store.versions.list(model_id=self.model_id, limit=100)
        named = [one for one in known if self.version in (one.id, one.version)]
        fits = named or [one for one in known if self.prompt is not None or not _prompted(one)]
        fits = [one for one in fits if self.prompt in (None, one.prompt)]
        fits.sort(key=lambda one: one.status is not VersionStatus.LIVE)
        if fits:
            return Variant(model_id=self.model_id, version=fits[0].id, prompt=fits[0].prompt)
        return Variant(model_id=self.model_id, label=self.version, prompt=self.prompt)

    def named(self) -> Variant:
        """As a record that means every version of this name."""
        return Variant(model_id=self.model_id, prompt=self.prompt)

    @classmethod
    def of(cls, ref: Variant) -> Model:
        """Of a record."""
        return cls(model_id=ref.model_id, version=ref.version or ref.label, prompt=ref.prompt)


def _prompted(version: ModelVersion) -> bool:
    """Whether it is a base model that was tried by a prompt, and is not in use."""
    tried = version.prompt is not None and version.model_id == version.base_model
    return tried and version.status is not VersionStatus.LIVE


class Reason(Strict):
    """Why a person acts; kept in the history for ever."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "complaints from support"}})

    reason: str = Field(min_length=1, max_length=2000)


class OptionalReason(Strict):
    """Why a person acts, where no reason is demanded."""

    reason: str = Field(default="", max_length=2000)


class Paged(Answer, Generic[T]):
    """A page of a list, newest first; `next_cursor` is null on the last one."""

    items: list[T]
    next_cursor: str | None = None


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself; `schema` is that of the body."""
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, dict) and "$ref" in part:
            return inlined(definitions[part["$ref"].rpartition("/")[2]])
        if isinstance(part, dict):
            return {key: inlined(value) for key, value in part.items()}
        return [inlined(value) for value in part] if isinstance(part, list) else part

    content = {"application/json": {"schema": inlined(schema)}}
    return {"requestBody": {"required": True, "content": content}}


def expected(if_match: str | None) -> int | None:
    """The version in an `If-Match` header; None where there is none or it is `*`.

    Raises `InputError` for what is not a version.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InputError(
            f"If-Match is {if_match!r}, not a version.",
            mend='Send the ETag of the object as it was read, such as "3".',
        )
    return int(text)


def etag(version: int | str) -> dict[str, str]:
    """The `ETag` header of a version."""
    return {"ETag": f'"{version}"'}


def instant(value: Any) -> datetime | None:
    """An instant from a record's JSON, or None."""
    if value is None or isinstance(value, datetime):
        return None if value is None else utc(value)
    return utc(datetime.fromisoformat(str(value)))
