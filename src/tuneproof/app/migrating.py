"""From a model that is shut down to the best of what may take its place, by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tuneproof.app.experiments import ExperimentService
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.prompts import ensure_recipes_kept
from tuneproof.app.providers import Providers
from tuneproof.app.providing import provider_of
from tuneproof.app.routing import RoutingService
from tuneproof.app.runs import RunService
from tuneproof.app.shutdowns import Asked, Shutdowns
from tuneproof.app.succession import Needed, needed
from tuneproof.errors import ConfigError, InputError, StateError
from tuneproof.experiments import Variant
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


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """What a move would take. Shares 0–1, costs in USD.

    `model` is the one in use, which `provider` shuts down at `shutdown_at` (None: nobody says so).
    `start_by` is the last instant at which a run may start so that the test, its outcomes and the
    rollout are over by then. `cycle` is what the test would find, of one of the candidates.
    """

    pipeline: str
    model: str
    provider: str
    candidates: tuple[str, ...]
    criteria: tuple[str, ...]
    share: float
    takes: Needed
    cycle: CyclePlan
    trains: bool = True
    """Whether a candidate is trained first."""
    silent: tuple[str, ...] = ()
    """The models about which nobody could be asked."""
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
            f"{', '.join(self.candidates)} against {self.model} at {self.provider}: each gets "
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
                f"When {self.model} is shut down is not known: {self.provider} could not be asked "
                f"about {', '.join(self.silent)}."
            )
        if self.shutdown_at is None or self.start_by is None:
            return f"Nobody says that {self.model} is shut down: {self.provider} announces no date."
        left = self.start_by - now
        when = f"{_days(left)} from now" if left > timedelta(0) else f"{_days(-left)} ago"
        return (
            f"{self.model} stops answering on {self.shutdown_at:%Y-%m-%d}: from then on requests "
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
        await ensure_recipes_kept(self._store, self._settings, config)
        model, provider, asked = await self._in_use(config)
        shutdown = asked.first
        takes = needed(config)
        cycle = await self._experiments.plan(pipeline=config)
        return MigrationPlan(
            pipeline=config.name,
            model=model,
            provider=provider,
            candidates=tuple(_named(Recipe(**one), config) for one in config.recipes),
            criteria=config.criteria,
            share=config.traffic_split,
            takes=takes,
            cycle=cycle,
            trains=any(one["make"] == TRAIN for one in config.recipes),
            silent=() if shutdown is not None else asked.silent,
            shutdown_at=None if shutdown is None else shutdown.at,
            start_by=None if shutdown is None else shutdown.at - takes.all,
            warnings=tuple(await self._warnings(config, cycle, model, provider)),
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
                f"{found.model} stops answering on {found.shutdown_at:%Y-%m-%d}, and the move "
                f"takes {_days(found.takes.all)}: it could not be over by then.",
                mend="Shorten the rollout (deployment.strategy, increment_interval_hours) rather "
                "than the test, or start all the same with --late: a verdict that comes before "
                "that day still counts. Else a person must choose.",
                start_by=found.start_by.isoformat(),
            )
        config = self._config(pipeline, recipes, margin, cheaper)
        unpriced = await self._unpriced(config, found.model, found.provider)
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

    async def _in_use(self, config: PipelineConfig) -> tuple[str, str, Asked]:
        """The model in use, who serves it, and when that stops."""
        routing = self._routing.board.snapshot.by_task.get(config.tasks[0])
        base = config.base_model or ""
        model = Variant(model_id=base) if routing is None else routing.baseline
        provider, _ = await provider_of(self._store, self._settings, model)
        return model.model_id, provider.split("@")[0], await self._shutdowns.ask_all(config)

    async def _warnings(
        self, config: PipelineConfig, cycle: CyclePlan, model: str, provider: str
    ) -> list[str]:
        found = []
        if cycle.probability is not None and cycle.probability < LEAST_FOUND:
            found.append(
                "That is little. Name fewer candidates, test for longer "
                "(evaluation.duration_hours), or allow for more (--margin). A shorter or weaker "
                "test would only pretend to show it."
            )
        unpriced = await self._unpriced(config, model, provider)
        if unpriced:
            found.append(
                f"{', '.join(unpriced)}: no price is known, so nothing can be shown to be cheaper. "
                "Set [providers.NAME.prices], or leave the price out with --cheaper 0."
            )
        dearer = self._dearer(config, model, provider)
        if dearer:
            found.append(
                f"{', '.join(dearer)}: a token of an answer costs no less than one of {model}, so "
                "fewer tokens or more engagement would have to make it cheaper. Leave the price "
                "out with --cheaper 0 where it is no reason."
            )
        return found

    def _dearer(self, config: PipelineConfig, model: str, provider: str) -> list[str]:
        """Whose answers cost no less a token, where a lower cost is asked for."""
        if not _compares_costs(config) or provider not in self._settings.providers:
            return []
        paid = self._providers.price(provider, model, "answers")
        if paid is None or paid.completion is None:
            return []
        known = [one for one in _asked(config) if one[0] in self._settings.providers]
        found = [(at, name, self._providers.price(at, name, "answers")) for at, name in known]
        return [
            f"{name} at {at}"
            for at, name, price in found
            if price is not None
            and price.completion is not None
            and price.completion >= paid.completion
        ]

    async def _unpriced(self, config: PipelineConfig, model: str, provider: str) -> list[str]:
        """Whose answers have no price, where a price is asked about."""
        if not _compares_costs(config):
            return []
        return [
            f"{name} at {at}"
            for at, name in dict.fromkeys([(provider, model), *_asked(config)])
            if at in self._settings.providers and not self._priced(at, name)
        ]

    def _priced(self, provider: str, model: str) -> bool:
        price = self._providers.price(provider, model, "answers")
        return price is not None and price.completion is not None


def _compares_costs(config: PipelineConfig) -> bool:
    return any(one.startswith("cost") for one in config.criteria)


def _asked(config: PipelineConfig) -> list[tuple[str, str]]:
    """The providers and models of the candidates that are not the model in use by a prompt."""
    asked: dict[tuple[str, str], None] = {}
    for recipe in (Recipe(**one) for one in config.recipes):
        model = recipe.model or (config.base_model if recipe.make == TRAIN else None)
        if model is not None:
            asked[recipe.provider or config.provider, model] = None
    return list(asked)


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
