"""Which history a request belongs to that no test or rollout serves: its task's, of its week.

What a baseline did before anything was tested says how many units there are and how widely their
outcomes spread, which plans the test. It is no evidence of a test: nothing that judges reads it.

A history is a subject of events of its own for each task and week (from Monday, UTC). So a unit
that comes back counts once a week, as it counts once in a test, and a week that is over can be
forgotten whole. Who records needs neither the store nor a round trip to know its name.

So is a shadow, for each task, week and model that gets copies of requests: the answers that users
got are its baseline, those to the copies its candidate, and each request is a unit in both.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

__all__ = ["HISTORY_PHASE", "WEEK", "history_of", "shadow_of", "week_of"]

WEEK = timedelta(days=7)

HISTORY_PHASE = 1
"""The one phase of a history."""


def week_of(at: datetime) -> datetime:
    """When the week of an instant began.

    >>> week_of(datetime(2026, 11, 29, 18, 30, tzinfo=UTC)).isoformat()
    '2026-11-23T00:00:00+00:00'
    """
    return datetime.combine(_monday(at.astimezone(UTC).date()), time(), UTC)


def history_of(task: str, at: datetime) -> str:
    """The subject of what the task's baseline answers at this instant (in UTC) outside of tests.

    >>> history_of("hook", datetime(2026, 11, 29, 18, 30, tzinfo=UTC))
    'history-hook-20261123'
    """
    return _named(task, at.date())


def shadow_of(task: str, model: str, at: datetime) -> str:
    """The subject of the copies of the task's requests that this model gets at this instant.

    >>> shadow_of("hook", "gpt-9", datetime(2026, 11, 29, 18, 30, tzinfo=UTC))
    'shadow-hook-20261123-gpt-9'
    """
    return f"shadow-{task}-{_monday(at.date()):%Y%m%d}-{model}"


@lru_cache(maxsize=1024)
def _named(task: str, day: date) -> str:
    return f"history-{task}-{_monday(day):%Y%m%d}"


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())
