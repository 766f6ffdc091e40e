"""What providers announce: shutdowns of models, which are counted down and trained away from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NotRequired, TypedDict

from tuneproof.app.alerting import Alerting
from tuneproof.app.live import Live
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.providers import Providers
from tuneproof.app.providing import provider_of
from tuneproof.app.runs import RunService
from tuneproof.app.succession import succession
from tuneproof.errors import InputError, StateError, TuneProofError
from tuneproof.experiments import Variant
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.store import Run, Store
from tuneproof.training import find_model
from tuneproof.workflow import Clock

__all__ = ["SHUTDOWN_WARNING", "Shutdown", "ShutdownWatch", "Shutdowns"]

log = logging.getLogger(__name__)

SHUTDOWN_WARNING = timedelta(days=60)
"""From when on the loop warns that a provider shuts a model down."""

ASK_EVERY = timedelta(hours=24)
"""How often providers are asked for shutdown dates."""


class _Announced(TypedDict):
    """A `Shutdown` as it is stored."""

    model: str
    provider: str
    at: str
    base: str


class _Heard(TypedDict):
    """What was last heard, and when; `shutdown` is None where none is announced.

    `ends` are provider, model and day of each; not kept before there were `successors`.
    """

    asked_at: str
    shutdown: _Announced | None
    ends: NotRequired[list[tuple[str, str, str]]]


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """The day on which a model of a pipeline stops answering, as its provider announced it.

    `base` is what the model was trained on; of a base model it is itself. `ends` are the days of
    all models that were asked about, those of `successors` too, by provider and model.
    """

    model: str
    provider: str
    at: datetime
    base: str = ""
    ends: Mapping[tuple[str, str], datetime] = field(default_factory=dict)

    def left(self, now: datetime) -> timedelta:
        """How long it still answers."""
        return self.at - now

    def moved_to(self, config: PipelineConfig) -> str | None:
        """The base to which the settings have changed already; None where they have not."""
        trained = config.for_training
        base = trained.base_model
        return None if base is None or self._goes(trained.provider, base, config) else base

    def successors(self, config: PipelineConfig) -> tuple[Mapping[str, str], ...]:
        """The recipes that take over: those that stay, where the settings have not changed."""
        if self.moved_to(config) is not None:
            return ()
        return tuple(
            one
            for one in config.successors
            if not self._goes(one.get("provider", config.provider), one["model"], config)
        )

    def _goes(self, provider: str, model: str, config: PipelineConfig) -> bool:
        """Whether a model is gone as well by the time that moving on would take."""
        if provider == self.provider.partition("@")[0] and model in (self.model, self.base):
            return True
        end = self.ends.get((provider, model))
        return end is not None and end - self.at <= timedelta(days=config.retrain_lead_days)

    def follower(self, config: PipelineConfig) -> str | None:
        """The models with which the loop goes on by itself; None where it knows of none."""
        named = dict.fromkeys(one["model"] for one in self.successors(config))
        return self.moved_to(config) or ", ".join(named) or None

    def mend(self, config: PipelineConfig, now: datetime) -> str:
        """What to do about it, and until when."""
        doomed = (self.model, self.base)
        return succession(config, self.at, now, follower=self.follower(config), doomed=doomed)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The first shutdown that was heard of, and the models of which nobody could be asked."""

    first: Shutdown | None
    silent: tuple[str, ...] = ()


class Shutdowns:
    """When the models of pipelines shut down, as their providers say."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: Clock,
        pipelines: Pipelines,
        providers: Providers,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._pipelines = pipelines
        self._providers = providers

    async def known(self, config: PipelineConfig) -> Shutdown | None:
        """The shutdown that was last heard of, without asking; None where none is announced."""
        heard = await self._last_heard(config)
        if heard is None or heard["shutdown"] is None:
            return None
        found = heard["shutdown"]
        return Shutdown(
            model=found["model"],
            provider=found["provider"],
            at=datetime.fromisoformat(found["at"]),
            base=found["base"] or found["model"],
            ends={
                (place, model): datetime.fromisoformat(at)
                for place, model, at in heard.get("ends", ())
            },
        )

    async def _last_heard(self, config: PipelineConfig) -> _Heard | None:
        heard: _Heard | None = await self._store.meta.get(f"shutdown:{config.name}")
        return heard

    async def daily(self, config: PipelineConfig, now: datetime) -> Shutdown | None:
        """The first shutdown, asked for once a day."""
        heard = await self._last_heard(config)
        if heard and now - datetime.fromisoformat(heard["asked_at"]) < ASK_EVERY:
            return await self.known(config)
        found = await self.ask(config)
        announced: _Announced | None = None
        if found is not None:
            announced = {
                "model": found.model,
                "provider": found.provider,
                "at": found.at.isoformat(),
                "base": found.base,
            }
        ends = () if found is None else found.ends.items()
        heard = {
            "asked_at": now.isoformat(),
            "shutdown": announced,
            "ends": [(place, model, at.isoformat()) for (place, model), at in ends],
        }
        await self._store.meta.set(f"shutdown:{config.name}", heard)
        return found

    async def ask(self, config: PipelineConfig) -> Shutdown | None:
        """The first shutdown among the model in use, its base, and the base to train on."""
        return (await self.ask_all(config)).first

    async def ask_all(self, config: PipelineConfig) -> Asked:
        """The same, with the models of which nobody could be asked."""
        places: dict[str, tuple[str, str]] = {}  # model -> who serves it, its base
        if config.base_model is not None:
            places[config.base_model] = config.provider, config.base_model
        for task in config.tasks:
            routing = await self._store.routing.get(task)
            in_use = self._declared(task) if routing is None else routing.baseline
            if in_use is None:
                continue
            name, base = await provider_of(self._store, self._settings, in_use)
            places |= {base: (name, base), in_use.model_id: (name, base)}
        found, silent = [], []
        for model, (name, base) in places.items():
            try:
                info = await find_model(await self._providers.at(name), model)
            except TuneProofError as e:  # the others' dates count all the same
                log.warning("%s could not be asked when %s shuts down: %s", name, model, e)
                silent.append(model)
                info = None
            at = info.shutdown_at if info is not None else await self._heard(config, model)
            if at is not None:
                found.append(Shutdown(model=model, provider=name, at=at, base=base))
        first = min(found, default=None, key=lambda s: (s.at, s.model))
        if first is not None:
            ends = {(one.provider.partition("@")[0], one.model): one.at for one in found}
            first = replace(first, ends={**ends, **await self._ends_of_successors(config)})
        return Asked(first=first, silent=tuple(silent))

    async def _ends_of_successors(
        self, config: PipelineConfig
    ) -> Mapping[tuple[str, str], datetime]:
        """When those go that are to follow; of whom nobody can be asked, nothing is known."""
        found = {}
        for one in config.successors:
            place, model = one.get("provider", config.provider), one["model"]
            try:
                info = await find_model(await self._providers.at(place), model)
            except TuneProofError as e:
                log.warning("%s could not be asked when %s shuts down: %s", place, model, e)
                continue
            if info is not None and info.shutdown_at is not None:
                found[place, model] = info.shutdown_at
        return found

    def _declared(self, task: str) -> Variant | None:
        """The model that the settings name for a task that has no routing yet."""
        named = self._settings.tasks.get(task)
        if named is None or named.model is None:
            return None
        return Variant(model_id=named.model, provider=named.model_provider)

    async def _heard(self, config: PipelineConfig, model: str) -> datetime | None:
        """When a model shuts down as it was last heard, of a provider that says nothing now."""
        kept = await self.known(config)
        return kept.at if kept is not None and kept.model == model else None

    async def effective(self, config: PipelineConfig) -> PipelineConfig:
        """The config with the successors' recipes, once the lead has begun.

        A base model that the team has changed already, to one that is not shut down, stays.
        """
        if not config.successors:
            return config
        found = await self.known(config)
        lead = timedelta(days=config.retrain_lead_days)
        if found is None or found.left(self._clock.now()) > lead:
            return config
        following = found.successors(config)
        return config.succeeded_by(following) if following else config

    async def settings_now(self, name: str) -> PipelineConfig | None:
        """What a run of this pipeline that started now would be given; None for an unknown one."""
        config = self._pipelines.known.get(name)
        return None if config is None else await self.effective(config)


class ShutdownWatch:
    """Warns of shutdowns, and trains on successors when it is time."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        live: Live,
        alert: Alerting,
        pipelines: Pipelines,
        shutdowns: Shutdowns,
        runs: RunService,
    ) -> None:
        self._store = store
        self._clock = clock
        self._live = live
        self._alert = alert
        self._pipelines = pipelines
        self._shutdowns = shutdowns
        self._runs = runs

    async def look(self, now: datetime) -> list[str]:
        """Ask for shutdown dates once a day; warn, and re-train on successors when it is time.

        Returns the ids of the runs that were started.
        """
        started = []
        for config in self._pipelines.running:
            if not config.enabled:
                continue
            try:
                found = await self._shutdowns.daily(config, now)
                run = await self._acted(config, found, now) if found else None
            except TuneProofError as e:
                log.warning("shutdowns of %s could not be looked at: %s", config.name, e)
                continue
            if run is not None:
                started.append(run.id)
        return started

    async def _acted(self, config: PipelineConfig, found: Shutdown, now: datetime) -> Run | None:
        if found.left(now) > SHUTDOWN_WARNING:
            return None
        await self._warn(config, found, now)
        lead = timedelta(days=config.retrain_lead_days)
        if found.left(now) > lead or found.follower(config) is None:
            return None
        if config.schedule_driver != "internal":
            return None  # the outer scheduler's next run trains on the successor
        return await self._retrained(config, found, now)

    async def _warn(self, config: PipelineConfig, found: Shutdown, now: datetime) -> None:
        key, mark = f"shutdown_warned:{config.name}", f"{found.model} {found.at.isoformat()}"
        if await self._store.meta.get(key) == mark:
            return
        said = (
            f"{found.model} shuts down at {found.provider} on {found.at:%Y-%m-%d}, in "
            f"{found.left(now).days} days; {found.mend(config, now)}"
        )
        async with self._store.database.begin() as tx:
            await self._store.meta.set(key, mark, tx=tx)
            await self._store.activity.add(
                now, "schedule", "model shutdown", config.name, said, tx=tx
            )
        self._live.publish("activity", config.name)
        self._alert("model_shutdown", config.name, said, once=mark)

    async def _retrained(
        self, config: PipelineConfig, found: Shutdown, now: datetime
    ) -> Run | None:
        key, mark = f"shutdown_retrained:{config.name}", found.model
        if await self._store.meta.get(key) == mark:
            return None
        try:
            run = await self._runs.start(config.name, actor="schedule")
        except StateError:
            return None  # a run is under way; this is looked at again after it
        except InputError as e:  # looked at again, and told of once a day
            await self._refused(config, e, f"{found.model} {now:%Y-%m-%d}")
            return None
        await self._store.meta.set(key, mark)
        follows = found.follower(config)
        said = f"{found.model} shuts down on {found.at:%Y-%m-%d}: {follows} follows"
        await self._store.activity.add(now, "schedule", "successor run", run.id, said)
        return run

    async def _refused(self, config: PipelineConfig, error: InputError, mark: str) -> None:
        key = f"shutdown_refused:{config.name}"
        if await self._store.meta.get(key) != mark:
            await self._runs.tell_refused(config.name, error, actor="schedule", once=mark)
            await self._store.meta.set(key, mark)
