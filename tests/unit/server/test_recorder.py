"""The gateway's events wait while the store is away; each that is lost is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from tests.waiting import eventually

from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.experiments import Arm, Exposure, Ingested, Outcome
from tuneproof.resilience import Supervisor
from tuneproof.server.recorder import Recorder

AT = datetime(2025, 1, 20, tzinfo=UTC)


def exposure(name: str) -> Exposure:
    return Exposure(id=name, subject="s", phase=1, arm=Arm.BASELINE, unit=name, at=AT)


@dataclass
class Writer:
    """A store that keeps events by id, is away or refuses some."""

    away: bool = False
    bad: set[str] = field(default_factory=set)
    kept: list[str] = field(default_factory=list)
    calls: int = 0

    async def __call__(
        self, *, exposures: Sequence[Exposure], outcomes: Sequence[Outcome]
    ) -> Ingested:
        self.calls += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailableError("away")
        names = [event.id for event in (*exposures, *outcomes)]
        if self.bad & set(names):
            raise DataError("Bad.")
        self.kept += [name for name in names if name not in self.kept]
        return Ingested(accepted=len(names), duplicates=0)


async def quick(_seconds: float) -> None:
    """A pause that takes no time."""
    await asyncio.sleep(0)


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
async def supervisor():
    made = Supervisor(sleep=quick)
    yield made
    await made.close()


async def test_events_wait_for_a_store_that_is_away_and_arrive_in_order(writer, supervisor):
    recorder = Recorder(writer, supervisor)
    recorder.start()
    writer.away = True
    names = [f"e{n}" for n in range(5000)]
    for name in names:
        recorder.add(exposure(name))
    await eventually(lambda: writer.calls > 3)
    assert (recorder.waiting, recorder.dropped) == (5000, 0)
    writer.away = False
    await eventually(lambda: not recorder.waiting)
    assert writer.kept == names
    await recorder.stop()


async def test_of_more_than_fit_the_oldest_go_and_are_counted(writer, supervisor):
    lost = []
    recorder = Recorder(writer, supervisor, lost=lost.append, largest=100)
    writer.away = True
    recorder.start()
    for number in range(50):
        recorder.add(exposure(f"a{number}"))
    await eventually(lambda: writer.calls > 1)
    for number in range(100):
        recorder.add(exposure(f"b{number}"))
    assert (recorder.waiting, recorder.dropped, sum(lost)) == (100, 50, 50)
    writer.away = False
    await eventually(lambda: not recorder.waiting)
    assert (len(writer.kept), writer.kept[-1], recorder.dropped) == (100, "b99", 50)
    await recorder.stop()


async def test_one_event_that_is_refused_takes_no_other_along(writer, supervisor):
    lost = []
    recorder = Recorder(writer, supervisor, lost=lost.append)
    writer.bad = {"e7", "e600"}
    recorder.start()
    for number in range(1000):
        recorder.add(exposure(f"e{number}"))
    await eventually(lambda: not recorder.waiting)
    assert (recorder.dropped, sum(lost), len(writer.kept)) == (2, 2, 998)
    await recorder.stop()


async def test_what_waits_is_written_at_the_end_or_counted_as_lost(writer, supervisor):
    recorder = Recorder(writer, supervisor)
    recorder.start()
    recorder.add(exposure("last"))
    await recorder.stop()
    assert (writer.kept, recorder.dropped) == (["last"], 0)
    recorder.start()
    writer.away = True
    recorder.add(exposure("never"))
    await recorder.stop()
    assert (writer.kept, recorder.dropped, recorder.waiting) == (["last"], 1, 0)
