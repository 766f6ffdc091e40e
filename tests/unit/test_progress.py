"""How far a job is, when it ends, and whether it stands still: a table of polls for each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.training import Job, JobEvent, JobStatus, JobWatch
from tuneproof.training.progress import PATIENCE_S, STILL_S, JobProgress, progress_of

T0 = datetime(2025, 1, 20, tzinfo=UTC)
HOUR = 3600.0


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def seen(step: int | None = None, of: int | None = None, **more: Any) -> JobProgress:
    """A job that trains, at this step."""
    status = more.pop("status", JobStatus.RUNNING)
    job = Job(id="job", model="base", status=status, raw_status=str(status), **more)
    data = {"step": step, "total_steps": of} if step is not None else {}
    events = [JobEvent(id=f"event-{step}", at=T0, level="info", message="", data=data)]
    return progress_of(job, events)


def follow(watch: JobWatch, since: float, until: float, progress: JobProgress) -> float | None:
    """Poll every ten seconds what stays as it is; when the job was given up."""
    for seconds in range(int(since), int(until), 10):
        watch.saw(progress, at(seconds))
        if watch.over(at(seconds)):
            return seconds
    return None


def test_a_job_that_moves_on_is_never_given_up() -> None:
    watch = JobWatch(T0)
    for step in range(1, 200):  # two weeks and a half
        assert follow(watch, step * 7200, step * 7200 + 1700, seen(step, 200)) is None
        watch.saw(seen(step, 200), at(step * 7200 + 7190))


def test_a_job_that_stands_still_is_given_up_once_its_pace_explains_no_more() -> None:
    watch = JobWatch(T0)
    watch.saw(seen(1, 100), T0)
    given_up = follow(watch, 10, 9000, seen(2, 100))
    assert given_up == pytest.approx(STILL_S, abs=20)
    assert watch.code == "stalled"
    assert watch.why() == "and had told nothing new at step 2 of 100 for 1,800 s"


def test_a_slow_job_may_be_silent_for_ten_times_its_longest_silence() -> None:
    watch = JobWatch(T0)
    assert follow(watch, 0, 1000, seen(1, 100)) is None
    given_up = follow(watch, 1000, 30_000, seen(2, 100))
    assert given_up == pytest.approx(1000 + 10 * 1000, abs=30)


def test_until_its_first_step_a_job_has_a_day_or_four_times_what_it_is_expected_to_take() -> None:
    assert follow(JobWatch(T0), 0, 100_000, seen()) == pytest.approx(PATIENCE_S, abs=20)
    expected = JobWatch(T0, expected_s=2 * HOUR)
    assert follow(expected, 0, 100_000, seen()) == pytest.approx(8 * HOUR, abs=20)
    quick = JobWatch(T0, expected_s=1.0)
    assert follow(quick, 0, 100_000, seen()) == pytest.approx(HOUR, abs=20)


def test_after_its_last_step_a_job_may_be_evaluated_for_as_long() -> None:
    watch = JobWatch(T0)
    watch.saw(seen(99, 100), T0)
    assert follow(watch, 10, 100_000, seen(100, 100)) == pytest.approx(PATIENCE_S, abs=30)
    expected = JobWatch(T0, expected_s=2 * HOUR)
    assert follow(expected, 0, 100_000, seen(100, 100)) == pytest.approx(8 * HOUR, abs=20)


def test_a_queued_job_waits_for_a_day_whatever_its_training_would_take() -> None:
    watch = JobWatch(T0, expected_s=60.0)
    queued = seen(status=JobStatus.QUEUED)
    assert follow(watch, 0, 100_000, queued) == pytest.approx(PATIENCE_S, abs=20)


def test_time_in_which_nobody_asked_does_not_count() -> None:
    """A laptop slept for two days, and its trainer with it."""
    watch = JobWatch(T0)
    watch.saw(seen(1, 100), T0)
    watch.saw(seen(2, 100), at(10))
    watch.saw(seen(2, 100), at(48 * HOUR))
    assert not watch.over(at(48 * HOUR))
    watch.missed(at(96 * HOUR))
    assert not watch.over(at(96 * HOUR))


def test_events_that_cannot_be_read_now_and_then_are_no_sign_of_life() -> None:
    watch, seconds = JobWatch(T0), 0
    watch.saw(seen(1, 100), T0)
    unread = progress_of(seen().job, None)
    while not watch.over(at(seconds)) and seconds < 20_000:
        seconds += 10
        watch.saw(seen(2, 100) if seconds % 20 else unread, at(seconds))
    assert seconds == pytest.approx(2 * STILL_S, abs=60)
    assert "at step 2 of 100" in watch.why()


def test_a_provider_that_stays_away_for_a_day_is_not_waited_for() -> None:
    watch = JobWatch(T0)
    watch.saw(seen(1, 100), T0)
    seconds = 0
    while not watch.over(at(seconds)):
        seconds += 60
        watch.missed(at(seconds))
    assert seconds == pytest.approx(PATIENCE_S, abs=60)
    assert "its provider went away" in watch.why()


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=30), st.floats(1, 10_000))
def test_a_limit_of_the_settings_holds_whatever_is_seen(pauses: list[float], limit: float) -> None:
    watch, now = JobWatch(T0, limit_s=limit), 0.0
    for step, pause in enumerate(pauses):
        now += pause
        watch.saw(seen(step, 100), at(now))
        assert watch.over(at(now)) == ((at(now) - T0).total_seconds() >= limit)
        assert watch.gives_up_at(at(now)) == at(limit)
    assert watch.code == "timeout"


def test_the_end_is_as_the_provider_says_else_by_the_steps_else_as_expected() -> None:
    told = JobWatch(T0, expected_s=100.0)
    told.saw(seen(1, 10, estimated_finish=at(70)), T0)
    assert told.ends_at == at(70)
    paced = JobWatch(T0, expected_s=100.0)
    paced.saw(seen(), T0)
    assert paced.ends_at == at(100)
    paced.saw(seen(1, 10), at(60))  # a minute went into loading: it says nothing of the pace
    paced.saw(seen(3, 10), at(80))
    assert paced.ends_at == at(80 + 7 * 10)
    unknown = JobWatch(T0)
    unknown.saw(seen(), T0)
    assert unknown.ends_at is None


def test_an_end_that_lies_beyond_all_years_is_none() -> None:
    """Seen: a date that is out of range ended the run."""
    watch = JobWatch(T0, expected_s=1e18)
    watch.saw(seen(1, 10**12), T0)
    watch.saw(seen(2, 10**12), at(15))
    assert watch.ends_at is None
    watch.saw(seen(), at(30))
    assert watch.gives_up_at(at(30)) > at(30)


def test_how_long_it_took_is_what_was_seen_of_its_training() -> None:
    watch = JobWatch(T0)
    watch.saw(seen(status=JobStatus.QUEUED), T0)
    watch.saw(seen(), at(1000))
    ended = seen(10, 10, status=JobStatus.SUCCEEDED, created_at=T0, finished_at=at(1600))
    assert watch.took_s(ended, at(1605)) == 605
    unseen = JobWatch(T0)
    assert unseen.took_s(ended, at(1605)) == 1600
    joined = JobWatch(T0)  # by a second attempt, when half of it was done
    joined.saw(seen(5, 10), at(800))
    assert joined.took_s(ended, at(1600)) == 1600


def test_a_percentage_is_as_good_as_steps() -> None:
    job = Job(id="j", model="b", status=JobStatus.RUNNING, raw_status="running")
    event = JobEvent(id="e", at=T0, level="info", message="", data={"percent": 40})
    found = progress_of(job, [event])
    assert (found.step, found.total_steps) == (40, 100)
    later = JobEvent(id="e", at=T0, level="info", message="", data={"percent": 41})
    assert progress_of(job, [later]).mark != found.mark
