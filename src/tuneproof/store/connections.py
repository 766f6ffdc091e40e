"""How many connections a PostgreSQL server lets in, and who has them now."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from tuneproof.store.database import Database
from tuneproof.workflow import LOCK_SPACE

__all__ = ["ServerConnections", "server_connections"]


@dataclass(frozen=True, kw_only=True)
class ServerConnections:
    """Connections of one PostgreSQL server, as its user of ours may see them."""

    most: int
    """`max_connections`."""
    reserved: int
    """What of it is kept back: `superuser_reserved_connections` and `reserved_connections`."""
    of_database: int
    """`CONNECTION LIMIT` of our database; -1: none."""
    of_user: int
    """`CONNECTION LIMIT` of our user; -1: none."""
    in_use: int
    """By anybody, in all databases."""
    ours: int
    """Of our user to our database."""
    workers: int
    """Workers of ours that live now: each holds a lock."""

    @property
    def room(self) -> int:
        """How many may be open for all users of this server that are no superusers."""
        return self.most - self.reserved

    @property
    def others(self) -> int:
        """How many somebody else has."""
        return max(self.in_use - self.ours, 0)

    @property
    def for_us(self) -> int:
        """How many our user may have at all, whoever else has none."""
        limits = (self.room, self.of_database, self.of_user)
        return min(limit for limit in limits if limit >= 0)


async def server_connections(database: Database) -> ServerConnections | None:
    """What a PostgreSQL server says of its connections; None of SQLite, which has no server.

    Raises `StoreUnavailableError` where it does not answer.
    """
    if database.dialect != "postgresql":
        return None
    async with database.read() as tx:
        row = (await tx.execute(text(_ASKED), {"space": LOCK_SPACE})).mappings().one()
    return ServerConnections(**{name: int(value) for name, value in row.items()})


# `pg_stat_activity` hides from us what sessions of others are; `pg_stat_database` counts them.
_ASKED = """
    SELECT
        current_setting('max_connections') AS most,
        (SELECT sum(setting::integer) FROM pg_settings
            WHERE name IN ('superuser_reserved_connections', 'reserved_connections')) AS reserved,
        (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS of_database,
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user) AS of_user,
        (SELECT sum(numbackends) FROM pg_stat_database) AS in_use,
        (SELECT count(*) FROM pg_stat_activity
            WHERE usename = session_user AND datname = current_database()) AS ours,
        (SELECT count(DISTINCT pid) FROM pg_locks
            WHERE locktype = 'advisory' AND granted AND classid = :space AND objsubid = 2
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        ) AS workers
"""
