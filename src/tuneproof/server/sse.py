"""Server-sent events as bytes: where each ends, and the data that it carries.

Lines end with CR LF, LF or CR and with nothing else: U+2028 and U+0085 are text. An event ends at
an empty line; comments, other fields, several `data` lines and events without data are legal.
"""

from __future__ import annotations

import re

__all__ = ["EventSplitter", "data_of", "ended", "with_data"]

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
_ENDED = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|$)")
_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Cuts a stream's bytes into whole events, however they arrive; no byte is lost or made up."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def waiting(self) -> int:
        """How many bytes wait for the end of their event."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that end within `data`, each with the empty line behind it."""
        text = self._rest + data if self._rest else data
        if b"\r" not in text:
            *whole, self._rest = text.split(b"\n\n")
            return [event + b"\n\n" for event in whole]
        found, begin = [], 0
        for end in _END.finditer(text):
            found.append(text[begin : end.end()])
            begin = end.end()
        self._rest = text[begin:]
        return found

    def end(self) -> bytes:
        """What came behind the last whole event."""
        rest, self._rest = self._rest, b""
        return rest


def ended(event: bytes) -> bytes:
    """An event that broke off, with the empty line behind it: what follows is no part of it."""
    return event.rstrip(b"\r\n") + b"\n\n"


def data_of(event: bytes) -> bytes | None:
    """The data of an event, its lines joined by LF; None where it has no `data` field."""
    plain = event.startswith(b"data: ") and event.endswith(b"\n\n") and b"\r" not in event
    if plain and event.count(b"\n") == 2:
        return event[6:-2]
    found = None
    for line in _LINE.split(event.removeprefix(_BOM)):
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            found = value if found is None else found + b"\n" + value
    return found


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data in the place of its own; all its other lines stay."""
    written, done = [], False
    for line, end in _ENDED.findall(event):
        mark = _BOM if line.startswith(_BOM) else b""
        if line.removeprefix(mark).partition(b":")[0] != b"data":
            written += [line, end]
        elif not done:
            written += [mark, b"data: ", data, end]
            done = True
    return b"".join(written)
