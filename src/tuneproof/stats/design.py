"""What a test will find, and when, before it starts.

It exists so that nobody trains a model whose test cannot succeed on this traffic. Everything is
computed, not drawn: closed forms for one look, first crossings of a Brownian motion for the
sequence and for declared looks. Exact for any split; it knows the outcome's relative spread and
the traffic, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneproof.errors import DataError, InputError
from tuneproof.stats.aggregates import Aggregate
from tuneproof.stats.brownian import first_crossing
from tuneproof.stats.effects import variance_of
from tuneproof.stats.sequential import critical_value
from tuneproof.stats.spending import Spending, bounds

__all__ = [
    "DECLARED_LOOKS",
    "PowerPlan",
    "Traffic",
    "coefficient_of_variation",
    "declared_looks",
    "duration_hours",
    "minimum_detectable_effect",
    "plan",
    "power",
    "sample_size",
    "sequence",
    "standard_error",
]

DECLARED_LOOKS: tuple[float, ...] = (3 / 7, 5 / 7, 1.0)
"""The declared looks as shares of the duration: days 3, 5 and 7 of a week."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What a task's traffic allows.

    `units_per_hour` of both arms; `share` (0..1) of them to the candidate; `cv` the outcome's
    standard deviation over its mean (`coefficient_of_variation`). Raises `InputError` for values
    out of range.
    """

    units_per_hour: float
    share: float = 0.1
    cv: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.units_per_hour) and self.units_per_hour > 0):
            raise InputError(
                f"units_per_hour {self.units_per_hour!r} is not positive.",
                mend="Give the units that both arms together see in an hour.",
            )
        _check_design(self.cv, self.share)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerPlan:
    """What a rule does at one true lift on one traffic.

    `probability` of deciding upwards by the end, `wrong` of deciding downwards; `median_h` and
    `mean_h` the time to the upward decision (`median_h` None when fewer than half get there;
    `mean_h` counts the whole duration for those that do not). `by_look` is the probability of
    having decided upwards by each look at `hours`.
    """

    lift: float
    probability: float
    wrong: float
    median_h: float | None
    mean_h: float
    units: int
    hours: tuple[float, ...]
    by_look: tuple[float, ...]
    rule: str

    def sentence(self) -> str:
        """This plan in words, for the screen.

        >>> t = Traffic(units_per_hour=20, share=0.1, cv=0.8)
        >>> sequence(t, lift=0.2, hours=168).sentence()
        'a true +20 % is found in 88 % of tests within 7.0 days, half of them in 3.5 days'
        """
        whole = f"within {self.hours[-1] / 24:.1f} days"
        found = (
            f"a true {self.lift * 100:+.3g} % is found in {self.probability * 100:.0f} % of tests"
        )
        half = "" if self.median_h is None else f", half of them in {self.median_h / 24:.1f} days"
        return f"{found} {whole}{half}"


def coefficient_of_variation(aggregate: Aggregate) -> float:
    """Standard deviation over mean of `y`: what the log-ratio's variance needs of the history.

    Exactly 0 where all units are equal. Raises `DataError` for fewer than 2 units or a mean that
    is not positive.

    >>> round(coefficient_of_variation(Aggregate.of([1.0, 2.0, 3.0])), 6)
    0.5
    >>> coefficient_of_variation(Aggregate.of([0.1] * 7))
    0.0
    """
    if aggregate.n < 2:
        raise DataError(f"{aggregate.n} units have no spread.", mend="Give at least 2 units.")
    mean = aggregate.sum_y / aggregate.n
    if mean <= 0:
        raise DataError(f"the mean is {mean:g}, not positive.", mend="Give past outcomes.")
    return math.sqrt(variance_of(aggregate, "y")) / mean


def standard_error(units: float, *, cv: float, share: float = 0.1) -> float:
    """The standard error of the log-ratio with `units` in both arms together.

    cv sqrt(1/(share n) + 1/((1 - share) n)): the delta method, for equal relative spread.

    >>> round(standard_error(1000, cv=1.0, share=0.1), 6)
    0.105409
    """
    _check_design(cv, share)
    if not units > 0:
        raise InputError(f"units {units!r} is not positive.", mend="Give 1 or more.")
    # Two roots: the product of two numbers close to 0 would be 0.
    return cv / (math.sqrt(units) * math.sqrt(share * (1 - share)))


def power(
    units: float, *, lift: float, cv: float, share: float = 0.1, alpha: float = 0.05
) -> float:
    """The probability that one two-sided test at `alpha` finds a true `lift` with its sign.

    Estimand: P(z > z_{1-alpha/2}) for a lift above 0, of the other tail for one below.
    Φ(|log(1 + lift)| / standard error - z_{1-alpha/2}). At a lift of 0 it is alpha/2. Raises
    `InputError` for a lift at or below -1.

    >>> round(power(3360, lift=0.2, cv=0.8078, share=0.1), 3)
    0.975
    """
    from scipy.special import ndtr, ndtri

    _check_alpha(alpha)
    effect = abs(_log(lift)) / standard_error(units, cv=cv, share=share)
    return float(ndtr(effect - ndtri(1 - alpha / 2)))


def sample_size(
    *, lift: float, cv: float, share: float = 0.1, power: float = 0.8, alpha: float = 0.05
) -> int:
    """The units in both arms together that one two-sided test needs to find a true `lift`.

    n = (z_{1-alpha/2} + z_power)² cv² / (share (1 - share) log(1 + lift)²), rounded up; exact
    for any split. Raises `InputError` for a lift of 0: no number of units finds nothing.

    >>> sample_size(lift=0.2, cv=0.8078, share=0.1), sample_size(lift=0.2, cv=0.8078, share=0.5)
    (1712, 617)
    """
    from scipy.special import ndtri

    _check_alpha(alpha)
    _check_design(cv, share)
    if not 0 < power < 1:
        raise InputError(f"power {power!r} is outside (0, 1).", mend="Give e.g. 0.8.")
    effect = _log(lift)
    if effect == 0:
        raise InputError("a lift of 0 is never found.", mend="Give the lift that matters.")
    reach = float(ndtri(1 - alpha / 2) + ndtri(power))
    return math.ceil((reach * cv / effect) ** 2 / (share * (1 - share)))


def minimum_detectable_effect(
    units: float, *, cv: float, share: float = 0.1, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest lift above 0 that one two-sided test with `units` finds at this power.

    expm1((z_{1-alpha/2} + z_power) · standard error).

    >>> round(minimum_detectable_effect(1712, cv=0.8078, share=0.1), 3)
    0.2
    """
    from scipy.special import ndtri

    _check_alpha(alpha)
    if not 0 < power < 1:
        raise InputError(f"power {power!r} is outside (0, 1).", mend="Give e.g. 0.8.")
    reach = float(ndtri(1 - alpha / 2) + ndtri(power))
    return math.expm1(reach * standard_error(units, cv=cv, share=share))


def sequence(
    traffic: Traffic,
    *,
    lift: float,
    hours: float = 168.0,
    every_h: float = 1.0,
    alpha: float = 0.05,
    optimum_n: float | None = None,
    min_units: int = 100,
    above: float = 0.0,
    not_before_h: float = 0.0,
) -> PowerPlan:
    """When the confidence sequence, looked at every `every_h` hours, finds a true `lift`.

    Decided upwards when the lower bound is above the lift `above` (0 for "significant"; the
    required lift for `decision="confirmed"`, minus the margin for non-inferiority), downwards
    when the upper bound is below 0. Looks begin when the smaller arm is expected to have
    `min_units`, and at `not_before_h`.
    `optimum_n` as in `sequential.lift`, by default half of the planned units. Assumes a normal
    log-ratio and even traffic; computed by first crossings, without chance.

    >>> t = Traffic(units_per_hour=20, share=0.1, cv=0.8078)
    >>> p = sequence(t, lift=0.0); p.probability + p.wrong < 0.05
    True
    """
    effect = _log(lift)
    target = _log(above)
    looks = _looks(traffic, hours, every_h, max(min_units, 1), not_before_h)
    tuned = optimum_n or max(traffic.units_per_hour * hours / 2, 1.0)
    units = [traffic.units_per_hour * h for h in looks]
    errors = [standard_error(n, cv=traffic.cv, share=traffic.share) for n in units]
    reach = [critical_value(n, alpha=alpha, optimum_n=tuned) for n in units]
    upper = [c + target / e for c, e in zip(reach, errors, strict=True)]
    return _plan(traffic, effect, lift, hours, looks, upper, [-c for c in reach], "sequence")


def declared_looks(
    traffic: Traffic,
    *,
    lift: float,
    hours: float = 168.0,
    fractions: Sequence[float] = DECLARED_LOOKS,
    required_lift: float = 0.0,
    alpha_one_sided: float = 0.025,
    spending: Spending = "obrien_fleming",
) -> PowerPlan:
    """How often the group-sequential rule decides upwards at a true `lift`.

    Decided at a declared look when z reaches its bound and the observed lift is above
    `required_lift` (the default rule, `decision="spec"`, has 0.15).

    >>> t = Traffic(units_per_hour=20, share=0.1, cv=0.8078)
    >>> round(declared_looks(t, lift=0.2).probability, 2)
    0.97
    """
    effect = _log(lift)
    target = _log(required_lift) if required_lift else -math.inf
    looks = [f * hours for f in fractions]
    limits = bounds(fractions, alpha_one_sided=alpha_one_sided, spending=spending)
    errors = [
        standard_error(traffic.units_per_hour * h, cv=traffic.cv, share=traffic.share)
        for h in looks
    ]
    upper = [max(b, target / e) for b, e in zip(limits, errors, strict=True)]
    lower = [-math.inf] * len(looks)
    return _plan(traffic, effect, lift, hours, looks, upper, lower, "declared looks")


def duration_hours(
    traffic: Traffic,
    *,
    lift: float,
    power: float = 0.8,
    alpha: float = 0.05,
    min_units: int = 100,
    longest_h: float = 24.0 * 365,
) -> float | None:
    """The shortest enrolment, in whole hours, in which the sequence finds `lift` at this power.

    The sequence is looked at 100 times, tuned to half of its duration. None where even
    `longest_h` is too short.

    >>> duration_hours(Traffic(units_per_hour=20, share=0.1, cv=0.8078), lift=0.2) < 200
    True
    """

    def enough(hours: float) -> bool:
        found = sequence(
            traffic, lift=lift, hours=hours, every_h=hours / 100, alpha=alpha, min_units=min_units
        )
        return found.probability >= power

    if _log(lift) <= 0:
        raise InputError(f"lift {lift!r} is not above 0.", mend="Give the lift that matters.")
    low, high = 1.0, min(24.0, longest_h)
    while not enough(high):
        if high >= longest_h:
            return None
        low, high = high, min(high * 2, longest_h)
    while high - low > 1:
        middle = float(math.floor((low + high) / 2))
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.ceil(high)


def plan(
    traffic: Traffic,
    *,
    lift: float = 0.15,
    hours: float = 168.0,
    required_lift: float = 0.15,
    alpha: float = 0.05,
    decision: str = "spec",
) -> PowerPlan:
    """What the pipeline's promotion rule does at a true `lift` on this traffic.

    `decision` "spec": declared looks, significant and point above `required_lift`; "confirmed":
    the sequence's lower bound above it, hourly, after 7 full days. Raises `InputError` for
    another word.

    >>> t = Traffic(units_per_hour=20, share=0.1, cv=0.8078)
    >>> round(plan(t, lift=0.2).probability, 2)
    0.87
    """
    if decision == "spec":
        return declared_looks(
            traffic, lift=lift, hours=hours, required_lift=required_lift, alpha_one_sided=alpha / 2
        )
    if decision == "confirmed":
        return sequence(
            traffic, lift=lift, hours=max(hours, 168.0), alpha=alpha, above=required_lift,
            not_before_h=168.0,
        )  # fmt: skip
    raise InputError(f"decision {decision!r} is unknown.", mend="Use 'spec' or 'confirmed'.")


def _looks(
    traffic: Traffic, hours: float, every_h: float, min_units: int, not_before_h: float
) -> list[float]:
    if not (hours > 0 and every_h > 0):
        raise InputError(
            f"hours {hours!r} and every_h {every_h!r} must be positive.", mend="Give e.g. 168, 1."
        )
    smaller = min(traffic.share, 1 - traffic.share) * traffic.units_per_hour
    first = max(min_units / smaller, not_before_h)
    count = math.floor(hours / every_h + 1e-9)
    return [h for h in (every_h * i for i in range(1, count + 1)) if h >= first - 1e-9]


def _plan(
    traffic: Traffic,
    effect: float,
    lift: float,
    hours: float,
    looks: Sequence[float],
    upper: Sequence[float],
    lower: Sequence[float],
    rule: str,
) -> PowerPlan:
    per_unit = 1 / standard_error(1, cv=traffic.cv, share=traffic.share)
    units = [traffic.units_per_hour * h for h in looks]
    crossing = first_crossing(units, upper, lower, drift=effect * per_unit)
    reached, total = [], 0.0
    for p in crossing.above:
        total += p
        reached.append(total)
    median = next((h for h, p in zip(looks, reached, strict=True) if p >= 0.5), None)
    spent = sum(h * p for h, p in zip(looks, crossing.above, strict=True))
    return PowerPlan(
        lift=lift,
        probability=total,
        wrong=crossing.ever_below,
        median_h=median,
        mean_h=spent + (1 - total) * hours,
        units=math.ceil(traffic.units_per_hour * hours),
        hours=tuple(looks) or (hours,),
        by_look=tuple(reached) or (0.0,),
        rule=rule,
    )


def _log(lift: float) -> float:
    if not (math.isfinite(lift) and lift > -1):
        raise InputError(f"lift {lift!r} is not a finite share above -1.", mend="+15 % is 0.15.")
    return math.log1p(lift)


def _check_design(cv: float, share: float) -> None:
    if not (math.isfinite(cv) and cv > 0):
        raise InputError(
            f"cv {cv!r} is not positive.", mend="Give standard deviation over mean of past data."
        )
    if not 0 < share < 1:
        raise InputError(f"share {share!r} is outside (0, 1).", mend="10 % is 0.1.")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha {alpha!r} is outside (0, 1).", mend="Give e.g. 0.05.")
