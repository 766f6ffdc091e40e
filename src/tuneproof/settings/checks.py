"""Rules for single values, each raising a `ConfigError` that names field, value, rule and mend."""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from tuneproof.errors import ConfigError
from tuneproof.settings import addresses
from tuneproof.settings.secrets import Secret, Url

HTTP = ("http", "https")
"""Schemes of an address that is asked over HTTP."""


def refuse(field: str, value: object, rule: str, *, mend: str = "") -> ConfigError:
    """The error for a field whose value breaks a rule; the caller raises it."""
    return ConfigError(
        f"{field} is {value!r}, but {rule}.",
        mend=mend or f"Change {field} to such a value.",
        field=field,
        value=_plain(value),
        rule=rule,
    )


def _plain(value: object) -> Any:
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value if isinstance(value, bool | int | str) else repr(value)


def number(
    field: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    whole: bool = False,
    mend: str = "",
) -> None:
    """Refuse what is not a finite number within the bounds (`above` excludes its bound)."""
    rule = _rule(at_least, above, at_most, whole)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise refuse(field, value, rule, mend=mend)
    if not math.isfinite(value):
        raise refuse(field, value, rule, mend=mend)
    low = (at_least is not None and value < at_least) or (above is not None and value <= above)
    if low or (at_most is not None and value > at_most):
        raise refuse(field, value, rule, mend=mend)


def _rule(at_least: float | None, above: float | None, at_most: float | None, whole: bool) -> str:
    parts = []
    if at_least is not None:
        parts.append(f"at least {_bound(at_least)}")
    if above is not None:
        parts.append(f"above {_bound(above)}")
    if at_most is not None:
        parts.append(f"at most {_bound(at_most)}")
    bounds = " and ".join(parts)
    return f"must be a {'whole ' if whole else ''}number{' ' + bounds if bounds else ''}"


def _bound(value: float) -> str:
    """A bound as a reader would write it: 1000000000, and not 1e+09."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


def text(field: str, value: object, *, empty: bool = False) -> None:
    """Refuse what is not a string, or is empty where that is not allowed."""
    if not _is_text(value, empty):
        raise refuse(field, value, _TEXT)


def secret(field: str, value: object, *, empty: bool = False) -> None:
    """Refuse what `text` refuses, without showing it."""
    if not _is_text(value, empty):
        raise refuse(field, Secret(str(value)), _TEXT)


_TEXT = "must be a text that is not empty"


def _is_text(value: object, empty: bool) -> bool:
    return isinstance(value, str) and (empty or bool(value.strip()))


def truth(field: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise refuse(field, value, "must be true or false")


def choice(field: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse what is not one of the allowed words."""
    if value not in allowed:
        names = ", ".join(f'"{name}"' for name in allowed)
        raise refuse(field, value, f"must be one of {names}", mend=meant(str(value), allowed))


def meant(given: str, known: Iterable[str]) -> str:
    """A mend that names the closest known word, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"?' if close else f"Known are: {', '.join(known)}."


def unknown_key(path: str, known: Iterable[str], *, last: str | None = None) -> ConfigError:
    """The error for a key that no setting has; names the closest one. The caller raises it."""
    mend = meant(last or path, known)
    return ConfigError(f"{path} is not a setting.", mend=mend, field=path)


_LEAP_YEARS = 8
"""29 February comes at the latest after so many years (1896 to 1904)."""


def cron(field: str, value: object) -> str:
    """Refuse what is not a cron expression of five fields."""
    from croniter import croniter

    known = isinstance(value, str) and (_DRAWN.search(value) or croniter.is_valid(value))
    if not isinstance(value, str) or len(value.split()) != 5 or not known:
        mend = 'Write minute, hour, day, month, weekday, such as "0 2 * * 0" (Sundays at 02:00).'
        raise refuse(field, value, "must be a cron expression of five fields", mend=mend)
    if _DRAWN.search(value):
        mend = "Write the minute and the hour: each look at the schedule would draw anew."
        raise refuse(field, value, "must name fixed times, without R or H", mend=mend)
    if not _ever_fires(value):
        mend = "Choose a day that the month has, such as 28."
        raise refuse(field, value, "must name an instant that comes", mend=mend)
    return value


_DRAWN = re.compile(r"(?:^|[\s,/])[rh](?:[(/,\s]|$)", re.IGNORECASE)
"""Forms of croniter that draw a time, or make one of a name: `R`, `H(0-29)`."""


def _ever_fires(expression: str) -> bool:
    """Whether the next instant comes within a leap cycle: 31 February never does."""
    from croniter import CroniterBadDateError, croniter

    try:
        croniter(expression, max_years_between_matches=_LEAP_YEARS).get_next()
    except CroniterBadDateError:
        return False
    return True


def time_zone(field: str, value: object) -> str:
    """Refuse what the time zone database does not know."""
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(str(value))
    except (KeyError, ValueError, OSError) as error:
        mend = 'Write a name such as "UTC" or "Europe/Berlin".'
        raise refuse(field, value, "must be an IANA time zone", mend=mend) from error
    return str(value)


def names(field: str, value: object) -> tuple[str, ...]:
    """A tuple of distinct names that is not empty, from any list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise refuse(field, value, "must be a list of names that is not empty")
    for name in value:
        text(field, name)
    if len(set(value)) != len(value):
        raise refuse(field, value, "must not name anything twice")
    return tuple(value)


def host_names(field: str, value: object) -> tuple[str, ...]:
    """A tuple of names of hosts, from a list that may be empty: no scheme, no port, no path."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise refuse(field, value, "must be a list of names of hosts")
    for name in value:
        if not isinstance(name, str) or not _HOST.fullmatch(name):
            mend = 'Write names alone: ["tuneproof.example.com", "*.svc.cluster.local"].'
            raise refuse(field, name, "must be the name of a host", mend=mend)
    return tuple(value)


_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def no_metadata(field: str, value: str) -> None:
    """Refuse an address of the machine's own link or of its cloud's metadata, however written."""
    if addresses.gives_out_keys(Url(value).host):
        mend = "Name the server that is meant."
        raise refuse(field, Url(value), addresses.GIVES_OUT_KEYS, mend=mend)


def networks(field: str, value: object) -> tuple[str, ...]:
    """A tuple of networks, from a list that may be empty: "10.0.0.0/8", "fd00::/8", "10.1.2.3"."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise refuse(field, value, "must be a list of networks")
    for one in value:
        try:
            ipaddress.ip_network(one)
        except (ValueError, TypeError) as error:
            mend = 'Write networks in numbers: ["10.0.0.0/8", "127.0.0.1/32"].'
            raise refuse(field, one, "must be a network", mend=mend) from error
    return tuple(value)


def address(field: str, value: object, schemes: Sequence[str]) -> None:
    """Refuse an address whose scheme is not among `schemes` (`postgresql+x` counts as its stem)."""
    scheme = value.partition(":")[0].partition("+")[0] if isinstance(value, str) else ""
    if ":" not in str(value) or scheme not in schemes:
        rule = f"must be an address that starts with one of {', '.join(f'{s}:' for s in schemes)}"
        shown = Url(value) if isinstance(value, str) else value
        raise refuse(field, shown, rule)
    if scheme in HTTP and isinstance(value, str):
        no_metadata(field, value)


def port(field: str, value: str) -> None:
    """Refuse an address whose host or port cannot be one; what is no address is left alone."""
    scheme, mark, rest = value.partition("://")
    if scheme.endswith("+sentinel"):
        sentinels(field, value)
        return
    # A database's password may hold what ends a host elsewhere: then the host is behind its `@`.
    forms = (rest, rest.partition("@")[2])
    if mark and rest and not any(_has_port(f"{scheme}://{form}") for form in forms if form):
        rule = "must be an address, whose port is a number from 1 to 65535 where it has one"
        raise refuse(field, Url(value), rule)


def sentinels(field: str, value: str) -> None:
    """Refuse an address of Redis's Sentinels that lacks a host, a port or the primary's name."""
    parts = urlsplit(value)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if not parts.path.strip("/") or not all(h and _has_port(f"redis://{h}") for h in hosts):
        rule = "must name each Sentinel, its port where that is not 26379, and the primary"
        mend = "Write redis+sentinel://HOST:26379,HOST:26379/NAME/0."
        raise refuse(field, Url(value), rule, mend=mend)


def _has_port(address: str) -> bool:
    """Whether the address has a host that can be one, and a port that can be one or none."""
    try:
        parts = urlsplit(address)
        return parts.port != 0
    except ValueError:
        return False


def dotted(value: object) -> bool:
    """Whether this is written as the dotted name of something: "package.module:name"."""
    if not isinstance(value, str) or value.count(":") != 1:
        return False
    return all(p.isidentifier() for part in value.split(":") for p in part.split("."))


def criteria(field: str, value: object) -> tuple[str, ...]:
    """Distinct criteria, maybe none, from any list of texts."""
    found = names(field, value) if value else ()
    for one in found:
        criterion(field, one)
    return found


def criterion(field: str, value: object) -> None:
    """Refuse what is not "METRIC superior SHARE" or "METRIC non_inferior SHARE"."""
    parts = value.split() if isinstance(value, str) else []
    rule = "must be a metric, superior or non_inferior, and a share"
    mend = 'Write e.g. "quality non_inferior 0.02".'
    if len(parts) != 3:
        raise refuse(field, value, rule, mend=mend)
    choice(field, parts[0], ("engagement", "cost", "quality", "latency"))
    kind = parts[1].replace("-", "_")
    choice(field, kind, ("superior", "non_inferior"))
    try:
        margin = float(parts[2])
    except ValueError as error:
        raise refuse(field, value, rule, mend=mend) from error
    if not 0 <= margin <= 10:
        raise refuse(field, value, "its share must be from 0 to 10", mend="2 % is 0.02.")
    if kind == "non_inferior" and not margin:
        mend = f'Allow for something, such as "{parts[0]} non_inferior 0.02".'
        raise refuse(field, value, "a margin of non-inferiority must be above 0", mend=mend)
