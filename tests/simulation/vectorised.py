"""The library's formulas over whole arrays of runs and looks at once.

A simulation of thousands of runs cannot call a scalar function 168 times a run; what is written
here a second time is held to the library's own answers by `agree`, which every simulation row
of the sequence calls on its own data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincc, betaln, chdtrc, gammaln, stdtr
from tests.simulation.worlds import Array, Sums

from tuneproof.stats import sequential
from tuneproof.stats.aggregates import Aggregate, Stratum


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """`contrasts.contrast` for each run and look, shapes (R, H); `ok` where there is an answer."""

    d: Array
    variance: Array
    n: Array
    ok: Array

    @property
    def z(self) -> Array:
        """The statistic; 0 where there is no answer."""
        return np.where(self.ok, self.d / np.sqrt(self.variance), 0.0)


def contrasts(sums: Sums, *, min_units: int = 100, min_units_phase: int = 50) -> Contrasts:
    """The stratified log-ratio at each look."""
    n, s, q = sums.n, sums.s, sums.q
    used = n.min(-1) >= max(min_units_phase, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(used, n[..., 0] * n[..., 1] / n.sum(-1), 0.0)
        share = weight / weight.sum(-1, keepdims=True)
        mean = np.where(used[..., None], s / n, 0.0)
        spread = np.where(used[..., None], (q - s * s / n) / (n - 1) / n, 0.0)
        whole = (share[..., None] * mean).sum(-2)
        variance = ((share[..., None] ** 2 * spread).sum(-2) / whole**2).sum(-1)
        d = np.log(whole[..., 1] / whole[..., 0])
        first = np.argmax(used, axis=-1)[..., None]
        total = np.take_along_axis(n.sum(-1), first, -1)[..., 0]
        base = np.take_along_axis(weight, first, -1)[..., 0]
        effective = total * weight.sum(-1) / base
    counted = np.where(used[..., None], n, 0.0).sum(-2)
    ok = (counted.min(-1) >= min_units) & np.isfinite(d) & (variance > 0)
    return Contrasts(
        d=np.where(ok, d, 0.0), variance=np.where(ok, variance, 1.0),
        n=np.where(ok, effective, 1.0), ok=ok,
    )  # fmt: skip


def critical(n: Array, *, alpha: float, optimum_n: float) -> Array:
    """`sequential.critical_value` over an array."""
    t = n * sequential.tuning(alpha, optimum_n)
    return np.sqrt(2 * (t + 1) / t * np.log(np.sqrt(t + 1) / alpha))


def reach(
    c: Contrasts, *, alpha: float = 0.05, optimum_n: float = sequential.OPTIMUM_N
) -> tuple[Array, Array]:
    """Lower and upper bound of the log-ratio; infinite where there is no answer."""
    width = critical(c.n, alpha=alpha, optimum_n=optimum_n) * np.sqrt(c.variance)
    return np.where(c.ok, c.d - width, -np.inf), np.where(c.ok, c.d + width, np.inf)


def welch_p(sums: Sums, *, min_units: int = 2) -> Array:
    """Welch's two-sided p-value at each look on pooled sums, 1 below the minimum."""
    n, s, q = (v[:, :, 0] for v in (sums.n, sums.s, sums.q))
    with np.errstate(divide="ignore", invalid="ignore"):
        v = (q - s * s / n) / (n - 1) / n
        total = v.sum(-1)
        z = (s[..., 1] / n[..., 1] - s[..., 0] / n[..., 0]) / np.sqrt(total)
        degrees = total**2 / (v**2 / (n - 1)).sum(-1)
        p = 2 * stdtr(degrees, -np.abs(z))
    return np.where((n.min(-1) >= min_units) & np.isfinite(p), p, 1.0)


def lifts(sums: Sums) -> Array:
    """The observed relative lift at each look on pooled sums; 0 without units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.s[:, :, 0] / sums.n[:, :, 0]
        value = mean[..., 1] / mean[..., 0] - 1
    return np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)


def log_bernoulli(failures: Array, trials: Array, limit: float) -> Array:
    """`guardrails.log_bernoulli_evalue` over arrays (-inf where it underflows)."""
    a, b = 1.0, 1.0 / limit - 1.0
    k, m = failures, trials - failures
    with np.errstate(divide="ignore"):
        tail = np.log(betaincc(a + k, b + m, limit)) - math.log(betaincc(a, b, limit))
    mixture = betaln(a + k, b + m) - betaln(a, b)
    return np.asarray(tail + mixture - k * math.log(limit) - m * math.log1p(-limit))


def log_split(counts: Array, shares: Array, concentration: float) -> Array:
    """`splits.log_split_evalue` over arrays of counts, arms last."""
    a = concentration * shares
    total = counts.sum(-1)
    each = gammaln(a + counts) - gammaln(a) - counts * np.log(shares)
    return np.asarray(gammaln(concentration) - gammaln(concentration + total) + each.sum(-1))


def split_p(counts: Array, shares: Array) -> Array:
    """The chi-squared p-value of a split over arrays of counts, arms last."""
    expected = counts.sum(-1, keepdims=True) * shares
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    return np.asarray(chdtrc(counts.shape[-1] - 1, statistic))


def agree(sums: Sums, rng: np.random.Generator, *, alpha: float = 0.05, cells: int = 5) -> None:
    """Raise `AssertionError` unless the library gives the same bounds on randomly chosen cells."""
    answers = contrasts(sums)
    lower, upper = reach(answers, alpha=alpha)
    for _ in range(cells):
        i, h = int(rng.integers(sums.n.shape[0])), int(rng.integers(sums.n.shape[1]))
        estimate = sequential.lift(strata(sums, i, h), alpha=alpha)
        if not answers.ok[i, h]:
            assert estimate.lower is None, estimate
            continue
        assert estimate.lower is not None
        assert estimate.upper is not None
        assert math.isclose(math.log1p(estimate.lower), lower[i, h], rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(math.log1p(estimate.upper), upper[i, h], rel_tol=1e-9, abs_tol=1e-9)


def strata(sums: Sums, run: int, look: int) -> list[Stratum]:
    """One run at one look, as the library takes it."""
    return [
        Stratum(
            phase=str(p),
            **{
                arm: Aggregate(
                    n=int(sums.n[run, look, p, a]),
                    sum_y=float(sums.s[run, look, p, a]),
                    sum_yy=float(sums.q[run, look, p, a]),
                )
                for a, arm in enumerate(("baseline", "candidate"))
            },
        )
        for p in range(sums.n.shape[2])
    ]
