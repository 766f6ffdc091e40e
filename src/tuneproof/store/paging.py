"""Pages of a list, newest first, by a cursor that survives inserts."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, and_, or_

from tuneproof.errors import InputError
from tuneproof.store.types import from_micros, to_micros
from tuneproof.workflow import Tx

__all__ = ["Page", "page_by_time"]

T = TypeVar("T")
MAX_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """Some of a list; `next_cursor` asks for what follows and is None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None = None


def check_limit(limit: int) -> int:
    """`limit`, or `InputError` where it is not 1 to 1000."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InputError(f"limit={limit} is not between 1 and {MAX_LIMIT}.", mend="Ask for fewer.")
    return limit


async def page_by_time(
    tx: Tx,
    query: Select[Any],
    at: ColumnElement[datetime],
    key: ColumnElement[str],
    cursor: str | None,
    limit: int,
) -> tuple[list[Any], str | None]:
    """Rows of `query` by (`at`, `key`) falling, after `cursor`; and the next cursor.

    Raises `InputError` for a cursor that did not come from a page.
    """
    check_limit(limit)
    if cursor is not None:
        last_at, last_key = _decode(cursor)
        query = query.where(or_(at < last_at, and_(at == last_at, key < last_key)))
    rows = (await tx.execute(query.order_by(at.desc(), key.desc()).limit(limit + 1))).all()
    if len(rows) <= limit:
        return list(rows), None
    last = rows[limit - 1]._mapping
    return list(rows[:limit]), _encode(last[at.name], last[key.name])


def _encode(at: datetime, key: str) -> str:
    return base64.urlsafe_b64encode(f"{to_micros(at)} {key}".encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        micros, _, key = text.partition(" ")
        at = from_micros(int(micros))
    except (binascii.Error, ValueError, OverflowError) as error:
        raise no_cursor(cursor) from error
    if "\0" in key:
        raise no_cursor(cursor)
    return at, key


def no_cursor(cursor: str) -> InputError:
    """That this text is not the `next_cursor` of a page."""
    return InputError(
        f"The cursor {cursor[:80]!r} did not come from a page.",
        mend="Take next_cursor from the page before, or leave the cursor out.",
    )
