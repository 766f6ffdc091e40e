"""Bodies, forms and queries as records; what is refused is told in the words of the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tuneproof_trainer.bounded import loads
from tuneproof_trainer.errors import ApiError, bad_request
from tuneproof_trainer.requests import PURPOSES, FileForm, ListQuery

__all__ = ["CODES", "RULES", "parse", "parse_file_form", "parse_query"]

T = TypeVar("T", bound=BaseModel)
Q = TypeVar("Q", bound=ListQuery)


def parse(kind: type[T], body: bytes) -> T:
    """The body as `kind`; raises ApiError 400 in the words of the original."""
    try:
        data = loads(body)
    except ValueError as error:
        raise bad_request(
            f"We could not parse the JSON body of your request: {error}.", code="invalid_json"
        ) from None
    if not isinstance(data, dict):
        raise bad_request("The body of the request must be a JSON object.", code="invalid_type")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(error) from None


def parse_query(kind: type[Q], values: Mapping[str, object]) -> Q:
    """Query parameters as `kind`; raises ApiError 400."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _query_refusal(kind, error) from None


def _query_refusal(kind: type[BaseModel], error: ValidationError) -> ApiError:
    found = error.errors(include_url=False)[0]
    param, got = str(found["loc"][0]), found["input"]
    if found["type"] == "literal_error":
        expected = f"Expected {found['ctx']['expected']}, but got {got!r}."
    elif found["type"] in ("greater_than_equal", "less_than_equal"):
        field = kind.model_json_schema()["properties"][param]
        low, high = field["minimum"], field["maximum"]
        expected = f"Expected a value between {low} and {high}, but got {got}."
    else:
        return bad_request(
            f"Invalid type for '{param}': expected an integer, but got {got!r}.",
            param,
            "invalid_type",
        )
    return bad_request(f"Invalid '{param}': {expected}", param, "invalid_value")


def parse_file_form(fields: Mapping[str, str]) -> FileForm:
    """The plain fields of the form of a file; raises ApiError 400."""
    try:
        return FileForm.model_validate({**fields, "file": b""})
    except ValidationError as error:
        raise _file_form_refusal(error) from None


def _file_form_refusal(error: ValidationError) -> ApiError:
    places = {found["loc"]: found for found in error.errors(include_url=False)}
    purpose = places.get(("purpose",))
    if purpose is None:
        return bad_request(
            "Invalid 'expires_after': Expected the anchor 'created_at' and between 3600 and "
            "2592000 seconds.",
            "expires_after",
            "invalid_value",
        )
    if purpose["type"] == "missing":
        return bad_request(
            "Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter"
        )
    return bad_request(
        f"{purpose['input']!r} is not one of {list(PURPOSES)} - 'purpose'",
        "purpose",
        "invalid_value",
    )


RULES = {
    "greater_than_equal": ("{n}_below_min_value", "{n} below minimum value", "a value >= {ge}"),
    "greater_than": ("{n}_below_min_value", "{n} below minimum value", "a value > {gt}"),
    "less_than_equal": ("{n}_above_max_value", "{n} above maximum value", "a value <= {le}"),
    "less_than": ("{n}_above_max_value", "{n} above maximum value", "a value < {lt}"),
    "string_too_long": (
        "string_above_max_length",
        "string too long",
        "a string with maximum length {max_length}",
    ),
    "string_too_short": (
        "empty_string",
        "empty string",
        "a string with minimum length {min_length}",
    ),
    "too_long": (
        "array_above_max_length",
        "array too long",
        "an array with maximum length {max_length}",
    ),
    "too_short": ("empty_array", "empty array", "an array with minimum length {min_length}"),
    "string_pattern_mismatch": (
        "invalid_value",
        "string does not match the pattern",
        "a string that matches '{pattern}'",
    ),
    "literal_error": ("invalid_value", "value is not one of those that are taken", "{expected}"),
}
"""The code, what is wrong, and what is expected, in the words of the original."""

_TOO_MANY_PROPERTIES = (
    "object_above_max_properties",
    "too many properties",
    "an object with at most {max_length} properties",
)
CODES = {code.format(n=n) for code, _, _ in RULES.values() for n in ("integer", "decimal")} | {
    _TOO_MANY_PROPERTIES[0]
}
"""All codes of these rules."""


def _refusal(error: ValidationError) -> ApiError:
    found = min(error.errors(include_url=False), key=lambda e: _precedence(e["type"]))
    param = _param(found["loc"])
    kind = found["type"]
    if kind == "missing":
        return bad_request(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if kind in RULES:
        return _broken_rule(kind, param, found["input"], found.get("ctx", {}))
    return bad_request(
        f"Invalid type for '{param}': {found['msg']}, but got {_type_name(found['input'])} "
        "instead.",
        param,
        "invalid_type",
    )


def _broken_rule(kind: str, param: str, got: Any, context: dict[str, Any]) -> ApiError:
    too_many = kind == "too_long" and isinstance(got, dict)
    rule = _TOO_MANY_PROPERTIES if too_many else RULES[kind]
    bound = next((v for k, v in context.items() if k in ("ge", "gt", "le", "lt")), 0)
    number = "decimal" if isinstance(bound, float) else "integer"
    code, wrong, expected = (part.format(n=number, **context) for part in rule)
    message = f"Invalid '{param}': {wrong}. Expected {expected}, but got {_abbreviated(got)}"
    return bad_request(f"{message} instead.", param, code)


def _precedence(kind: str) -> int:
    """Mistakes in the order in which a caller wants to hear of them."""
    order = {"missing": 0, "extra_forbidden": 1}
    return order.get(kind, 2 if kind in RULES and kind != "literal_error" else 3)


def _param(place: tuple[int | str, ...]) -> str:
    """`messages[1].content` for ("messages", 1, "content"), without the names of alternatives."""
    shown = ""
    for step in place:
        if isinstance(step, int):
            shown += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "float"):
            shown += f".{step}" if shown else step
    return shown


def _abbreviated(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"a string with length {len(value)}"
    if isinstance(value, list):
        return f"an array with length {len(value)}"
    return f"{len(value)}" if isinstance(value, dict) else str(value)


def _type_name(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal"}
    names |= {list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
