"""From a provider's settings to the adapter that speaks its wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tuneproof.errors import ConfigError
from tuneproof.outgoing import ANYWHERE, Rules
from tuneproof.outgoing.clients import http_client
from tuneproof.providers import fireworks, prices, together
from tuneproof.providers.dialects import NATIVE, NATIVE_CHAT, Dialect, dialect_for
from tuneproof.providers.fireworks import Fireworks
from tuneproof.providers.http import Breaker, Http
from tuneproof.providers.openai_wire import OpenAIWire
from tuneproof.providers.together import Together
from tuneproof.settings import Secret, Url
from tuneproof.training import Price
from tuneproof.workflow import Clock, SystemClock

URLS: Mapping[str, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "together": together.URL,
    "fireworks": fireworks.URL,
}
"""Where a kind of provider is, if `base_url` says nothing else."""


class Endpoint(Protocol):
    """What `open_provider` needs to know; `settings.ProviderConfig` is one."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def base_url(self) -> Url | str | None: ...
    @property
    def api_key(self) -> Secret | str | None: ...
    @property
    def organization(self) -> str | None: ...


def open_provider(
    config: Endpoint,
    *,
    clock: Clock | None = None,
    breaker: Breaker | None = None,
    timeout_s: float = 30.0,
    outgoing: Rules = ANYWHERE,
) -> OpenAIWire | Together | Fireworks:
    """The provider that `config` describes; no call is made yet.

    `timeout_s` bounds each silence of the server (connect, read, write), not a whole upload;
    `outgoing` says which addresses may be called.
    Raises `ConfigError` for an unknown kind, a malformed address, or a missing key where the
    server is not on this machine.
    """
    import openai  # a third of a second; commands that call no provider do without

    clock = clock or SystemClock()
    base_url, key = callable_at(config)
    outgoing.check_written(f"providers.{config.name}.base_url", base_url)
    chat = OpenAIWire(
        name=config.name,
        client=openai.AsyncOpenAI(
            base_url=chat_address(config).reveal(),
            api_key=key.reveal(),
            organization=None if config.kind in NATIVE else config.organization,
            max_retries=0,
            timeout=timeout_s,
            http_client=http_client(
                outgoing, make=openai.DefaultAsyncHttpx2Client, trust_env=True, timeout=timeout_s
            ),
        ),
        dialect=NATIVE_CHAT.get(config.kind) or _dialect(config),
        clock=clock,
        breaker=breaker,
    )
    if config.kind not in NATIVE:
        return chat
    http = Http(
        name=config.name,
        base_url=base_url,
        key=key,
        breaker=breaker,
        timeout_s=timeout_s,
        outgoing=outgoing,
    )
    if config.kind == "together":
        return Together(name=config.name, http=http, chat=chat, clock=clock)
    return Fireworks(
        name=config.name, http=http, chat=chat, clock=clock, account=config.organization
    )


def callable_at(config: Endpoint) -> tuple[Url, Secret]:
    """Where a provider is called, and with which key; no call is made.

    Raises `ConfigError` as `open_provider` does.
    """
    base_url = address(config)
    _check_address(config.name, base_url)
    return base_url, _key(config, base_url)


def _dialect(config: Endpoint) -> Dialect:
    given = None if config.base_url is None else Url(config.base_url).reveal()
    return dialect_for(config.kind, given)


def address(config: Endpoint) -> Url:
    """Where the provider's fine-tuning wire is spoken.

    Raises `ConfigError` where neither `base_url` nor the kind says it.
    """
    given = config.base_url or URLS.get(config.kind)
    if given is None:
        raise ConfigError(
            f"providers.{config.name} of kind {config.kind} has no base_url.",
            mend=f"Set providers.{config.name}.base_url to where it speaks OpenAI's wire.",
            field=f"providers.{config.name}.base_url",
        )
    return Url(given)


def chat_address(config: Endpoint) -> Url:
    """Where the provider answers chat requests."""
    base_url = address(config)
    return Url(fireworks.chat_url(base_url.reveal())) if config.kind == "fireworks" else base_url


def key_header(config: Endpoint) -> str:
    """Which header has the provider's key on Anthropic's wire; empty: `Authorization`."""
    return "" if config.kind in NATIVE else _dialect(config).key_header


def takes_n(config: Endpoint) -> bool:
    """Whether the provider is known to give as many answers to a chat as its `n` says."""
    return (NATIVE_CHAT.get(config.kind) or _dialect(config)).takes_n


def length_field(config: Endpoint) -> str:
    """What the provider calls the limit of an answer's length in a chat request."""
    return (NATIVE_CHAT.get(config.kind) or _dialect(config)).max_tokens_field


def default_price(
    kind: str, base_url: str | None, model: str, method: str = "supervised"
) -> Price | None:
    """The dated table's price of a model at such a provider; None where it has none.

    `method` "answers" asks for the price of answers of a base model.
    """
    vendor = kind if kind in NATIVE else dialect_for(kind, base_url).prices
    return prices.price_of(vendor, model, method)


def _check_address(name: str, base_url: Url) -> None:
    if base_url.scheme not in ("http", "https") or not base_url.host:
        raise ConfigError(
            f"base_url {base_url!r} of providers.{name} is not an http(s) address.",
            mend="Write it like http://127.0.0.1:8688/v1 or https://api.openai.com/v1.",
            field=f"providers.{name}.base_url",
        )


def _key(config: Endpoint, base_url: Url) -> Secret:
    if config.api_key:
        return Secret(config.api_key)
    if base_url.host in ("127.0.0.1", "::1", "localhost"):
        return Secret("none")  # the client wants a text; a server on this machine asks for no key
    raise ConfigError(
        f"providers.{config.name} at {base_url} has no key.",
        mend="Set `api_key_env` of this provider to the variable that holds it (by default "
        "OPENAI_API_KEY, TOGETHER_API_KEY, FIREWORKS_API_KEY or ANTHROPIC_API_KEY by its kind).",
        field=f"providers.{config.name}.api_key_env",
    )
