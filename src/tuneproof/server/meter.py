"""What an answer that is passed on unread used: read from its bytes while they pass.

Only the beginning and the end are kept, however long it is. All wires say their usage there, in an
object called `usage`; within a JSON text those letters cannot stand unescaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["BYTES_PER_TOKEN", "USUAL_TOKENS", "Meter", "expected_tokens"]

HEAD = 16 * 1024
TAIL = 64 * 1024

BYTES_PER_TOKEN = 4
"""About how long a token is."""

USUAL_TOKENS = 1000
"""How long an answer under way is taken to become that has no limit."""

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_READ = ("prompt_tokens", "input_tokens")
_CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
_WRITTEN = ("completion_tokens", "output_tokens")
_MOST = 2**53
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_SEVERAL = ("n", "best_of")
"""How many answers are asked for: chats and completions say so, each is paid."""


def expected_tokens(body: Mapping[str, Any]) -> int:
    """How many tokens the answers may have together, as far as the request says."""
    limits = (_whole(body.get(name)) for name in _LIMITS)
    each = next((limit for limit in limits if limit), USUAL_TOKENS)
    several = max(1, *(_whole(body.get(name)) for name in _SEVERAL))
    return min(each, 10**6) * min(several, 10**4)


def _whole(value: object) -> int:
    """A whole number above 0, or 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


class Meter:
    """Is fed an answer's bytes; `usage` is what it says of itself, `written` what it looks like."""

    def __init__(self, *, streamed: bool = False) -> None:
        self._streamed = streamed
        self._head = b""
        self._tail = bytearray()
        self._events = 0
        self.bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.bytes += len(data)
        if self._streamed:
            self._events += data.count(b"data:")
        room = HEAD - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]

    @property
    def usage(self) -> tuple[int, int] | None:
        """Tokens read and written; None where it does not say. Later figures replace earlier."""
        read = written = None
        for told in self._told():
            asked = _count(told, _READ)
            if asked is not None:
                read = asked + sum(_count(told, (name,)) or 0 for name in _CACHED)
            answered = _count(told, _WRITTEN)
            written = written if answered is None else answered
        if read is None and written is None:
            return None
        return read or 0, written or 0

    @property
    def written(self) -> int:
        """About how many tokens were written: an event of a stream has one."""
        return self._events if self._streamed else -(-self.bytes // BYTES_PER_TOKEN)

    def _told(self) -> Iterator[Mapping[str, Any]]:
        for part in (self._head + bytes(self._tail[:TAIL]), bytes(self._tail)):
            for found in _USAGE.finditer(part):
                told = _object(part[found.end() : found.end() + HEAD])
                if told is not None:
                    yield told


def _object(content: bytes) -> Mapping[str, Any] | None:
    """The JSON object that this begins with."""
    try:
        found, _ = json.JSONDecoder().raw_decode(content.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _count(told: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = told.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST:
            return value
    return None
