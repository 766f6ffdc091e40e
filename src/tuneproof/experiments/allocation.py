"""How large the candidate's share should be next, where the test may adapt it.

Adaptation is in steps: a phase has one fixed share, and the next phase may have another. The
share is kept with the phase, and the phase with each exposure: so every unit's propensity is
known for ever, also after the raw events are gone. Given what came before it, each phase is a
plain randomised experiment: the sum over phases that the sequence judges is a martingale whose
variance is known before each phase, so it stays valid whatever the shares depend on. A mean over
all units is had by weighting phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuneproof.experiments.records import Part
from tuneproof.stats.aggregates import Stratum
from tuneproof.stats.contrasts import Contrast, contrast
from tuneproof.stats.effects import (
    ENGAGEMENT,
    Metric,
    Variable,
    pooled_theta,
    sum_of,
    variance_of,
)

__all__ = ["phase_counts", "reweighted_lift", "thompson_share"]

FLOOR = 0.05
CEILING = 0.5
"""The candidate's share stays within these: both arms go on telling something, and an unproven
version never gets more than half of the users."""

STEP = 0.02
"""A share that would change by less stays: each phase needs units of its own."""


def thompson_share(
    strata: Sequence[Stratum],
    current: float,
    *,
    metric: Metric = ENGAGEMENT,
    floor: float = FLOOR,
    ceiling: float = CEILING,
    min_units_phase: int = 50,
) -> float:
    """The share that matches the probability that the candidate is better (Thompson 1933).

    Under a flat prior the log-ratio's posterior is normal about its estimate, so the probability
    is Φ(z), z as `contrasts.contrast` has it; clipped to `floor`..`ceiling` and rounded to 1 %.
    Stays at `current` while there is no estimate, or where the step would be small.

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> b, c = Aggregate.of([0.1, 0.3] * 500), Aggregate.of([0.2, 0.3] * 100)
    >>> thompson_share([Stratum(baseline=b, candidate=c)], 0.1)
    0.5
    >>> thompson_share([], 0.1)
    0.1
    """
    found = contrast(strata, metric, min_units=2 * min_units_phase, min_units_phase=min_units_phase)
    if not isinstance(found, Contrast) or found.exact or not found.variance:
        return current
    from scipy.special import ndtr

    effect = found.lift if found.log_ratio is None else found.log_ratio
    share = float(ndtr(effect / math.sqrt(found.variance)))
    wanted = round(min(max(share, floor), ceiling), 2)
    return wanted if abs(wanted - current) >= STEP else current


def phase_counts(phase: Stratum, min_units_phase: int = 50) -> bool:
    """Whether a phase has enough matured units in both arms to weigh in the answer.

    A phase that ended before would be lost: at 20 posts an hour a share of 5 % brings 24 units a
    day, so daily phases would teach nothing at all.

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> baseline, candidate = Aggregate.of([0.1] * 456), Aggregate.of([0.1] * 24)
    >>> phase_counts(Stratum(baseline=baseline, candidate=candidate))
    False
    """
    return min(phase.baseline.n, phase.candidate.n) >= min_units_phase


def reweighted_lift(
    strata: Sequence[Stratum], metric: Metric = ENGAGEMENT, *, alpha: float = 0.05
) -> Part | None:
    """The lift over all units of the test, as if both arms had been served to each of them.

    Estimand: mean outcome of all enrolled units under the candidate over that under the
    baseline, minus 1. Augmented inverse-probability weighting with the phase as covariate, which
    for one propensity a phase is post-stratification: μ_a = Σ_p (N_p/N) ȳ_pa, variance
    Σ_p (N_p/N)² s²_pa/n_pa (Robins, Rotnitzky and Zhao 1994, JASA 89:846). Per item μ_a is
    Σ_p (N_p/N) ȳ_pa over Σ_p (N_p/N) m̄_pa, with the variance of y - μ_a m; CUPED takes
    θ (x̄_pa - x̄_p) from each mean. The interval is normal, for one look. None where a phase has
    fewer than 2 units in an arm, or a mean is 0.

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> early = Stratum(baseline=Aggregate.of([0.1, 0.3] * 90), candidate=Aggregate.of([0.2] * 20))
    >>> late = Stratum(baseline=Aggregate.of([0.2, 0.6] * 50), candidate=Aggregate.of([0.4] * 100))
    >>> abs(round(reweighted_lift([early, late]).lift, 9))
    0.0
    """
    used = [s for s in strata if s.baseline.n or s.candidate.n]
    if not used or any(min(s.baseline.n, s.candidate.n) < 2 for s in used):
        return None
    theta = 0.0
    if metric.adjusted:
        theta = pooled_theta(arm for s in used for arm in (s.baseline, s.candidate))
    arms = [_over_all(used, place, metric, theta) for place in (0, 1)]
    if any(found is None for found in arms):
        return None
    from scipy.special import ndtri

    (b, var_b), (c, var_c) = (found for found in arms if found is not None)
    centre, reach = math.log(c / b), float(ndtri(1 - alpha / 2)) * math.sqrt(var_b + var_c)
    return Part(
        lift=math.expm1(centre),
        lower=math.expm1(centre - reach),
        upper=math.expm1(centre + reach),
        n_baseline=sum(s.baseline.n for s in used),
        n_candidate=sum(s.candidate.n for s in used),
    )


def _over_all(
    used: Sequence[Stratum], place: int, metric: Metric, theta: float
) -> tuple[float, float] | None:
    """An arm's value over all units, and the variance of its logarithm; None where it is 0."""
    both = [(s.baseline, s.candidate) for s in used]
    sizes = [b.n + c.n for b, c in both]
    weights = [n / sum(sizes) for n in sizes]
    mine = [pair[place] for pair in both]
    top = sum(w * sum_of(arm, "y") / arm.n for w, arm in zip(weights, mine, strict=True))
    for w, arm, (b, c) in zip(weights, mine, both, strict=True):
        top -= theta * w * (arm.sum_x / arm.n - (b.sum_x + c.sum_x) / (b.n + c.n))
    other: Variable | None = "x" if metric.adjusted else None
    times, bottom = -theta, 1.0
    if metric.denominator is not None:
        other = metric.denominator
        bottom = sum(w * sum_of(arm, other) / arm.n for w, arm in zip(weights, mine, strict=True))
        times = -top / bottom if bottom else 0.0
    if top <= 0 or bottom <= 0:
        return None
    spreads = [variance_of(arm, "y", 1.0, other, times) / arm.n for arm in mine]
    variance = sum(w * w * s for w, s in zip(weights, spreads, strict=True))
    return top / bottom, variance / top**2
