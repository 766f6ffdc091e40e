"""Reading JSON lines: objects with their place, and errors that say where they are.

A file is UTF-8. What the fast reader refuses and JSON in the wild has (NaN, lone surrogates, bytes
that are no UTF-8) is read by the standard library, for curation to count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tuneproof.errors import DataError

__all__ = ["keys", "objects"]

_NAMES = {
    str: "text",
    bool: "truth",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object with where it is: `'p.jsonl', line 7`. Empty lines are none.

    Raises `DataError` for a line that is no object of JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                where = f"{str(path)!r}, line {number}"
                yield where, _object(line, where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except ValueError:
        found = _patiently(line, where)
    if not isinstance(found, dict):
        raise DataError(
            f"{where} is no object: {line[:40].decode('utf-8', 'replace')!r}.",
            mend="Write each post as an object on a line of its own, without brackets around all.",
        )
    return found


def _patiently(line: bytes, where: str) -> Any:
    if b"\0" in line:
        raise DataError(
            f"{where} is no text in UTF-8: it holds a byte 0, as UTF-16 does.",
            mend="Convert the file to UTF-8 first: iconv -f UTF-16 -t UTF-8 FILE.",
        )
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON: {error}.",
            mend="Write each post as an object on a line of its own.",
        ) from error


def keys(path: Path) -> dict[str, str]:
    """The keys of all objects with the kinds of their values, in the order in which they come.

    Raises `DataError` for a file without any.
    """
    kinds: dict[str, dict[str, None]] = {}
    for _, one in objects(path):
        for key, value in one.items():
            kinds.setdefault(key, {})[_NAMES[type(value)]] = None
    if not kinds:
        raise DataError(
            f"{str(path)!r} is empty.", mend="Write a post a line, as an object with id, ts, body."
        )
    return {key: _kind(list(found)) for key, found in kinds.items()}


def _kind(found: list[str]) -> str:
    known = sorted(kind for kind in found if kind != "null")
    return " or ".join(known) or "null"
