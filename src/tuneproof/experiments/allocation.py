"""How large the candidate's share should be next, where the test may adapt it.

Adaptation is in steps: a phase has one fixed share, which is its logged propensity, and the next
phase may have another. So each phase is a plain randomised experiment, the stratified sequence
stays valid whatever the shares depend on, and a mean over all units is had by weighting phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuneproof.experiments.records import Part
from tuneproof.stats.aggregates import Stratum
from tuneproof.stats.contrasts import Contrast, contrast

__all__ = ["reweighted_lift", "thompson_share"]

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
    found = contrast(strata, min_units=2 * min_units_phase, min_units_phase=min_units_phase)
    if not isinstance(found, Contrast) or found.exact or not found.variance:
        return current
    from scipy.special import ndtr

    effect = found.lift if found.log_ratio is None else found.log_ratio
    share = float(ndtr(effect / math.sqrt(found.variance)))
    wanted = round(min(max(share, floor), ceiling), 2)
    return wanted if abs(wanted - current) >= STEP else current


def reweighted_lift(strata: Sequence[Stratum], *, alpha: float = 0.05) -> Part | None:
    """The lift over all units of the test, as if both arms had been served to each of them.

    Estimand: mean outcome of all enrolled units under the candidate over that under the
    baseline, minus 1. Augmented inverse-probability weighting with the phase as covariate, which
    for one propensity a phase is post-stratification: μ_a = Σ_p (N_p/N) ȳ_pa, variance
    Σ_p (N_p/N)² s²_pa/n_pa (Robins, Rotnitzky and Zhao 1994, JASA 89:846). The interval is
    normal, for one look. None where a phase has fewer than 2 units in an arm, or a mean is 0.

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> early = Stratum(baseline=Aggregate.of([0.1, 0.3] * 90), candidate=Aggregate.of([0.2] * 20))
    >>> late = Stratum(baseline=Aggregate.of([0.2, 0.6] * 50), candidate=Aggregate.of([0.4] * 100))
    >>> abs(round(reweighted_lift([early, late]).lift, 9))
    0.0
    """
    used = [s for s in strata if s.baseline.n or s.candidate.n]
    if not used or any(min(s.baseline.n, s.candidate.n) < 2 for s in used):
        return None
    whole = sum(s.baseline.n + s.candidate.n for s in used)
    means, variances = [0.0, 0.0], [0.0, 0.0]
    for s in used:
        weight = (s.baseline.n + s.candidate.n) / whole
        for place, arm in enumerate((s.baseline, s.candidate)):
            mean = arm.sum_y / arm.n
            spread = max(arm.sum_yy - arm.n * mean * mean, 0.0) / (arm.n - 1)
            means[place] += weight * mean
            variances[place] += weight * weight * spread / arm.n
    if min(means) <= 0:
        return None
    from scipy.special import ndtri

    error = math.sqrt(sum(v / m**2 for v, m in zip(variances, means, strict=True)))
    centre, reach = math.log(means[1] / means[0]), float(ndtri(1 - alpha / 2)) * error
    return Part(
        lift=math.expm1(centre),
        lower=math.expm1(centre - reach),
        upper=math.expm1(centre + reach),
        n_baseline=sum(s.baseline.n for s in used),
        n_candidate=sum(s.candidate.n for s in used),
    )
