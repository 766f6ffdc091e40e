"""What one pipeline is told: thresholds, durations, shares, schedule. All of it is validated."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings import checks

STRATEGIES = ("gradual_rollout", "canary", "immediate")
"""The rollout strategies; any list of `steps` can be set beside the first."""

_SECTIONS: Mapping[str, Mapping[str, str]] = {
    "data_collection": {
        "training_data_threshold": "training_data_threshold",
        "engagement_threshold": "engagement_threshold",
        "days_back": "days_back",
        "chunk_size": "chunk_size",
        "max_records": "max_records",
        "source": "source",
        "memory_warning_mb": "memory_warning_mb",
    },
    "training": {
        "provider": "provider",
        "base_model": "base_model",
        "n_epochs": "n_epochs",
        "batch_size": "batch_size",
        "learning_rate_multiplier": "learning_rate_multiplier",
        "hyperparameters.n_epochs": "n_epochs",
        "hyperparameters.batch_size": "batch_size",
        "hyperparameters.learning_rate_multiplier": "learning_rate_multiplier",
        "seed": "seed",
        "timeout_seconds": "timeout_seconds",
        "poll_seconds": "poll_seconds",
        "suffix": "suffix",
        "train_together": "train_together",
        "method": "method",
        "beta": "beta",
        "hyperparameters.beta": "beta",
        "pair_margin": "pair_margin",
        "pair_confidence": "pair_confidence",
        "search": "search",
        "search_trials": "search_trials",
        "search_method": "search_method",
        "max_cost_usd": "max_cost_usd",
        "max_cost_usd_month": "max_cost_usd_month",
        "retrain_lead_days": "retrain_lead_days",
        "successor_model": "successor_model",
        "successor_provider": "successor_provider",
    },
    "gate": {
        "min_improvement": "gate_min_improvement",
        "samples": "gate_samples",
        "scorers": "gate_scorers",
        "min_scores": "gate_min_scores",
    },
    "evaluation": {
        "traffic_split": "traffic_split",
        "duration_hours": "a_b_test_duration_hours",
        "a_b_test_duration_hours": "a_b_test_duration_hours",
        "significance_threshold": "significance_threshold",
        "min_engagement_lift": "min_engagement_lift",
        "min_cost_efficiency_gain": "min_cost_efficiency_gain",
        "success_criteria.min_engagement_lift": "min_engagement_lift",
        "success_criteria.min_cost_efficiency_gain": "min_cost_efficiency_gain",
        "success_criteria.significance_threshold": "significance_threshold",
        "cost_metric": "cost_metric",
        "decision": "decision",
        "maturation_hours": "maturation_hours",
        "min_units": "min_units",
        "min_units_phase": "min_units_phase",
        "look_interval_hours": "look_interval_hours",
        "criteria": "criteria",
        "loop_ledger": "loop_ledger",
        "loop_alpha": "loop_alpha",
        "segments": "segments",
        "segment_guardrail": "segment_guardrail",
        "allocation": "allocation",
        "analysis_unit": "analysis_unit",
        "cuped": "cuped",
        "allocation_hours": "allocation_hours",
        "candidates": "candidates",
        "plan_gate": "plan_gate",
        "plan_probability": "plan_probability",
        "outcome_source": "outcome_source",
        "retention_days": "retention_days",
        "quality_scorer": "quality_scorer",
        "quality_share": "quality_share",
        "quality_calls_day": "quality_calls_day",
        "quality_cost_usd_day": "quality_cost_usd_day",
        "quality_personal_data": "quality_personal_data",
        "quality_keep_hours": "quality_keep_hours",
    },
    "deployment": {
        "strategy": "deployment_strategy",
        "deployment_strategy": "deployment_strategy",
        "steps": "steps",
        "initial_traffic": "initial_traffic",
        "increment_percentage": "increment_percentage",
        "increment_interval_hours": "increment_interval_hours",
        "max_traffic": "max_traffic",
        "holdback": "holdback",
        "holdback_days": "holdback_days",
        "rollout_config.initial_traffic": "initial_traffic",
        "rollout_config.increment_percentage": "increment_percentage",
        "rollout_config.increment_interval_hours": "increment_interval_hours",
        "rollout_config.max_traffic": "max_traffic",
        "rollout_config.holdback": "holdback",
        "rollout_config.holdback_days": "holdback_days",
        "max_engagement_drop": "max_engagement_drop",
        "max_error_rate": "max_error_rate",
        "max_p95_latency_ms": "max_p95_latency_ms",
        "min_step_units": "min_step_units",
        "pause_after_hours": "pause_after_hours",
    },
    "schedule": {
        "weekly_schedule": "weekly_schedule",
        "time_zone": "time_zone",
        "overlap": "overlap",
        "driver": "schedule_driver",
    },
}
"""Section and key of `tuneproof.toml` -> field. A dot in a key is a table in the table."""

_TOP = ("tasks", "provider", "train_together", "enabled")

_NOT_BY_REQUEST = frozenset(
    {
        "name",
        "tasks",
        "provider",
        "source",
        "base_model",
        "enabled",
        "schedule_driver",
        "suffix",
        "outcome_source",
        "quality_scorer",
        "quality_share",
        "quality_calls_day",
        "quality_cost_usd_day",
        "quality_personal_data",
        "quality_keep_hours",
        "gate_scorers",
        "gate_min_scores",
        "method",
        "successor_model",
        "successor_provider",
    }
)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The settings of one pipeline. Shares are 0–1; durations carry their unit in the name.

    Raises `ConfigError`, which names the field, its value, the rule and the mend.
    """

    name: str = "default"
    tasks: tuple[str, ...] = ("hook", "body")
    provider: str = "default"
    train_together: bool = True
    enabled: bool = True

    training_data_threshold: int = 100
    engagement_threshold: float = 0.06
    days_back: float = 7
    chunk_size: int = 1000
    max_records: int | None = 10_000
    source: str = "posts"
    memory_warning_mb: float = 2048

    base_model: str | None = None
    n_epochs: int | str = "auto"
    batch_size: int | str = "auto"
    learning_rate_multiplier: float | str = "auto"
    seed: int = 0
    timeout_seconds: float = 1800
    poll_seconds: float = 10
    suffix: str | None = None
    method: str = "supervised"
    beta: float | str = "auto"
    pair_margin: float = 0.0
    pair_confidence: float = 0.95
    search: Mapping[str, tuple[int | float, ...]] | None = None
    search_trials: int = 6
    search_method: str = "grid"
    max_cost_usd: float | None = None
    max_cost_usd_month: float | None = None
    retrain_lead_days: float = 30
    successor_model: str | None = None
    successor_provider: str | None = None

    gate_min_improvement: float = 0.0
    gate_samples: int = 20
    gate_scorers: tuple[str, ...] = ()
    gate_min_scores: Mapping[str, float] | None = None

    traffic_split: float = 0.1
    a_b_test_duration_hours: float = 168
    significance_threshold: float = 0.05
    min_engagement_lift: float = 0.15
    min_cost_efficiency_gain: float = 0.10
    cost_metric: str = "per_engagement"
    decision: str = "spec"
    maturation_hours: float = 24
    min_units: int = 100
    min_units_phase: int = 50
    look_interval_hours: float = 1
    criteria: tuple[str, ...] = ()
    loop_ledger: bool = True
    loop_alpha: float = 0.05
    segments: tuple[str, ...] = ()
    segment_guardrail: bool = False
    allocation: str = "fixed"
    analysis_unit: str = "unit"
    cuped: bool = False
    allocation_hours: float = 24
    candidates: int = 1
    plan_gate: str = "warn"
    plan_probability: float = 0.5
    outcome_source: str | None = None
    retention_days: float | None = None
    quality_scorer: str | None = None
    quality_share: float = 1.0
    quality_calls_day: int = 1000
    quality_cost_usd_day: float | None = None
    quality_personal_data: str = "redact"
    quality_keep_hours: float = 72

    deployment_strategy: str = "gradual_rollout"
    steps: tuple[float, ...] | None = None
    initial_traffic: float = 0.1
    increment_percentage: float = 0.1
    increment_interval_hours: float = 24
    max_traffic: float = 1.0
    holdback: float = 0.05
    holdback_days: float = 14
    max_engagement_drop: float = 0.15
    max_error_rate: float = 0.05
    max_p95_latency_ms: float = 2000
    min_step_units: int = 20
    pause_after_hours: float = 72

    weekly_schedule: str = "0 2 * * 0"
    time_zone: str = "UTC"
    overlap: str = "skip"
    schedule_driver: str = "internal"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", checks.names("tasks", self.tasks))
        if self.steps is not None:
            object.__setattr__(self, "steps", _steps(self.steps))
        for field in ("name", "provider", "source"):
            checks.text(field, getattr(self, field))
        for field in ("criteria", "segments", "gate_scorers"):
            given = getattr(self, field)
            object.__setattr__(self, field, checks.names(field, given) if given else ())
        for field in ("base_model", "suffix", "outcome_source", "successor_model"):
            checks.text(field, getattr(self, field), optional=True)
        checks.text("successor_provider", self.successor_provider, optional=True)
        checks.truth("train_together", self.train_together)
        checks.truth("enabled", self.enabled)
        self._check_collection()
        self._check_training()
        self._check_evaluation()
        self._check_deployment()
        self._check_schedule()

    def _check_collection(self) -> None:
        checks.number(
            "training_data_threshold", self.training_data_threshold, at_least=1, whole=True
        )
        checks.number("engagement_threshold", self.engagement_threshold, at_least=0, at_most=1)
        checks.number("days_back", self.days_back, above=0)
        checks.number("chunk_size", self.chunk_size, at_least=1, at_most=100_000, whole=True)
        checks.number("memory_warning_mb", self.memory_warning_mb, above=0)
        if self.max_records is not None:
            checks.number("max_records", self.max_records, at_least=1, whole=True)

    def _check_training(self) -> None:
        for field in ("n_epochs", "batch_size"):
            if getattr(self, field) != "auto":
                mend = f'Give {field} as a whole number, or "auto" to let the provider choose.'
                checks.number(field, getattr(self, field), at_least=1, whole=True, mend=mend)
        if self.learning_rate_multiplier != "auto":
            mend = 'Give a number, or "auto" to let the provider choose.'
            field = "learning_rate_multiplier"
            checks.number(field, self.learning_rate_multiplier, above=0, mend=mend)
        self._check_method()
        checks.number("seed", self.seed, at_least=0, at_most=2**31 - 1, whole=True)
        checks.number("timeout_seconds", self.timeout_seconds, above=0)
        checks.number("poll_seconds", self.poll_seconds, above=0)
        checks.number("gate_min_improvement", self.gate_min_improvement, at_least=-1, at_most=1)
        checks.number("gate_samples", self.gate_samples, at_least=0, whole=True)
        for scorer, least in (self.gate_min_scores or {}).items():
            checks.number(f"gate_min_scores.{scorer}", least)

    def _check_method(self) -> None:
        checks.choice("method", self.method, ("supervised", "dpo"))
        if self.beta != "auto":
            checks.number("beta", self.beta, above=0, at_most=2)
        checks.number("pair_margin", self.pair_margin, at_least=0, at_most=1)
        checks.number("pair_confidence", self.pair_confidence, at_least=0.5, at_most=0.9999)
        if self.search is not None:
            object.__setattr__(self, "search", _search(self.search))
        checks.number("search_trials", self.search_trials, at_least=1, at_most=50, whole=True)
        checks.choice("search_method", self.search_method, ("grid", "optuna"))
        for field in ("max_cost_usd", "max_cost_usd_month"):
            if getattr(self, field) is not None:
                checks.number(field, getattr(self, field), at_least=0)
        checks.number("retrain_lead_days", self.retrain_lead_days, at_least=0)

    def _check_evaluation(self) -> None:
        checks.number("traffic_split", self.traffic_split, above=0, at_most=0.5)
        checks.number("a_b_test_duration_hours", self.a_b_test_duration_hours, above=0)
        checks.number("significance_threshold", self.significance_threshold, above=0, at_most=0.5)
        checks.number("min_engagement_lift", self.min_engagement_lift, at_least=-1)
        checks.number(
            "min_cost_efficiency_gain", self.min_cost_efficiency_gain, at_least=-10, at_most=1
        )
        checks.choice("cost_metric", self.cost_metric, ("per_engagement", "per_token"))
        checks.choice("decision", self.decision, ("spec", "confirmed"))
        checks.number("maturation_hours", self.maturation_hours, at_least=0)
        checks.number("min_units", self.min_units, at_least=2, whole=True)
        checks.number("min_units_phase", self.min_units_phase, at_least=2, whole=True)
        checks.number("look_interval_hours", self.look_interval_hours, above=0)
        for criterion in self.criteria:
            checks.criterion("criteria", criterion)
        checks.truth("loop_ledger", self.loop_ledger)
        checks.number("loop_alpha", self.loop_alpha, above=0, at_most=0.5)
        checks.truth("segment_guardrail", self.segment_guardrail)
        checks.choice("allocation", self.allocation, ("fixed", "thompson"))
        checks.choice("analysis_unit", self.analysis_unit, ("unit", "item"))
        checks.truth("cuped", self.cuped)
        if self.cuped and self.analysis_unit == "item":
            rule = 'must be false where analysis_unit is "item"'
            mend = "A covariate adjusts the mean over units: choose one of the two."
            raise checks.refuse("cuped", True, rule, mend=mend)
        checks.number("allocation_hours", self.allocation_hours, above=0)
        checks.number("candidates", self.candidates, at_least=1, at_most=20, whole=True)
        if self.candidates > 1:
            self._check_candidates()
        checks.choice("plan_gate", self.plan_gate, ("off", "warn", "stop"))
        checks.number("plan_probability", self.plan_probability, above=0, at_most=1)
        if self.retention_days is not None:
            checks.number("retention_days", self.retention_days, above=0)
        self._check_quality()

    def _check_quality(self) -> None:
        checks.text("quality_scorer", self.quality_scorer, optional=True)
        checks.number("quality_share", self.quality_share, above=0, at_most=1)
        checks.number("quality_calls_day", self.quality_calls_day, at_least=0, whole=True)
        if self.quality_cost_usd_day is not None:
            checks.number("quality_cost_usd_day", self.quality_cost_usd_day, at_least=0)
        rules = ("redact", "drop", "keep")
        checks.choice("quality_personal_data", self.quality_personal_data, rules)
        checks.number("quality_keep_hours", self.quality_keep_hours, above=0)

    def _check_candidates(self) -> None:
        """Several candidates come of a search, and share the units beside the baseline."""
        tried = self._trials()
        if tried < self.candidates:
            rule = f"needs training.search with at least as many trials; there are {tried}"
            mend = "Set training.search (and search_trials), or candidates = 1."
            raise checks.refuse("candidates", self.candidates, rule, mend=mend)
        if self.allocation != "fixed":
            rule = 'must be "fixed" where candidates is above 1: their shares stay as they are'
            raise checks.refuse("allocation", self.allocation, rule)
        most = 1 / (self.candidates + 1)
        if self.traffic_split > most + 1e-9:
            rule = f"must be at most {most:.4g} with candidates = {self.candidates}: each has it"
            raise checks.refuse("traffic_split", self.traffic_split, rule)

    def _trials(self) -> int:
        """How many trials a search makes at most; 0 where nothing is searched."""
        if self.search is None:
            return 0
        if self.search_method == "optuna":
            return self.search_trials
        return min(math.prod(len(values) for values in self.search.values()), self.search_trials)

    def _check_deployment(self) -> None:
        checks.choice("deployment_strategy", self.deployment_strategy, STRATEGIES)
        checks.number("max_traffic", self.max_traffic, above=0, at_most=1)
        checks.number("initial_traffic", self.initial_traffic, above=0, at_most=self.max_traffic)
        checks.number("increment_percentage", self.increment_percentage, above=0, at_most=1)
        checks.number("increment_interval_hours", self.increment_interval_hours, above=0)
        checks.number("holdback", self.holdback, at_least=0, at_most=0.5)
        checks.number("holdback_days", self.holdback_days, at_least=0)
        checks.number("max_engagement_drop", self.max_engagement_drop, above=0, at_most=1)
        checks.number("max_error_rate", self.max_error_rate, above=0, at_most=1)
        checks.number("max_p95_latency_ms", self.max_p95_latency_ms, above=0)
        checks.number("min_step_units", self.min_step_units, at_least=1, whole=True)
        checks.number("pause_after_hours", self.pause_after_hours, above=0)
        if self.holdback >= self.max_traffic:
            rule = f"must be below max_traffic ({self.max_traffic:g})"
            raise checks.refuse("holdback", self.holdback, rule)

    def _check_schedule(self) -> None:
        checks.cron("weekly_schedule", self.weekly_schedule)
        checks.time_zone("time_zone", self.time_zone)
        checks.choice("overlap", self.overlap, ("skip", "queue"))
        checks.choice("schedule_driver", self.schedule_driver, ("internal", "external"))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; `from_dict` makes it again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {k: _plain(v) for k, v in fields.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PipelineConfig:
        """The config that `to_dict` described; fields left out keep their defaults."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise unknown_key(name, known)
        return cls(**data)

    @classmethod
    def from_sections(cls, name: str, sections: Mapping[str, Any]) -> PipelineConfig:
        """The config that a table `[pipelines.NAME]` of `tuneproof.toml` describes."""
        return cls(**{"name": name, **fields_of(sections, f"pipelines.{name}")})

    def override(self, **changes: Any) -> PipelineConfig:
        """This config with other thresholds and durations, as a request may ask for.

        Raises `ConfigError` for a field that only the settings may set (addresses, tables,
        models, the provider), and for values out of range.
        """
        allowed = sorted({f.name for f in dataclasses.fields(self)} - _NOT_BY_REQUEST)
        for name in changes:
            if name in _NOT_BY_REQUEST:
                raise ConfigError(
                    f"{name} cannot be set by a request: only thresholds and durations can.",
                    mend=f"Set {name} in tuneproof.toml.",
                    field=name,
                )
            if name not in allowed:
                raise unknown_key(name, allowed)
        return dataclasses.replace(self, **changes)


def fields_of(sections: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields, by name, that nested sections set; unknown keys are refused."""
    found: dict[str, Any] = {}
    for key, value in sections.items():
        if key in _SECTIONS:
            found.update(_section(key, value, f"{where}.{key}"))
        elif key in _TOP:
            found[key] = value
        else:
            raise unknown_key(f"{where}.{key}", [*_SECTIONS, *_TOP], last=key)
    return found


def _section(section: str, table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise checks.refuse(
            where, table, "must be a table", mend=f"Write [{where}] above its keys."
        )
    known = _SECTIONS[section]
    found: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, Mapping) and key not in known
        inner = {f"{key}.{k}": v for k, v in value.items()} if nested else None
        for name, given in (inner if inner is not None else {key: value}).items():
            if name not in known:
                raise unknown_key(f"{where}.{name}", known, last=name)
            found[known[name]] = given
    return found


def unknown_key(path: str, known: Any, *, last: str | None = None) -> ConfigError:
    """The error for a key that no setting has; names the closest one."""
    mend = checks.meant(last or path, known)
    return ConfigError(f"{path} is not a setting.", mend=mend, field=path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _search(given: Any) -> dict[str, tuple[int | float, ...]]:
    """What may be searched: names of hyperparameters, each with the values to try."""
    mend = "For example search = { n_epochs = [1, 3], learning_rate_multiplier = [0.5, 2.0] }."
    known = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
    if not isinstance(given, Mapping) or not given:
        raise checks.refuse("search", given, "must be a table of lists of values", mend=mend)
    found: dict[str, tuple[int | float, ...]] = {}
    for name, values in given.items():
        checks.choice("search", name, known)
        if isinstance(values, str) or not hasattr(values, "__iter__") or not list(values):
            raise checks.refuse(f"search.{name}", values, "must be a list of numbers", mend=mend)
        for value in values:
            whole = name in ("n_epochs", "batch_size")
            checks.number(f"search.{name}", value, above=0, whole=whole)
        found[name] = tuple(dict.fromkeys(values))
    return found


def _steps(steps: Any) -> tuple[float, ...]:
    rule = "must be a list of shares above 0 and at most 1, each above the one before"
    if isinstance(steps, str) or not hasattr(steps, "__iter__"):
        raise checks.refuse("steps", steps, rule)
    shares = tuple(steps)
    for share in shares:
        checks.number("steps", share, above=0, at_most=1)
    rising = all(a < b for a, b in itertools.pairwise(shares))
    if not shares or not rising:
        raise checks.refuse("steps", steps, rule, mend="For example steps = [0.01, 0.1, 0.5, 1.0].")
    return shares
