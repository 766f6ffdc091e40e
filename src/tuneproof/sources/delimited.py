"""Reading CSV files: rows by the header's names, and errors that say where they are."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tuneproof.errors import DataError

__all__ = ["header", "records"]

LONGEST: Final = 64 * 1024 * 1024
"""Characters of the longest text that is read; the standard library stops at 128 Ki."""

_OTHERS: Final = {";": "semicolons", "\t": "tabs", "|": "bars"}


def header(path: Path, *, errors: str = "strict") -> list[str]:
    """The names of the columns. Raises `DataError` for a file that is empty or no CSV."""
    names, _ = _opened(path, errors)
    return names


def records(path: Path, *, errors: str = "strict") -> Iterator[tuple[str, dict[str, str | None]]]:
    """Each row by the names of the columns, with where it is: `'p.csv', row 7 (line 9)`.

    The row below the header is row 1. Values that a short row lacks are None; empty lines are
    no rows. `errors` is what `open` knows by this name. Raises `DataError` for what is no CSV.
    """
    names, lines = _opened(path, errors)
    number = 0
    for line, row in lines:
        if row:
            number += 1
            values = [*row, *[None] * (len(names) - len(row))]
            where = f"{str(path)!r}, row {number} (line {line})"
            yield where, dict(zip(names, values, strict=False))


def _opened(path: Path, errors: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    lines = _lines(path, errors)
    _, names = next(lines, (0, []))
    if not names:
        raise DataError(
            f"{str(path)!r} is empty.", mend="Its first line names the columns, such as id,ts,body."
        )
    if len(names) == 1:
        other = next((sign for sign in _OTHERS if sign in names[0]), None)
        if other is not None:
            raise DataError(
                f"The columns of {str(path)!r} are separated by {_OTHERS[other]}.",
                mend="Write it with commas between the columns.",
            )
    return names, lines


def _lines(path: Path, errors: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
    number = -1  # the header's; then that of the row read last
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                number += 1
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(
                f"{str(path)!r} cannot be read as CSV after row {max(number, 0)} "
                f"(line {reader.line_num}): {error}.",
                mend="Mend that row; a quotation mark that is never closed is the usual cause.",
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{str(path)!r} is not UTF-8 after row {max(number, 0)}: the byte "
                f"0x{error.object[error.start]:02x} ({error.reason}).",
                mend="Convert it to UTF-8 first: iconv -f LATIN1 -t UTF-8 FILE.",
            ) from error
