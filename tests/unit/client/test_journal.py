"""The journal: nothing is lost between processes, nothing is kept for ever without a disk."""

from __future__ import annotations

import shutil
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
