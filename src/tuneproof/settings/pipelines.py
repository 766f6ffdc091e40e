"""What one pipeline is told: thresholds, durations, shares, schedule. All of it is validated."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings import checks, fields
from tuneproof.settings.declaration import Declaration, evaluation
from tuneproof.settings.fields import (
    CENTURY_DAYS,
    CENTURY_HOURS,
    YEAR_HOURS,
    YEAR_SECONDS,
    Option,
    option,
)
from tuneproof.settings.former import of_now, split
from tuneproof.settings.recipes import TRAIN, Recipe, checked_recipes, checked_successors

LENGTH, VARIETY, OPENINGS = DRIFTS = ("length", "variety", "openings")
"""In what a candidate's answers may drift away from those of the model in use."""

STRATEGIES = ("gradual_rollout", "canary", "immediate")
"""The rollout strategies; any list of `steps` can be set beside the first."""


def _search(field: str, given: Any) -> dict[str, tuple[int | float, ...]]:
    """What may be searched: names of hyperparameters, each with the values to try."""
    mend = "For example search = { n_epochs = [1, 3], learning_rate_multiplier = [0.5, 2.0] }."
    known = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
    if not isinstance(given, Mapping) or not given:
        raise checks.refuse(field, given, "must be a table of lists of values", mend=mend)
    found: dict[str, tuple[int | float, ...]] = {}
    for name, values in given.items():
        checks.choice(field, name, known)
        if isinstance(values, str) or not hasattr(values, "__iter__") or not list(values):
            raise checks.refuse(f"{field}.{name}", values, "must be a list of numbers", mend=mend)
        for value in values:
            whole = name in ("n_epochs", "batch_size")
            checks.number(f"{field}.{name}", value, above=0, whole=whole)
        found[name] = tuple(dict.fromkeys(values))
    return found


def _steps(field: str, steps: Any) -> tuple[float, ...]:
    rule = "must be a list of shares above 0 and at most 1, each above the one before"
    if isinstance(steps, str) or not hasattr(steps, "__iter__"):
        raise checks.refuse(field, steps, rule)
    shares = tuple(steps)
    for share in shares:
        checks.number(field, share, above=0, at_most=1)
    rising = all(a < b for a, b in itertools.pairwise(shares))
    if not shares or not rising:
        raise checks.refuse(field, steps, rule, mend="For example steps = [0.01, 0.1, 0.5, 1.0].")
    return shares


def _min_scores(field: str, given: Mapping[str, float]) -> Mapping[str, float]:
    for scorer, least in given.items():
        checks.number(f"{field}.{scorer}", least)
    return given


def _drifts(field: str, given: Any) -> tuple[str, ...]:
    found = checks.names(field, given) if given else ()
    for one in found:
        checks.choice(field, one, DRIFTS)
    return found


DEFAULT_THRESHOLD = 0.06
"""The least rate of a post that is learnt from, where nothing else is said."""

collection = partial(Option, section="data_collection")
training = partial(Option, section="training")
gate = partial(Option, section="gate")
deployment = partial(Option, section="deployment")
schedule = partial(Option, section="schedule")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(Declaration):
    """The settings of one pipeline. Shares are 0–1; durations carry their unit in the name.

    Raises `ConfigError`, which names the field, its value, the rule and the mend.
    """

    name: str = option("default", Option(by_request=False, doc="the pipeline's name"))
    tasks: tuple[str, ...] = option(
        ("hook", "body"), Option(by_request=False, doc="the tasks that one run trains, together")
    )
    provider: str = option(
        "default",
        training(
            aliases=("provider",), by_request=False, doc="who trains: a table of `[providers]`"
        ),
    )
    recipes: tuple[Mapping[str, str], ...] = option(
        (),
        Option(
            rule=checked_recipes,
            by_request=False,
            doc="tables of `make`, `model`, `provider` and the words of a "
            "[prompt](../how-to/prompts.md): [how a run makes its "
            'candidates](../how-to/several-candidates.md#models-as-they-are), `"as_is"`, '
            '`"prompt"` or `"train"`; none: it trains one. With `optimise`, `reflection`, '
            "`budget_usd`, `prompt_max_tokens` and `calls` it "
            "[looks for a prompt](../how-to/prompts.md#look-for-a-better-one)",
        ),
    )
    successors: tuple[Mapping[str, str], ...] = option(
        (),
        Option(
            rule=checked_successors,
            by_request=False,
            doc="recipes, each with its `model`, that take the place of `recipes` from "
            "`retrain_lead_days` before the model in use is [shut down]"
            "(../how-to/providers.md#shutdowns)",
        ),
    )
    train_together: bool = option(
        True,
        training(
            aliases=("train_together",),
            doc="false: each task is a pipeline `NAME.TASK` of its own, with its own runs, "
            "versions and budgets",
        ),
    )
    enabled: bool = option(
        True,
        Option(
            env="FINE_TUNING_ENABLED",
            by_request=False,
            doc="whether the schedule starts runs; by hand they can always be started",
        ),
    )

    training_data_threshold: int = option(
        100,
        collection(
            at_least=1,
            at_most=10**9,
            env="FINE_TUNING_MIN_EXAMPLES",
            doc="the least number of examples after curation, tasks together; fewer: the run is "
            "skipped",
        ),
    )
    engagement_threshold: float = option(
        DEFAULT_THRESHOLD,
        collection(
            at_least=0,
            at_most=1,
            env="FINE_TUNING_ENGAGEMENT_THRESHOLD",
            doc="the least rate of a post that is learnt from, inclusive",
        ),
    )
    top_share: float | None = option(
        None,
        collection(
            above=0,
            at_most=1,
            doc="instead of a threshold, the share of the window's rated posts that is learnt "
            "from, best first: 0.1 is the best tenth, with all that are as good as its last one",
        ),
    )
    days_back: float = option(
        7, collection(above=0, at_most=CENTURY_DAYS, doc="how far back posts are collected")
    )
    min_age_hours: float = option(
        0.0,
        collection(
            at_least=0,
            at_most=CENTURY_HOURS,
            doc="how old a post must be; younger ones are left for a later run",
        ),
    )
    late_days: float | None = option(
        None,
        collection(
            above=0,
            at_most=CENTURY_DAYS,
            doc="posts of so many days are taken once [their outcome is "
            "settled](../how-to/own-posts.md#outcomes-that-come-late), which the column "
            "`matured_at` says; none: by the time of the post",
        ),
    )
    chunk_size: int = option(
        1000, collection(at_least=1, at_most=100_000, doc="posts read at once")
    )
    max_records: int | None = option(
        10_000,
        collection(
            at_least=1, at_most=10**9, doc="the most posts, best first; none in Python means all"
        ),
    )
    source: str = option("posts", collection(by_request=False, doc="a table of `[sources]`"))
    memory_warning_mb: float = option(
        2048, collection(above=0, at_most=1e9, doc="memory above which a run warns")
    )

    base_model: str | None = option(
        None, training(by_request=False, doc="the model to tune; none: the provider's only one")
    )
    n_epochs: int | str = option(
        "auto",
        training(
            aliases=("training.hyperparameters.n_epochs",),
            words=("auto",),
            at_least=1,
            at_most=10**6,
            mend='Give n_epochs as a whole number, or "auto" to let the provider choose.',
            doc="a whole number, or the provider's choice",
        ),
    )
    batch_size: int | str = option(
        "auto",
        training(
            aliases=("training.hyperparameters.batch_size",),
            words=("auto",),
            at_least=1,
            at_most=10**6,
            mend='Give batch_size as a whole number, or "auto" to let the provider choose.',
            doc="a whole number, or the provider's choice",
        ),
    )
    learning_rate_multiplier: float | str = option(
        "auto",
        training(
            aliases=("training.hyperparameters.learning_rate_multiplier",),
            words=("auto",),
            above=0,
            at_most=1e6,
            mend='Give a number, or "auto" to let the provider choose.',
            doc="a number, or the provider's choice",
        ),
    )
    seed: int = option(
        0, training(at_least=0, at_most=2**31 - 1, doc="of the training and of the gate's samples")
    )
    timeout_seconds: float | str = option(
        "auto",
        training(
            words=("auto",),
            above=0,
            at_most=YEAR_SECONDS,
            mend='Give seconds, or "auto" to let a job train for as long as it moves on.',
            doc="how long a job may take before it is cancelled; `auto`: [as long as it moves "
            "on](../how-to/costs.md#time)",
        ),
    )
    poll_seconds: float = option(
        10, training(above=0, at_most=YEAR_SECONDS, doc="how often the job is asked after")
    )
    suffix: str | None = option(
        None, training(by_request=False, doc="part of the model's name; none: the pipeline's name")
    )
    method: str = option(
        "supervised",
        training(
            choices=("supervised", "dpo"),
            by_request=False,
            doc='or `"dpo"`: train on preference pairs (needs clicks and impressions)',
        ),
    )
    beta: float | str = option(
        "auto",
        training(
            aliases=("training.hyperparameters.beta",),
            words=("auto",),
            above=0,
            at_most=2,
            doc="of `dpo`",
        ),
    )
    pair_margin: float = option(
        0.0,
        training(at_least=0, at_most=1, doc="`dpo`: by how much two rates must differ, at least"),
    )
    pair_confidence: float = option(
        0.95, training(at_least=0.5, at_most=0.9999, doc="`dpo`: how sure that difference must be")
    )
    pair_days: float = option(
        7,
        training(
            above=0,
            at_most=36_500,
            doc="`dpo` and the gate's outcome model: how many days apart two posts of the same "
            "input may be, where no `group` says which posts competed",
        ),
    )
    search: Mapping[str, tuple[int | float, ...]] | None = option(
        None, training(rule=_search, doc="hyperparameters to try: `{ n_epochs = [1, 3] }`")
    )
    search_trials: int = option(
        6, training(at_least=1, at_most=50, doc="the most trials of a search")
    )
    search_method: str = option("grid", training(choices=("grid", "optuna"), doc='or `"optuna"`'))
    max_cost_usd: float | None = option(
        None, training(at_least=0, at_most=1e9, doc="what the training of one run may cost")
    )
    max_cost_usd_month: float | None = option(
        None,
        training(
            at_least=0,
            at_most=1e9,
            doc="what the pipeline's training may cost in a calendar month (UTC)",
        ),
    )
    retrain_lead_days: float = option(
        35,
        training(
            at_least=0,
            at_most=CENTURY_DAYS,
            doc="how long before a model's shutdown date runs go by `successors`",
        ),
    )

    gate_min_improvement: float = option(
        0.0,
        gate(
            key="min_improvement",
            at_least=-1,
            at_most=1,
            doc="the share by which the held-out loss must fall below the base's; 0: it must "
            "fall at all",
        ),
    )
    gate_samples: int = option(
        20,
        gate(
            key="samples",
            at_least=0,
            at_most=10**6,
            doc="outputs of each task that are sampled and checked",
        ),
    )
    gate_compared: int = option(
        0,
        gate(
            key="compared",
            at_least=0,
            at_most=10_000,
            doc="held-out inputs of each task that candidate and baseline both answer, for the "
            "[outcome model](../how-to/what-it-learns.md) to judge; 0: none",
        ),
    )
    gate_min_win_rate: float = option(
        0.45,
        gate(
            key="min_win_rate",
            at_least=0,
            at_most=1,
            doc="the least lower bound of how often the candidate's answers are expected to do "
            "better than the baseline's",
        ),
    )
    gate_outcome_days: float = option(
        90,
        gate(
            key="outcome_days",
            above=0,
            at_most=CENTURY_DAYS,
            doc="from the posts of how many days the outcome model learns",
        ),
    )
    gate_embeddings: str = option(
        "auto",
        gate(
            key="embeddings",
            by_request=False,
            doc="who gives the outcome model vectors of texts, so that it [knows more]"
            "(../how-to/what-it-learns.md#vectors-of-texts): `auto`, the pipeline's provider "
            "where it does; a provider; or `off`",
        ),
    )
    gate_embedding_model: str | None = option(
        None,
        gate(
            key="embedding_model",
            by_request=False,
            doc="the model whose vectors those are; unset: the base model of the run",
        ),
    )
    gate_max_unsafe: float = option(
        0.0,
        gate(
            key="max_unsafe",
            at_least=0,
            at_most=1,
            doc="by how much the share of [unsafe](../how-to/what-it-learns.md#unsafe-answers) "
            "outputs may be above that of the answers learnt from; 1: however many there are",
        ),
    )
    gate_allow_drift: tuple[str, ...] = option(
        (),
        gate(
            key="allow_drift",
            rule=_drifts,
            by_request=False,
            doc="in what the answers may differ from the baseline's and the posts' [without "
            "failing](../how-to/what-it-learns.md#as-it-wrote-before): `length`, `variety`, "
            "`openings`",
        ),
    )
    gate_moderation: str | None = option(
        None,
        gate(
            key="moderation",
            by_request=False,
            doc="a provider whose moderation endpoint is asked what is unsafe, beside the list of "
            "words",
        ),
    )
    gate_moderation_model: str = option(
        "omni-moderation-latest",
        gate(key="moderation_model", by_request=False, doc="the model that it is asked for"),
    )
    gate_scorers: tuple[str, ...] = option(
        (),
        gate(
            key="scorers",
            empty=True,
            by_request=False,
            doc="scorers that are asked about those outputs: tables of `[scorers]`, or given to "
            "the App",
        ),
    )
    gate_min_scores: Mapping[str, float] | None = option(
        None,
        gate(
            key="min_scores",
            rule=_min_scores,
            by_request=False,
            doc="the least mean of each: `{ judge = 0.7 }`",
        ),
    )

    look_interval_hours: float = option(
        1, evaluation(above=0, at_most=YEAR_HOURS, doc="how often a test or rollout is looked at")
    )
    loop_ledger: bool = option(
        True,
        evaluation(doc="whether all tests of the pipeline share one budget of false promotions"),
    )
    loop_alpha: float = option(
        0.05, evaluation(above=0, at_most=0.5, doc="the budget of false promotions that they share")
    )
    allocation_hours: float = option(
        24, evaluation(above=0, at_most=YEAR_HOURS, doc="how long a phase of `thompson` is")
    )
    candidates: int = option(
        1,
        evaluation(
            at_least=1,
            at_most=20,
            doc="how many of a search's trials are [tested at "
            "once](../how-to/several-candidates.md), each with `traffic_split` of the units; "
            "above 1 needs `search`",
        ),
    )
    plan_gate: str = option(
        "warn",
        evaluation(
            choices=("off", "warn", "stop"),
            doc='what becomes of a run whose test cannot find the lift on this traffic: `"off"`, '
            '`"warn"`, `"stop"`',
        ),
    )
    plan_probability: float = option(
        0.5, evaluation(above=0, at_most=1, doc="the least chance that the test finds it")
    )
    outcome_source: str | None = option(
        None,
        evaluation(
            by_request=False,
            doc="a table of `[outcome_sources]` from which outcomes are read, instead of being "
            "sent",
        ),
    )
    retention_days: float | None = option(
        None,
        evaluation(
            above=0,
            at_most=CENTURY_DAYS,
            doc="how long raw events and scores are kept; none: for ever",
        ),
    )
    quality_scorer: str | None = option(
        None,
        evaluation(
            by_request=False,
            doc="who [scores the answers](../how-to/score-answers.md) of running tests; none: "
            "nobody, and no text is kept",
        ),
    )
    quality_share: float = option(
        1.0,
        evaluation(
            above=0,
            at_most=1,
            by_request=False,
            doc="the share of the candidate's units that is scored; of the baseline's as many",
        ),
    )
    quality_calls_day: int = option(
        1000,
        evaluation(
            at_least=0,
            at_most=10**9,
            by_request=False,
            doc="the most scores asked for in a day (UTC)",
        ),
    )
    quality_cost_usd_day: float | None = option(
        None,
        evaluation(
            at_least=0,
            at_most=1e9,
            by_request=False,
            doc="what they may cost in a day; none: only their number is limited",
        ),
    )
    quality_personal_data: str = option(
        "redact",
        evaluation(
            choices=("redact", "drop", "keep"),
            by_request=False,
            doc="what becomes of personal data in these texts before they are kept or sent: "
            '`"redact"`, `"drop"` the text, `"keep"`',
        ),
    )
    quality_keep_hours: float = option(
        72,
        evaluation(
            above=0,
            at_most=YEAR_HOURS,
            by_request=False,
            doc="how long a text may wait for its score before it is forgotten",
        ),
    )

    deployment_strategy: str = option(
        "gradual_rollout",
        deployment(
            key="strategy",
            aliases=("deployment.deployment_strategy",),
            choices=STRATEGIES,
            doc='or `"canary"` (1, 5, 20, 50 %, all), `"immediate"`',
        ),
    )
    steps: tuple[float, ...] | None = option(
        None, deployment(rule=_steps, doc="steps of your own: `[0.01, 0.1, 0.5, 1.0]`")
    )
    initial_traffic: float = option(
        0.1,
        deployment(
            aliases=("deployment.rollout_config.initial_traffic",),
            above=0,
            at_most=1,
            doc="the first step",
        ),
    )
    increment_percentage: float = option(
        0.1,
        deployment(
            aliases=("deployment.rollout_config.increment_percentage",),
            above=0,
            at_most=1,
            doc="what each step adds (a share)",
        ),
    )
    increment_interval_hours: float = option(
        24,
        deployment(
            aliases=("deployment.rollout_config.increment_interval_hours",),
            above=0,
            at_most=YEAR_HOURS,
            doc="how long a step takes",
        ),
    )
    max_traffic: float = option(
        1.0,
        deployment(
            aliases=("deployment.rollout_config.max_traffic",),
            above=0,
            at_most=1,
            doc="the last step, less the holdback; below 1 the rollout waits there for a person",
        ),
    )
    holdback: float = option(
        0.05,
        deployment(
            aliases=("deployment.rollout_config.holdback",),
            at_least=0,
            at_most=0.5,
            doc="the share that stays on the old model after the last step",
        ),
    )
    holdback_days: float = option(
        14,
        deployment(
            aliases=("deployment.rollout_config.holdback_days",),
            at_least=0,
            at_most=CENTURY_DAYS,
            doc="how long the holdback stays",
        ),
    )
    max_engagement_drop: float = option(
        0.15,
        deployment(
            above=0, at_most=1, doc="roll back when engagement is shown to have fallen by more"
        ),
    )
    hold_on_harm: bool = option(
        True,
        deployment(
            doc="whether a step whose engagement is shown to be worse, by however little, waits "
            "for a person instead of the next one"
        ),
    )
    max_error_rate: float = option(
        0.05, deployment(above=0, at_most=1, doc="roll back when errors are shown to be above")
    )
    max_p95_latency_ms: float = option(
        2000,
        deployment(
            above=0,
            at_most=1e9,
            doc="roll back when the 95th percentile is shown to be above (counted from the "
            "next bound of the histogram on: 1500 as 1600)",
        ),
    )
    min_step_units: int = option(
        20,
        deployment(
            at_least=1, at_most=10**9, doc="units with an outcome that a step needs before the next"
        ),
    )
    pause_after_hours: float = option(
        72,
        deployment(
            above=0,
            at_most=CENTURY_HOURS,
            doc="how long past its time a step waits for them before the rollout pauses",
        ),
    )

    max_unwatched_hours: float = option(
        6,
        deployment(
            above=0,
            at_most=YEAR_HOURS,
            doc="how long after a look was due a rollout may go unwatched before it goes back to "
            "its baseline; twice `look_interval_hours` where that is more",
        ),
    )

    weekly_schedule: str = option(
        "0 2 * * 0",
        schedule(
            rule=checks.cron,
            env="FINE_TUNING_SCHEDULE",
            doc="cron of five fields, without `R` and `H`; a local time that comes twice when "
            "clocks go back fires the first time",
        ),
    )
    time_zone: str = option("UTC", schedule(rule=checks.time_zone, doc="IANA name"))
    overlap: str = option(
        "skip",
        schedule(
            choices=("skip", "queue"),
            doc='a tick while a run is before `holding`: skip it, or `"queue"` one',
        ),
    )
    on_drift: str = option(
        "tell",
        schedule(
            choices=("off", "tell", "train"),
            by_request=False,
            doc="what is done once posts are shown to [differ from the training window]"
            '(../how-to/drift.md): tell of it, start a run besides (`"train"`), or not even look',
        ),
    )
    schedule_driver: str = option(
        "internal",
        schedule(
            key="driver",
            choices=("internal", "external"),
            by_request=False,
            doc='`"external"`: something else starts runs, such as a CronJob',
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates > 1:
            self._check_searched()
        if self.lanes > 1:
            self._check_lanes()
        refuse_both(self.top_share, self.engagement_threshold)
        checks.number("initial_traffic", self.initial_traffic, above=0, at_most=self.max_traffic)
        if self.holdback >= self.max_traffic:
            rule = f"must be below max_traffic ({self.max_traffic:g})"
            raise checks.refuse("holdback", self.holdback, rule)

    @cached_property
    def succeeding(self) -> PipelineConfig | None:
        """The config of the runs that go by `successors`; None where there are none.

        Raises `ConfigError` where they do not fit the other settings. Not asked when a config is
        made: one that an earlier version stored is restored with what it has.
        """
        return self.succeeded_by(self.successors) if self.successors else None

    def succeeded_by(self, recipes: Sequence[Mapping[str, str]]) -> PipelineConfig:
        """The config by these recipes of `successors`, which train where they say."""
        named = tuple({"provider": self.provider, **one} for one in recipes)
        return dataclasses.replace(self, recipes=named).for_training

    def trained_as(self, now: PipelineConfig) -> PipelineConfig:
        """The config that trains what `now` trains, where it went by `successors`: those of `now`
        may be others. Recipes that a run was given stay."""
        trained = now.for_training
        if trained.base_model is None or not self._trains_successor:
            return self
        other = {"make": TRAIN, "model": trained.base_model, "provider": trained.provider}
        recipes = tuple(other if one["make"] == TRAIN else one for one in self.recipes)
        return dataclasses.replace(self, recipes=recipes)

    @property
    def _trains_successor(self) -> bool:
        """Whether what it trains is one of its own `successors`; a run that was given recipes has
        none."""
        models = {one["model"] for one in self.successors if one["make"] == TRAIN}
        return any(one["make"] == TRAIN and one.get("model") in models for one in self.recipes)

    @property
    def trains(self) -> bool:
        """Whether a run trains anything."""
        return not self.recipes or any(one["make"] == TRAIN for one in self.recipes)

    @property
    def untrained(self) -> tuple[Recipe, ...]:
        """The candidates for which nothing is trained."""
        found = (Recipe(**one) for one in self.recipes)
        return tuple(one for one in found if one.make != TRAIN)

    @cached_property
    def for_training(self) -> PipelineConfig:
        """The config with the base model and the provider that its recipe trains on and at."""
        found = next((Recipe(**one) for one in self.recipes if one["make"] == TRAIN), None)
        if found is None or found.model is None:
            return self
        provider = found.provider or self.provider
        return dataclasses.replace(self, base_model=found.model, provider=provider)

    @property
    def lanes(self) -> int:
        """How many candidates a run tests at once, at most."""
        return self.candidates * self.trains + len(self.untrained)

    def _check_searched(self) -> None:
        """Several trained candidates come of a search."""
        tried = self._trials()
        if tried < self.candidates:
            rule = f"needs training.search with at least as many trials; there are {tried}"
            mend = "Set training.search (and search_trials), or candidates = 1."
            raise checks.refuse("candidates", self.candidates, rule, mend=mend)

    def _check_lanes(self) -> None:
        """Several candidates share the units beside the baseline."""
        if self.allocation != "fixed":
            rule = 'must be "fixed" where candidates is above 1: their shares stay as they are'
            raise checks.refuse("allocation", self.allocation, rule)
        most = 1 / (self.lanes + 1)
        if self.traffic_split > most + 1e-9:
            rule = f"must be at most {most:.4g} with candidates = {self.lanes}: each has it"
            raise checks.refuse("traffic_split", self.traffic_split, rule)

    @property
    def job_limit_s(self) -> float | None:
        """How long a training job may take; None: as long as it moves on."""
        return None if isinstance(self.timeout_seconds, str) else self.timeout_seconds

    @property
    def unwatched_limit_hours(self) -> float:
        """How long after a look was due a rollout may go unwatched."""
        return max(self.max_unwatched_hours, 2 * self.look_interval_hours)

    def _trials(self) -> int:
        """How many trials a search makes at most; 0 where nothing is searched."""
        if self.search is None:
            return 0
        if self.search_method == "optuna":
            return self.search_trials
        return min(math.prod(len(values) for values in self.search.values()), self.search_trials)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; `from_dict` makes it again."""
        return fields.plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PipelineConfig:
        """The config that `to_dict` described; fields left out keep their defaults.

        Raises `ConfigError` for a field that the settings do not have.
        """
        data = of_now(data)
        fields.refuse_unknown(cls, data)
        return cls.restored(**data)

    @classmethod
    def from_sections(cls, name: str, sections: Mapping[str, Any]) -> PipelineConfig:
        """The config that a table `[pipelines.NAME]` of `tuneproof.toml` describes."""
        where = f"pipelines.{name}"
        sections, former = split(sections)
        found = fields.from_table(cls, sections, where)
        return cls(**{"name": name, **of_now({**found, **former})})

    def override(self, **changes: Any) -> PipelineConfig:
        """This config with other thresholds and durations, as a request may ask for.

        Raises `ConfigError` for a field that only the settings may set (addresses, tables,
        models, the provider), and for values out of range.
        """
        known = {o.name: o for o in fields.options(type(self))}
        for name in changes:
            if name not in known:
                raise checks.unknown_key(name, [n for n, o in known.items() if o.by_request])
            if not known[name].by_request:
                raise ConfigError(
                    f"{name} cannot be set by a request: only thresholds and durations can.",
                    mend=f"Set {name} in tuneproof.toml.",
                    field=name,
                )
        return dataclasses.replace(self, **_one_of_both(changes))


def refuse_both(top_share: float | None, engagement_threshold: float) -> None:
    """Raise `ConfigError` where a share and a threshold are both given: one of them holds."""
    if top_share is not None and engagement_threshold != DEFAULT_THRESHOLD:
        raise ConfigError(
            f"top_share ({top_share:g}) and engagement_threshold ({engagement_threshold:g}) are "
            "both set; exactly one of them chooses the posts.",
            mend="Leave one of them out.",
            field="top_share",
            value=top_share,
        )


def _one_of_both(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Changes by which one way to choose posts takes the place of the other."""
    if "top_share" in changes and "engagement_threshold" not in changes:
        return {**changes, "engagement_threshold": DEFAULT_THRESHOLD}
    if "engagement_threshold" in changes and "top_share" not in changes:
        return {**changes, "top_share": None}
    return changes
