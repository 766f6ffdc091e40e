"""Reading CSV files: rows by the header's names, and errors that say where they are.

A file is UTF-8, or UTF-16 where it begins with the mark of that, and its columns are separated by
commas, or by what a first line such as `sep=;` says: so spreadsheets write both.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from tuneproof.errors import DataError

__all__ = ["header", "records"]

LONGEST: Final = 64 * 1024 * 1024
"""Characters of the longest text that is read; the standard library stops at 128 Ki."""

_OTHERS: Final = {";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATOR: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


def header(path: Path, *, errors: str = "strict") -> list[str]:
    """The names of the columns. Raises `DataError` for a file that is empty or no CSV."""
    names, _ = _opened(path, errors)
    return names


def records(path: Path, *, errors: str = "strict") -> Iterator[tuple[str, dict[str, str]]]:
    """Each row by the names of the columns, with where it is: `'p.csv', row 7 (line 9)`.

    The row below the header is row 1; empty lines are no rows. `errors` is what `open` knows by
    this name. Raises `DataError` for what is no CSV, and for a row that has not as many fields as
    the header.
    """
    names, lines = _opened(path, errors)
    number = 0
    for line, row in lines:
        if row:
            number += 1
            where = f"{str(path)!r}, row {number} (line {line})"
            if len(row) != len(names):
                raise DataError(
                    f"{where} has {len(row)} fields, and the header has {len(names)}.",
                    mend="Mend that row: a text with a comma in it stands in quotation marks, and "
                    "what is empty keeps its comma.",
                )
            yield where, dict(zip(names, row, strict=True))


def _opened(path: Path, errors: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    lines = _lines(path, errors)
    _, names = next(lines, (0, []))
    if not names:
        raise DataError(
            f"{str(path)!r} is empty.", mend="Its first line names the columns, such as id,ts,body."
        )
    names = [name.strip() for name in names]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} columns of {str(path)!r} share their name: "
            f"{', '.join(map(repr, repeated))}.",
            mend="Give each column a name of its own.",
        )
    if len(names) == 1:
        other = next((sign for sign in _OTHERS if sign in names[0]), None)
        if other is not None:
            raise DataError(
                f"The columns of {str(path)!r} are separated by {_OTHERS[other]}.",
                mend=f"Write it with commas between them, or begin it with the line sep={other}",
            )
    return names, lines


def _lines(path: Path, errors: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
    number = -1  # the header's; then that of the row read last
    encoding = _encoding(path)
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        try:
            separator, before = _separator(file)
            reader = csv.reader(file, delimiter=separator)
            for row in reader:
                number += 1
                yield before + reader.line_num, row
        except csv.Error as error:
            raise DataError(
                f"{str(path)!r} cannot be read as CSV after row {max(number, 0)} "
                f"(line {before + reader.line_num}): {error}.",
                mend="Mend that row; a quotation mark that is never closed is the usual cause.",
            ) from error
        except UnicodeDecodeError as error:
            name = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
            raise DataError(
                f"{str(path)!r} is not {name} after row {max(number, 0)}: the byte "
                f"0x{error.object[error.start]:02x} ({error.reason}).",
                mend="Convert it to UTF-8 first: iconv -f LATIN1 -t UTF-8 FILE.",
            ) from error


def _encoding(path: Path) -> str:
    """By the mark at the file's beginning. Raises `DataError` for UTF-16 that has none."""
    with path.open("rb") as file:
        beginning = file.read(1024)
    if beginning.startswith(_MARKS):
        return "utf-16"
    if b"\0" in beginning:
        order = "LE" if beginning[1:2] == b"\0" else "BE"
        raise DataError(
            f"{str(path)!r} is no text in UTF-8: byte {beginning.index(0) + 1} is 0, as in UTF-16 "
            "without a mark at its beginning.",
            mend=f"Convert it to UTF-8 first: iconv -f UTF-16{order} -t UTF-8 FILE.",
        )
    return "utf-8-sig"


def _separator(file: TextIO) -> tuple[str, int]:
    """What separates the columns, and how many lines were read to say it."""
    first = file.readline()
    named = _SEPARATOR.fullmatch(first)
    if named is not None:
        return named[1], 1
    file.seek(0)
    return ",", 0
