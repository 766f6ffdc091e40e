"""Wakes a durable function that waits, where there is one."""

from __future__ import annotations

from tuneproof import workflow

__all__ = ["wake"]


async def wake(engine: workflow.Engine, run_id: str) -> None:
    """Something that it waits for has happened: it looks at once."""
    if await engine.exists(run_id) and not await engine.ended(run_id):
        await engine.send(run_id, workflow.Signal(kind="wake"))
