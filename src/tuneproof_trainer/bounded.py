"""What comes from outside is read within bounds: lines without an end, JSON of a million brackets.

A line or a body that is refused has cost what the bound says, whatever its size was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

__all__ = ["MAX_JSON_BYTES", "MAX_LINE_BYTES", "lines", "loads", "texts_in"]

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Of one body: some two million tokens of text."""

MAX_LINE_BYTES = 8 * 1024 * 1024
"""Of one line of a training file."""

_MOST_BRACKETS = 2**18
"""Objects and lists of one JSON text: each takes over twenty times its two bytes in memory."""

_MOST_NESTED = 100
"""Objects and lists in each other: more can be read than written again."""

_BOM = b"\xef\xbb\xbf"


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank and where they begin; a byte order mark is passed over.

    What is longer than `MAX_LINE_BYTES` comes in pieces, the first of which is longer than that.
    """
    place = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        mark = len(_BOM) if place == 0 and line.startswith(_BOM) else 0
        if line.strip():
            yield place + mark, line[mark:]
        place += len(line)


def loads(text: bytes) -> Any:
    """JSON as Python's values; raises ValueError where it is none, or has too many brackets."""
    if text.count(b"{") + text.count(b"[") > _MOST_BRACKETS:
        raise ValueError(f"more than {_MOST_BRACKETS} objects and lists")
    return orjson.loads(text)


def texts_in(value: Any) -> list[str]:
    """The keys and texts of JSON; raises ValueError where it is nested too deep to be handed on."""
    found: list[str] = []
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        if depth > _MOST_NESTED:
            raise ValueError(f"more than {_MOST_NESTED} objects and lists in each other")
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            found += one
            left += [(inner, depth + 1) for inner in one.values()]
        elif isinstance(one, list):
            left += [(inner, depth + 1) for inner in one]
    return found
