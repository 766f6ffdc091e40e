"""The gateway's events lie on disk until the service has them; each that is lost is counted."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from tests.waiting import eventually

from tuneproof.errors import DataError, StoreUnavailableError
from tuneproof.experiments import Arm, Comment, Exposure, Ingested, Outcome, RejectedEvent
from tuneproof.resilience import Supervisor
from tuneproof.server.event_lines import event_of, events_of, line_of
from tuneproof.server.spool import Spool

AT = datetime(2025, 1, 20, tzinfo=UTC)


def exposure(name: str) -> Exposure:
    return Exposure(id=name, subject="s", phase=1, arm=Arm.BASELINE, unit=name, at=AT)


@dataclass
class Writer:
    """A store that keeps events by id, is away or refuses some."""

    away: bool = False
    bad: set[str] = field(default_factory=set)
    stray: set[str] = field(default_factory=set)
    kept: list[str] = field(default_factory=list)
    calls: int = 0

    async def __call__(self, lines: Sequence[str]) -> Ingested:
        exposures, outcomes, _ = events_of(lines)
        self.calls += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailableError("away")
        names = [event.id for event in (*exposures, *outcomes)]
        if self.bad & set(names):
            raise DataError("Bad.")
        stray = [RejectedEvent(id=n, reason="odd") for n in names if n in self.stray]
        refused = {event.id for event in stray}
        self.kept += [n for n in names if n not in self.kept and n not in refused]
        return Ingested(accepted=len(names), duplicates=0, rejected=stray)


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


@pytest.fixture(params=["on disk", "in memory"])
def folder(request, tmp_path: Path) -> Path | None:
    return tmp_path / "spool" if request.param == "on disk" else None


async def test_events_wait_for_a_store_that_is_away_and_arrive_in_order(writer, supervisor, folder):
    spool = Spool(writer, supervisor, folder=folder)
    spool.start()
    writer.away = True
    names = [f"e{n}" for n in range(5000)]
    for name in names:
        spool.add(exposure(name))
    await eventually(lambda: writer.calls > 3)
    assert spool.waiting_bytes > 5000 * 50
    assert spool.dropped == 0
    writer.away = False
    await eventually(lambda: not spool.waiting_bytes)
    assert writer.kept == names
    await spool.stop()
    assert folder is None or not list(folder.iterdir())


async def test_of_more_than_fit_the_oldest_go_and_are_counted(writer, supervisor, tmp_path):
    lost: list[int] = []
    spool = Spool(writer, supervisor, folder=tmp_path, lost=lost.append, most_bytes=50_000)
    writer.away = True
    spool.start()
    for number in range(1000):
        spool.add(exposure(f"a{number}"))
    await eventually(lambda: writer.calls > 1)
    calls = writer.calls
    for number in range(1000):
        spool.add(exposure(f"b{number}"))
    await eventually(lambda: writer.calls > calls + 1)
    assert (spool.dropped, sum(lost)) == (1000, 1000)
    writer.away = False
    await eventually(lambda: not spool.waiting_bytes)
    assert writer.kept == [f"b{number}" for number in range(1000)]
    await spool.stop()


async def test_one_event_that_is_refused_takes_no_other_along(writer, supervisor, tmp_path):
    lost: list[int] = []
    spool = Spool(writer, supervisor, folder=tmp_path, lost=lost.append)
    writer.bad, writer.stray = {"e7", "e600"}, {"e9"}
    spool.start()
    for number in range(1000):
        spool.add(exposure(f"e{number}"))
    await eventually(lambda: not spool.waiting_bytes)
    assert (spool.dropped, sum(lost), len(writer.kept)) == (2, 2, 997)
    await spool.stop()
    put_aside = (tmp_path / "refused" / "events.jsonl").read_text().splitlines()
    assert {event_of(line).id for line in put_aside} == {"e7", "e600", "e9"}


async def test_what_waits_at_the_end_is_for_the_next_process(writer, supervisor, tmp_path):
    spool = Spool(writer, supervisor, folder=tmp_path)
    spool.start()
    writer.away = True
    spool.add(exposure("late"))
    await spool.stop()
    assert (writer.kept, spool.dropped) == ([], 0)
    writer.away = False
    heir = Spool(writer, supervisor, folder=tmp_path)
    heir.start()
    await eventually(lambda: writer.kept == ["late"])
    await heir.stop()


async def test_without_a_folder_what_waits_at_the_end_is_counted_as_lost(writer, supervisor):
    spool = Spool(writer, supervisor, folder=None)
    spool.start()
    writer.away = True
    spool.add(exposure("never"))
    await spool.stop()
    assert (writer.kept, spool.dropped) == ([], 1)


async def test_an_event_is_on_disk_before_anybody_is_asked_for_anything(
    writer, supervisor, tmp_path
):
    spool = Spool(writer, supervisor, folder=tmp_path)
    spool.add(exposure("first"))
    lying = [line for path in tmp_path.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert [event_of(line).id for line in lying] == ["first"]


@pytest.mark.parametrize(
    "event",
    [
        exposure("plain"),
        Exposure(
            id="e",
            subject="s",
            phase=3,
            arm=Arm.CANDIDATE,
            unit="ünit\u2028",
            at=AT.replace(microsecond=123456),
            task="hook",
            latency_ms=1.5,
            error=True,
            tokens=7,
            cost_usd=1e-7,
            attributes={"a": "b"},
            covariate=-2.0,
            text="half \ud83d of a pair, and \x00",
            messages=({"role": "user", "content": "line\r\nline"},),
        ),
        Outcome(id="o", subject="s", unit="u", at=AT, value=0.5, quality=None, item="post"),
        Comment(id="c", subject="s", unit="u", at=AT, text="fine\u2028 \ud83d"),
    ],
)
def test_a_line_says_all_that_its_event_does(event):
    line = line_of(event)
    assert "\n" not in line
    assert event_of(line) == event


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"id":"x"}', '{"id":1,"at":2}', "\x00"])
def test_a_line_that_is_no_event_is_refused(line):
    with pytest.raises(DataError, match="no event"):
        event_of(line)


async def test_what_cannot_be_read_now_is_read_later(writer, supervisor, tmp_path):
    """Seen: with as many connections as a process may have, the files of waiting events could
    not be opened, and were removed."""
    spool = Spool(writer, supervisor, folder=tmp_path)
    writer.away = True
    spool.start()
    for number in range(2000):
        spool.add(exposure(f"e{number}"))
    await eventually(lambda: writer.calls > 1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        writer.away = False
        await eventually(lambda: any("cannot be read" in t.last_error for t in supervisor.tasks))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await eventually(lambda: not spool.waiting_bytes)
    assert sorted(writer.kept) == sorted(f"e{number}" for number in range(2000))
    assert spool.dropped == 0
    await spool.stop()


async def test_an_outage_with_few_events_leaves_few_files(writer, supervisor, tmp_path):
    """Seen: a file for each try, so some ten thousand of them after a weekend."""
    spool = Spool(writer, supervisor, folder=tmp_path)
    writer.away = True
    spool.start()
    for number in range(20):
        spool.add(exposure(f"e{number}"))
        calls = writer.calls
        await eventually(lambda calls=calls: writer.calls > calls + 1)
    assert len(list(tmp_path.glob("*/*.jsonl"))) <= 3
    writer.away = False
    await eventually(lambda: not spool.waiting_bytes)
    assert len(writer.kept) == 20
    await spool.stop()


@pytest.mark.parametrize(
    "event",
    [
        exposure("plain"),
        Outcome(id="o", subject="s", unit="u", at=AT, value=0.5),
        Comment(id="c", subject="s", unit="u", at=AT, text="fine"),
    ],
)
def test_a_line_of_a_newer_version_is_an_event(event):
    """Else a service would refuse for ever what a gateway says that was upgraded before it."""
    line = orjson.dumps({**orjson.loads(line_of(event)), "novelty": 1}).decode()
    assert event_of(line) == event
