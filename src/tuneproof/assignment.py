"""Which arm a unit belongs to: a pure hash that client, server, gateway and audits share.

It exists so that nobody has to be asked: whoever knows the salt, the unit and the share comes
to the same answer, in any language. It knows no experiment, no clock and no storage.

The whole rule, for other languages and for audits:

    bucket    = XXH3_64(utf8(salt) ++ 0x1F ++ utf8(unit), seed 0) as an unsigned integer, mod 10000
    candidate = bucket < round_half_even(share * 10000)
    holdback  = bucket >= 10000 - round_half_even(holdback * 10000)

The candidate's buckets grow from bucket 0 upwards, so raising its share never moves a unit
back, and the holdback is the buckets that move last. `VECTORS` are fixed test vectors.

Where k candidates are tested at once, each has a lane of its own:

    lane      = bucket mod k
    candidate = floor(bucket / k) < round_half_even(share of that lane's candidate * 10000)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from xxhash import xxh3_64_intdigest

from tuneproof.errors import InputError

__all__ = [
    "BUCKETS",
    "VECTORS",
    "Arm",
    "arm",
    "arm_among",
    "bucket",
    "candidate_buckets",
    "in_holdback",
    "in_lane",
    "lane_and_arm",
    "lane_of",
]

Arm = Literal["baseline", "candidate"]

BUCKETS: Final = 10_000
"""Number of buckets: shares are exact to 0.01 %."""

SEPARATOR: Final = "\x1f"
"""ASCII unit separator between salt and unit."""

VECTORS: Final[tuple[tuple[str, str, int], ...]] = (
    ("", "", 4414),
    ("salt", "unit", 3190),
    ("experiment-1", "post-1", 9190),
    ("experiment-1", "post-2", 6766),
    ("hook-2026-47", "42", 178),
    ("hook-2026-47", "größe-漢字-🙂", 9493),
    ("a", "b", 6089),
    ("ab", "", 3666),
)
"""(salt, unit, bucket), for implementations in other languages to test themselves by."""


def bucket(salt: str, unit: str) -> int:
    """The bucket of `unit` under `salt`: an integer in 0..9999, uniform over units.

    Two salts give independent buckets, so a new experiment takes a new salt. Costs about a
    fifth of a microsecond. Raises `InputError` for text that is not encodable as UTF-8 (lone
    surrogates).

    >>> bucket("experiment-1", "post-1") == bucket("experiment-1", "post-1")
    True
    """
    try:
        return xxh3_64_intdigest(f"{salt}\x1f{unit}".encode()) % 10_000
    except UnicodeEncodeError:
        raise InputError(
            f"unit {unit!r} or salt {salt!r} is not valid Unicode text.",
            mend="Pass the id as text that can be encoded as UTF-8.",
        ) from None


def candidate_buckets(share: float) -> int:
    """How many buckets a share of 0..1 takes, rounded half to even.

    Raises `InputError` for NaN and for shares outside 0..1.

    >>> candidate_buckets(0.1), candidate_buckets(1), candidate_buckets(0.00004)
    (1000, 10000, 0)
    """
    if not 0 <= share <= 1:
        raise InputError(f"share {share!r} is outside 0..1.", mend="Shares are 0..1: 10 % is 0.1.")
    return round(share * BUCKETS)


def arm(bucket: int, share: float) -> Arm:
    """The arm that serves `bucket` when the candidate has `share` (0..1) of the units.

    Monotone: a bucket that the candidate has at one share it has at every larger share.
    Raises `InputError` for a share outside 0..1.

    >>> arm(999, 0.10), arm(1000, 0.10), arm(1000, 0.20), arm(9999, 1.0)
    ('candidate', 'baseline', 'candidate', 'candidate')
    """
    return "candidate" if bucket < candidate_buckets(share) else "baseline"


def in_holdback(bucket: int, holdback: float) -> bool:
    """Whether `bucket` stays on the old version while all others have moved.

    The holdback is the top end of the buckets, those that a growing candidate reaches last:
    a rollout to `1 - holdback` serves exactly the buckets outside it.

    >>> in_holdback(9499, 0.05), in_holdback(9500, 0.05), arm(9499, 0.95), arm(9500, 0.95)
    (False, True, 'candidate', 'baseline')
    """
    return bucket >= BUCKETS - candidate_buckets(holdback)


def arm_among(bucket: int, shares: Sequence[float]) -> int | None:
    """Which of several candidates serves `bucket`, by index, or None for the baseline.

    Each of the k candidates owns one lane, the buckets with `bucket % k` equal to its index,
    and grows in it from the lowest bucket, so raising any share moves no unit back and moves
    none between candidates. A candidate's share is therefore at most 1/k (rounded down to
    whole buckets), and k stays fixed while the experiment runs; a stopped candidate keeps its
    lane at share 0. Raises `InputError` where a share does not fit its lane.

    >>> [arm_among(b, [0.1, 0.1]) for b in (0, 1, 1998, 1999, 2000)]
    [0, 1, 0, 1, None]
    """
    lanes = len(shares)
    if not lanes:
        return None
    limit = BUCKETS // lanes
    buckets = [candidate_buckets(share) for share in shares]
    for share, count in zip(shares, buckets, strict=True):
        if count > limit:
            raise InputError(
                f"share {share} does not fit: {lanes} candidates have at most"
                f" {limit / BUCKETS:.4f} each.",
                mend="Lower the share, or test fewer candidates at once.",
            )
    lane, chosen = lane_and_arm(bucket, buckets)
    return lane if chosen else None


def lane_and_arm(bucket: int, buckets: Sequence[int]) -> tuple[int, bool]:
    """The lane of `bucket`, and whether that lane's candidate serves it: the rule itself.

    `buckets` has for each lane how many of its buckets the candidate has (`candidate_buckets`).

    >>> [lane_and_arm(b, [1000, 0]) for b in (0, 1, 1998, 2000)]
    [(0, True), (1, False), (0, True), (0, False)]
    """
    place, lane = divmod(bucket, len(buckets))
    return lane, place < buckets[lane]


def lane_of(bucket: int, lanes: int) -> int:
    """Which of `lanes` candidates a bucket belongs to, whether that candidate serves it or not.

    >>> [lane_of(b, 3) for b in (0, 1, 2, 3)]
    [0, 1, 2, 0]
    """
    return bucket % lanes


def in_lane(share: float, lane: int, lanes: int) -> float:
    """The part of its own lane that a candidate with `share` of all units serves, 0..1.

    Exact to the bucket: lanes differ by one bucket where `lanes` does not divide 10000.

    >>> in_lane(0.1, 0, 2), round(in_lane(0.1, 0, 3), 6), round(in_lane(0.1, 1, 3), 6)
    (0.2, 0.29994, 0.30003)
    """
    return candidate_buckets(share) / ((BUCKETS - lane + lanes - 1) // lanes)
