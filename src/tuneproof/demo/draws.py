"""Random draws named by what they are for, so nothing depends on the order of asking."""

from __future__ import annotations

import math
from random import Random

from xxhash import xxh3_64_intdigest


def number(*key: object) -> int:
    """A uniform 64-bit number that belongs to this key."""
    return xxh3_64_intdigest("\x1f".join(map(str, key)).encode())


def draws(*key: object) -> Random:
    """A generator that belongs to this key: the same key, the same draws, on any machine."""
    return Random(number(*key))


def poisson(random: Random, mean: float) -> int:
    """A Poisson draw by multiplying uniforms (Knuth); for means up to a few hundred."""
    limit, product, count = math.exp(-mean), random.random(), 0
    while product > limit:
        product *= random.random()
        count += 1
    return count
