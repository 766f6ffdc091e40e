"""One row inserted or, where its key exists, replaced: the same on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from tuneproof.workflow import Tx

__all__ = ["insert_or_ignore", "insert_or_ignore_all", "upsert"]


async def upsert(tx: Tx, table: Table, row: dict[str, Any]) -> None:
    """Insert `row`, or replace the other columns of the row with its primary key."""
    keys = [column.name for column in table.primary_key]
    statement = _insert(tx, table).values(row)
    changed = {name: statement.excluded[name] for name in row if name not in keys}
    await tx.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))


async def insert_or_ignore(tx: Tx, table: Table, row: dict[str, Any]) -> bool:
    """Insert `row` unless one with its keys exists; whether it was inserted."""
    statement = _insert(tx, table).values(row).on_conflict_do_nothing()
    return (await tx.execute(statement.returning(*table.primary_key))).first() is not None


async def insert_or_ignore_all(tx: Tx, table: Table, rows: Sequence[dict[str, Any]]) -> int:
    """Insert those of `rows` whose keys are new, also among themselves; how many."""
    if not rows:
        return 0
    statement = _insert(tx, table).on_conflict_do_nothing().returning(*table.primary_key)
    return len((await tx.execute(statement, list(rows))).all())


def _insert(tx: Tx, table: Table) -> Any:
    return sqlite.insert(table) if tx.dialect.name == "sqlite" else postgresql.insert(table)
