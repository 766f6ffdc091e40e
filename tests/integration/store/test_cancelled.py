"""A write that is broken off, wherever it is: its task ends as cancelled, nothing is half kept."""

from __future__ import annotations

import asyncio

from tests.integration.store.test_events import shown, subject_of, told

from tuneproof.experiments import Arm
from tuneproof.store import Store

AWAKENINGS = 60
"""At how many of its awakenings it is broken off: more than a write has."""


async def broken_off(work: asyncio.Task[object], at: int) -> None:
    """Cancel `work` as it waits for the `at`th time."""
    waited = 0
    last = None
    while not work.done() and waited < at:
        await asyncio.sleep(0)
        now = work._fut_waiter  # type: ignore[attr-defined]
        if now is not None and now is not last:
            last, waited = now, waited + 1
    work.cancel()


async def test_cancelled_write_ends_as_cancelled_and_the_store_goes_on(store: Store):
    """Seen: cancelled while PostgreSQL began a COPY, it ended in the error of the roll-back; who
    supervised it began it anew, and the service never stopped."""
    subject = await subject_of(store)
    kept = 0
    for at in range(AWAKENINGS):
        unit = f"u{at}"
        events = [shown(subject, unit)], [told(subject, unit, 0.5)]
        await store.events.ingest(*events)
        again = [shown(subject, unit, at=0.1)], [told(subject, unit, 0.25, at=2.0)]
        work: asyncio.Task[object] = asyncio.create_task(store.events.ingest(*again))
        await broken_off(work, at)
        try:
            await work
            kept += 1
        except asyncio.CancelledError:
            pass
    evidence = await store.events.evidence(subject)
    assert sum(evidence.arm(arm).sample_size for arm in Arm) == AWAKENINGS
    assert kept < AWAKENINGS
