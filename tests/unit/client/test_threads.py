"""A client's threads: what raises is told and begins again; what is to stop stops."""

from __future__ import annotations

import threading

from tests.waiting import until

from tuneproof.client.threads import lasting


def test_work_that_raises_is_told_and_begins_again() -> None:
    stop, told, calls = threading.Event(), list[str](), list[int]()

    def work() -> None:
        calls.append(len(calls))
        if len(calls) < 3:
            raise RuntimeError(f"call {len(calls)}")
        stop.wait()

    thread = lasting("worker", work, stop=stop, failed=told.append, first_pause_s=0.001)
    thread.start()
    until(lambda: len(calls) == 3)
    assert told == ["RuntimeError: call 1", "RuntimeError: call 2"]
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(calls) == 3


def test_a_thread_that_rests_after_a_death_stops_at_once() -> None:
    stop, died = threading.Event(), threading.Event()

    def work() -> None:
        raise RuntimeError("always")

    thread = lasting("worker", work, stop=stop, failed=lambda _: died.set(), first_pause_s=3600.0)
    thread.start()
    assert died.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
