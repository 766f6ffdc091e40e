"""Whether a group has more than its share, exact from counts."""

from __future__ import annotations

import math

__all__ = ["at_least", "fisher_greater"]


def fisher_greater(hits: int, n: int, beside: int, m: int) -> float:
    """P(at least `hits` of all hits fall on these n of n + m), were both groups alike.

    Fisher's exact test, one-sided: hypergeometric, given all `hits + beside`.

    >>> round(fisher_greater(14, 20, 3, 20), 5)
    0.00053
    """
    both = hits + beside
    ways = sum(math.comb(n, k) * math.comb(m, both - k) for k in range(hits, min(n, both) + 1))
    return ways / math.comb(n + m, both)


def at_least(hits: int, n: int, share: float) -> float:
    """P(at least `hits` of n), each with probability `share`: the exact binomial test, one-sided.

    >>> round(at_least(8, 10, 0.5), 5)
    0.05469
    """
    return math.fsum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits, n + 1)
    )
