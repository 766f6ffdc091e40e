"""The journal: nothing is lost between processes, nothing is kept for ever without a disk."""

from __future__ import annotations

import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneproof.client import journal as module
from tuneproof.client.journal import SEGMENT_EVENTS, Journal


def _lines(journal: Journal) -> list[str]:
    return [line for segment in journal.closed for line in segment.lines()]


@pytest.mark.parametrize("on_disk", [True, False])
def test_events_come_back_in_order_and_are_gone_when_done(tmp_path: Path, on_disk: bool) -> None:
    journal = Journal(tmp_path if on_disk else None)
    events = [f'{{"id": {i}}}' for i in range(2 * SEGMENT_EVENTS + 7)]
    journal.append(events[:5])
    journal.append(events[5:])
    journal.cut()
    assert _lines(journal) == events
    assert len(journal.closed) == 3
    while journal.closed:
        journal.done(journal.closed[0])
    assert journal.empty
    journal.close()
    assert list(tmp_path.rglob("*")) == []


def test_open_segment_is_on_disk_before_it_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(["a", "b"])
    (path,) = tmp_path.rglob("*.jsonl")
    assert path.read_text() == "a\nb\n"
    assert not journal.empty


def test_journal_left_behind_is_adopted_once_and_a_living_one_never(tmp_path: Path) -> None:
    dead, living = Journal(tmp_path), Journal(tmp_path)
    dead.append(["a"])
    living.append(["b"])
    dead.close()
    first, second = Journal(tmp_path), Journal(tmp_path)
    assert (first.adopt(), second.adopt()) == (1, 0)
    assert _lines(first) == ["a"]
    living.cut()
    assert _lines(living) == ["b"]


def test_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(["whole"])
    (path,) = tmp_path.rglob("*.jsonl")
    journal.close()
    path.write_text('whole\n{"id": "cu')
    heir = Journal(tmp_path)
    assert heir.adopt() == 1
    assert _lines(heir) == ["whole"]


def test_without_a_disk_the_oldest_are_given_up_above_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 2 * SEGMENT_EVENTS)
    journal = Journal(None)
    journal.append([str(i) for i in range(3 * SEGMENT_EVENTS)])
    assert journal.lost == SEGMENT_EVENTS
    assert _lines(journal)[0] == str(SEGMENT_EVENTS)


def test_disk_that_fails_later_is_replaced_by_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events")
    journal.append(["a"])
    journal.cut()
    shutil.rmtree(tmp_path / "events")
    journal.append(["b"])
    journal.append(["c"])
    journal.cut()
    assert journal.closed[-1].lines() == ["b", "c"]


def test_a_folder_that_was_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: once its folder was gone a process kept events in memory for as long as it lived."""
    monkeypatch.setattr(module, "DISK_AGAIN_S", 0.0)
    journal = Journal(tmp_path / "events")
    journal.append(["a"])
    journal.cut()
    shutil.rmtree(tmp_path / "events")
    journal.append(["b"])
    journal.cut()
    journal.append(["c"])
    [path] = (tmp_path / "events").rglob("*.jsonl")
    assert path.read_text() == "c\n"
    journal.close()


def test_what_the_disk_took_of_a_segment_is_removed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: a disk that was full for a moment left a file of events that had been sent."""
    monkeypatch.setattr(module, "DISK_AGAIN_S", 0.0)
    journal = Journal(tmp_path)
    journal.append(["first"])
    full_disk(journal, lambda: journal.append(["second" * 10_000]))
    journal.append(["third"])
    journal.cut()
    assert _lines(journal) == ["first", "second" * 10_000, "third"]
    journal.done(journal.closed[0])
    assert list(tmp_path.rglob("*.jsonl")) == []
    journal.append(["fourth"])
    [path] = tmp_path.rglob("*.jsonl")
    assert path.read_text() == "fourth\n"
    journal.close()


def full_disk(journal: Journal, do: Callable[[], None]) -> None:
    """Do something while no file may grow."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        do()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_file_that_cannot_be_removed_holds_back_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for line in ("a", "b"):
        journal.append([line])
        journal.cut()
    first = journal.closed[0]
    assert first.path is not None
    first.path.unlink()
    first.path.mkdir()  # so that it cannot be unlinked
    journal.done(first)
    assert _lines(journal) == ["b"]


def test_refused_events_take_no_more_than_their_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: the file of refused events grew for as long as a task was asked for in vain."""
    monkeypatch.setattr(module, "MOST_REFUSED_BYTES", 100)
    journal = Journal(tmp_path)
    for number in range(1000):
        journal.refuse(f"event {number}")
    kept = {path.name: path for path in (tmp_path / "refused").iterdir()}
    assert sum(path.stat().st_size for path in kept.values()) < 300
    assert kept["events.jsonl"].read_text().splitlines()[-1] == "event 999"


def test_memory_holds_no_more_bytes_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES_IN_MEMORY", 50_000)
    journal = Journal(None)
    for number in range(10):
        journal.append([f"{number}" * 10_000])
        journal.cut()
    assert journal.bytes <= 50_000
    assert (journal.lost, _lines(journal)[-1][0]) == (6, "9")


def test_a_folder_that_is_just_made_is_not_adopted(tmp_path: Path) -> None:
    """Seen: another process took a folder for one of a dead process before it was locked; its own
    kept events in memory from then on."""
    over = threading.Event()

    def adopt() -> None:
        while not over.is_set():
            Journal(tmp_path).adopt()

    others = [threading.Thread(target=adopt) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for number in range(300):
            journal = Journal(tmp_path)
            journal.append([f"{number}"])
            journal.cut()
            [segment] = journal.closed
            assert segment.path is not None
            assert segment.path.read_text() == f"{number}\n"
            journal.done(segment)
            journal.close()
    finally:
        over.set()
        for other in others:
            other.join()
