"""Texts that show themselves to nobody: `reveal()` is the one way to read them.

They are no `str`, so that nothing writes them by accident: a log line, an f-string, a traceback's
locals and `to_dict` get the masked form, JSON and pickle refuse them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

MASK = "***"

_SECRET_NAME = re.compile(r"key|pass|pwd|secret|sig|token|auth|credential", re.IGNORECASE)
"""What a parameter of an address, or an option, is called whose value is a secret."""


class Secret:
    """A key, a token, a password. Equal to the text that it holds; shows `***`.

    >>> key = Secret("sk-1")
    >>> f"{key} {key!r}", key.reveal()
    ("*** '***'", 'sk-1')
    """

    __slots__ = ("_text",)

    def __init__(self, text: str | Secret) -> None:
        self._text: str = text._text if isinstance(text, Secret) else text

    def reveal(self) -> str:
        """The text itself, for the wire that needs it."""
        return self._text

    @property
    def masked(self) -> str:
        """What may be shown of it."""
        return MASK

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return repr(self.masked)

    def __format__(self, spec: str) -> str:
        return format(self.masked, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Secret):
            return self._text == other._text
        return self._text == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("A secret is not pickled: pass the name of its environment variable.")


class Url(Secret):
    """An address that may carry a password or a token; all else of it is shown.

    Hidden are the password, a name without a password in front of an HTTP host (a token), and
    parameters that are secrets by their name.

    >>> print(Url("postgresql://me:pw@host/db?sslmode=require"))
    postgresql://me:***@host/db?sslmode=require
    """

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """What the address begins with, without a driver: "postgresql"; empty for a file."""
        scheme, colon, _ = self._text.partition(":")
        return scheme.partition("+")[0] if colon else ""

    @property
    def host(self) -> str:
        """The host that it names, without a port; empty where it names none."""
        try:
            return urlsplit(self._text).hostname or ""
        except ValueError:
            return ""

    @property
    def without_user(self) -> str:
        """The address without a name and a password in it, for people to open."""
        parts = urlsplit(self._text)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def masked(self) -> str:
        """The address with what is secret in it replaced by `***`."""
        try:
            parts = urlsplit(self._text)
            password = parts.password
        except ValueError:
            return MASK
        if _ends_early(parts):
            return _masked_rest(self._text)
        host = parts.netloc
        if "@" in host:
            user, _, host = host.rpartition("@")
            host = f"{_masked_user(user, parts.scheme, password)}@{host}"
        query = _masked_query(parts.query)
        if host == parts.netloc and query == parts.query:
            return self._text
        return urlunsplit(parts._replace(netloc=host, query=query))


class WebhookUrl(Url):
    """An address whose path is a secret, as with those that chat services give out.

    >>> print(WebhookUrl("https://hooks.example.com/services/T1/B2/x"))
    https://hooks.example.com/***
    """

    __slots__ = ()

    @property
    def masked(self) -> str:
        """The scheme and the host alone."""
        host = super().masked.partition("://")[2].partition("/")[0].partition("?")[0]
        return f"{self._text.partition('://')[0]}://{host}/{MASK}" if host else MASK


class Options(Mapping[str, Any]):
    """Settings for a part of the user's own, whose meaning we do not know.

    Read like any mapping. Shown with those masked that are secrets by their name, and with what
    is secret in addresses masked.
    """

    def __init__(self, values: Mapping[str, Any], *, hides_paths: bool = False) -> None:
        """`hides_paths`: addresses among them are those of webhooks, whose path is a secret."""
        self._values = dict(values)
        self._shown = WebhookUrl if hides_paths else Url

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self.masked)

    def __deepcopy__(self, memo: dict[int, Any]) -> Options:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("Options of the settings are not pickled: they may hold secrets.")

    @property
    def masked(self) -> dict[str, Any]:
        """What may be shown of them."""
        return {n: _masked_option(n, value, self._shown) for n, value in self._values.items()}


def _masked_option(name: str, value: Any, address: type[Url]) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked_option(str(key), inner, address) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_option(name, inner, address) for inner in value]
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, str) and _SECRET_NAME.search(name):
        return MASK
    return address(value).masked if isinstance(value, str) and "://" in value else value


def revealed(secret: Secret | None) -> str | None:
    """The text of a secret that may be missing."""
    return None if secret is None else secret.reveal()


def _ends_early(parts: SplitResult) -> bool:
    """Whether a password holds a character that ends a host elsewhere, so that it is split."""
    _, colon, behind = parts.netloc.rpartition(":")
    rest = f"{parts.path}{parts.query}{parts.fragment}"
    known_port = behind.isdecimal() and parts.scheme in ("http", "https")
    return bool(colon) and "@" in rest and "@" not in parts.netloc and not known_port


def _masked_rest(address: str) -> str:
    """The scheme, the user, and what comes behind the last `@`."""
    scheme, _, rest = address.partition("://")
    user, _, behind = rest.partition(":")
    return f"{scheme}://{user}:{MASK}@{behind.rpartition('@')[2]}"


def _masked_user(user: str, scheme: str, password: str | None) -> str:
    if password is not None:
        return f"{user.partition(':')[0]}:{MASK}"
    return MASK if scheme in ("http", "https") else user


def _masked_query(query: str) -> str:
    pairs = parse_qsl(query, keep_blank_values=True)
    if not any(_SECRET_NAME.search(name) for name, _ in pairs):
        return query
    return "&".join(
        f"{quote(name)}={MASK if _SECRET_NAME.search(name) else quote(value)}"
        for name, value in pairs
    )
