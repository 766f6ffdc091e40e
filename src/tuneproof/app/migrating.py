"""From a model that is shut down to the best of what may take its place, by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tuneproof.app.experiments import ExperimentService
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.prompts import ensure_recipes_kept
from tuneproof.app.providers import Providers
from tuneproof.app.providing import provider_of
from tuneproof.app.routing import RoutingService
from tuneproof.app.runs import RunService
from tuneproof.app.shutdowns import Shutdowns
from tuneproof.app.succession import Needed, needed
from tuneproof.errors import ConfigError, InputError, StateError
from tuneproof.experiments.families import largest_split
from tuneproof.experiments.planning import CyclePlan
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.settings.recipes import TRAIN, Recipe
from tuneproof.store import Claim, Run, Store
from tuneproof.workflow import Clock

__all__ = ["CHEAPER", "MARGIN", "MigrationPlan", "MigrationService"]

MARGIN = 0.05
"""By how much engagement may be below that of the model in use, at most: shown, not assumed."""

CHEAPER = 0.10
"""By how much a candidate must be cheaper, for the engagement that it brings."""

LEAST_FOUND = 0.8
"""With less chance to show what is asked, a plan says how to have more."""


class InUse(NamedTuple):
    """A model in use, and who serves it."""

    model: str
    provider: str

    def __str__(self) -> str:
        return f"{self.model} at {self.provider}"


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """What a move would take. Shares 0–1, costs in USD.

    `in_use` are the models in use, each once, and who serves them, the first task's first. One of
    them is shut down at `shutdown_at` (None: nobody says so). `start_by` is the last instant at
    which a run may start so that the test, its outcomes and the rollout are over by then. `cycle`
    is what the test would find, of one of the candidates.
    """

    pipeline: str
    in_use: tuple[InUse, ...]
    candidates: tuple[str, ...]
    criteria: tuple[str, ...]
    share: float
    takes: Needed
    cycle: CyclePlan
    trains: bool = True
    """Whether a candidate is trained first."""
    silent: tuple[str, ...] = ()
    """The models about which nobody could be asked."""
    doomed: str = ""
    """The first of the models that is shut down."""
    shutdown_at: datetime | None = None
    start_by: datetime | None = None
    warnings: tuple[str, ...] = ()

    @property
    def units(self) -> float | None:
        """How many units each candidate gets within the test; None where nothing tells."""
        per_hour = self.cycle.units_per_hour
        hours = self.takes.test / timedelta(hours=1)
        return None if per_hour is None else per_hour * hours * self.share

    def sentences(self, now: datetime) -> list[str]:
        """The plan in words."""
        found = [
            f"{', '.join(self.candidates)} against {_listed(self.in_use)}: each gets "
            f"{self.share:.0%} of the units, and must show {' and '.join(self.criteria)}.",
            f"That takes {_days(self.takes.all)}: {self.takes.sentence()}"
            f"{'; a training comes before' if self.trains else ''}.",
            self._on_the_day(now),
            self.cycle.sentence(),
        ]
        if self.units is not None:
            found.append(f"Each candidate gets about {self.units:,.0f} units.")
        return [*found, *self.warnings]

    def _on_the_day(self, now: datetime) -> str:
        if self.silent:
            return (
                "When the model in use is shut down is not known: nobody could be asked about "
                f"{', '.join(self.silent)}."
            )
        if self.shutdown_at is None or self.start_by is None:
            return f"No date is announced on which {_listed(self.in_use)} would be shut down."
        left = self.start_by - now
        when = f"{_days(left)} from now" if left > timedelta(0) else f"{_days(-left)} ago"
        return (
            f"{self.doomed} stops answering on {self.shutdown_at:%Y-%m-%d}: from then on requests "
            "to it fail, a rollback leads nowhere, and nothing can be compared with it. Start by "
            f"{self.start_by:%Y-%m-%d} ({when})."
        )


class MigrationService:
    """Plans a move and starts it: a run of recipes, which show that they are no worse."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: Clock,
        pipelines: Pipelines,
        providers: Providers,
        routing: RoutingService,
        experiments: ExperimentService,
        runs: RunService,
        shutdowns: Shutdowns,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._pipelines = pipelines
        self._providers = providers
        self._routing = routing
        self._experiments = experiments
        self._runs = runs
        self._shutdowns = shutdowns

    async def plan(
        self,
        recipes: Sequence[Mapping[str, str]],
        *,
        pipeline: str = "default",
        margin: float = MARGIN,
        cheaper: float = CHEAPER,
    ) -> MigrationPlan:
        """What a move to the best of what these recipes make would take; changes nothing.

        `margin` is how much engagement may be below, `cheaper` how much less it must cost (0: the
        price is no reason). Raises `ConfigError` for recipes that cannot be,
        `NotFoundError` for a prompt that nobody kept, and as the plan of a test does.
        """
        config = self._config(pipeline, recipes, margin, cheaper)
        await self._routing.ensure_one(config)
        await ensure_recipes_kept(self._store, self._settings, config)
        in_use = await self._in_use(config)
        asked = await self._shutdowns.ask_all(config)
        shutdown = asked.first
        takes = needed(config)
        cycle = await self._experiments.plan(pipeline=config)
        return MigrationPlan(
            pipeline=config.name,
            in_use=in_use,
            candidates=tuple(_named(Recipe(**one), config) for one in config.recipes),
            criteria=config.criteria,
            share=config.traffic_split,
            takes=takes,
            cycle=cycle,
            trains=any(one["make"] == TRAIN for one in config.recipes),
            silent=() if shutdown is not None else asked.silent,
            doomed="" if shutdown is None else shutdown.model,
            shutdown_at=None if shutdown is None else shutdown.at,
            start_by=None if shutdown is None else shutdown.at - takes.all,
            warnings=tuple(await self._warnings(config, cycle, in_use)),
        )

    async def start(
        self,
        recipes: Sequence[Mapping[str, str]],
        *,
        pipeline: str = "default",
        margin: float = MARGIN,
        cheaper: float = CHEAPER,
        late: bool = False,
        actor: str = "system",
        claim: Claim | None = None,
    ) -> Run:
        """Start the run. Raises `StateError` where it could not be over before the model is shut
        down, unless it may be `late`; `InputError` where a price that must be lower is not known.
        """
        found = await self.plan(recipes, pipeline=pipeline, margin=margin, cheaper=cheaper)
        now = self._clock.now()
        if found.start_by is not None and now > found.start_by and not late:
            raise StateError(
                f"{found.doomed} stops answering on {found.shutdown_at:%Y-%m-%d}, and the move "
                f"takes {_days(found.takes.all)}: it could not be over by then.",
                mend="Shorten the rollout (deployment.strategy, increment_interval_hours) rather "
                "than the test, or start all the same with --late: a verdict that comes before "
                "that day still counts. Else a person must choose.",
                start_by=found.start_by.isoformat(),
            )
        config = self._config(pipeline, recipes, margin, cheaper)
        unpriced = self._unpriced(config, found.in_use)
        if unpriced:
            raise InputError(
                f"{', '.join(unpriced)}: no price of answers is known, and a candidate must be "
                f"{cheaper:.0%} cheaper.",
                mend="Set [providers.NAME.prices], or ask for no lower price: --cheaper 0.",
                field="cheaper",
            )
        return await self._runs.start(config, actor=actor, claim=claim)

    def _config(
        self, pipeline: str, recipes: Sequence[Mapping[str, str]], margin: float, cheaper: float
    ) -> PipelineConfig:
        """The pipeline with what is asked of a move; the old model keeps nobody behind."""
        if not 0 < margin < 1 or not 0 <= cheaper < 1:
            raise ConfigError(
                f"A margin of {margin:g} and a lower price of {cheaper:g} cannot be.",
                mend="Give shares: 0.05 is 5 %.",
                field="margin",
            )
        config = self._pipelines.get(pipeline)
        parts = [part.name for part in self._pipelines.parts(config)]
        if len(parts) > 1:
            raise ConfigError(
                f"The tasks of {pipeline} train apart, so each moves by itself.",
                mend=f"Name one of {', '.join(parts)}, and then the next.",
                field="pipeline",
                value=pipeline,
            )
        made = replace(
            config,
            recipes=tuple(recipes),
            successors=(),
            traffic_split=0.01,
            allocation="fixed",
        )
        criteria = [f"engagement non_inferior {margin:g}"]
        if cheaper:
            criteria.append(f"cost superior {cheaper:g}")
        if not made.recipes:
            raise ConfigError(
                "A move needs somewhere to go.",
                mend="Name a successor (--to MODEL@PROVIDER), or what is to be trained (--train).",
                field="recipes",
            )
        self._settings.check_recipes(made)
        return replace(
            made,
            traffic_split=largest_split(made.lanes),
            criteria=tuple(criteria),
            holdback=0.0,
        )

    async def _in_use(self, config: PipelineConfig) -> tuple[InUse, ...]:
        """The models in use, each once, in the order of the tasks. Raises `ConfigError` where the
        settings name none and nothing was rolled out."""
        found: dict[InUse, None] = {}
        for model in (await self._routing.in_use(config)).values():
            provider, _ = await provider_of(self._store, self._settings, model)
            found[InUse(model.model_id, provider.split("@")[0])] = None
        if not found:
            raise ConfigError(
                f"Nobody says which model {config.tasks[0]} has in use, so there is none to move "
                "from.",
                mend=f"Name it: model in [tasks.{config.tasks[0]}], or training.base_model.",
                field=f"tasks.{config.tasks[0]}.model",
            )
        return tuple(found)

    async def _warnings(
        self, config: PipelineConfig, cycle: CyclePlan, in_use: Sequence[InUse]
    ) -> list[str]:
        found = []
        if cycle.probability is not None and cycle.probability < LEAST_FOUND:
            found.append(
                "That is little. Name fewer candidates, test for longer "
                "(evaluation.duration_hours), or allow for more (--margin). A shorter or weaker "
                "test would only pretend to show it."
            )
        unpriced = self._unpriced(config, in_use)
        if unpriced:
            found.append(
                f"{', '.join(unpriced)}: no price is known, so nothing can be shown to be cheaper. "
                "Set [providers.NAME.prices], or leave the price out with --cheaper 0."
            )
        dearer = self._dearer(config, in_use)
        if dearer:
            models = ", ".join(one.model for one in in_use)
            found.append(
                f"{', '.join(dearer)}: a token of an answer costs no less than one of {models}, so "
                "fewer tokens or more engagement would have to make it cheaper. Leave the price "
                "out with --cheaper 0 where it is no reason."
            )
        return found

    def _dearer(self, config: PipelineConfig, in_use: Sequence[InUse]) -> list[str]:
        """Whose answers cost no less a token than any in use, where a lower cost is asked for."""
        paid = [self._price(one) for one in in_use]
        if not _compares_costs(config) or None in paid:
            return []
        most = max(price for price in paid if price is not None)
        found = [(one, self._price(one)) for one in _asked(config)]
        return [str(one) for one, price in found if price is not None and price >= most]

    def _unpriced(self, config: PipelineConfig, in_use: Sequence[InUse]) -> list[str]:
        """Whose answers have no price, where a price is asked about."""
        if not _compares_costs(config):
            return []
        asked = dict.fromkeys([*in_use, *_asked(config)])
        known = [one for one in asked if one.provider in self._settings.providers]
        return [str(one) for one in known if self._price(one) is None]

    def _price(self, one: InUse) -> float | None:
        """What a million tokens of its answers cost; None where nobody knows."""
        if one.provider not in self._settings.providers:
            return None
        price = self._providers.price(one.provider, one.model, "answers")
        return None if price is None else price.completion


def _compares_costs(config: PipelineConfig) -> bool:
    return any(one.startswith("cost") for one in config.criteria)


def _asked(config: PipelineConfig) -> list[InUse]:
    """The models of the candidates, as they would be in use, but for that in use by a prompt."""
    asked: dict[InUse, None] = {}
    for recipe in (Recipe(**one) for one in config.recipes):
        model = recipe.model or (config.base_model if recipe.make == TRAIN else None)
        if model is not None:
            asked[InUse(model, recipe.provider or config.provider)] = None
    return list(asked)


def _listed(models: Sequence[InUse]) -> str:
    return " and ".join(str(one) for one in models)


def _named(recipe: Recipe, config: PipelineConfig) -> str:
    """A recipe in words."""
    model = recipe.model or config.base_model
    where = recipe.provider or config.provider
    if recipe.make == TRAIN:
        return f"a fine-tune of {model} at {where}"
    said = f"{model} at {where}" if recipe.model else "the model in use"
    return f"{said} with another prompt" if recipe.make != "as_is" else said


def _days(span: timedelta) -> str:
    days = span / timedelta(days=1)
    if days < 1:
        return f"{span / timedelta(hours=1):.0f} hours"
    return f"{days:.3g} days" if days != 1 else "1 day"
