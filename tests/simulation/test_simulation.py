"""Every row of the simulations in small: a tenth of the runs, the same goals, the same seed."""

import numpy as np
import pytest
from tests.simulation.records import at_least, at_most, share_error
from tests.simulation.run import ROWS, run


@pytest.mark.parametrize("name", ROWS)
def test_row_reaches_its_goals_and_the_careless_answer_fails_as_said(name: str) -> None:
    records = run(name, scale=0.1)
    missed = [r for r in records if not r.met]
    assert records
    assert not missed, "\n".join(map(str, missed))


def test_same_seed_gives_the_same_figures() -> None:
    assert run("split_mismatch", scale=0.05) == run("split_mismatch", scale=0.05)


def test_a_goal_that_is_missed_is_reported_as_missed() -> None:
    assert not at_most("x", 0.2, 0.05, runs=1000).met
    assert not at_least("x", 0.5, 0.9, runs=1000).met
    assert not at_most("x", 0.01, 0.05, runs=1000, careless=0.01, also=False).met
    assert not at_most("x", 0.2, 0.05, runs=1000, careless=0.3, also=True).met


def test_standard_error_of_a_share_covers_none_found() -> None:
    assert share_error(0.0, 100) > 0
    rng = np.random.default_rng(1)
    spread = (rng.random((4000, 500)) < 0.3).mean(1).std()
    assert abs(share_error(0.3, 500) - spread) < 0.001
