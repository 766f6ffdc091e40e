"""Multipart forms with one file, written to disk as they arrive: memory stays flat."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from tuneproof_trainer.errors import ApiError, bad_request
from tuneproof_trainer.files import Landed, Landing

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["Form", "read_form"]

_EXTENDED = re.compile(
    rb"""filename\*\s*=\s*(utf-8|iso-8859-1)'[^';"]*'([^\s;"]+)""", re.IGNORECASE
)
_FLUSH_BYTES = 1024 * 1024
_HELD_BYTES = 32 * 1024 * 1024
"""What all forms that are being read may hold together."""

_LEAST_FLUSH_BYTES = 16 * 1024
_MOST_HEADERS, _MOST_HEADER_BYTES = 16, 8 * 1024
"""Of one part of a form."""

_MOST_FIELD_BYTES = 4 * 1024
_MOST_FIELDS = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a form held: its plain fields, and its file, which is on disk by now."""

    fields: dict[str, str]
    filename: str
    landed: Landed


async def read_form(request: Request, name: str, landing: Landing) -> Form:
    """Read a form whose file is called `name`.

    Raises ApiError 400 for a form that is malformed or lacks the file, 413 for a file that is
    too large; nothing of it is kept then.
    """
    reader = _Reader(name)
    _Reader.at_work += 1
    try:
        parser = MultipartParser(_boundary(request), reader.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if reader.is_full:
                await asyncio.to_thread(landing.write, reader.take_pieces())
        return await asyncio.to_thread(_finished, reader, landing)
    except BaseException as error:
        landing.abandon()
        raise _as_api_error(error) from None
    finally:
        _Reader.at_work -= 1


def _finished(reader: _Reader, landing: Landing) -> Form:
    if not reader.ended:
        raise _malformed("it ends in the middle")
    if reader.filename is None:
        raise bad_request(
            f"Missing required parameter: '{reader.name}', sent as a file.",
            reader.name,
            "missing_required_parameter",
        )
    landing.write(reader.take_pieces())
    return Form(
        fields=reader.fields, filename=reader.filename or reader.name, landed=landing.finish()
    )


def _as_api_error(error: BaseException) -> BaseException:
    if isinstance(error, FormParserError):
        return _malformed(str(error))
    if isinstance(error, ClientDisconnect):
        return ConnectionError("the client went away in the middle of its form")
    return error


def _malformed(why: str) -> ApiError:
    return bad_request(f"The form could not be read: {why}.", code="invalid_form")


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise bad_request(
            "The request must be multipart/form-data with a boundary.", code="invalid_content_type"
        )
    return boundary


def _extended(disposition: bytes) -> bytes | None:
    """The file's name as RFC 5987 writes it: `filename*=UTF-8''na%C3%AFve.jsonl`."""
    found = _EXTENDED.search(disposition)
    if found is None:
        return None
    charset, name = found[1].decode("ascii").lower(), unquote_to_bytes(found[2])
    return name if charset == "utf-8" else name.decode("latin-1").encode()


class _Reader:
    """Takes the parser's pieces: plain fields whole, the file's data for the next flush."""

    at_work = 0
    """How many there are: they share what all may hold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.ended = False
        self.held = 0
        self._pieces: list[bytes] = []
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        """What `MultipartParser` calls."""
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": self._in_header_name,
            "on_header_value": self._in_header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._in_data,
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }

    @property
    def is_full(self) -> bool:
        """Whether what is held should go to the disk."""
        share = _HELD_BYTES // max(1, _Reader.at_work)
        return self.held >= max(_LEAST_FLUSH_BYTES, min(_FLUSH_BYTES, share))

    def take_pieces(self) -> bytes:
        """The file's data since the last flush."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.held = 0
        return data

    def _part_begins(self) -> None:
        self._headers, self._field, self._value = {}, None, b""
        self._header_name = self._header_value = b""

    def _in_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _in_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        size = len(self._header_name) + len(self._header_value)
        if size > _MOST_HEADER_BYTES or len(self._headers) >= _MOST_HEADERS:
            raise _malformed("a part of it has too many headers, or too long ones")

    def _header_ends(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = _extended(disposition) or options.get(b"filename")
        if filename is None:
            self._field = name
            if len(self.fields) >= _MOST_FIELDS:
                raise _malformed(f"it has more than {_MOST_FIELDS} fields")
        elif name != self.name or self.filename is not None:
            raise bad_request(f"Unexpected file '{name}' in the form.", name, "unexpected_file")
        else:
            self.filename = filename.decode("utf-8", "replace")

    def _in_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._field is None:
            self._pieces.append(piece)
            self.held += len(piece)
            return
        self._value += piece
        if len(self._value) > _MOST_FIELD_BYTES:
            raise _malformed(f"its field '{self._field}' is too long")

    def _part_ends(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._value.decode("utf-8", "replace")

    def _ends(self) -> None:
        self.ended = True
