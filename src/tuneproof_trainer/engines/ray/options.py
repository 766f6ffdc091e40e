"""How the ray engine runs: on which cluster, with how many workers, over which folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tuneproof_trainer.errors import ServerError

__all__ = ["RayOptions"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """Checked when it is made; raises ServerError for what cannot work."""

    address: str | None = None
    """`HOST:PORT` of the cluster's head, or `auto`; None starts a Ray on this machine for each
    job."""

    workers: int = 2
    fewest_workers: int | None = None
    """With how many workers a job may go on where the cluster has no room for all; None waits for
    room. Its batches, and so its losses, stay the same."""

    cpus: int = 1
    """Cores and threads of each worker."""

    losses: int = 3
    """How often workers may be lost, or break down, before the job fails."""

    storage: str | None = None
    """A folder that all nodes see under the same path; None is the server's own."""

    owner: str = "trainer"
    """The folder within `storage` that is this server's alone."""

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address:
            raise ServerError(
                f"{self.address!r} is an address for Ray's client. Run this server on a node of "
                "the cluster, and name the head as HOST:PORT, or auto."
            )
        if self.fewest_workers is not None and not 1 <= self.fewest_workers <= self.workers:
            raise ServerError(
                f"--min-workers {self.fewest_workers} is not within 1 and the {self.workers} of "
                "--workers."
            )
        if self.storage is not None and not Path(self.storage).is_dir():
            raise ServerError(
                f"--ray-storage {self.storage} is no folder. Name one that all nodes share."
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
