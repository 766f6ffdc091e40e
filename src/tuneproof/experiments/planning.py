"""What a cycle will find on this traffic, how long it takes and what it costs, before it starts.

Everything comes from the task's own history: how many posts an hour, how widely their rates
spread. The arithmetic is `stats.design`; nothing is drawn. A plan that cannot be made says why
and stops nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from tuneproof.collection import NO_TIME, PostQuery, Source, Totalling, Totals, Window
from tuneproof.errors import InputError
from tuneproof.experiments.families import largest_split
from tuneproof.experiments.records import Criterion, Variant
from tuneproof.settings import PipelineConfig
from tuneproof.settings.recipes import PROMPT, Recipe
from tuneproof.stats import design
from tuneproof.stats.aggregates import Aggregate
from tuneproof.training import TimeEstimate, duration

__all__ = ["CyclePlan", "History", "Prices", "plan_cycle", "read_history", "untried"]

POWER = 0.8
"""The share of tests in which the lift is to be found, for the days that are named."""

NO_LIFT = "a relative lift needs a mean above 0"
"""Why a metric whose mean is 0 or less cannot be tested."""

LOWEST = -9e9
"""No rate is below it."""

LONGEST_H = 24.0 * 365
CHUNK = 5000


@dataclass(frozen=True, kw_only=True)
class History:
    """What was published in a stretch: how much, and how it did. `tokens` is a post's mean.

    `noun` is what is counted: posts with their rates, or units with their outcomes.

    `units` are the posts with a rate of 0..1; beside them `negative` have one below 0,
    `negative_rates` in all.
    """

    units: Aggregate
    hours: float
    tokens: float | None = None
    negative: int = 0
    negative_rates: float = 0.0
    noun: str = "post"

    @property
    def below_zero(self) -> float | None:
        """The mean over all posts where that is below 0; else None."""
        if not self.units.n + self.negative:
            return None
        mean = (self.units.sum_y + self.negative_rates) / (self.units.n + self.negative)
        return mean if mean < 0 else None

    @property
    def per_hour(self) -> float:
        """Posts an hour."""
        return self.units.n / self.hours if self.hours > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Prices:
    """USD per million tokens; None where the settings do not say.

    `answers` are those of a trained candidate, `untrained` those of each other one that is to be
    tested, in the order of the recipes; None: of all that the settings name, as trained ones.
    """

    training: float | None = None
    answers: float | None = None
    untrained: tuple[float | None, ...] | None = None

    def of_candidates(self, config: PipelineConfig, candidates: int | None) -> list[float | None]:
        """The price of the answers of each candidate; `candidates` says how many, where it is
        not as the settings say."""
        trained = [self.answers] * (config.candidates * config.trains)
        untrained = self.untrained
        if untrained is None:
            untrained = (self.answers,) * len(config.untrained)
        found = [*trained, *untrained]
        if candidates is None:
            return found
        return [*found, *[self.answers] * candidates][:candidates]


def untried(
    config: PipelineConfig, in_use: Variant, place: Callable[[str], str] = str
) -> tuple[Recipe, ...]:
    """The candidates for which nothing is trained, without those that are in use already.

    `place` is the name by which a provider is known of a model that is in use. What a prompt says,
    other than by its hash, is not looked at: it is taken to be a new one.
    """
    return tuple(one for one in config.untrained if not _serves(in_use, one, config, place))


def _serves(
    in_use: Variant, recipe: Recipe, config: PipelineConfig, place: Callable[[str], str]
) -> bool:
    if recipe.make == PROMPT and (recipe.hash is None or recipe.hash != in_use.prompt):
        return False
    if recipe.model is None:
        return True
    name = recipe.provider or config.provider
    served_by = in_use.provider or config.provider
    return recipe.model == in_use.model_id and served_by in (name, place(name))


@dataclass(frozen=True, kw_only=True)
class CyclePlan:
    """What one cycle of the loop will find and cost.

    `probability` is the chance that a true `lift` is found significant within `hours` of
    enrolment, at the two-sided level `alpha` that is left for promoting; `promoted` that it is
    promoted; `needed_h` the enrolment that finds it in 80 % of tests (None: more than a year).
    They are None where `reason` says why nothing can be planned, and so is `mean` unless that is
    below 0. Costs are in USD, None where no price is set, and without the answers of those
    candidates that are `unpriced`; `training_s` is how long the training
    takes, None where none before tells. Where several `candidates` are tested at once, all but
    the costs is about one of them.
    """

    lift: float
    share: float
    hours: float
    alpha: float
    decision: str
    units_per_hour: float | None = None
    mean: float | None = None
    cv: float | None = None
    probability: float | None = None
    promoted: float | None = None
    needed_h: float | None = None
    training_cost_usd: float | None = None
    answers_cost_usd: float | None = None
    training_s: float | None = None
    reason: str = ""
    candidates: int = 1
    unpriced: int = 0

    @property
    def cost_usd(self) -> float | None:
        """Training and the candidate's answers, as far as prices are known."""
        known = [c for c in (self.training_cost_usd, self.answers_cost_usd) if c is not None]
        return sum(known) if known else None

    def sentence(self) -> str:
        """This plan in words."""
        if self.probability is None:
            return f"Nothing can be planned: {self.reason}.{self._time()}"
        what = f"find {self.lift:+.0%}" if self.lift else "show that engagement does not fall"
        if self.needed_h is None:
            finds = f"This traffic would not {what} within a year"
        else:
            finds = f"This traffic can {what} in {_days(self.needed_h)}"
        each = f" for each of {self.candidates} candidates" if self.candidates > 1 else ""
        return (
            f"{finds} at {self.share:.0%} share{each}; within the {_days(self.hours)} allowed, "
            f"{self.probability:.0%} of such tests find it. {self._cost()}{self._time()}"
        )

    def _cost(self) -> str:
        priced = self.unpriced < self.candidates
        why = "how many tokens an answer has is not known" if priced else "no price is set"
        if self.cost_usd is None:
            return f"What the cycle costs is unknown: {why}."
        said = f"This cycle costs about ${self.cost_usd:,.2f}"
        if self.answers_cost_usd is None and priced:
            return f"{said}, without the answers: {why}."
        if not self.unpriced:
            return f"{said}."
        of = "" if self.unpriced == self.candidates else f" of {self.unpriced} of its candidates"
        return f"{said}, without the answers{of}, whose price is not set."

    def _time(self) -> str:
        return f" Its training takes about {duration(self.training_s)}." if self.training_s else ""


async def read_history(source: Source, window: Window) -> History:
    """The posts of a window as one aggregate: summed by the source itself where it can.

    Posts without a time or a rate, or with a rate outside 0..1, are left out.
    """
    found = await source.totals(window) if isinstance(source, Totalling) else None
    if found is None:
        found = await _summed(source, window)
    since = max(window.since, found.first) if found.first is not None else window.since
    return History(
        units=Aggregate(n=found.n, sum_y=found.rates, sum_yy=found.squares),
        hours=max((window.until - since).total_seconds() / 3600, 1.0),
        tokens=found.tokens / found.counted if found.counted else None,
        negative=found.negative,
        negative_rates=found.negative_rates,
    )


async def _summed(source: Source, window: Window) -> Totals:
    """The totals of a source that hands each post over."""
    seen = Aggregate()
    tokens, counted, negative = 0, 0, list[float]()
    first: datetime | None = None
    query = PostQuery(window=window, threshold=LOWEST, max_records=None, chunk_size=CHUNK)
    async for chunk in source.posts(query):
        rates = []
        for post in chunk:
            rate = post.engagement_rate
            if rate is not None and rate < 0 and post.ts is not NO_TIME:
                negative.append(rate)
            if rate is None or not 0 <= rate <= 1 or post.ts is NO_TIME:
                continue
            rates.append(rate)
            first = post.ts if first is None else min(first, post.ts)
            if post.tokens_used:
                tokens, counted = tokens + post.tokens_used, counted + 1
        if rates:
            seen = seen + Aggregate.of(rates)
    return Totals(
        n=seen.n,
        rates=seen.sum_y,
        squares=seen.sum_yy,
        first=first,
        tokens=tokens,
        counted=counted,
        negative=len(negative),
        negative_rates=math.fsum(negative),
    )


def plan_cycle(
    history: History,
    config: PipelineConfig,
    *,
    alpha: float | None = None,
    lift: float | None = None,
    trained_tokens: float | None = None,
    training: TimeEstimate | None = None,
    prices: Prices | None = None,
    candidates: int | None = None,
) -> CyclePlan:
    """What a cycle with this configuration finds on traffic like that of `history`.

    `alpha` is the two-sided level left for promoting (default: the test's own); `lift` the true
    effect to plan for (default: the required lift; with `decision="confirmed"` one and a half
    times that, since the bound itself must exceed it); `trained_tokens` what would be trained
    and `training` how long that takes; `candidates` how many are tested at once (default: as the
    settings, and the `prices` of the untrained, say). They share the level and the baseline. Raises
    `InputError` where their shares leave the baseline too little.
    """
    prices = prices or Prices()
    lanes = prices.of_candidates(config, candidates)
    count = len(lanes)
    if count or candidates is not None:
        _check_shares(count, config.traffic_split)
    level = (config.significance_threshold if alpha is None else alpha) / max(count, 1)
    wanted = _lift(config) if lift is None else lift
    blank = CyclePlan(
        lift=wanted,
        share=config.traffic_split,
        hours=config.a_b_test_duration_hours,
        alpha=level,
        decision=config.decision,
        training_s=0.0 if not config.trains else training.seconds if training else None,
        candidates=count,
    )
    if not count:
        return replace(blank, reason="each candidate that the recipes name is in use")
    why = _unplannable(history, wanted, config)
    if why:
        return replace(blank, reason=why, mean=history.below_zero)
    both = 1 - (count - 1) * config.traffic_split  # of the units: one candidate and the baseline
    traffic = design.Traffic(
        units_per_hour=history.per_hour * both,
        share=config.traffic_split / both,
        cv=design.coefficient_of_variation(history.units),
    )
    found = _finder(config, traffic, wanted, level)
    hours = config.a_b_test_duration_hours
    answers = history.per_hour * hours * config.traffic_split * (history.tokens or 0)
    known = [price for price in lanes if price is not None]
    return replace(
        blank,
        units_per_hour=history.per_hour,
        mean=history.units.sum_y / history.units.n,
        cv=traffic.cv,
        probability=found(hours),
        promoted=_promoted(config, traffic, wanted, level),
        needed_h=_shortest(found),
        training_cost_usd=_price(prices.training, trained_tokens) if config.trains else 0.0,
        answers_cost_usd=_answers(math.fsum(known), answers) if known else None,
        unpriced=count - len(known),
    )


def _check_shares(candidates: int, split: float) -> None:
    if candidates < 1 or split > largest_split(candidates) + 1e-9:
        raise InputError(
            f"{candidates} candidates cannot have {split:.4g} of the units each.",
            mend=f"Plan for at most {largest_split(max(candidates, 1)):.4g} each, so that the "
            "baseline has as many units as a candidate.",
            field="candidates",
        )


def _unplannable(history: History, lift: float, config: PipelineConfig) -> str:
    noun = history.noun
    if config.analysis_unit == "item":
        return "items are counted, and the history does not say which posts share a unit"
    if history.below_zero is not None:
        return f"the mean rate of the {noun}s is {history.below_zero:.3g}: {NO_LIFT}"
    if history.units.n < 2:
        return f"there are {history.units.n} {noun}s with a rate to learn from"
    if history.units.sum_y <= 0:
        return f"no {noun} had any engagement"
    if design.coefficient_of_variation(history.units) == 0:
        return f"all {noun}s had the same rate"
    if lift <= -1:
        return f"a lift of {lift:+.0%} cannot be"
    return ""


def _lift(config: PipelineConfig) -> float:
    required = _required(config)
    if required is None or required <= 0:
        return 0.15 if required is not None else 0.0
    return required * 1.5 if config.decision == "confirmed" else required


def _required(config: PipelineConfig) -> float | None:
    """The lift that is asked for; None where engagement must only not fall."""
    asked = [Criterion.parse(text) for text in config.criteria]
    if not asked:
        return config.min_engagement_lift
    rises = [c.margin for c in asked if (c.metric, c.kind) == ("engagement", "superior")]
    return max(rises, default=None)


def _finder(
    config: PipelineConfig, traffic: design.Traffic, lift: float, alpha: float
) -> Callable[[float], float]:
    """The probability of finding the lift, by the hours of enrolment."""
    required = _required(config)
    if required is None:
        return lambda hours: _not_worse(config, traffic, lift, alpha, hours)
    if config.decision == "spec":
        return lambda hours: (
            design.declared_looks(
                traffic, lift=lift, hours=hours, alpha_one_sided=alpha / 2
            ).probability
        )
    return lambda hours: (
        design.sequence(
            traffic,
            lift=lift,
            hours=hours,
            every_h=hours / 100,
            alpha=alpha,
            above=required,
            min_units=config.min_units,
        ).probability
    )


def _not_worse(
    config: PipelineConfig, traffic: design.Traffic, lift: float, alpha: float, hours: float
) -> float:
    margins = [c.margin for c in map(Criterion.parse, config.criteria) if c.metric == "engagement"]
    if not margins:
        return 1.0
    return design.sequence(
        traffic,
        lift=lift,
        hours=hours,
        every_h=hours / 100,
        alpha=alpha,
        above=-min(min(margins), 0.99),
        min_units=config.min_units,
    ).probability


def _promoted(
    config: PipelineConfig, traffic: design.Traffic, lift: float, alpha: float
) -> float | None:
    required = _required(config)
    if required is None:
        return None
    return design.plan(
        traffic,
        lift=lift,
        hours=config.a_b_test_duration_hours,
        required_lift=required,
        alpha=alpha,
        decision=config.decision,
    ).probability


def _shortest(found: Callable[[float], float]) -> float | None:
    """The shortest enrolment, in whole hours, that finds it in `POWER` of tests."""
    low, high = 0.0, 24.0
    while found(high) < POWER:
        if high >= LONGEST_H:
            return None
        low, high = high, min(high * 2, LONGEST_H)
    while high - low > 1:
        middle = float(math.floor((low + high) / 2))
        low, high = (low, middle) if found(middle) >= POWER else (middle, high)
    return math.ceil(high)


def _answers(per_million: float, tokens: float) -> float | None:
    """What so many tokens of answers cost; without tokens known of those that cost nothing."""
    return 0.0 if per_million == 0 else _price(per_million, tokens or None)


def _price(per_million: float | None, tokens: float | None) -> float | None:
    return None if per_million is None or tokens is None else per_million * tokens / 1e6


def _days(hours: float) -> str:
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.1f} days"
