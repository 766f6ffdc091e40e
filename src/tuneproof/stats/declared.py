"""A test that is looked at a few declared times: sharper there than the sequence, and only there.

It exists for rules that name their days ("on day 3, 5 and 7"). It takes its bounds from
`spending` and its estimate from `contrasts`; it knows no calendar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tuneproof.errors import InputError
from tuneproof.stats.aggregates import Stratum
from tuneproof.stats.contrasts import Contrast, contrast
from tuneproof.stats.effects import ENGAGEMENT, Metric
from tuneproof.stats.spending import Spending, bounds, stagewise_p_value

__all__ = ["GroupSequentialEstimate", "group_sequential"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSequentialEstimate:
    """One declared look. Numbers are None where `reason` says why there is no answer.

    `p_value` is stage-wise and one-sided (for an increase); `lower` and `upper` are the repeated
    confidence interval at 1 - 2 alpha_one_sided; `significant` is z ≥ `bound`. `information` is
    in units of the first phase, to be handed to later looks as `information_before`.
    """

    lift: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    z: float | None
    bound: float | None
    significant: bool
    look: int
    fraction: float
    n_baseline: int
    n_candidate: int
    method: str
    reason: str
    phases: tuple[str, ...] = ()
    information: float | None = None


def group_sequential(
    strata: Sequence[Stratum],
    *,
    fractions: Sequence[float],
    information_before: Sequence[float] = (),
    alpha_one_sided: float = 0.025,
    spending: Spending = "obrien_fleming",
    metric: Metric = ENGAGEMENT,
    min_units: int = 100,
    min_units_phase: int = 50,
) -> GroupSequentialEstimate:
    """One declared look at the lift, with Lan-DeMets bounds.

    `fractions` are the information fractions of all looks so far, this one last: `[3/7]`, then
    `[3/7, 5/7]`, then `[3/7, 5/7, 1]`. Estimand as `lift`; z is the log-ratio over its standard
    error. Assumes that the looks were declared and that no earlier look was significant. Error
    over all looks: `alpha_one_sided`. A look without an answer still has its fraction: it spends,
    which is conservative.

    Where the split changed on the way, information does not run with the calendar: give the
    earlier looks' `information` as `information_before`, one each, and the bounds are exact;
    where it has not risen, the calendar is used, which errs on the side of caution.
    Without it they take the fractions for it; a ramp from 10 to 50 % then has an error of 2.7
    instead of 2.5 % (measured). Raises `InputError` for fractions that do not rise in (0, 1].

    >>> from tuneproof.stats.aggregates import Aggregate
    >>> b, c = Aggregate.of([0.1, 0.3] * 500), Aggregate.of([0.2, 0.3] * 500)
    >>> g = group_sequential([Stratum(baseline=b, candidate=c)], fractions=[3 / 7])
    >>> g.significant, round(g.bound, 3), g.look
    (True, 3.231, 1)
    """
    if not fractions:
        raise InputError("no look was given.", mend="Give the fractions of all looks so far.")
    answer = contrast(strata, metric, min_units=min_units, min_units_phase=min_units_phase)
    times = None
    if information_before and isinstance(answer, Contrast):
        times = _rising([*information_before, answer.n])
    bound = bounds(
        fractions, alpha_one_sided=alpha_one_sided, spending=spending, information=times
    )[-1]
    look = _Look(z=None, bound=bound, lower=None, upper=None, p_value=None, significant=False)
    if isinstance(answer, Contrast):
        look = _judge_look(answer, bound)
        if look.z is not None:
            p_value = stagewise_p_value(
                look.z, fractions, alpha_one_sided=alpha_one_sided, spending=spending,
                information=times,
            )  # fmt: skip
            look = replace(look, p_value=p_value)
    method = f"group-sequential, {spending.replace('_', '-')} spending"
    found = answer if isinstance(answer, Contrast) else None
    return GroupSequentialEstimate(
        lift=found.lift if found else None,
        lower=look.lower,
        upper=look.upper,
        p_value=look.p_value,
        z=look.z,
        bound=bound,
        significant=look.significant,
        look=len(fractions),
        fraction=fractions[-1],
        n_baseline=answer.n_baseline,
        n_candidate=answer.n_candidate,
        method="arithmetic" if found and found.exact else method,
        reason="" if isinstance(answer, Contrast) else answer.reason,
        phases=found.phases if found else (),
        information=found.n if found else None,
    )


def _rising(information: list[float]) -> list[float] | None:
    """These, or None where they do not rise: no unit came since, or a lane was left out.

    The calendar then stands for them. It takes the looks for less correlated than they are, and
    with the same bounds a higher correlation makes any crossing rarer (Slepian 1962).
    """
    return information if all(a < b for a, b in pairwise(information)) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    z: float | None
    bound: float
    lower: float | None
    upper: float | None
    p_value: float | None
    significant: bool


def _judge_look(answer: Contrast, bound: float) -> _Look:
    if answer.exact:
        return _Look(
            z=None, bound=bound, lower=answer.lift, upper=answer.lift, p_value=None,
            significant=answer.lift > 0,
        )  # fmt: skip
    error = math.sqrt(answer.variance)
    lower, upper = answer.interval(bound * error)
    z = (answer.lift if answer.log_ratio is None else answer.log_ratio) / error
    return _Look(z=z, bound=bound, lower=lower, upper=upper, p_value=None, significant=z >= bound)
