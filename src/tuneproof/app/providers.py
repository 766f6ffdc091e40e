"""The App's providers: who is called what, who serves which model, and who is away."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Never, Protocol, cast

from tuneproof import workflow
from tuneproof.app.places import Places
from tuneproof.app.providing import price_at, provider_of
from tuneproof.errors import ProviderUnavailableError, StoreUnavailableError, TuneProofError
from tuneproof.experiments import Variant
from tuneproof.experiments.planning import Prices, untried
from tuneproof.outgoing import Rules, told
from tuneproof.resilience import BreakerEvent, CircuitBreaker, State, Supervisor
from tuneproof.settings import PipelineConfig, ProviderConfig, Secret, Settings, Url
from tuneproof.settings.recipes import Recipe
from tuneproof.store import Store
from tuneproof.telemetry import Metrics
from tuneproof.testing import VirtualClock
from tuneproof.training import Price, Provider

__all__ = ["PROBE_EVERY_S", "Providers"]

log = logging.getLogger(__name__)

PROBE_EVERY_S = 5.0
"""How often it is looked whether a breaker lets a probe through; the breaker sets the pauses."""


class _NoTrainer:
    """Stands for the embedded trainer where it does not run: it starts with the service only."""

    name = "trainer"

    def __getattr__(self, name: str) -> object:
        async def refuse(*_: object, **__: object) -> Never:
            raise ProviderUnavailableError(
                "The embedded trainer starts with the service, and no service runs.",
                mend="Start it: tuneproof serve",
            )

        return refuse


class _MakesProvider(Protocol):
    def __call__(
        self,
        config: ProviderConfig,
        /,
        *,
        clock: workflow.Clock,
        breaker: CircuitBreaker,
        timeout_s: float,
        **outgoing: Rules,
    ) -> Provider: ...


class Providers:
    """Opens each provider of the settings once, with a breaker of its own.

    `given` is one for all names. `trainer_url` is where the embedded trainer runs; None where it
    does not. `is_back` is called with the name of a provider that was away and answers again.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: workflow.Clock,
        metrics: Metrics,
        on_event: Callable[[BreakerEvent], None],
        places: Places,
        supervisor: Supervisor,
        given: Provider | None,
        trainer_url: str | None,
        is_back: Callable[[str], Awaitable[object]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._on_event = on_event
        self._places = places
        self._supervisor = supervisor
        self._is_back = is_back
        self._opened: dict[str, Provider] = {}
        self.given = given
        self.trainer_url = trainer_url
        self.breakers: dict[str, CircuitBreaker] = {}
        self._watch_breakers()

    def _watch_breakers(self) -> None:
        for name in ("openai", "mlflow"):
            limits = self._settings.breakers.of(name)
            breaker = CircuitBreaker.named(
                name, clock=self._seconds, on_event=self._on_event, **limits
            )
            self.breakers[name] = breaker
            self._metrics.watch_breaker(name, breaker)
        self._hear_of(self._first)

    @property
    def _first(self) -> str:
        return next(iter(self._settings.pipelines.values())).provider

    def _seconds(self) -> float:
        """The clock of breakers: real time, and what a virtual clock leaps ahead on top of it."""
        leapt = self._clock.now().timestamp() if isinstance(self._clock, VirtualClock) else 0.0
        return time.monotonic() + leapt

    def _hear_of(self, provider: str) -> None:
        """Learn that a provider's breaker closes."""

        def heard(event: BreakerEvent) -> None:
            if event.kind == "closed":
                self._supervisor.soon("wake", lambda: self._is_back(provider))

        self.breaker_of(provider).subscribe(heard)

    def get(self, name: str) -> Provider:
        """The provider of this name in the settings, opened once."""
        if self.given is not None:
            return self.given
        if not self.trains(name):
            return cast(Provider, _NoTrainer())
        return self._open(self.endpoint(name))

    def _open(self, config: ProviderConfig) -> Provider:
        if config.name not in self._opened:
            make: _MakesProvider = self._settings.adapter("provider")
            self._opened[config.name] = make(
                config,
                clock=self._clock,
                breaker=self.breaker_of(config.name),
                timeout_s=config.timeout_seconds,
                **told(make, Rules(self._settings.outgoing)),
            )
        return self._opened[config.name]

    def breaker_of(self, name: str) -> CircuitBreaker:
        """A provider's own breaker: one that is away says nothing of the others.

        The first pipeline's is called `openai`, as health and metrics know it.
        """
        key = self.breaker_name(name)
        if key not in self.breakers:
            self.breakers[key] = CircuitBreaker.named(
                key,
                clock=self._seconds,
                on_event=self._on_event,
                **self._settings.breakers.of("openai"),
            )
            self._hear_of(name)
        return self.breakers[key]

    def breaker_name(self, name: str) -> str:
        """What a provider's breaker is called."""
        return "openai" if name == self._first else f"provider:{name}"

    async def at(self, name: str) -> Provider:
        """The provider of this name, at the place where it was, if it has moved (`Places`)."""
        if self.given is not None:
            return self.given
        config = await self._places.find(name)
        known = self._settings.providers.get(config.name) is config
        return self.get(config.name) if known else self._open(config)

    def trains(self, name: str) -> bool:
        """Whether this provider can be called: the embedded one only where its trainer runs."""
        config = self._settings.providers[name]
        return not (config.embedded and config.base_url is None and self.trainer_url is None)

    def serves_now(self, name: str) -> bool:
        """Whether calls of this provider arrive at all."""
        return self.given is not None or self.trains(name)

    def endpoint(self, name: str) -> ProviderConfig:
        """A provider's settings, with the embedded trainer's real address filled in."""
        config = self._settings.providers[name]
        if config.embedded and config.base_url is None:
            address = None if self.trainer_url is None else Url(self.trainer_url)
            return replace(config, base_url=address, api_key=config.api_key or Secret("embedded"))
        return config

    async def settle(self) -> list[str]:
        """Take models back that came along with a provider that moved; which ones."""
        found = []
        for name in self._settings.providers:
            if self.given is None and self.trains(name):
                found += await self._places.settle(name, self.get(name))
        return found

    async def prices(self, config: PipelineConfig, in_use: Variant) -> Prices:
        """What training and answers of a pipeline's candidates cost, as far as it is known."""
        if config.untrained:
            served_by, _ = await provider_of(self._store, self._settings, in_use)
            in_use = replace(in_use, provider=served_by)
        trained = config.for_training
        found = self.price(trained.provider, trained.base_model or "", trained.method)
        place = self._places.label if self.given is None else str
        return Prices(
            training=None if found is None else found.training,
            answers=None if found is None else found.completion,
            untrained=tuple(
                self._price_of(one, config, in_use) for one in untried(config, in_use, place)
            ),
        )

    def _price_of(self, recipe: Recipe, config: PipelineConfig, in_use: Variant) -> float | None:
        """What the answers of a recipe's candidate cost: its model, else the one in use."""
        name = recipe.provider or config.provider
        if recipe.model is None:
            name = (in_use.provider or config.provider).partition("@")[0]
        if name not in self._settings.providers:
            return None
        found = self.price(name, recipe.model or in_use.model_id, "answers")
        return None if found is None else found.completion

    def price(self, provider: str, model: str, method: str = "supervised") -> Price | None:
        """What a provider charges for a model: as the settings say, else by the dated table."""
        return price_at(self._settings.providers[provider], model, method)

    async def serves(self, model: Variant) -> Provider:
        """The provider that answers for a model. Raises `ConfigError` where it left the settings.

        After a pipeline has moved to another provider, or its provider to another address, its
        baseline stays where it was.
        """
        if self.given is not None:
            return self.given
        name, _ = await provider_of(self._store, self._settings, model)
        return await self.at(name)

    async def probe(self) -> list[str]:
        """Ask each provider whose breaker lets a probe through; those that answered.

        Without it nobody would ask before a run's next try, up to an hour later.
        """
        found = []
        for name in list(self._opened):
            breaker = self.breaker_of(name)
            if breaker.state is State.CLOSED or breaker.retry_after_s > 0:
                continue
            try:
                await self._opened[name].ping()
            except TuneProofError as e:
                log.info("%s is still away: %s", name, e.message)
            else:
                found.append(name)
        return found

    async def close(self) -> None:
        """Close those that were opened."""
        for provider in self._opened.values():
            with contextlib.suppress(StoreUnavailableError):
                await provider.close()
