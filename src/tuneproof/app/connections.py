"""Whether the database lets in as many connections as our workers may open.

A pool that finds no room fails in the middle of a request, and first at the worst time: when a
rolling restart adds a worker.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneproof import workflow
from tuneproof.settings import StoreConfig
from tuneproof.store import LISTENER_CONNECTIONS, ServerConnections

__all__ = ["Need", "connections_of_worker"]


def connections_of_worker(config: StoreConfig) -> int:
    """How many connections one worker opens at most."""
    beside = workflow.ENGINE_CONNECTIONS + LISTENER_CONNECTIONS
    return config.pool_size + config.max_overflow + beside


@dataclass(frozen=True, kw_only=True)
class Need:
    """What our workers may open, beside what the server lets in."""

    config: StoreConfig
    server: ServerConnections

    @property
    def workers(self) -> int:
        """As many as the settings say, or as live now; one at least."""
        return self.config.workers or max(self.server.workers, 1)

    @property
    def most(self) -> int:
        """All of them together."""
        return self.workers * connections_of_worker(self.config)

    @property
    def status(self) -> str:
        """`failed` where they cannot all be let in; `warning` where that depends on others."""
        if self.most > self.server.for_us:
            return "failed"
        return "ok" if not self._short and self.server.ours <= self.most else "warning"

    @property
    def _short(self) -> bool:
        """Whether others leave too little, for one more worker too where none is counted in."""
        surge = 0 if self.config.workers else connections_of_worker(self.config)
        left = min(self.server.for_us, self.server.room - self.server.others)
        return self.most + surge > left

    def sentence(self) -> str:
        """The numbers, all of them."""
        server, each = self.server, connections_of_worker(self.config)
        said = f"{_workers(self.workers)} of up to {each} each: {self.most}; the server lets "
        said += f"{server.for_us} in (max_connections {server.most}, {server.reserved} reserved"
        for limit, whose in ((server.of_database, "database"), (server.of_user, "user")):
            said += f", {limit} for this {whose}" if limit >= 0 else ""
        said += f"); in use are {server.in_use}, {server.ours} of them by this user here"
        if self.status == "warning" and self._short and not self.config.workers:
            said += "; a rolling restart adds a worker"
        if self.status == "warning" and server.ours > self.most:
            said += "; that is more than these workers open: somebody else comes as this user"
        return said

    def mend(self) -> str:
        """What to do where they do not fit."""
        if self.status == "ok":
            return ""
        if self.status == "warning" and not self._short:
            return "Look who it is in pg_stat_activity, and give it a user of its own."
        limits = {
            "CONNECTION LIMIT of the database": self.server.of_database,
            "CONNECTION LIMIT of the user": self.server.of_user,
            "max_connections of the server": self.server.room,
        }
        narrow = min((value, name) for name, value in limits.items() if value >= 0)
        what = f"or raise {narrow[1]}"
        return f"Lower store.pool_size (DATABASE_POOL_SIZE) or the number of workers, {what}."


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"
