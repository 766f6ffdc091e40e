"""Which driver reads a database of posts: the best one for it, loaded when it is asked for."""

from __future__ import annotations

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tuneproof.errors import DataError
from tuneproof.settings import SourceConfig, revealed
from tuneproof.sources.sql import SqlSource

__all__ = ["open_sql"]


def open_sql(config: SourceConfig) -> SqlSource:
    """The source for a database address. Raises `DataError` for one that cannot be used."""
    try:
        url = make_url(revealed(config.url) or "")
        family = url.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise DataError(
            f"The source {config.name!r} has a malformed address.",
            mend="Write sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
        ) from error
    if family in ("postgresql", "postgres"):
        from tuneproof.sources.postgres import open_postgres

        return open_postgres(config, url.set(drivername="postgresql+psycopg"))
    if family == "sqlite":
        from tuneproof.sources.sqlite import SqliteSource

        return SqliteSource(config, url.set(drivername="sqlite+pysqlite"))
    from tuneproof.sources.generic import GenericSource

    return GenericSource(config, url)
