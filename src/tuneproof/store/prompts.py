"""Prompts by the hash of their content: kept once, never changed, never removed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from tuneproof.collection import TimeSource
from tuneproof.errors import NotFoundError
from tuneproof.prompts import Prompt
from tuneproof.store.database import Database
from tuneproof.store.tables import prompts
from tuneproof.store.upserts import insert_or_ignore
from tuneproof.workflow import Tx

__all__ = ["KeptPrompt", "Prompts"]


@dataclass(frozen=True, kw_only=True)
class KeptPrompt:
    """A prompt and where it came from: `settings`, `person` or `proposal`; `parent` is the hash of
    the prompt that a proposal began with."""

    prompt: Prompt
    origin: str
    created_at: datetime
    parent: str | None = None


class Prompts:
    """The table of prompts."""

    def __init__(self, database: Database, clock: TimeSource) -> None:
        self._database = database
        self._clock = clock

    async def keep(
        self, prompt: Prompt, *, origin: str, parent: str | None = None, tx: Tx | None = None
    ) -> bool:
        """Keep a prompt under its hash; whether it was new."""
        row = {
            "hash": prompt.hash,
            "content": prompt.canonical,
            "parent": parent,
            "origin": origin,
            "created_at": self._clock.now(),
        }
        async with self._database.writing(tx) as own:
            return await insert_or_ignore(own, prompts, row)

    async def get(self, hash: str, *, tx: Tx | None = None) -> KeptPrompt:
        """The prompt with this hash. Raises `NotFoundError`."""
        async with self._database.reading(tx) as own:
            found = await own.execute(select(prompts).where(prompts.c.hash == hash))
            row = found.one_or_none()
        if row is None:
            raise NotFoundError(
                f"There is no prompt {hash[:80]}.", mend="tuneproof prompt list", id=hash[:80]
            )
        return _kept(row)

    async def of(self, hashes: Collection[str], *, tx: Tx | None = None) -> Mapping[str, Prompt]:
        """The prompts with these hashes, those that there are."""
        if not hashes:
            return {}
        async with self._database.reading(tx) as own:
            found = await own.execute(select(prompts).where(prompts.c.hash.in_(hashes)))
            return {row.hash: _kept(row).prompt for row in found}

    async def list(self, *, limit: int = 1000, tx: Tx | None = None) -> list[KeptPrompt]:
        """The prompts, newest first."""
        query = select(prompts).order_by(prompts.c.created_at.desc(), prompts.c.hash).limit(limit)
        async with self._database.reading(tx) as own:
            return [_kept(row) for row in await own.execute(query)]


def _kept(row: Any) -> KeptPrompt:
    return KeptPrompt(
        prompt=Prompt.of(json.loads(row.content)),
        origin=row.origin,
        created_at=row.created_at,
        parent=row.parent,
    )
