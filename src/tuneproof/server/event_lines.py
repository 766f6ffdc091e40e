"""Events as lines of JSON: what lies in the spool, and what gateways send to their service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import orjson

from tuneproof.errors import DataError
from tuneproof.experiments import Arm, Comment, Exposure, Outcome
from tuneproof.server.bodies import dumped, loaded

__all__ = ["Event", "event_of", "events_of", "id_of", "line_of"]

Event = Exposure | Outcome | Comment

_NAMES: dict[type[Event], tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in (Exposure, Outcome, Comment)
}
_ONLY_OUTCOMES, _ONLY_EXPOSURES = "value", "arm"


def line_of(event: Event) -> str:
    """An event as one line, without its end."""
    try:
        return orjson.dumps(event, option=orjson.OPT_UTC_Z).decode()
    except orjson.JSONEncodeError:  # half of a surrogate pair in a text
        told = {name: getattr(event, name) for name in _NAMES[type(event)]}
        return dumped({**told, "at": event.at.isoformat()}).decode()


def event_of(line: str) -> Event:
    """What `line_of` wrote, also that of a newer version: fields that are not known are left out.

    Raises `DataError`.
    """
    try:
        found: dict[str, Any] = loaded(line.encode())
        at = datetime.fromisoformat(found["at"])
        if _ONLY_OUTCOMES in found:
            return Outcome(**{**_known(Outcome, found), "at": at})
        if _ONLY_EXPOSURES not in found:
            return Comment(**{**_known(Comment, found), "at": at})
        more = {"at": at, "arm": Arm(found["arm"]), "messages": tuple(found.get("messages", ()))}
        return Exposure(**{**_known(Exposure, found), **more})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"A line is no event: {line[:200]!r} ({error}).") from error


def _known(kind: type[Event], found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in _NAMES[kind] if name in found}


def events_of(
    lines: Iterable[str],
) -> tuple[Sequence[Exposure], Sequence[Outcome], Sequence[Comment]]:
    """The exposures, outcomes and comments of these lines. Raises `DataError`."""
    events = [event_of(line) for line in lines]
    return (
        [event for event in events if isinstance(event, Exposure)],
        [event for event in events if isinstance(event, Outcome)],
        [event for event in events if isinstance(event, Comment)],
    )


def id_of(line: str) -> str:
    """The id of a line's event; empty for a line that is none."""
    try:
        return str(loaded(line.encode())["id"])
    except (ValueError, TypeError, KeyError):
        return ""
