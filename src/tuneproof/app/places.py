"""Where a provider was: a name in the settings may move to another address, its models stay.

A team that changes the one line `base_url` leaves models behind that users are still served.
So the address of each provider is remembered; when it changes, the versions that were trained
there go on under `NAME@HOST`, which is asked at the old address with the old key, for as long as
the key is still in the variable it was in. Keys are never kept: a mark (a hash) tells whether
the variable still holds the same one.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlsplit, urlunsplit

from tuneproof.errors import ConfigError, TuneProofError
from tuneproof.providers import address
from tuneproof.settings import ProviderConfig, Secret, Settings, Url
from tuneproof.store import Store
from tuneproof.training import Provider

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""The address of the trainer that this process starts, whichever port it listens on."""

IN_ADDRESS = "in the address"
"""Stands where a key's mark would, of a provider whose address held its password."""

KEPT = "places"
"""Under which key the store keeps them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is needed to ask a provider again where it was, but for its key."""

    kind: str
    base_url: str
    api_key_env: str
    organization: str | None = None
    key_mark: str = ""
    """The beginning of the SHA-256 of its key; empty where it had none."""

    @classmethod
    def of(cls, config: ProviderConfig) -> Place:
        """Where a provider of the settings is now."""
        url = EMBEDDED if config.embedded else address(config).reveal().rstrip("/")
        plain = _plain(url)  # a password or a key in the address is not kept, either
        return cls(
            kind=config.kind,
            base_url=plain,
            api_key_env=config.api_key_env,
            organization=config.organization,
            key_mark=_mark(config.api_key) if plain == url else IN_ADDRESS,
        )

    @property
    def host(self) -> str:
        """Where that is, without a scheme."""
        parts = urlsplit(self.base_url)
        return parts.netloc + parts.path

    def config(self, name: str, settings: Settings) -> ProviderConfig:
        """The settings of a provider at this place, under this name.

        It is one of the settings where that is at the same address, else made anew for one that
        was moved. Raises `ConfigError`, which says what to write, where it was taken out, or its
        key is not to be had.
        """
        for known in settings.providers.values():
            if Place.of(known).base_url == self.base_url:
                return known
        key = settings.secret(self.api_key_env)
        if name.partition("@")[0] not in settings.providers:
            raise self._lost(name, "is not set any more")
        if self.base_url == EMBEDDED or _mark(key) != self.key_mark:
            raise self._lost(
                name,
                "runs no more"
                if self.base_url == EMBEDDED
                else f"had another key than {self.api_key_env} holds now",
            )
        return ProviderConfig(
            name=name,
            kind=self.kind,
            base_url=Url(self.base_url),
            api_key_env=self.api_key_env,
            api_key=key,
            organization=self.organization,
        )

    def _lost(self, name: str, why: str) -> ConfigError:
        return ConfigError(
            f"The provider {name}, whose models are in use, {why}.",
            mend=f"Keep it in the settings for as long as they are: {self._written(name)}",
            field=f"providers.{name}",
        )

    def _written(self, name: str) -> str:
        """The lines of `tuneproof.toml` that bring it back."""
        lines = [f"[providers.{name.replace('@', '-').split('/')[0].replace('.', '-')}]"]
        if self.kind != "openai":
            lines.append(f'kind = "{self.kind}"')
        if self.base_url != EMBEDDED:
            lines.append(f'base_url = "{self.base_url}"')
            lines += ['api_key_env = "THE_VARIABLE_WITH_ITS_KEY"'] if self.key_mark else []
        return "; ".join(lines)


class Places:
    """The addresses that the providers of the settings have and had."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._known: dict[str, Place] = {}

    async def read(self) -> None:
        """Read what is remembered."""
        kept = await self._store.meta.get(KEPT) or {}
        known = {name: Place(**place) for name, place in kept.items()}
        self._known = {n: replace(p, base_url=_plain(p.base_url)) for n, p in known.items()}

    async def remember(self) -> list[str]:
        """Keep the addresses of now; the names under which moved providers' versions go on."""
        await self.read()
        moved = []
        async with self._store.database.begin() as tx:
            for name, config in self._settings.providers.items():
                now, before = Place.of(config), self._known.get(name)
                if before is not None and before.base_url != now.base_url:
                    former = f"{name}@{before.host}"
                    self._known[former] = before
                    moved.append(former)
                    await self._store.versions.relabel(name, former, tx=tx)
                    log.warning(
                        "providers.%s is at %s now; models that it served at %s are asked there",
                        name,
                        now.base_url,
                        before.base_url,
                    )
                self._known[name] = now
            kept = {name: asdict(place) for name, place in self._known.items()}
            await self._store.meta.set(KEPT, kept, tx=tx)
        return moved

    def label(self, name: str) -> str:
        """A provider's name with where it is now: what still finds it after it has moved."""
        return f"{name}@{Place.of(self._settings.providers[name]).host}"

    async def find(self, name: str) -> ProviderConfig:
        """The settings of a provider that is set, or was. Raises `ConfigError` for others."""
        present, _, host = name.partition("@")
        config = self._settings.providers.get(present)
        if config is not None and host in ("", Place.of(config).host):
            return config
        if name not in self._known:
            await self.read()  # another process may have moved it
        if name not in self._known:
            raise ConfigError(
                f"There is no provider {name!r}: it is not set.",
                mend=f"Keep [providers.{name}] for as long as its models are in use.",
                field=f"providers.{name}",
            )
        return self._known[name].config(name, self._settings)

    async def settle(self, name: str, provider: Provider) -> list[str]:
        """Take back the models that came along: a server may move with its data.

        `provider` is who is called `name` now. Returns the models that it answers for.
        """
        formers = [former for former in self._known if former.startswith(f"{name}@")]
        left = [
            version
            for former in formers
            for version in await self._store.versions.list(provider=former)
            if version.model_id is not None
        ]
        if not left:
            return []
        try:
            offered = {model.id for model in await provider.models()}
        except TuneProofError as e:
            log.info("what %s answers for is not known yet: %s", name, e)
            return []
        along = [version for version in left if version.model_id in offered]
        for version in along:
            await self._store.versions.update(version.id, provider=name)
        return [str(version.model_id) for version in along]


def _plain(url: str) -> str:
    """An address without a name and a password, and without a query that holds a secret."""
    parts = urlsplit(url)
    query = parts.query if Url(f"x://h/?{parts.query}").masked.endswith(parts.query) else ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def _mark(key: Secret | None) -> str:
    """What tells one key from another; nothing can be told of the key by it."""
    return hashlib.sha256(key.reveal().encode()).hexdigest()[:16] if key else ""
