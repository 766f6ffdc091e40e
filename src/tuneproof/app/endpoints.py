"""Which provider answers for which model: found ahead of the requests that need it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from tuneproof.app.places import Places
from tuneproof.app.providing import longest_prefix, price_at, provider_of
from tuneproof.errors import StoreUnavailableError, TuneProofError
from tuneproof.experiments import Variant
from tuneproof.providers import NATIVE, chat_address, key_header, length_field, takes_n
from tuneproof.resilience import BreakerEvent, CircuitBreaker
from tuneproof.settings import ProviderConfig, Secret, Settings, Url
from tuneproof.store import Store
from tuneproof.training import Price

__all__ = [
    "ChatEndpoint",
    "ModelEndpoints",
    "ProviderEndpoint",
    "answer_cost_usd",
    "breaker_of",
    "endpoint_at",
]

CHAT = "chat:"
"""How the names of the gateway's breakers begin: one for each provider and model."""

MESSAGES = "/messages"
"""The path of Anthropic's wire."""

ANTHROPIC_VERSION = "2023-06-01"
"""The version of that wire that is asked for where the caller names none."""

_JSON = {"Content-Type": "application/json"}

RENEW_S = 10.0
"""How often what is known is asked for again: another worker may have trained or moved models."""


@dataclass(frozen=True, kw_only=True)
class ProviderEndpoint:
    """Where a provider is called, and with which key."""

    provider: str
    base_url: Url
    api_key: Secret | None
    organization: str | None
    timeout_s: float
    key_header: str = ""
    """Which header has the key on `/messages`; empty: `Authorization`, as on all other paths."""
    takes_n: bool = False
    """Whether it is known to give as many answers to a chat as its `n` says."""
    length_field: str = "max_tokens"
    """What it calls the limit of an answer's length in a chat request."""

    def url(self, path: str) -> str:
        """Where a path of its wire is; it may carry a secret."""
        return f"{self._root}{path}"

    def headers(self, path: str) -> Mapping[str, str]:
        """What goes with each JSON request for a path: the key above all."""
        return self._json_with_own_key if self._own(path) else self._json_with_bearer

    def credentials(self, path: str) -> Mapping[str, str]:
        """What of it says who asks."""
        return {name: value for name, value in self.headers(path).items() if name not in _JSON}

    def _own(self, path: str) -> bool:
        return bool(self.key_header) and path.startswith(MESSAGES)

    @cached_property
    def _root(self) -> str:
        return self.base_url.reveal().rstrip("/")

    @cached_property
    def _json_with_bearer(self) -> Mapping[str, str]:
        found = dict(_JSON)
        if self.api_key:
            found["Authorization"] = f"Bearer {self.api_key.reveal()}"
        if self.organization:
            found["OpenAI-Organization"] = self.organization
        return found

    @cached_property
    def _json_with_own_key(self) -> Mapping[str, str]:
        found = {**_JSON, "anthropic-version": ANTHROPIC_VERSION}
        if self.api_key:
            found[self.key_header] = self.api_key.reveal()
        return found


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint(ProviderEndpoint):
    """Who serves a model: what the gateway calls."""

    breaker: CircuitBreaker


class _Called(TypedDict):
    provider: str
    base_url: Url
    api_key: Secret | None
    organization: str | None
    timeout_s: float
    key_header: str
    takes_n: bool
    length_field: str


def _called(config: ProviderConfig) -> _Called:
    """How a provider is called, as its settings say."""
    return {
        "provider": config.name,
        "base_url": chat_address(config),
        "api_key": config.api_key,
        "organization": None if config.kind in NATIVE else config.organization,
        "timeout_s": config.timeout_seconds,
        "key_header": key_header(config),
        "takes_n": takes_n(config),
        "length_field": length_field(config),
    }


def breaker_of(provider: str, model: Variant) -> str:
    """What the breaker of a variant at a provider is called: one model's two prompts, of which one
    may ask for more than it answers in time, have one each."""
    return f"{CHAT}{provider}:{model.model_id}{f'+{model.prompt}' if model.prompt else ''}"


def endpoint_at(config: ProviderConfig) -> ProviderEndpoint:
    """Where a provider of the settings is called. Raises `ConfigError` where it cannot be."""
    return ProviderEndpoint(**_called(config))


def answer_cost_usd(
    config: ProviderConfig, model: str, *, prompt_tokens: int, completion_tokens: int
) -> float | None:
    """What a request for a model of this name cost at this provider; None without a price."""
    price = _of_answers(price_at(config, model, "answers"))
    if price is None:
        return None
    return price.request_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _of_answers(price: Price | None) -> Price | None:
    """The same price; None where training alone has one."""
    known = price is not None and (price.prompt is not None or price.completion is not None)
    return price if known else None


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
        self._known: dict[Variant, _Serving] = {}

    async def of(self, model: Variant) -> ChatEndpoint:
        """Which provider serves this model: the one that trained it or on it, else the default.

        Raises `ConfigError` where it left the settings: no other one is sent the request.
        """
        known = self._known.get(model) or await self._find(model)
        return known.endpoint

    def breaker_name(self, model: Variant) -> str | None:
        """What the breaker of a model that is served is called; None where it is not known."""
        known = self._known.get(model)
        return None if known is None else known.endpoint.breaker.name

    async def prepare(self, models: Iterable[Variant]) -> None:
        """Find those that are not known yet, as far as possible."""
        for model in models:
            if model not in self._known:
                with contextlib.suppress(StoreUnavailableError):
                    await self._try(model)

    async def renew(self, models: Iterable[Variant]) -> None:
        """Find these anew and forget all others. Raises `StoreUnavailableError`."""
        wanted = frozenset(models)
        for model in wanted:
            await self._try(model)
        for model in self._known.keys() - wanted:
            del self._known[model]
        used = {serving.endpoint.breaker.name for serving in self._known.values()}
        for name in [n for n in self._breakers if n.startswith(CHAT) and n not in used]:
            del self._breakers[name]  # nobody is asked any more, so it would stand as it is

    async def _try(self, model: Variant) -> None:
        """Find it; what is wrong with it is told to whoever asks for it."""
        try:
            await self._find(model)
        except StoreUnavailableError:
            raise
        except TuneProofError:
            self._known.pop(model, None)

    async def _find(self, model: Variant) -> _Serving:
        name, base = await provider_of(self._store, self._settings, model)
        config = await self._places.find(name)
        if config.embedded:
            config = self._embedded(config.name)
        endpoint = ChatEndpoint(
            **_called(config), breaker=self._breaker(breaker_of(config.name, model))
        )
        self._known[model] = found = _Serving(config=config, base=base, endpoint=endpoint)
        return found

    def at(self, name: str) -> ProviderEndpoint | None:
        """A provider of the settings; None where there is none of this name.

        Raises `ConfigError` where it cannot be called.
        """
        config = self._settings.providers.get(name)
        if config is None:
            return None
        if config.embedded:
            config = self._embedded(name)
        return endpoint_at(config)

    def cost_at_usd(
        self, provider: str, model: str, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """What a request for a model of this name cost at a provider of the settings.

        None without a price.
        """
        return answer_cost_usd(
            self._settings.providers[provider],
            model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def _breaker(self, key: str) -> CircuitBreaker:
        if key not in self._breakers:
            limits = self._settings.breakers.of("openai")
            self._breakers[key] = CircuitBreaker.named(key, on_event=self._on_event, **limits)
        return self._breakers[key]

    def price(self, model: Variant) -> Price | None:
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
        return _of_answers(price_at(known.config, named, "answers"))

    def cost_usd(
        self, model: Variant, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """What a request cost; None where its price is not known."""
        price = self.price(model)
        if price is None:
            return None
        return price.request_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
