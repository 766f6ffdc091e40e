"""Records as rows and back: dataclasses, their enums and the records inside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["to_json_types", "to_row"]


def to_row(record: Any) -> dict[str, Any]:
    """The fields of a record as column values; enums by value, records inside as objects."""
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def to_json_types(value: Any) -> Any:
    """`value` with dataclasses, enums, tuples and mappings as JSON types, all the way down.

    A number that is not finite becomes None: JSON has none, and PostgreSQL refuses it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: to_json_types(v) for k, v in to_row(value).items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_json_types(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping | list | tuple) or dataclasses.is_dataclass(value):
        return to_json_types(value)
    return value
