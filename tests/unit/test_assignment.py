"""Assignment: stable for ever, uniform, monotone in the share, and fast."""

import subprocess
import sys

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneproof import assignment
from tuneproof.assignment import BUCKETS, VECTORS, arm, arm_among, bucket, in_holdback
from tuneproof.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
BUCKET = st.integers(0, BUCKETS - 1)


@pytest.mark.parametrize(("salt", "unit", "expected"), VECTORS)
def test_vectors_never_change(salt, unit, expected):
    assert bucket(salt, unit) == expected


def test_vectors_hold_the_published_cases():
    assert ("experiment-1", "post-1", 9190) in VECTORS
    assert ("hook-2026-47", "größe-漢字-🙂", 9493) in VECTORS
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


def test_imports_neither_numpy_nor_pydantic_nor_http():
    code = (
        "import sys, tuneproof.assignment;"
        "print([m for m in ('numpy', 'pydantic', 'httpx', 'httpx2', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_everything_public_is_listed():
    assert set(assignment.__all__) >= {"bucket", "arm", "in_holdback", "arm_among", "VECTORS"}
