"""The App's providers: who is called what, who serves which model, and who is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from tuneproof import workflow
from tuneproof.app.board import Board
from tuneproof.app.endpoints import Endpoints
from tuneproof.app.places import Places
from tuneproof.app.providing import price_at, provider_of
from tuneproof.errors import ProviderUnavailableError
from tuneproof.experiments import ModelRef
from tuneproof.experiments.planning import Prices
from tuneproof.resilience import BreakerEvent, CircuitBreaker, Supervisor
from tuneproof.settings import PipelineConfig, ProviderConfig, Secret, Settings, Url
from tuneproof.store import Store
from tuneproof.telemetry import Metrics
from tuneproof.testing import VirtualClock
from tuneproof.training import Price, Provider


class _NoTrainer:
    """Stands for the embedded trainer where it does not run: it starts with the service only."""

    name = "trainer"

    def __getattr__(self, name: str) -> Any:
        async def refuse(*_: Any, **__: Any) -> Any:
            raise ProviderUnavailableError(
                "The embedded trainer starts with the service, and no service runs.",
                mend="Start it: tuneproof serve",
            )

        return refuse


class Provided:
    """What can be asked of the App's providers; `Core` opens what this stands on."""

    settings: Settings
    store: Store
    clock: workflow.Clock
    metrics: Metrics
    places: Places
    breakers: dict[str, CircuitBreaker]
    trainer_url: str | None
    _given_provider: Provider | None
    _providers: dict[str, Provider]
    supervisor: Supervisor
    board: Board
    endpoints: Endpoints

    def _watch_breakers(self) -> None:
        for name in ("openai", "mlflow"):
            breaker = CircuitBreaker.named(
                name, clock=self._seconds, on_event=self.metrics.on_breaker_event
            )
            self.breakers[name] = breaker
            self.metrics.watch_breaker(name, breaker)
        self._hear_of(self._first_provider)

    @property
    def _first_provider(self) -> str:
        return next(iter(self.settings.pipelines.values())).provider

    def _seconds(self) -> float:
        """The clock of breakers: real time, and what a virtual clock leaps ahead on top of it."""
        leapt = self.clock.now().timestamp() if isinstance(self.clock, VirtualClock) else 0.0
        return time.monotonic() + leapt

    def _hear_of(self, provider: str) -> None:
        """Learn that a provider's breaker closes."""

        def heard(event: BreakerEvent) -> None:
            if event.kind == "closed":
                self.supervisor.soon("wake", lambda: self.provider_is_back(provider))

        self.breaker_of(provider).subscribe(heard)

    async def provider_is_back(self, name: str) -> list[str]:
        """What is done once a provider that was away answers again."""
        return []

    def provider(self, name: str) -> Provider:
        """The provider of this name in the settings, opened once."""
        if self._given_provider is not None:
            return self._given_provider
        if not self.trains(name):
            return cast(Provider, _NoTrainer())
        return self._opened(self.endpoint(name))

    def _opened(self, config: ProviderConfig) -> Provider:
        if config.name not in self._providers:
            make: Callable[..., Provider] = self.settings.adapter("provider")
            self._providers[config.name] = make(
                config,
                clock=self.clock,
                breaker=self.breaker_of(config.name),
                timeout_s=config.timeout_seconds,
            )
        return self._providers[config.name]

    def breaker_of(self, name: str) -> CircuitBreaker:
        """A provider's own breaker: one that is away says nothing of the others.

        The first pipeline's is called `openai`, as health and metrics know it.
        """
        key = "openai" if name == self._first_provider else f"provider:{name}"
        if key not in self.breakers:
            self.breakers[key] = CircuitBreaker.named(
                key,
                like="openai",
                clock=self._seconds,
                on_event=self.metrics.on_breaker_event,
            )
            self._hear_of(name)
        return self.breakers[key]

    async def provider_at(self, name: str) -> Provider:
        """The provider of this name, at the place where it was, if it has moved (`Places`)."""
        if self._given_provider is not None:
            return self._given_provider
        config = await self.places.find(name)
        known = self.settings.providers.get(config.name) is config
        return self.provider(config.name) if known else self._opened(config)

    def trains(self, name: str) -> bool:
        """Whether this provider can be called: the embedded one only where its trainer runs."""
        config = self.settings.providers[name]
        return not (config.embedded and config.base_url is None and self.trainer_url is None)

    def endpoint(self, name: str) -> ProviderConfig:
        """A provider's settings, with the embedded trainer's real address filled in."""
        config = self.settings.providers[name]
        if config.embedded and config.base_url is None:
            address = None if self.trainer_url is None else Url(self.trainer_url)
            return replace(config, base_url=address, api_key=config.api_key or Secret("embedded"))
        return config

    def endpoints_changed(self) -> None:
        """Other providers may serve the models of the routing now: find out soon."""
        self.supervisor.soon("endpoints-renewal", self._renew_endpoints)

    async def _renew_endpoints(self) -> None:
        await self.endpoints.renew(self.board.snapshot.models)

    async def settle_providers(self) -> list[str]:
        """Take models back that came along with a provider that moved; which ones."""
        found = []
        for name in self.settings.providers:
            if self._given_provider is None and self.trains(name):
                found += await self.places.settle(name, self.provider(name))
        if found:
            self.endpoints_changed()
        return found

    def prices(self, config: PipelineConfig) -> Prices:
        """What training and answers of a pipeline's base model cost, as far as it is known."""
        found = self.price(config.provider, config.base_model or "", config.method)
        if found is None:
            return Prices()
        return Prices(training=found.training, answers=found.completion)

    def price(self, provider: str, model: str, method: str = "supervised") -> Price | None:
        """What a provider charges for a model: as the settings say, else by the dated table."""
        return price_at(self.settings.providers[provider], model, method)

    async def serves(self, model: ModelRef) -> Provider:
        """The provider that answers for a model. Raises `ConfigError` where it left the settings.

        After a pipeline has moved to another provider, or its provider to another address, its
        baseline stays where it was.
        """
        if self._given_provider is not None:
            return self._given_provider
        name, _ = await provider_of(self.store, self.settings, model)
        return await self.provider_at(name)
