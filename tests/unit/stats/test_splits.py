"""Splits: as set or broken, alike or unlike absent; valid at every look."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.stats import references as ref

from tuneproof.errors import DataError, InputError
from tuneproof.stats import splits

SHARES = {"baseline": 0.9, "candidate": 0.1}


@pytest.mark.parametrize(
    ("concentration", "slight", "gross"),
    [(100, 4400, 90), (300, 4300, 130), (1000, 4600, 210), (3000, 5500, 340)],
)
def test_concentration_of_300_is_the_soonest_to_see_a_slight_mismatch(concentration, slight, gross):
    assert _called_from(0.12, 100, concentration) == slight
    assert _called_from(0.30, 10, concentration) == gross


def _called_from(share, step, concentration):
    n = step
    while True:
        counts = [round(n * (1 - share)), round(n * share)]
        log_e = splits.log_split_evalue(counts, [0.9, 0.1], concentration=concentration)
        if log_e >= math.log(splits.SRM_THRESHOLD):
            return n
        n += step


class TestSplit:
    @pytest.mark.parametrize(("k", "counts"), ref.SAVVI_ODDS)
    def test_odds_are_savvis_to_eleven_digits(self, k, counts):
        ours = math.exp(splits.log_split_evalue(counts, [0.9, 0.1], concentration=k))
        assert math.isclose(ours, ref.SAVVI_ODDS[k, counts], rel_tol=2e-10)

    def test_three_arms_are_savvis_too(self):
        ours = splits.log_split_evalue([520, 230, 250], [0.5, 0.25, 0.25], concentration=100)
        assert math.isclose(math.exp(ours), ref.SAVVI_THREE_ARMS, rel_tol=1e-10)

    @given(st.integers(0, 400), st.integers(0, 100))
    def test_is_a_martingale_under_the_set_shares(self, b, c):
        now = splits.log_split_evalue([b, c], [0.9, 0.1])
        after = [splits.log_split_evalue(x, [0.9, 0.1]) for x in ([b + 1, c], [b, c + 1])]
        expected = 0.9 * math.exp(after[0] - now) + 0.1 * math.exp(after[1] - now)
        assert math.isclose(expected, 1.0, rel_tol=1e-6)

    def test_each_phase_is_judged_by_itself(self):
        found = splits.srm(
            {
                "1": {"baseline": 9000, "candidate": 1000},
                "2": {"baseline": 5400, "candidate": 4600},
            },
            {"1": SHARES, "2": {"baseline": 0.5, "candidate": 0.5}},
        )
        assert (found["1"].broken, found["2"].broken) == (False, True)
        assert "phase 2: the split is broken" in found["2"].reason
        assert "54.00%, set 50.00%" in found["2"].reason

    def test_no_exposures_are_no_evidence(self):
        found = splits.srm({"1": {}}, {"1": SHARES})["1"]
        assert (found.e_value, found.broken, found.observed_shares) == (1.0, False, {})

    def test_exposures_of_an_arm_without_share_are_proof(self):
        found = splits.srm(
            {"1": {"baseline": 5, "candidate": 1}}, {"1": {"baseline": 1.0, "candidate": 0.0}}
        )["1"]
        assert found.broken
        assert found.e_value == math.inf

    def test_all_as_set_with_a_share_of_zero_is_fine(self):
        found = splits.srm({"1": {"baseline": 500}}, {"1": {"baseline": 1, "candidate": 0}})
        assert not found["1"].broken

    @pytest.mark.parametrize(
        ("counts", "shares"),
        [
            ({"1": {"baseline": -1}}, {"1": {"baseline": 1.0}}),
            ({"1": {"other": 1}}, {"1": {"baseline": 1.0}}),
            ({"2": {"baseline": 1}}, {"1": {"baseline": 1.0}}),
            ({"1": {"baseline": 1}}, {"1": {"baseline": 0.9}}),
            ({"1": {"baseline": 1}}, {"1": {"baseline": math.nan}}),
        ],
    )
    def test_what_does_not_fit_is_refused(self, counts, shares):
        with pytest.raises(DataError):
            splits.srm(counts, shares)

    def test_impossible_settings_are_refused(self):
        with pytest.raises(InputError, match="threshold"):
            splits.srm({}, {}, threshold=1.0)
        for concentration in (0, math.nan, math.inf):
            with pytest.raises(InputError, match="concentration"):
                splits.log_split_evalue([1], [1.0], concentration=concentration)
        with pytest.raises(DataError, match="2 arms have exposures and 1 have shares"):
            splits.log_split_evalue([1, 2], [1.0])


class TestAbsentOutcomes:
    def test_expectation_of_its_e_value_is_at_most_1_whichever_units_are_absent(self):
        """Exact, over all ways in which 12 of 40 due units may be absent, 8 the candidate's."""
        total, exposed, absent = 40, 8, 12
        mean = 0.0
        for k in range(exposed + 1):
            ways = math.comb(exposed, k) * math.comb(total - exposed, absent - k)
            due = {"baseline": total - exposed, "candidate": exposed}
            came = {"baseline": total - exposed - absent + k, "candidate": exposed - k}
            found = splits.absent_outcomes({"1": due}, {"1": came})["1"]
            mean += ways / math.comb(total, absent) * math.exp(found.log_e)
        assert 0.5 < mean <= 1

    @pytest.mark.parametrize("arm", ["baseline", "candidate"])
    def test_either_arm_may_be_the_one_that_lacks_more(self, arm):
        due = {"baseline": 1000, "candidate": 1000}
        found = splits.absent_outcomes({"1": due}, {"1": due | {arm: 850}})["1"]
        assert found.unlike
        assert found.absent[arm] == 150

    def test_phases_are_judged_by_themselves_and_silence_of_all_is_no_evidence(self):
        due = {"baseline": 900, "candidate": 100}
        found = splits.absent_outcomes(
            {"1": due, "2": due, "3": {"baseline": 5}}, {"1": due | {"candidate": 40}}
        )
        assert [found[phase].unlike for phase in "123"] == [True, False, False]

    def test_what_cannot_be_is_refused(self):
        due = {"baseline": 10, "candidate": 10}
        with pytest.raises(DataError, match="reported of"):
            splits.absent_outcomes({"1": due}, {"1": {"baseline": 11, "candidate": 10}})
        with pytest.raises(InputError, match="threshold"):
            splits.absent_outcomes({}, {}, threshold=1.0)
