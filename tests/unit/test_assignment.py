"""Assignment: stable for ever, uniform, monotone in the share, and fast."""

import subprocess
import sys

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneproof import assignment
from tuneproof.assignment import (
    BUCKETS,
    SEPARATOR,
    VECTORS,
    arm,
    arm_among,
    bucket,
    candidate_buckets,
    in_holdback,
    in_lane,
    lane_and_arm,
    lane_of,
)
from tuneproof.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
BUCKET = st.integers(0, BUCKETS - 1)


@pytest.mark.parametrize(("salt", "unit", "expected"), VECTORS)
def test_vectors_never_change(salt, unit, expected):
    assert bucket(salt, unit) == expected


def test_vectors_are_the_published_ones():
    assert VECTORS == (
        ("", "", 4414),
        ("salt", "unit", 3190),
        ("experiment-1", "post-1", 9190),
        ("experiment-1", "post-2", 6766),
        ("hook-2026-47", "42", 178),
        ("hook-2026-47", "größe-漢字-🙂", 9493),
        ("a", "b", 6089),
        ("ab", "", 3666),
    )
    assert (BUCKETS, SEPARATOR) == (10_000, "\x1f")
    assert bucket("s", "u" * 300) == 8101


@given(TEXT, TEXT)
def test_bucket_is_the_documented_rule(salt, unit):
    data = salt.encode() + b"\x1f" + unit.encode()
    assert bucket(salt, unit) == int.from_bytes(xxhash.xxh3_64_digest(data), "big") % 10_000


def test_buckets_are_uniform_and_salts_independent():
    n = 200_000
    counts = [0] * 100
    both = 0
    for i in range(n):
        b = bucket("a", f"user-{i}")
        counts[b // 100] += 1
        both += b < 1000 and bucket("b", f"user-{i}") < 1000
    chi2 = sum((c - n / 100) ** 2 / (n / 100) for c in counts)
    assert chi2 < 160  # 99 degrees of freedom: p < 1e-4
    assert abs(both / n - 0.01) < 0.0012


@given(BUCKET, st.floats(0, 1), st.floats(0, 1))
def test_raising_the_share_never_moves_a_unit_back(b, share, other):
    low, high = sorted((share, other))
    if arm(b, low) == "candidate":
        assert arm(b, high) == "candidate"


@given(st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_share_is_kept_to_a_bucket(share):
    taken = sum(arm(b, share) == "candidate" for b in range(BUCKETS))
    assert abs(taken - share * BUCKETS) <= 0.5


@given(BUCKET, st.floats(0, 1))
def test_holdback_is_what_a_rollout_reaches_last(b, holdback):
    kept = round(holdback * BUCKETS)
    share = (BUCKETS - kept) / BUCKETS
    assert in_holdback(b, holdback) == (arm(b, share) == "baseline")


@pytest.mark.parametrize("holdback", [0.0, 0.0001, 0.05, 0.5, 1.0])
def test_holdback_has_exactly_its_buckets(holdback):
    assert sum(in_holdback(b, holdback) for b in range(BUCKETS)) == round(holdback * BUCKETS)


@given(BUCKET)
def test_ends_are_all_or_nothing(b):
    assert arm(b, 0.0) == "baseline"
    assert arm(b, 1.0) == "candidate"
    assert not in_holdback(b, 0.0)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_share_outside_0_to_1_is_refused(share):
    with pytest.raises(InputError, match="outside"):
        arm(0, share)


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(InputError, match="Unicode"):
        bucket("salt", "\ud800")


shares3 = st.lists(st.floats(0, 0.33), min_size=3, max_size=3)


@given(BUCKET, shares3, shares3)
def test_among_several_raising_any_share_moves_no_unit_back_or_across(b, one, other):
    low = [min(x, y) for x, y in zip(one, other, strict=True)]
    high = [max(x, y) for x, y in zip(one, other, strict=True)]
    before = arm_among(b, low)
    if before is not None:
        assert arm_among(b, high) == before


@given(shares3)
@settings(max_examples=20, deadline=None)
def test_each_of_several_gets_its_share(shares):
    counts = [0, 0, 0]
    for b in range(BUCKETS):
        found = arm_among(b, shares)
        if found is not None:
            counts[found] += 1
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share * BUCKETS) <= 1


def test_several_candidates_cannot_have_more_than_their_lanes():
    with pytest.raises(InputError, match="does not fit"):
        arm_among(0, [0.6, 0.1])
    assert arm_among(5, []) is None
    assert arm_among(5, [1.0]) == 0


def test_shares_are_rounded_half_to_even_buckets():
    shares = [0, 0.1, 0.12345, 0.00004, 0.00005, 0.00025, 1]
    assert [candidate_buckets(s) for s in shares] == [0, 1000, 1234, 0, 0, 2, 10_000]
    assert [arm(b, 0.1) for b in (0, 999, 1000, 9999)] == [
        "candidate",
        "candidate",
        "baseline",
        "baseline",
    ]
    assert [in_holdback(b, 0.05) for b in (0, 9499, 9500, 9999)] == [False, False, True, True]


def test_several_candidates_may_have_all_of_their_lanes_and_no_bucket_more():
    assert [arm_among(b, [0.5, 0.5]) for b in (0, 1, 9998, 9999)] == [0, 1, 0, 1]
    third = [0.3333, 0.3333, 0.3333]
    assert [arm_among(b, third) for b in (0, 1, 2, 9998, 9999)] == [0, 1, 2, 2, None]
    with pytest.raises(
        InputError, match=r"share 0\.3334 does not fit: 3 candidates have at most 0"
    ):
        arm_among(0, [0.3333, 0.3334, 0.3333])
    assert [arm_among(b, [0.1, 0.2]) for b in (1998, 1999, 2000, 3999, 4001)] == [
        0,
        1,
        None,
        1,
        None,
    ]


def test_a_lane_is_the_bucket_modulo_their_number():
    assert [lane_of(b, 3) for b in (0, 1, 2, 3, 9999)] == [0, 1, 2, 0, 0]
    assert [lane_and_arm(b, [2, 0, 1]) for b in (0, 1, 2, 3, 4, 5, 6)] == [
        (0, True),
        (1, False),
        (2, True),
        (0, True),
        (1, False),
        (2, False),
        (0, False),
    ]


def test_a_share_of_all_units_is_a_part_of_its_lane_to_the_bucket():
    """Of 3 lanes the first has 3334 buckets, the others 3333."""
    assert in_lane(0.1, 0, 1) == 0.1
    assert in_lane(0.1, 0, 2) == in_lane(0.1, 1, 2) == 0.2
    assert [in_lane(0.1, lane, 3) for lane in range(3)] == [1000 / 3334, 1000 / 3333, 1000 / 3333]
    assert [in_lane(0.1, lane, 7) for lane in (0, 3, 4, 6)] == [
        1000 / 1429,
        1000 / 1429,
        1000 / 1428,
        1000 / 1428,
    ]


def test_imports_neither_numpy_nor_pydantic_nor_http():
    code = (
        "import sys, tuneproof.assignment;"
        "print([m for m in ('numpy', 'pydantic', 'httpx', 'httpx2', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_everything_public_is_listed():
    assert set(assignment.__all__) >= {"bucket", "arm", "in_holdback", "arm_among", "VECTORS"}
