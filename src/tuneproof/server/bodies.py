"""JSON as callers and providers send it, which is more than the fast reader takes."""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["dumped", "loaded"]


def loaded(content: bytes) -> Any:
    """JSON as Python's own reader takes it, but for NaN and Infinity. Raises `ValueError`."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:  # half of a surrogate pair, or a number beyond a double
        try:
            return json.loads(content, parse_constant=_no_constant)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def dumped(body: Any) -> bytes:
    """What `loaded` gave, as JSON again."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
