"""Which addresses may be called: a fact of numbers and of settings; no call is made here."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.settings import OutgoingConfig, Url, addresses

AddrInfo = tuple[Any, Any, int, str, Any]
"""One line of what `socket.getaddrinfo` answers."""


class AddressRefused(PermissionError):
    """The number that a name leads to, or that an address is written as, must not be called.

    `why` says so of "it", without the number.
    """

    def __init__(self, said: str, why: str = "") -> None:
        super().__init__(errno.EACCES, said)
        self.why = why or said

    def __str__(self) -> str:
        return str(self.strerror)


class Rules:
    """What may be called: never what gives out keys, and private addresses as the settings say."""

    def __init__(self, config: OutgoingConfig | None = None) -> None:
        self._config = config or OutgoingConfig()

    def why_not(self, host: str) -> str:
        """Why a host, a name or a number, must not be called; empty where it may, and of names."""
        if addresses.gives_out_keys(host):
            return addresses.GIVES_OUT_KEYS
        number = addresses.number_of(host)
        if self._config.private_addresses or number is None or not addresses.is_private(number):
            return ""
        if addresses.is_within(number, self._config.allowed_networks):
            return ""
        return (
            "is a private address, and outgoing.private_addresses is false; if it is meant, name "
            "its network in outgoing.allowed_networks"
        )

    def check(self, host: str, *, named: str = "") -> None:
        """Raises `AddressRefused` where a host must not be called; `named` is what led to it."""
        why = self.why_not(host)
        if why:
            led = f"{named} leads to {host}, which" if named and named != host else host
            raise AddressRefused(f"{led} {why}", why)

    def check_written(self, field: str, url: Url) -> None:
        """Raises `ConfigError` where an address is written as a number that must not be called."""
        why = self.why_not(url.host)
        if why:
            raise ConfigError(
                f"{field} is {url!r}, but {url.host} {why}.",
                mend=f"Change {field} to the server that is meant.",
                field=field,
            )


def told(make: Callable[..., object], rules: Rules) -> dict[str, Rules]:
    """The argument `outgoing` for what makes an adapter, where it has one: yours may have none."""
    return {"outgoing": rules} if "outgoing" in signature(make).parameters else {}


ANYWHERE = Rules()
"""Where no settings say more: all but what gives out keys."""


def judged(rules: Rules, host: str, found: Iterable[AddrInfo]) -> list[str]:
    """The numbers of a host that may be called. Raises `AddressRefused` where there is none."""
    numbers = list(dict.fromkeys(str(line[4][0]) for line in found))
    allowed = [number for number in numbers if not rules.why_not(number)]
    if numbers and not allowed:
        rules.check(numbers[0], named=host)
    return allowed
