"""What experiments are made of: tests, arms, events, looks, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NotRequired, TypedDict

from tuneproof.errors import InputError
from tuneproof.settings import Declaration
from tuneproof.stats.aggregates import Aggregate, Histogram, Stratum, merge
from tuneproof.stats.effects import (
    ENGAGEMENT,
    ENGAGEMENT_CUPED,
    ENGAGEMENT_PER_ITEM,
    Metric,
    quantile,
)


class Arm(StrEnum):
    """The two sides of an experiment or a rollout."""

    BASELINE = "baseline"  # the model in use
    CANDIDATE = "candidate"  # the version that wants its place


class Verdict(StrEnum):
    """What a look says."""

    PROMOTE = "promote"  # all success criteria hold
    REJECT = "reject"  # harm, futility, or the end of the test without success
    CONTINUE = "continue"  # not enough known yet
    INVALID = "invalid"  # a precondition failed (a broken split): the data answer nothing


class ExperimentStatus(StrEnum):
    """Where an experiment stands."""

    RUNNING = "running"  # enrols or matures
    COMPLETED = "completed"  # has its verdict
    ABORTED = "aborted"  # its run was aborted, or a person ended it


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What a candidate must show to be promoted. Shares, not percent."""

    min_engagement_lift: float = 0.15
    min_cost_efficiency_gain: float = 0.10
    significance_threshold: float = 0.05


METRICS = ("engagement", "cost", "quality", "latency")
"""What a criterion can be about."""

KINDS = ("superior", "non_inferior")
"""Better by more than the margin, or worse by no more than the margin."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One thing that a candidate must show. All criteria of a test must hold at the same look.

    `superior`: better by more than `margin`; `non_inferior`: worse by no more than `margin`.
    Margins are relative shares, but for `latency`, which is about the share of requests slower
    than the limit: there the margin is absolute (0.01 is one request in a hundred).
    """

    metric: str
    kind: str
    margin: float

    def checked(self) -> Criterion:
        """This criterion. Raises `InputError` for an unknown metric or kind, or a bad margin."""
        if self.metric not in METRICS or self.kind not in KINDS:
            raise InputError(
                f"There is no criterion {self.metric} {self.kind}.",
                mend=f"Use one of {', '.join(METRICS)}, and one of {', '.join(KINDS)}.",
            )
        if not 0 <= self.margin < 100 or (self.kind == "non_inferior" and not self.margin):
            raise InputError(
                f"The margin {self.margin:g} of {self.metric} {self.kind} is out of range.",
                mend="Give a share: 0.02 is 2 %; one of non-inferiority is above 0.",
            )
        return self

    def __str__(self) -> str:
        return f"{self.metric} {self.kind} {self.margin:g}"

    @classmethod
    def parse(cls, text: str) -> Criterion:
        """The criterion that `str` wrote: "quality non_inferior 0.02".

        Raises `InputError` for anything else.
        """
        try:
            metric, kind, margin = text.split()
            found = cls(metric=metric, kind=kind.replace("-", "_"), margin=float(margin))
        except ValueError as error:
            raise InputError(
                f"{text!r} is no criterion.", mend='Write e.g. "quality non_inferior 0.02".'
            ) from error
        return found.checked()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What an arm serves: a model and, maybe, a prompt.

    The model goes by the provider's name for it, and our version's id where it is one of ours.
    `provider` is who answers for it where it is none of ours: two providers may offer a model of
    the same name. None: whoever trained the version, else whoever last trained on this model.
    `prompt` is the hash of a prompt, whose content stands elsewhere: a variant is a key. None:
    the application's own, whatever that is.
    """

    model_id: str
    version: str | None = None
    provider: str | None = None
    label: str | None = field(default=None, compare=False)
    """What whoever named a model that is none of ours calls its version; told again, no more."""
    prompt: str | None = None

    def __str__(self) -> str:
        return self.model_id if self.prompt is None else f"{self.model_id} with {self.prompt}"

    def same_as(self, other: Variant) -> bool:
        """Whether both mean one model with one prompt, as far as both say it: two versions may
        bear one name at two providers, and one model may have two prompts."""
        if self.model_id != other.model_id:
            return False
        if self.prompt is not None and other.prompt is not None and self.prompt != other.prompt:
            return False
        for mine, theirs in ((self.version, other.version), (self.provider, other.provider)):
            if mine is not None and theirs is not None:
                return mine == theirs
        return True


@dataclass(frozen=True, kw_only=True)
class ABTest:
    """A declared experiment; nothing of it changes while it runs except `status` and `verdict`."""

    id: str
    run_id: str | None
    pipeline: str
    tasks: tuple[str, ...]
    baseline: Variant
    candidate: Variant
    declaration: Declaration
    """What was told beforehand; the traffic share is each candidate's, of all units."""
    status: ExperimentStatus
    start_at: datetime
    end_at: datetime
    family: str
    """The tests that began together against one baseline; of a test alone, its own id."""
    lane: int = 0
    """Which of the family's lanes this candidate has, from 0."""
    lanes: int = 1
    """How many candidates the family began with."""
    verdict: Verdict | None = None
    reason: str | None = None
    alpha: float | None = None
    """The chance of a false promotion that the pipeline's ledger leaves; None: there is none."""
    retest: int = 0
    """How often this candidate (or its dataset) had been tested before."""
    identity: tuple[str, ...] = ()
    """What makes a later candidate the same one: its model, its dataset."""

    @property
    def metric(self) -> Metric:
        """What engagement is in this test, by what was declared."""
        return engagement_metric(self.declaration)

    @property
    def guards_segments(self) -> bool:
        """Whether a segment that is harmed ends the test."""
        return self.declaration.segment_guardrail

    @property
    def salt(self) -> str:
        """What units are drawn into lanes and arms by: the lanes of a family share it."""
        return self.family

    @property
    def siblings(self) -> str | None:
        """The family that it shares its baseline with; None where it is alone."""
        return self.family if self.lanes > 1 else None

    @property
    def last_look_at(self) -> datetime:
        """When the last look is due: one maturation window after enrolment ends."""
        return self.end_at + timedelta(hours=self.declaration.maturation_hours)

    def counts(self, now: datetime) -> bool:
        """Whether what comes of its units can still count.

        It runs, or has its verdict before its time, or its lane is still baseline to its family.
        """
        if self.status is ExperimentStatus.RUNNING:
            return True
        ended_well = self.status is ExperimentStatus.COMPLETED or self.lanes > 1
        return ended_well and now < self.last_look_at

    @property
    def promotion_alpha(self) -> float:
        """The two-sided error at which a look may promote: the test's own, or the ledger's.

        Promotions are upwards only, so the ledger's share is one side of it. The candidates of a
        family share the declared error evenly; `alpha` is this candidate's part already.
        """
        declared = self.declaration.significance_threshold / self.lanes
        return declared if self.alpha is None else min(declared, 2 * self.alpha)

    @property
    def all_criteria(self) -> tuple[Criterion, ...]:
        """What must hold, all of it: the list, else the least lift and the least gain in cost."""
        told = self.declaration
        if told.criteria:
            return tuple(Criterion.parse(text) for text in told.criteria)
        lift, gain = told.min_engagement_lift, told.min_cost_efficiency_gain
        return (_at_least("engagement", lift), _at_least("cost", gain))


@dataclass(frozen=True, kw_only=True)
class ArmMetrics:
    """What one arm showed; None where there is nothing to say yet."""

    sample_size: int = 0
    engagement_rate: float | None = None
    p95_engagement: float | None = None
    cost_per_token: float | None = None
    cost_per_engagement: float | None = None
    response_time_ms: float | None = None
    quality_score: float | None = None
    cost_known: float | None = None
    """The share of the units whose cost is known: costs are theirs alone."""
    usage_known: float | None = None
    """The share of those whose tokens and cost are both known."""


def engagement_metric(declaration: Declaration) -> Metric:
    """Engagement as a declaration has it: a unit's mean, adjusted or not, or per item.

    >>> engagement_metric(Declaration(analysis_unit="item")).name
    'engagement per item'
    """
    if declaration.analysis_unit == "item":
        return ENGAGEMENT_PER_ITEM
    return ENGAGEMENT_CUPED if declaration.cuped else ENGAGEMENT


def _at_least(metric: str, needed: float) -> Criterion:
    """A negative requirement allows a loss, so it is a matter of not being worse by more."""
    if needed < 0:
        return Criterion(metric=metric, kind="non_inferior", margin=-needed)
    return Criterion(metric=metric, kind="superior", margin=needed)


@dataclass(frozen=True, kw_only=True)
class CriterionResult:
    """One metric at one look. A change is a share and positive where the candidate is better.

    `criterion` is None for a metric that nothing is asked of: it is shown for the trade-off.
    `holds` is None while neither is shown.
    """

    metric: str
    criterion: Criterion | None
    holds: bool | None
    change: float | None
    lower: float | None
    upper: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExpectedLift:
    """The lift to be expected once everybody has the candidate, beside the observed one.

    Shrunk towards the true log-lifts of the pipeline's past experiments (`prior_experiments` of
    them; 0: assumed), whose mean and standard deviation are `prior_mean` and `prior_sd` and
    whose whole distribution is in the look's inputs. `lower` and `upper` are the central 95 %
    credible interval, `weight` how much of the observed log-lift was kept. `lift` is expm1 of the
    log-lift's posterior mean; `mean_lift` the lift's own, a little larger, which adds up over
    candidates (None in looks taken before it was kept).
    """

    lift: float
    lower: float
    upper: float
    observed: float
    weight: float
    prior_mean: float
    prior_sd: float
    prior_experiments: int
    mean_lift: float | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """The lift in a part of the units, with a 95 % interval for this one look."""

    lift: float | None
    lower: float | None
    upper: float | None
    n_baseline: int
    n_candidate: int


@dataclass(frozen=True, kw_only=True)
class Halves:
    """First half of the enrolled time against the second: does the effect wear off?

    `p_value` is two-sided, of no change, for this one look; exploratory.
    """

    first: Part
    second: Part
    p_value: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The lift among the units of one attribute value. Exploratory: it decides nothing.

    `lower` and `upper` are the sequence at the test's own level, not adjusted; `found` says
    whether e-BH over all segments of the look calls the effect real, `harmed` whether the
    engagement guardrail fires here.
    """

    attribute: str
    value: str
    lift: float | None
    lower: float | None
    upper: float | None
    n_baseline: int
    n_candidate: int
    found: bool
    harmed: bool
    reason: str


class CellInputs(TypedDict):
    """The units of one phase and arm, as a look read them."""

    phase: int
    arm: str
    units: Mapping[str, object]
    exposed: int
    quality: float | None
    uncosted: NotRequired[Mapping[str, object]]
    unmetered: NotRequired[Mapping[str, object]]


class RequestInputs(TypedDict):
    """An arm's requests, as a look read them."""

    n: int
    errors: int


class AbsentInputs(TypedDict):
    """Units whose outcomes are due: how many lack theirs, of how many.

    `lift_lowest` is the lift if all of the candidate's were 0, `lift_highest` if the baseline's.
    """

    baseline: int
    candidate: int
    baseline_due: int
    candidate_due: int
    lift_lowest: float | None
    lift_highest: float | None


class LookInputs(TypedDict, total=False):
    """All that went into a look, as JSON types, so that the look can be made again."""

    cells: Sequence[CellInputs]
    exposed: Sequence[Sequence[int | str]]
    shares: Mapping[str, float]
    requests: Mapping[str, RequestInputs]
    fraction: float
    fractions: Sequence[float]
    information: float | None
    metric: str
    variance_saved: float | None
    absent: AbsentInputs | None
    prior: Mapping[str, object]
    control: Sequence[str]
    """The tests of the family whose lanes' baselines were used."""
    next_share: float
    """With `next_phase`: the share that the candidate gets from this look on."""
    next_phase: int


@dataclass(frozen=True, kw_only=True)
class Look:
    """One analysis, kept for ever: its inputs, its results, its verdict and the reason in words."""

    experiment_id: str
    number: int
    at: datetime
    matured_before: datetime
    baseline: ArmMetrics
    candidate: ArmMetrics
    lift: float | None
    lower: float | None
    upper: float | None
    p_value: float | None
    cost_gain: float | None
    is_significant: bool
    declared: bool
    method: str
    verdict: Verdict
    reason: str
    inputs: LookInputs = field(default_factory=LookInputs)
    alpha: float | None = None
    """The two-sided error at which this look might promote."""
    standard_error: float | None = None
    """Of the log-lift."""
    expected: ExpectedLift | None = None
    halves: Halves | None = None
    criteria: tuple[CriterionResult, ...] = ()
    segments: tuple[Segment, ...] = ()
    reweighted: Part | None = None
    """The lift over all units, where shares were adapted: phases weighted by their units."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """An experiment as its last look sees it: the answer of `evaluate_performance`."""

    ab_test_id: str
    status: ExperimentStatus
    look: Look
    recommendation: Verdict
    reason: str
    looks: int = 0

    @property
    def is_significant(self) -> bool:
        """Whether the lift is significantly above 0 at the declared level."""
        return self.look.is_significant


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """A request served to a unit by an arm. `subject` is the experiment's or the rollout's id.

    `covariate` is something of the unit that was known before the experiment began, such as its
    author's engagement until then; tests that adjust by it use that of the unit's first
    exposure. A unit without one counts as 0, which biases nothing: what was known before the
    draw of the arm is spread alike over both, and so is its absence.

    Tokens and costs that are not known are None, which is not 0: means leave such units out.

    `text` is what was answered and `messages` what it answered: given where the pipeline scores
    its answers, and kept no longer than until the score is there.
    """

    id: str
    subject: str
    phase: int
    arm: Arm
    unit: str
    at: datetime
    task: str = ""
    latency_ms: float | None = None
    error: bool = False
    tokens: int | None = None
    cost_usd: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    covariate: float | None = None
    text: str | None = None
    messages: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A measurement of a unit, maybe days later. The newest `at` of a unit counts.

    Where the test declares `analysis_unit="item"`, it is of one `item` of the unit (a post of the
    author who was randomised), and the newest of each item counts; those without are one item.
    """

    id: str
    subject: str
    unit: str
    at: datetime
    value: float
    quality: float | None = None
    item: str = ""


@dataclass(frozen=True, kw_only=True)
class Comment:
    """What somebody said of an answer to a unit, in words; no look reads it."""

    id: str
    subject: str
    unit: str
    at: datetime
    text: str


@dataclass(frozen=True, kw_only=True)
class RejectedEvent:
    """An event that was not kept, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What became of a batch of events. `unknown` are those of no subject that takes any;
    `rejected` are all that were not kept."""

    accepted: int
    duplicates: int
    unknown: Sequence[str] = ()
    rejected: Sequence[RejectedEvent] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm in one phase: its matured units with an outcome (y engagement, c cost in USD,
    d tokens; m items and x covariate where declared), and how many units it was exposed to."""

    phase: int
    arm: Arm
    units: Aggregate
    exposed: int = 0
    quality: float | None = None
    qualities: Aggregate = field(default_factory=Aggregate)
    """y is the quality score, of the units that have one."""
    uncosted: Aggregate = field(default_factory=Aggregate)
    """Those of `units` whose cost is unknown: how many, and their y."""
    unmetered: Aggregate = field(default_factory=Aggregate)
    """Those of `units` whose tokens or cost are unknown: how many, and what is known of c and d."""

    @property
    def costed(self) -> Aggregate:
        """The units whose cost is known; y and c are theirs."""
        return self.units - self.uncosted if self.uncosted.n else self.units

    @property
    def metered(self) -> Aggregate:
        """The units whose tokens and cost are known; c and d are theirs."""
        return self.units - self.unmetered if self.unmetered.n else self.units

    def __sub__(self, other: Cell) -> Cell:
        """Without the units of `other`, as far as engagement, tokens and cost go."""
        return replace(
            self,
            units=self.units - other.units,
            uncosted=self.uncosted - other.uncosted,
            unmetered=self.unmetered - other.unmetered,
        )


@dataclass(frozen=True, kw_only=True)
class Requests:
    """All requests of one arm: how many, how many failed, how long they took (ms)."""

    n: int = 0
    errors: int = 0
    latency: Histogram | None = None
    mean_latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class HourRequests:
    """The requests of both arms in one hour of a phase."""

    phase: int
    baseline: Requests
    candidate: Requests


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a look is made from. `exposed` counts every exposure, matured or not.

    `first_half` are the cells of the units exposed in the first half of the matured time, where
    it was asked for; `segments` the cells by attribute and value. `hours` are the requests hour by
    hour, read where those of the candidate are suspected of breaking a limit.
    """

    cells: tuple[Cell, ...] = ()
    exposed: Mapping[tuple[int, Arm], int] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)
    requests: Mapping[Arm, Requests] = field(default_factory=dict)
    first_half: tuple[Cell, ...] = ()
    segments: Mapping[tuple[str, str], tuple[Cell, ...]] = field(default_factory=dict)
    hours: tuple[HourRequests, ...] = ()

    def strata(self) -> list[Stratum]:
        """The phases with their two arms, in order."""
        return strata_of(self.cells)

    def quality_strata(self) -> list[Stratum]:
        """The phases with their two arms; y is the quality score."""
        return strata_of([replace(c, units=c.qualities) for c in self.cells])

    def cost_strata(self, *, per_token: bool = False) -> list[Stratum]:
        """The phases with their two arms, of the units whose cost is known; `per_token`: whose
        tokens are known, too."""
        known = [c.metered if per_token else c.costed for c in self.cells]
        return strata_of([replace(c, units=u) for c, u in zip(self.cells, known, strict=True)])

    def second_half(self) -> tuple[Cell, ...]:
        """What is not in the first half."""
        first = {(c.phase, c.arm): c for c in self.first_half}
        return tuple(
            c - first[c.phase, c.arm] if (c.phase, c.arm) in first else c for c in self.cells
        )

    def arm(self, arm: Arm) -> ArmMetrics:
        """What one arm showed, over its phases."""
        cells = [c for c in self.cells if c.arm is arm]
        units = merge(c.units for c in cells)
        requests = self.requests.get(arm, Requests())
        qualities = merge(c.qualities for c in cells)
        quality = qualities.sum_y / qualities.n if qualities.n else None
        costed, metered = merge(c.costed for c in cells), merge(c.metered for c in cells)
        if not units.n:
            return ArmMetrics(response_time_ms=requests.mean_latency_ms, quality_score=quality)
        return ArmMetrics(
            sample_size=units.n,
            engagement_rate=units.sum_y / (units.sum_m or units.n),
            p95_engagement=quantile(units.histogram, 0.95).value if units.histogram else None,
            cost_per_token=metered.sum_c / metered.sum_d if metered.sum_d else None,
            cost_per_engagement=costed.sum_c / costed.sum_y if costed.sum_y else None,
            response_time_ms=requests.mean_latency_ms,
            quality_score=quality,
            cost_known=costed.n / units.n,
            usage_known=metered.n / units.n,
        )


def strata_of(cells: Iterable[Cell]) -> list[Stratum]:
    """Cells as the phases with their two arms, in order."""
    empty = Aggregate()
    found: dict[int, dict[Arm, Aggregate]] = {}
    for cell in cells:
        found.setdefault(cell.phase, {})[cell.arm] = cell.units
    return [
        Stratum(
            phase=str(phase),
            baseline=arms.get(Arm.BASELINE, empty),
            candidate=arms.get(Arm.CANDIDATE, empty),
        )
        for phase, arms in sorted(found.items())
    ]
