"""Posts from any other database that SQLAlchemy has a driver for, read in a worker thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tuneproof.collection import Totals, Window
from tuneproof.errors import DataError
from tuneproof.resilience.threads import InTurn
from tuneproof.sources.sql import SqlSource, break_off

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
        self, statement: sa.Select[Any], chunk_size: int
    ) -> AsyncIterator[Sequence[Any]]:
        """Stream the result, a chunk at a time; the transaction is rolled back at the end."""
        in_turn = InTurn()
        engine = self.engine()
        try:
            connection = await in_turn(engine.connect)
            try:
                streamed = connection.execution_options(stream_results=True)
                result = await in_turn(streamed.execute, statement)
                while rows := await in_turn(result.fetchmany, chunk_size):
                    yield rows
            finally:
                await in_turn.end(connection.close, partial(break_off, connection))
        except DBAPIError as error:
            raise self.told(error) from error
        finally:
            engine.dispose()
