"""Chat completions that are kept: with what was asked, for whoever makes training data of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from sqlite3 import Connection
from typing import Any

import orjson

from tuneproof_trainer.answers import ChatCompletion, StoredMessage
from tuneproof_trainer.database import Row, TrainerDatabase, insert
from tuneproof_trainer.errors import bad_request, not_found
from tuneproof_trainer.requests import ChatRequest

__all__ = ["CompletionStore", "completion_object"]


def completion_object(row: Row) -> ChatCompletion:
    """A row as the wire's completion."""
    completion: ChatCompletion = orjson.loads(row["completion"])
    completion["metadata"] = orjson.loads(row["metadata"])
    return completion


class CompletionStore:
    """Kept completions of all organisations."""

    def __init__(self, database: TrainerDatabase, clock: Callable[[], float]) -> None:
        self._db, self._clock = database, clock

    async def keep(self, org: str, request: ChatRequest, completion: Mapping[str, Any]) -> None:
        """Keep one answer with its question."""
        asked = request.model_dump(mode="json", exclude_none=True)
        settings = {name: asked.get(name) for name in _SHOWN}
        row = {
            "id": completion["id"],
            "org": org,
            "model": completion["model"],
            "created_at": int(self._clock()),
            "metadata": orjson.dumps(request.metadata or {}).decode(),
            "completion": orjson.dumps({**settings, **completion}).decode(),
            "messages": orjson.dumps(asked["messages"]).decode(),
        }
        await self._db.awrite(lambda c: insert(c, "completions", **row))

    def get(self, org: str, completion_id: str) -> Row:
        """The completion's row; raises ApiError 404."""
        sql = "SELECT * FROM completions WHERE id = ? AND org = ?"
        row = self._db.row(sql, completion_id, org)
        if row is None:
            raise not_found(
                f"Chat completion {completion_id} not found. Only those asked for with "
                "`store: true` are kept.",
                "completion_id",
                "completion_not_found",
            )
        return row

    def find(
        self,
        org: str,
        *,
        after: str | None,
        limit: int,
        ascending: bool,
        model: str | None,
        metadata: Mapping[str, str],
    ) -> list[Row]:
        """Up to `limit` rows after the completion `after`."""
        where, values = ["org = ?"], [org]
        for key, value in metadata.items():
            where.append("EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND value = ?)")
            values += [key, value]
        if model is not None:
            where.append("model = ?")
            values.append(model)
        if after is not None:
            where.append(f"seq {'>' if ascending else '<'} ?")
            values.append(self._place(org, after))
        order = "ASC" if ascending else "DESC"
        sql = f"SELECT * FROM completions WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?"
        return self._db.rows(sql, *values, limit)

    def _place(self, org: str, completion_id: str) -> Any:
        sql = "SELECT seq FROM completions WHERE id = ? AND org = ?"
        row = self._db.row(sql, completion_id, org)
        if row is None:
            raise bad_request(f"No such completion: {completion_id}", "after", "invalid_value")
        return row["seq"]

    def messages(self, row: Row) -> list[StoredMessage]:
        """What was asked, in its order."""
        asked = orjson.loads(row["messages"])
        return [_message(f"{row['id']}-{place}", one) for place, one in enumerate(asked)]

    async def update(self, org: str, completion_id: str, metadata: dict[str, str]) -> Row:
        """Give a completion other metadata; raises ApiError 404."""
        self.get(org, completion_id)
        values = (orjson.dumps(metadata).decode(), completion_id)
        sql = "UPDATE completions SET metadata = ? WHERE id = ?"
        await self._db.awrite(lambda c: c.execute(sql, values))
        return self.get(org, completion_id)

    async def delete(self, org: str, completion_id: str) -> None:
        """Take a completion away; raises ApiError 404."""
        self.get(org, completion_id)
        sql = "DELETE FROM completions WHERE id = ?"
        await self._db.awrite(lambda c: c.execute(sql, (completion_id,)), frees=True)

    def collect(self, lifetime_s: float) -> None:
        """Delete those that are older."""
        old = int(self._clock() - lifetime_s)

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM completions WHERE created_at < ?", (old,))

        self._db.write(work, frees=True)


_SHOWN = (
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "tools"),
    *("tool_choice", "response_format"),
)
"""What a kept completion says of its request."""


def _message(message_id: str, asked: dict[str, Any]) -> StoredMessage:
    content = asked.get("content")
    parts = content if isinstance(content, list) else None
    text = "".join(part.get("text") or "" for part in parts) if parts else content
    message: StoredMessage = {
        "id": message_id,
        "role": asked["role"],
        "content": text,
        "refusal": None,
        "content_parts": parts,
    }
    if "name" in asked:
        message["name"] = asked["name"]
    if "tool_calls" in asked:
        message["tool_calls"] = asked["tool_calls"]
    return message
