"""Two minutes of `python -m tests.chaos`; `make chaos` takes ten, and another seed each time."""

from __future__ import annotations

import pytest
from tests.chaos.run import run


@pytest.mark.slow
async def test_no_request_fails_for_our_sake_and_no_event_is_lost_or_doubled():
    result = await run(seconds=120.0, seed=7, rate=100.0)
    assert (result.failed, result.strange) == ([], [])
    assert (result.lost, result.doubled) == (0, 0)
    assert result.recorded > 10_000
    assert result.faults > 5
