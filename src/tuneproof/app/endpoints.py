"""Which provider answers for which model: found ahead of the requests that need it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property

from tuneproof.app.places import Places
from tuneproof.app.providing import longest_prefix, price_at, provider_of
from tuneproof.errors import StoreUnavailableError, TuneProofError
from tuneproof.experiments import ModelRef
from tuneproof.providers import NATIVE, chat_address
from tuneproof.resilience import BreakerEvent, CircuitBreaker
from tuneproof.settings import ProviderConfig, Secret, Settings, Url
from tuneproof.store import Store
from tuneproof.training import Price

__all__ = ["ChatEndpoint", "ModelEndpoints"]

CHAT = "chat:"
"""How the names of the gateway's breakers begin: one for each provider and model."""

RENEW_S = 10.0
"""How often what is known is asked for again: another worker may have trained or moved models."""


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """Who serves a model: what the gateway calls."""

    provider: str
    base_url: Url
    api_key: Secret | None
    organization: str | None
    breaker: CircuitBreaker
    timeout_s: float

    @cached_property
    def chat_url(self) -> str:
        """Where chat requests go; it may carry a secret."""
        return f"{self.base_url.reveal().rstrip('/')}/chat/completions"

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """What goes with each request: the key above all."""
        found = {"Content-Type": "application/json"}
        if self.api_key:
            found["Authorization"] = f"Bearer {self.api_key.reveal()}"
        if self.organization:
            found["OpenAI-Organization"] = self.organization
        return found


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """What was found for a model; `base` is the model that it was trained on, or itself."""

    config: ProviderConfig
    base: str
    endpoint: ChatEndpoint


class ModelEndpoints:
    """The endpoint of each model that users get.

    Those of the routing are found before it is shown and again every `RENEW_S`, so a request
    asks no database; a model of which nothing is known is looked up when it is asked for.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        places: Places,
        *,
        embedded: Callable[[str], ProviderConfig],
        breakers: MutableMapping[str, CircuitBreaker],
        on_event: Callable[[BreakerEvent], None] = lambda event: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._places = places
        self._embedded = embedded
        self._breakers = breakers
        self._on_event = on_event
        self._known: dict[ModelRef, _Serving] = {}

    async def of(self, model: ModelRef) -> ChatEndpoint:
        """Which provider serves this model: the one that trained it or on it, else the default.

        Raises `ConfigError` where it left the settings: no other one is sent the request.
        """
        known = self._known.get(model) or await self._find(model)
        return known.endpoint

    def breaker_name(self, model: ModelRef) -> str | None:
        """What the breaker of a model that is served is called; None where it is not known."""
        known = self._known.get(model)
        return None if known is None else known.endpoint.breaker.name

    async def prepare(self, models: Iterable[ModelRef]) -> None:
        """Find those that are not known yet, as far as possible."""
        for model in models:
            if model not in self._known:
                with contextlib.suppress(StoreUnavailableError):
                    await self._try(model)

    async def renew(self, models: Iterable[ModelRef]) -> None:
        """Find these anew and forget all others. Raises `StoreUnavailableError`."""
        wanted = frozenset(models)
        for model in wanted:
            await self._try(model)
        for model in self._known.keys() - wanted:
            del self._known[model]
        used = {serving.endpoint.breaker.name for serving in self._known.values()}
        for name in [n for n in self._breakers if n.startswith(CHAT) and n not in used]:
            del self._breakers[name]  # nobody is asked any more, so it would stand as it is

    async def _try(self, model: ModelRef) -> None:
        """Find it; what is wrong with it is told to whoever asks for it."""
        try:
            await self._find(model)
        except StoreUnavailableError:
            raise
        except TuneProofError:
            self._known.pop(model, None)

    async def _find(self, model: ModelRef) -> _Serving:
        name, base = await provider_of(self._store, self._settings, model)
        config = await self._places.find(name)
        if config.embedded:
            config = self._embedded(config.name)
        endpoint = ChatEndpoint(
            provider=config.name,
            base_url=chat_address(config),
            api_key=config.api_key,
            organization=None if config.kind in NATIVE else config.organization,
            breaker=self._breaker(config.name, model.model_id),
            timeout_s=config.timeout_seconds,
        )
        self._known[model] = found = _Serving(config=config, base=base, endpoint=endpoint)
        return found

    def _breaker(self, provider: str, model_id: str) -> CircuitBreaker:
        key = f"{CHAT}{provider}:{model_id}"
        if key not in self._breakers:
            self._breakers[key] = CircuitBreaker.named(key, like="openai", on_event=self._on_event)
        return self._breakers[key]

    def price(self, model: ModelRef) -> Price | None:
        """What its answers cost, by the settings' prices, else by the dated table; None: unknown.

        The prices are those of the provider that serves this model; of a model that is not
        known, any provider's that names it.
        """
        known = self._known.get(model)
        asked = [known.config] if known else list(self._settings.providers.values())
        for config in asked:
            set_price = longest_prefix(config.prices, model.model_id.removeprefix("ft:"))
            if set_price is not None:
                prompt, completion = set_price
                return Price(prompt=prompt, completion=completion)
        if known is None:
            return None
        tuned = model.model_id != known.base and not known.base.startswith("ft:")
        named = f"ft:{known.base}" if tuned else known.base
        return price_at(known.config, named, "answers")

    def cost_usd(
        self, model: ModelRef, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """What a request cost; None where its price is not known."""
        price = self.price(model)
        if price is None:
            return None
        return price.request_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
