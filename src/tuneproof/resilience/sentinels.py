"""Redis by Sentinels: who of several servers is the primary is asked at each new connection.

The address names the Sentinels, the name by which they know the primary, and the database:
`redis+sentinel://user:password@host:26379,host:26379/NAME/0`. User and password are those of
Redis; those of the Sentinels, where they ask for some, are the parameters `sentinel_username`
and `sentinel_password`. `rediss+sentinel` speaks TLS to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

__all__ = ["SentinelAddress", "sentinel_pool"]

PORT = 26379
"""Where a Sentinel listens whose address names no port."""


@dataclass(frozen=True, kw_only=True)
class SentinelAddress:
    """An address of Sentinels, taken apart.

    >>> found = SentinelAddress.parse("redis+sentinel://:pw@one,two:26380/primary/3")
    >>> found.hosts, found.name, found.database
    ((('one', 26379), ('two', 26380)), 'primary', 3)
    """

    hosts: tuple[tuple[str, int], ...]
    name: str
    database: int = 0
    tls: bool = False
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Take it apart; raises `ValueError` where it is none."""
        parts = urlsplit(url)
        user, _, hosts = parts.netloc.rpartition("@")
        username, _, password = (unquote(part) for part in user.partition(":"))
        name, _, database = parts.path.strip("/").partition("/")
        if not name or not all(hosts.split(",")):
            raise ValueError("it names no Sentinel, or no primary")
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if unknown := set(asked) - {"sentinel_username", "sentinel_password"}:
            raise ValueError(f"it has no parameter {min(unknown)}")
        return cls(
            hosts=tuple(_host(host) for host in hosts.split(",")),
            name=unquote(name),
            database=int(database or 0),
            tls=parts.scheme.startswith("rediss"),
            username=username or None,
            password=password or None,
            **asked,
        )


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or PORT


def _place(sentinel: Redis) -> str:
    known = sentinel.connection_pool.connection_kwargs
    return f"{known['host']}:{known['port']}"


class _Pool(BlockingConnectionPool, SentinelConnectionPool):
    """Callers wait for a connection, and a connection asks the Sentinels where to go."""

    async def get_master_address(self) -> tuple[str, int]:
        """Where the primary is; raises `MasterNotFoundError` where no Sentinel says."""
        try:
            asked = super().get_master_address()  # type: ignore[no-untyped-call]
            address: tuple[str, int] = await asked
        except MasterNotFoundError as error:
            places = ", ".join(_place(sentinel) for sentinel in self.sentinel_manager.sentinels)
            said = f"no Sentinel of {places} names a primary {self.service_name!r}"
            raise MasterNotFoundError(said) from error
        return address

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; with all of them those to the Sentinels, too."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def sentinel_pool(url: str, **arguments: Any) -> BlockingConnectionPool:
    """A pool of connections to the primary; `arguments` are those of redis-py's blocking pool.

    Raises `ValueError` for a malformed address.
    """
    address = SentinelAddress.parse(url)
    sockets = {key: value for key, value in arguments.items() if key.startswith("socket_")}
    return _Pool(
        service_name=address.name,
        sentinel_manager=Sentinel(  # type: ignore[no-untyped-call]
            address.hosts,
            sentinel_kwargs={
                **sockets,
                "username": address.sentinel_username,
                "password": address.sentinel_password,
                "ssl": address.tls,
            },
        ),
        connection_class=SentinelManagedSSLConnection if address.tls else SentinelManagedConnection,
        db=address.database,
        username=address.username,
        password=address.password,
        **arguments,
    )
