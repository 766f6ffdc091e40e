"""Histories of runs as a version recorded them, kept so that later versions replay them.

`python -m tests.histories` records them anew (which only a change that breaks the promise needs,
and then says so); `tests/integration/test_histories.py` replays each to the end it had.
"""
