"""When a schedule fires in zones whose clocks change: each local time once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneproof.app.schedule import newest_tick, next_tick
from tuneproof.errors import ConfigError
from tuneproof.settings import PipelineConfig


def config(cron: str, zone: str) -> PipelineConfig:
    return PipelineConfig(weekly_schedule=cron, time_zone=zone)


def fired(cron: str, zone: str, since: str, until: str) -> list[str]:
    """When it fires between two instants of UTC, in local time with its offset."""
    at, end = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (since, until))
    found = []
    while (at := next_tick(config(cron, zone), at)) <= end:
        found.append(f"{at.astimezone(ZoneInfo(zone)):%m-%d %H:%M%z}")
    return found


@pytest.mark.parametrize(
    ("zone", "cron", "since", "until", "times"),
    [
        # Clocks go back: the local time comes twice, and fires the first time.
        ("Europe/Berlin", "0 2 * * 0", "2025-10-25", "2025-10-28", ["10-26 02:00+0200"]),
        ("Europe/Berlin", "30 2 * * *", "2025-10-26", "2025-10-27", ["10-26 02:30+0200"]),
        ("America/New_York", "30 1 * * 0", "2025-11-01", "2025-11-03", ["11-02 01:30-0400"]),
        ("Australia/Lord_Howe", "45 1 * * 0", "2025-04-04", "2025-04-07", ["04-06 01:45+1100"]),
        ("America/Sao_Paulo", "30 23 * * 6", "2018-02-16", "2018-02-20", ["02-17 23:30-0200"]),
        # Clocks go forward: the local time does not come, and fires as much later.
        ("Europe/Berlin", "30 2 * * 0", "2025-03-29", "2025-03-31", ["03-30 03:30+0200"]),
        ("America/New_York", "15 2 * * 0", "2025-03-08", "2025-03-10", ["03-09 03:15-0400"]),
        ("Australia/Lord_Howe", "15 2 * * 0", "2025-10-04", "2025-10-06", ["10-05 02:45+1100"]),
        ("America/Sao_Paulo", "30 0 * * 0", "2018-11-03", "2018-11-05", ["11-04 01:30-0200"]),
        ("Pacific/Apia", "0 2 30 12 *", "2011-12-29", "2012-01-02", ["12-31 02:00+1400"]),
        ("Pacific/Apia", "0 2 * * *", "2011-12-30", "2011-12-31", ["12-31 02:00+1400"]),
        # Two local times that come to one instant are one; those between are not lost.
        ("Europe/Berlin", "30 2,3 * * 0", "2025-03-29", "2025-03-31", ["03-30 03:30+0200"]),
        (
            *("Australia/Lord_Howe", "15,35 2 * * 0", "2025-10-04", "2025-10-06"),
            ["10-05 02:35+1100", "10-05 02:45+1100"],
        ),
        # No change: nothing is different.
        ("Asia/Kolkata", "0 2 * * 0", "2025-10-25", "2025-10-28", ["10-26 02:00+0530"]),
        ("UTC", "0 2 * * 0", "2025-10-25", "2025-11-03", ["10-26 02:00+0000", "11-02 02:00+0000"]),
    ],
)  # fmt: skip
def test_each_local_time_fires_once(
    zone: str, cron: str, since: str, until: str, times: list[str]
) -> None:
    assert fired(cron, zone, since, until) == times


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "UTC"]
CRONS = ["0 2 * * 0", "30 1 * * *", "15,45 2 * * *", "0 */6 * * *", "0 0 1 * *", "30 2 29 2 *"]


@given(
    zone=st.sampled_from(ZONES),
    cron=st.sampled_from(CRONS),
    start=st.datetimes(datetime(2011, 1, 1), datetime(2027, 1, 1)),  # noqa: DTZ001
)
@settings(max_examples=150, deadline=None)
def test_what_comes_next_is_the_newest_once_it_has_come(
    zone: str, cron: str, start: datetime
) -> None:
    described, at = config(cron, zone), start.replace(tzinfo=UTC)
    for _ in range(4):
        found = next_tick(described, at)
        assert found > at
        assert newest_tick(described, at, found - timedelta(microseconds=1)) is None
        assert newest_tick(described, at, found) == found
        at = found


@pytest.mark.parametrize("cron", ["R 2 * * 0", "0 R(1-4) * * *", "H H * * 0", "0 r/6 * * *"])
def test_drawn_times_are_refused(cron: str) -> None:
    with pytest.raises(ConfigError, match="without R or H"):
        config(cron, "UTC")


@pytest.mark.parametrize("cron", ["0 2 * MAR,APR FRI", "0 2 * * THU", "0 2 L * *"])
def test_names_of_days_and_months_are_no_drawn_times(cron: str) -> None:
    assert config(cron, "UTC").weekly_schedule == cron
