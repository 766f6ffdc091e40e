"""Many answers together: reference values, and a ledger that never gives error away."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.errors import ConflictError, DataError, InputError, NotFoundError
from tuneproof.stats import multiplicity as m
from tuneproof.stats.multiplicity import AlphaLedger


@given(st.lists(st.floats(-5, 12), max_size=12), st.floats(0.01, 0.5))
def test_e_bh_is_the_largest_self_consistent_set(log_e, alpha):
    found = m.e_bh(log_e, alpha=alpha)
    count = len(log_e)
    limits = [math.log(count / (alpha * k)) for k in range(1, count + 1)]
    for k in range(1, count + 1):
        enough = sum(e >= limits[k - 1] for e in log_e)
        if enough >= k:
            assert len(found) >= k
    if found:
        assert min(log_e[i] for i in found) >= math.log(count / (alpha * len(found)))


def test_e_bh_of_one_is_its_threshold():
    assert m.e_bh([math.log(20.001)]) == (0,)
    assert m.e_bh([math.log(19.99)]) == ()
    assert m.e_bh([]) == ()
    assert m.e_bh([math.inf, -math.inf]) == (0,)


def test_values_that_cannot_be_are_refused():
    with pytest.raises(DataError):
        m.e_bh([math.nan])
    with pytest.raises(InputError):
        m.e_bh([1.0], alpha=0)
    with pytest.raises(InputError):
        m.share_of_alpha(0)


def test_shares_never_sum_to_more_than_the_whole():
    total = sum(m.share_of_alpha(j) for j in range(1, 200_000))
    assert 0.99 < total < 1.0


def filled(outcomes):
    ledger = AlphaLedger(alpha=0.05)
    for i, promoted in enumerate(outcomes):
        ledger = ledger.open(f"e{i}", candidate=f"v{i}").close(f"e{i}", promoted=promoted)
    return ledger


@given(st.lists(st.booleans(), max_size=60))
def test_until_a_second_promotion_all_cycles_together_have_alpha(outcomes):
    ledger = filled(outcomes)
    earned = max(sum(outcomes) - 1, 0)
    assert ledger.spent <= 0.05 * (1 + earned) + 1e-12
    assert all(0 < e.alpha <= 0.05 for e in ledger.entries)


def test_lord_with_more_wealth_is_never_stingier():
    lean, rich = filled([False] * 10), filled([True] * 10)
    assert rich.next_alpha > lean.next_alpha


def test_repeated_candidate_pays_like_a_new_one():
    ledger = AlphaLedger().open("e1", candidate="v1").close("e1", promoted=False)
    again = ledger.open("e2", candidate="v1")
    other = ledger.open("e2", candidate="v2")
    assert again.entries[1].alpha == other.entries[1].alpha < ledger.entries[0].alpha
    assert (again.entries[1].retest, other.entries[1].retest) == (1, 0)


def test_asking_twice_gives_no_second_share():
    ledger = AlphaLedger().open("e1", candidate="v1")
    with pytest.raises(ConflictError, match="already has"):
        ledger.open("e1", candidate="v1")


def test_closing_is_idempotent_and_final():
    ledger = AlphaLedger().open("e1", candidate="v1").close("e1", promoted=True)
    assert ledger.close("e1", promoted=True) == ledger
    with pytest.raises(ConflictError, match="closed"):
        ledger.close("e1", promoted=False)
    with pytest.raises(NotFoundError):
        ledger.close("e9", promoted=True)


def test_open_experiments_do_not_earn():
    ledger = AlphaLedger()
    for i in range(3):
        ledger = ledger.open(f"e{i}", candidate=f"v{i}")
    expected = [0.05 * m.share_of_alpha(j) for j in (1, 2, 3)]
    assert [e.alpha for e in ledger.entries] == expected


@given(st.lists(st.booleans(), max_size=10))
def test_ledger_survives_json(outcomes):
    ledger = filled(outcomes).open("last", candidate="v")
    assert AlphaLedger.from_dict(ledger.to_dict()) == ledger


@pytest.mark.parametrize(
    "data", [{}, {"alpha": 0.05, "entries": [{"who": 1}]}, {"alpha": "much", "entries": []}]
)
def test_malformed_ledger_is_refused(data):
    with pytest.raises(DataError):
        AlphaLedger.from_dict(data)
