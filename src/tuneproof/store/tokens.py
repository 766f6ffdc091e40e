"""Bearer tokens: shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from tuneproof.collection import TimeSource
from tuneproof.errors import ConflictError, DataError, NotFoundError
from tuneproof.store.database import Database
from tuneproof.store.tables import tokens
from tuneproof.workflow import Tx

__all__ = ["SCOPES", "TokenInfo", "Tokens"]

SCOPES: Final = ("read", "write", "relay", "admin")


@dataclass(frozen=True, kw_only=True)
class TokenInfo:
    """What is known of a token: never the token itself."""

    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None = None


class Tokens:
    """The table of tokens."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        name: str,
        scopes: Iterable[str],
        now: datetime | None = None,
        *,
        tx: Tx | None = None,
    ) -> str:
        """Make a token and return it: the only time that it is known (256 random bits).

        A revoked token's name can be used again. Raises `DataError` for unknown scopes or
        none, `ConflictError` where a token has this name.
        """
        wanted = tuple(dict.fromkeys(scopes))
        if not wanted or set(wanted) - set(SCOPES):
            raise DataError(f"Scopes {list(wanted)} are not known.", mend=f"Use some of {SCOPES}.")
        token = f"tp_{secrets.token_urlsafe(32)}"
        row = {
            "hash": _hash(token),
            "name": name,
            "scopes": list(wanted),
            "created_at": now or self._clock.now(),
        }
        revoked = delete(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_not(None))
        try:
            async with self._database.writing(tx) as own:
                await own.execute(revoked)
                await own.execute(insert(tokens), row)
        except IntegrityError as error:
            raise ConflictError(
                f"There is a token {name!r} already.", mend="Revoke it, or take another name."
            ) from error
        return token

    async def verify(self, token: str, *, tx: Tx | None = None) -> tuple[str, ...] | None:
        """The scopes of a token, or None where it is not one of ours or was revoked."""
        found = await self.find(token, tx=tx)
        return None if found is None else found.scopes

    async def find(self, token: str, *, tx: Tx | None = None) -> TokenInfo | None:
        """Whose token this is, or None where it is not one of ours or was revoked."""
        query = select(tokens).where(tokens.c.hash == _hash(token), tokens.c.revoked_at.is_(None))
        async with self._database.reading(tx) as own:
            row = (await own.execute(query)).one_or_none()
        return None if row is None else _info(row._mapping)

    async def list(self, *, tx: Tx | None = None) -> list[TokenInfo]:
        """All tokens by name, the revoked ones too."""
        async with self._database.reading(tx) as own:
            rows = await own.execute(select(tokens).order_by(tokens.c.name))
            return [_info(row._mapping) for row in rows]

    async def revoke(self, name: str, now: datetime | None = None, *, tx: Tx | None = None) -> None:
        """End a token. Raises `NotFoundError` where none of this name is in use."""
        statement = update(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_(None))
        async with self._database.writing(tx) as own:
            at = now or self._clock.now()
            done = await own.execute(statement.values(revoked_at=at))
            if done.rowcount == 0:
                raise NotFoundError(
                    f"There is no token {name!r} in use.", mend="`tuneproof token list` shows all."
                )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _info(row: object) -> TokenInfo:
    values = dict(row)  # type: ignore[call-overload]
    values.pop("hash")
    return TokenInfo(**{**values, "scopes": tuple(values["scopes"])})
