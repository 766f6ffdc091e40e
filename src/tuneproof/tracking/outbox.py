"""What the tracker needs of an outbox, and what the items in it mean.

| kind | payload |
|---|---|
| `run_started` | `run_id`, `experiment`, `params`, `tags`, `at` |
| `metrics` | `run_id`, `metrics`, `step`, `at` |
| `dataset` | `run_id`, `manifest` |
| `model_version` | `run_id`, `name`, `version_id`, `version`, `model_id`, `tags` |
| `prompt` | `run_id`, `name`, `hash`, `prompt` (its content) |
| `alias` | `name`, `alias`, `version_id`, maybe `prompt` with `name` and `hash` |
| `note` | `run_id`, `text` |
| `run_ended` | `run_id`, `status`, `at` |

Instants are RFC 3339 texts. `at` may be absent, but metrics without it are told apart from
another delivery of the same only by their step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

__all__ = ["Outbox", "PendingItem"]


class PendingItem(Protocol):
    """Something to deliver; `attempts` counts the tries that failed."""

    @property
    def id(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def payload(self) -> Mapping[str, Any]: ...
    @property
    def attempts(self) -> int: ...


class Outbox(Protocol):
    """Where items wait; `store.outbox` is one. Items of one run come in order."""

    async def due(self, now: datetime, limit: int) -> Sequence[PendingItem]:
        """What can be delivered at `now`, in the order in which it was added."""
        ...

    async def delivered(self, id: int) -> None:
        """Note that an item arrived."""
        ...

    async def failed(self, id: int, error: str, retry_at: datetime) -> None:
        """Note a try that failed; the item and those behind it wait until `retry_at`."""
        ...

    async def pending(self) -> int:
        """How many items have not arrived."""
        ...
