"""Posts from any other database that SQLAlchemy has a driver for, read in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from sqlalchemy.exc import DBAPIError

from tuneproof.collection import Post, PostQuery, Totals, Window
from tuneproof.errors import DataError
from tuneproof.sources.rows import maker
from tuneproof.sources.sql import SqlSource, Table

__all__ = ["GenericSource"]


class GenericSource(SqlSource):
    """A table of a warehouse, with SQLAlchemy's streaming where the driver has it."""

    async def totals(self, window: Window) -> Totals | None:
        """As elsewhere; a database that refuses the aggregate has its posts read."""
        try:
            return await super().totals(window)
        except DataError:
            return None

    async def read(
        self, table: Table, found: Mapping[str, str], query: PostQuery
    ) -> AsyncIterator[list[Post]]:
        """Stream the result, a chunk at a time; the transaction is rolled back at the end."""
        make = maker(list(found))
        engine = self.engine()
        try:
            connection = await asyncio.to_thread(engine.connect)
            try:
                statement = self.statement(table, found, query)
                streamed = connection.execution_options(stream_results=True)
                result = await asyncio.to_thread(streamed.execute, statement)
                while rows := await asyncio.to_thread(result.fetchmany, query.chunk_size):
                    yield [make(row) for row in rows]
            finally:
                await asyncio.to_thread(connection.close)
        except DBAPIError as error:
            raise self.told(error) from error
        finally:
            engine.dispose()
