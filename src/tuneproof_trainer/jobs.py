"""Jobs, their events, checkpoints and models: rows, and what the wire shows of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from sqlite3 import Connection
from typing import Any, Literal

import orjson

from tuneproof_trainer.answers import (
    CheckpointObject,
    EventObject,
    HyperparametersObject,
    JobObject,
    MethodObject,
)
from tuneproof_trainer.database import Row, TrainerDatabase, insert
from tuneproof_trainer.errors import bad_request, not_found
from tuneproof_trainer.ids import new_id
from tuneproof_trainer.states import ENDED, JobState

__all__ = ["JobStore", "checkpoint_object", "event_object", "job_object", "model_name"]

_KEYS_KEPT_S = 7 * 86400
"""How long a job is found again by the `Idempotency-Key` that it was made with."""


def job_object(row: Row) -> JobObject:
    """A row as the wire's FineTuningJob."""
    effective = orjson.loads(row["effective"])
    beta = effective.pop("beta", None)
    hyperparameters: HyperparametersObject = effective
    return {
        "object": "fine_tuning.job",
        "id": row["id"],
        "model": row["model"],
        "created_at": row["created_at"],
        "finished_at": row["finished_at"],
        "estimated_finish": row["estimated_finish"],
        "fine_tuned_model": row["fine_tuned_model"],
        "organization_id": row["org"],
        "result_files": orjson.loads(row["result_files"]),
        "status": row["status"],
        "validation_file": row["validation_file"],
        "training_file": row["training_file"],
        "hyperparameters": hyperparameters,
        "method": _method_object(row["method"], hyperparameters, beta),
        "trained_tokens": row["trained_tokens"],
        "error": orjson.loads(row["error"]) if row["error"] else None,
        "user_provided_suffix": row["suffix"],
        "seed": row["seed"],
        "integrations": [],
        "metadata": orjson.loads(row["metadata"]) if row["metadata"] else None,
    }


def _method_object(
    method: str, shared: HyperparametersObject, beta: float | Literal["auto"]
) -> MethodObject:
    if method == "dpo":
        return {"type": "dpo", "dpo": {"hyperparameters": {**shared, "beta": beta}}}
    return {"type": "supervised", "supervised": {"hyperparameters": shared}}


def event_object(row: Row) -> EventObject:
    """A row as the wire's event."""
    return {
        "object": "fine_tuning.job.event",
        "id": row["id"],
        "created_at": row["created_at"],
        "level": row["level"],
        "message": row["message"],
        "data": orjson.loads(row["data"]) if row["data"] else {},
        "type": row["type"],
    }


def checkpoint_object(row: Row) -> CheckpointObject:
    """A row as the wire's checkpoint."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": row["id"],
        "created_at": row["created_at"],
        "fine_tuned_model_checkpoint": row["model"],
        "fine_tuning_job_id": row["job_id"],
        "metrics": {k: v for k, v in orjson.loads(row["metrics"]).items() if v is not None},
        "step_number": row["step"],
    }


def model_name(root: str, org: str, suffix: str | None, tag: str) -> str:
    """`ft:<base>:<organisation>:<suffix>:<id>`."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", org)
    return f"ft:{root}:{safe}:{suffix or ''}:{tag}"


class JobStore:
    """Jobs of all organisations. Writers that take a connection belong to a transaction."""

    def __init__(self, database: TrainerDatabase, clock: Callable[[], float]) -> None:
        self.db, self.clock = database, clock

    def now(self) -> int:
        """The present second."""
        return int(self.clock())

    # -- reading ----------------------------------------------------------------------------

    def get(self, org: str, job_id: str) -> Row:
        """The job's row; raises ApiError 404."""
        row = self.db.row("SELECT * FROM jobs WHERE id = ? AND org = ?", job_id, org)
        if row is None:
            raise not_found(
                f"Could not find fine tune: {job_id}", "fine_tuning_job_id", "fine_tune_not_found"
            )
        return row

    def find(
        self,
        org: str,
        *,
        after: str | None,
        limit: int,
        metadata: Mapping[str, str] | None,
        no_metadata: bool = False,
    ) -> list[Row]:
        """Up to `limit` jobs, newest first, that carry all of `metadata`."""
        where, values = ["org = ?"], [org]
        for key, value in (metadata or {}).items():
            where.append("id IN (SELECT job_id FROM job_metadata WHERE key = ? AND value = ?)")
            values += [key, value]
        if no_metadata:
            where.append("metadata IS NULL")
        if after is not None:
            where.append("seq < (SELECT seq FROM jobs WHERE id = ?)")
            self._must_exist("jobs", "org", org, after, "fine-tuning job")
            values.append(after)
        sql = f"SELECT * FROM jobs WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?"
        return self.db.rows(sql, *values, limit)

    def _must_exist(self, table: str, column: str, owner: str, after: str, what: str) -> None:
        sql = f"SELECT 1 FROM {table} WHERE id = ? AND {column} = ?"
        if self.db.row(sql, after, owner) is None:
            raise bad_request(f"No such {what}: {after}", "after", "invalid_value")

    def events(self, job_id: str, after: str | None, limit: int) -> list[Row]:
        """Up to `limit` events, newest first."""
        return self._page("events", job_id, after, limit, "event")

    def checkpoints(self, job_id: str, after: str | None, limit: int) -> list[Row]:
        """Up to `limit` checkpoints, newest first."""
        return self._page("checkpoints", job_id, after, limit, "checkpoint")

    def _page(self, table: str, job_id: str, after: str | None, limit: int, what: str) -> list[Row]:
        before = 2**62
        if after is not None:
            self._must_exist(table, "job_id", job_id, after, what)
            found = self.db.row(f"SELECT seq FROM {table} WHERE id = ?", after)
            before = int(found["seq"]) if found else before
        sql = f"SELECT * FROM {table} WHERE job_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?"
        return self.db.rows(sql, job_id, before, limit)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The data of all metrics events, by step."""
        rows = self.db.rows(
            "SELECT data FROM events WHERE job_id = ? AND step IS NOT NULL ORDER BY step", job_id
        )
        return [orjson.loads(row["data"]) for row in rows]

    def told_since_step(self, job_id: str, message: str) -> int:
        """How many events say `message` since the last step was reported."""
        found = self.db.row(
            "SELECT COUNT(*) AS times FROM events WHERE job_id = ?1 AND message = ?2 AND seq >"
            " (SELECT COALESCE(MAX(seq), 0) FROM events WHERE job_id = ?1 AND step IS NOT NULL)",
            job_id,
            message,
        )
        return int(found["times"]) if found is not None else 0

    def charged(self, connection: Connection, org: str) -> int:
        """Tokens of this month that jobs of `org` have trained, or will as far as they are let."""
        found = connection.execute(
            "SELECT COALESCE(SUM(COALESCE(charged_tokens, trained_tokens)), 0) AS tokens FROM jobs"
            " WHERE org = ?1 AND (finished_at IS NULL OR strftime('%Y-%m', finished_at,"
            " 'unixepoch') = strftime('%Y-%m', ?2, 'unixepoch'))",
            (org, self.now()),
        ).fetchone()
        return int(found["tokens"])

    # -- writing ----------------------------------------------------------------------------

    def made_before(
        self, connection: Connection, org: str, key: str, body: str, job_id: str
    ) -> str | None:
        """The job that was made by this key, or None, and then `job_id` is.

        Raises ApiError 400 where another body came with the key.
        """
        sql = "SELECT job_id, body FROM idempotency WHERE org = ? AND key = ?"
        known = connection.execute(sql, (org, key)).fetchone()
        if known is None:
            insert(
                connection,
                "idempotency",
                org=org,
                key=key,
                body=body,
                job_id=job_id,
                created_at=self.now(),
            )
            return None
        if known["body"] != body:
            raise bad_request(
                f"The Idempotency-Key {key!r} came with another request before. Use a new one.",
                code="idempotency_key_in_use",
            )
        return str(known["job_id"])

    def forget_keys(self) -> None:
        """Forget the keys of requests that nobody will repeat any more."""
        old = self.now() - _KEYS_KEPT_S
        self.db.write(lambda c: c.execute("DELETE FROM idempotency WHERE created_at < ?", (old,)))

    def create(self, connection: Connection, row: dict[str, Any]) -> None:
        """Add a job with its metadata and first event."""
        insert(connection, "jobs", **row)
        metadata = orjson.loads(row["metadata"]) if row["metadata"] else {}
        for key, value in metadata.items():
            insert(connection, "job_metadata", job_id=row["id"], key=key, value=value)
        self.say(connection, row["id"], f"Created fine-tuning job: {row['id']}")

    def say(self, connection: Connection, job_id: str, message: str, level: str = "info") -> None:
        """Add an event of type message; nothing is told of a job once it was cancelled."""
        if not self._cancelled(connection, job_id):
            self._event(connection, job_id, message, level, "message", None, None)

    def tell(self, connection: Connection, job_id: str, message: str, data: dict[str, Any]) -> None:
        """Add an event of type metrics, once for each step, unless the job was cancelled."""
        if not self._cancelled(connection, job_id):
            self._event(connection, job_id, message, "info", "metrics", data, data["step"])

    def _cancelled(self, connection: Connection, job_id: str) -> bool:
        sql = "SELECT 1 FROM jobs WHERE id = ? AND status = ?"
        return connection.execute(sql, (job_id, JobState.CANCELLED)).fetchone() is not None

    def _event(
        self,
        connection: Connection,
        job_id: str,
        message: str,
        level: str,
        kind: str,
        data: dict[str, Any] | None,
        step: int | None,
    ) -> None:
        connection.execute(
            "INSERT OR IGNORE INTO events"
            " (id, job_id, created_at, level, type, message, data, step)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new_id("ftevent-"),
                job_id,
                self.now(),
                level,
                kind,
                message,
                orjson.dumps(data).decode() if data is not None else None,
                step,
            ),
        )

    def move(
        self,
        connection: Connection,
        job_id: str,
        to: JobState,
        *,
        since: tuple[JobState, ...],
        message: str | None = None,
        level: str = "info",
        **values: Any,
    ) -> bool:
        """Change the status if it is one of `since`; says whether it did."""
        sets = ", ".join(["status = ?", *(f"{name} = ?" for name in values)])
        marks = ", ".join("?" * len(since))
        done = connection.execute(
            f"UPDATE jobs SET {sets} WHERE id = ? AND status IN ({marks})",
            (to, *values.values(), job_id, *since),
        )
        if done.rowcount != 1:
            return False
        if to in (JobState.CANCELLED, JobState.FAILED):
            self._charge_what_was_trained(connection, job_id)
        if message:
            self._event(connection, job_id, message, level, "message", None, None)
        return True

    def _charge_what_was_trained(self, connection: Connection, job_id: str) -> None:
        """Of the tokens that a job was let train, as many as its steps have come to."""
        share = (
            "SELECT json_extract(data, '$.step') * 1.0 / json_extract(data, '$.total_steps')"
            " FROM events WHERE job_id = ?1 AND step IS NOT NULL ORDER BY step DESC LIMIT 1"
        )
        connection.execute(
            f"UPDATE jobs SET charged_tokens = CAST(COALESCE(charged_tokens, 0)"
            f" * COALESCE(({share}), 0) AS INTEGER) WHERE id = ?1",
            (job_id,),
        )

    def fail(
        self, connection: Connection, job_id: str, code: str, message: str, param: str | None
    ) -> bool:
        """End a job as failed, whatever it was doing."""
        error = {"code": code, "message": message, "param": param}
        return self.move(
            connection,
            job_id,
            JobState.FAILED,
            since=tuple(s for s in JobState if s not in ENDED),
            message=f"The job failed: {message}",
            level="error",
            error=orjson.dumps(error).decode(),
            finished_at=self.now(),
            estimated_finish=None,
        )
