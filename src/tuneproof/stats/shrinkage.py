"""What a winner's lift will be worth once everybody has it.

It exists because the winner is chosen for its high figure, so that figure is too high: the more
so the noisier the test. Past experiments say how large lifts are in truth; the posterior mean
under that prior is what to expect, and selection does not bias it. It knows no test and decides
nothing.

The prior is a scale mixture of normals about no effect (Stephens 2017, Biostatistics 18:275,
"ash"): some candidates change nothing, many little, a few a lot, as archives of A/B tests have
them. It draws a moderate figure in hard and leaves a strong one alone, where a single normal
draws both in alike. How many, how little and how a lot is what past experiments say, and as long
as they are few, it is left open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from tuneproof.errors import DataError, InputError
from tuneproof.stats.sequential import LiftEstimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["SCALES", "Prior", "Shrunk", "default_prior", "fit_prior", "shrink", "shrink_estimate"]

SCALES: Final = tuple(0.005 * 2 ** (i / 2) for i in range(19))
"""The standard deviations of a prior's parts: from half a percent, which is nothing, to 2.56, in
steps of sqrt(2) as ash has them. Fixed, so that no experiment moves them."""

TYPICAL: Final = tuple(0.01 * 2 ** (i / 4) for i in range(29))
TYPICAL_MEDIAN: Final = 0.11
TYPICAL_SPREAD: Final = 0.8
"""How large lifts typically are: a grid, believed like a lognormal with this median and spread."""

TAILS: Final = (math.inf, 12.0, 6.0, 3.0, 1.5)
"""How much larger the largest are: degrees of freedom of Student's t, each as likely; A/B tests
of large firms have 3 and fewer (Azevedo, Deng, Montiel Olea, Rao and Weyl 2020, J. Polit. Econ.
128:4614)."""

NOTHING: Final = {0.0: 0.4, 0.25: 0.15, 0.5: 0.15, 0.75: 0.15, 0.9: 0.15}
"""Which share of the candidates changes nothing (the least of `SCALES`), and how likely that is:
a third on average, as Kohavi, Crook and Longbotham (2009, KDD workshop) have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """True log-lifts as Σ weight · N(mode, scale²), from `experiments` past ones (0: assumed).

    A scale of 0 is a point mass at the mode. Raises `InputError` unless scales are at least 0
    and the weights are shares that sum to 1.

    >>> Prior.normal(mean=0.0, sd=0.1).sd
    0.1
    """

    mode: float
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    experiments: int = 0

    def __post_init__(self) -> None:
        numbers = (self.mode, *self.scales, *self.weights)
        shares = len(self.scales) == len(self.weights) > 0 and min(self.weights) >= 0
        whole = math.isclose(sum(self.weights), 1, abs_tol=1e-6)
        if not (all(map(math.isfinite, numbers)) and shares and whole and min(self.scales) >= 0):
            raise InputError(
                f"a prior with mode {self.mode}, scales {self.scales} and weights {self.weights} "
                "cannot be.",
                mend="Give finite scales of at least 0, and as many shares that sum to 1.",
            )

    @classmethod
    def normal(cls, *, mean: float, sd: float, experiments: int = 0) -> Prior:
        """N(mean, sd²). Raises `InputError` for a negative or unknown `sd`."""
        return cls(mode=mean, scales=(sd,), weights=(1.0,), experiments=experiments)

    @property
    def mean(self) -> float:
        """The mean of true log-lifts: the mode, since every part is symmetric about it."""
        return self.mode

    @property
    def sd(self) -> float:
        """The standard deviation of true log-lifts; a fat tail carries much of it."""
        return math.sqrt(sum(w * s * s for s, w in zip(self.scales, self.weights, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shrunk:
    """A lift as it is to be expected, beside the one observed; shares, 0.15 = +15 %.

    `lift` is expm1 of the posterior mean of the log-lift, `mean_lift` the posterior mean of the
    lift itself (see `shrink`); `lower` and `upper` are the central credible interval; `weight`
    is how much of the observed log-lift was kept (0..1).
    """

    lift: float
    mean_lift: float
    lower: float
    upper: float
    observed: float
    weight: float
    prior: Prior


def default_prior() -> Prior:
    """What is assumed of lifts before there is a past experiment.

    The average of all shapes of `fit_prior`: four in five candidates are within ±15 % of the
    baseline, one in twenty is beyond +50 % or -33 %.

    >>> prior = default_prior(); prior.mode, prior.experiments, round(prior.sd, 2)
    (0.0, 0, 0.27)
    """
    return _default()


@cache
def _default() -> Prior:
    shapes, likely = _shapes()
    return _prior(shapes @ likely, 0)


def fit_prior(log_lifts: Sequence[float], standard_errors: Sequence[float]) -> Prior:
    """The prior that past experiments support.

    Estimand: the distribution of the *true* log-lifts over experiments like these, symmetric
    about 0. Assumes independent experiments, all of them, winners or not: a history of winners
    only gives a prior that shrinks nothing. That an experiment was stopped by its own figures
    does no harm, since the likelihood does not know it. Input: log(1 + lift) and its standard
    error for each, shapes (k,). Formula: a shape h says that a share of candidates changes
    nothing and the others are drawn from Student's t with a scale and a tail (`NOTHING`,
    `TYPICAL`, `TAILS`: 725 of them), each written as weights w_hj over `SCALES` (t is a normal
    whose variance is inverse gamma; the mass between the geometric middles of neighbours falls to
    a scale). Its posterior is p_h ∝ prior_h Π_i Σ_j w_hj N(d_i; 0, scale_j² + s_i²), and the
    answer is the mixture Σ_h p_h w_h: exactly what to believe of the next candidate, with what
    is not known of the shape averaged over instead of maximised away (a maximum takes few
    experiments at their word: where one candidate in five works, after twenty experiments its
    95 % intervals miss 12 % of winners, these 6 %). So there is no threshold: without history it
    is `default_prior()`, and each experiment moves it.

    Raises `DataError` for lengths that differ, values that are not finite, or standard errors
    that are not positive.

    >>> fit_prior([], []) == default_prior()
    True
    >>> small, large = fit_prior([0.01] * 20, [0.02] * 20), fit_prior([0.3, -0.4] * 10, [0.1] * 20)
    >>> round(shrink(0.2, 0.1, small).lift, 2), round(shrink(0.2, 0.1, large).lift, 2)
    (0.02, 0.2)
    """
    _check_history(log_lifts, standard_errors)
    if not log_lifts:
        return default_prior()
    import numpy as np

    shapes, likely = _shapes()
    seen, noise = np.asarray(log_lifts, float), np.asarray(standard_errors, float)
    variances = np.asarray(SCALES)[None, :] ** 2 + noise[:, None] ** 2
    logs = -0.5 * (np.log(variances) + seen[:, None] ** 2 / variances)
    densities = np.exp(logs - logs.max(1, keepdims=True))
    with np.errstate(divide="ignore"):  # a shape that cannot have made an experiment: log 0
        evidence = np.log(likely) + np.log(densities @ shapes).sum(0)
    chances = np.exp(evidence - evidence.max())
    return _prior(shapes @ (chances / chances.sum()), len(log_lifts))


def _prior(weights: Floats, experiments: int) -> Prior:
    shares = tuple(float(w) for w in weights / weights.sum())
    return Prior(mode=0.0, scales=SCALES, weights=shares, experiments=experiments)


@cache
def _shapes() -> tuple[Floats, Floats]:
    """The shapes as columns of weights over `SCALES`, and how likely each is at first."""
    import numpy as np

    columns, likely = [], []
    for typical in TYPICAL:
        chance = math.exp(-0.5 * (math.log(typical / TYPICAL_MEDIAN) / TYPICAL_SPREAD) ** 2)
        for tail in TAILS:
            moved = _student(typical, tail)
            for nothing, often in NOTHING.items():
                column = (1 - nothing) * moved
                column[0] += nothing
                columns.append(column)
                likely.append(chance * often)
    return np.stack(columns, axis=1), np.asarray(likely) / sum(likely)


def _student(scale: float, tail: float) -> Floats:
    """Student's t as weights over `SCALES`."""
    import numpy as np
    from scipy.special import gammaincc

    if math.isinf(tail):
        return _normal(scale)
    middles = np.asarray(SCALES[:-1]) * 2**0.25
    below = gammaincc(tail / 2, tail / 2 * (scale / middles) ** 2)
    return np.asarray(np.diff([0.0, *below, 1.0]))


def _normal(scale: float) -> Floats:
    """A normal as weights over the neighbours in `SCALES` that give its variance."""
    import numpy as np

    squares = np.asarray(SCALES) ** 2
    place = np.interp(scale**2, squares, np.arange(len(SCALES)))
    return np.asarray(np.maximum(0.0, 1 - np.abs(np.arange(len(SCALES)) - place)))


def _check_history(log_lifts: Sequence[float], standard_errors: Sequence[float]) -> None:
    if len(log_lifts) != len(standard_errors):
        raise DataError(
            f"{len(log_lifts)} lifts and {len(standard_errors)} standard errors.",
            mend="Give one standard error a lift.",
        )
    if not all(map(math.isfinite, log_lifts)):
        raise DataError("a past lift is not finite.", mend="Leave tests without an answer out.")
    if not all(math.isfinite(s) and s > 0 for s in standard_errors):
        raise DataError(
            "a standard error is not positive.", mend="Leave exact and unanswered tests out."
        )


def shrink(
    log_lift: float,
    standard_error: float,
    prior: Prior | None = None,
    *,
    alpha: float = 0.05,
) -> Shrunk:
    """The posterior of a lift: the observed one drawn towards what past experiments were worth.

    Estimand: the true lift of this candidate, given what was observed of it. Assumes an estimate
    that is normal about the true log-lift with `standard_error` (log scale), and a true lift
    drawn from `prior` (`default_prior()` where none is given). Formula: each part of the prior
    gives N(m + k (d - m), k s²) with k = scale² / (scale² + s²), weighted by how well it explains
    d. Selection needs no correction: given d, that it was chosen for being large says nothing
    more (Dawid 1994; Efron 2011, JASA 106:1602); so it is for a threshold, for the best of
    several and for a test that stopped early, as far as the prior is right.

    `lift` is expm1 of the posterior mean of the log-lift: the same whichever arm is called the
    baseline, 0 where nothing is known, hardly moved by the prior's far tail. `mean_lift`, the
    posterior mean E[exp θ] - 1, is larger by about half the posterior variance, so two equal
    arms of which little is known each seem better than the other; it is what adds up over many
    promoted candidates. `standard_error` 0 (arithmetic) keeps the observed. Raises `DataError`
    for values that are not finite, `InputError` for alpha outside (0, 1).

    >>> s = shrink(math.log(1.3), 0.1, Prior.normal(mean=0.0, sd=0.1))
    >>> round(s.observed, 3), round(s.lift, 3), round(s.weight, 9)
    (0.3, 0.14, 0.5)
    >>> [round(shrink(d, 0.1).weight, 2) for d in (0.1, 0.3, 1.0)]
    [0.28, 0.7, 0.97]
    """
    if not (math.isfinite(log_lift) and math.isfinite(standard_error) and standard_error >= 0):
        raise DataError(
            f"cannot shrink {log_lift} ± {standard_error}.", mend="Give finite numbers."
        )
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.05.")
    prior = default_prior() if prior is None else prior
    parts = _posterior(log_lift, standard_error, prior)
    mean = sum(part.share * part.mean for part in parts)
    return Shrunk(
        lift=_expm1(mean),
        mean_lift=_expm1(_log_mean_exp(parts)),
        lower=_expm1(_quantile(parts, alpha / 2)),
        upper=_expm1(_quantile(parts, 1 - alpha / 2)),
        observed=_expm1(log_lift),
        weight=sum(part.share * part.weight_of_data for part in parts),
        prior=prior,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A part of the posterior: N(mean, sd²) with its share; `kept` of the observed is in it."""

    share: float
    mean: float
    sd: float
    weight_of_data: float


def _posterior(seen: float, error: float, prior: Prior) -> list[_Part]:
    if error == 0:
        return [_Part(share=1.0, mean=seen, sd=0.0, weight_of_data=1.0)]
    used = [(s, w) for s, w in zip(prior.scales, prior.weights, strict=True) if w > 0]
    logs = []
    for scale, weight in used:
        variance = scale * scale + error * error
        fit = (seen - prior.mode) ** 2 / variance
        logs.append(math.log(weight) - 0.5 * (math.log(variance) + fit))
    top = max(logs)
    shares = [math.exp(log - top) for log in logs]
    whole = sum(shares)
    weight_of_data = [scale * scale / (scale * scale + error * error) for scale, _ in used]
    return [
        _Part(
            share=share / whole,
            mean=prior.mode + k * (seen - prior.mode),
            sd=error * math.sqrt(k),
            weight_of_data=k,
        )
        for share, k in zip(shares, weight_of_data, strict=True)
    ]


def _log_mean_exp(parts: Sequence[_Part]) -> float:
    """log E[exp θ]."""
    logs = [math.log(p.share) + p.mean + p.sd**2 / 2 for p in parts if p.share > 0]
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs))


def _quantile(parts: Sequence[_Part], q: float) -> float:
    """The q-quantile of the posterior; at a point mass, the point."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z = float(ndtri(q))
    each = [p.mean + z * p.sd for p in parts if p.share > 0]
    low, high = min(each), max(each)
    if low == high:
        return low

    def above(x: float) -> float:
        return sum(p.share * _below(p, x) for p in parts) - q

    return float(brentq(above, low - 1e-9, high + 1e-9, xtol=1e-12))


def _below(part: _Part, x: float) -> float:
    """P(θ ≤ x) in a part."""
    if part.sd == 0:
        return 1.0 if x >= part.mean else 0.0
    return 0.5 * math.erfc((part.mean - x) / (part.sd * math.sqrt(2)))


def _expm1(log: float) -> float:
    return math.inf if log > 709 else math.expm1(log)


def shrink_estimate(
    estimate: LiftEstimate, prior: Prior | None = None, *, alpha: float = 0.05
) -> Shrunk | None:
    """`shrink` of what `sequential.lift` returned; None where it has no answer on the log scale.

    Raises `InputError` for an absolute difference, whose standard error is on another scale.

    >>> from tuneproof.stats import sequential
    >>> shrink_estimate(sequential.lift([])) is None
    True
    """
    if estimate.method.startswith("difference"):
        raise InputError(
            "an absolute difference cannot be shrunk as a lift.", mend="Use `sequential.lift`."
        )
    if estimate.lift is None or estimate.standard_error is None or estimate.lift <= -1:
        return None
    return shrink(math.log1p(estimate.lift), estimate.standard_error, prior, alpha=alpha)
