"""What each worker of the group does: train as one member of a team."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from tuneproof_trainer.engines.lora.child import failure
from tuneproof_trainer.engines.lora.team import ProcessGroupTeam
from tuneproof_trainer.engines.protocol import EngineError
from tuneproof_trainer.engines.ray.desk import Leader, Silent

__all__ = ["train_member"]


def train_member(config: dict[str, Any]) -> None:
    """Train the job in `folder` on `device`, with the others of torch's process group.

    What means that the job cannot succeed goes to the driver at once. Anything else is raised:
    Ray Train then starts the group anew, which goes on from the last snapshot.
    """
    folder = Path(config["folder"])
    leader = Leader(config["desk"])
    try:
        _train(folder, config["device"], leader)
    except Exception as error:
        known = failure(error, folder) if folder.exists() else _not_shared(folder)
        if known is not None:
            leader.failed(known)
        raise


def _train(folder: Path, device: Any, leader: Leader) -> None:
    from tuneproof_trainer.engines.lora.training import train_prepared

    if not (folder / "task.json").exists():
        raise _not_shared(folder)
    team = ProcessGroupTeam()
    places = team.gather(_place())
    if team.rank == 0:
        leader.begun(places)
    outcome = train_prepared(folder, leader if team.rank == 0 else Silent(), team, device)
    if team.rank == 0:
        leader.done(outcome)


def _not_shared(folder: Path) -> EngineError:
    return EngineError(
        "storage_not_shared",
        f"The node {_place()} does not see the job's folder {folder}. Give --ray-storage a folder "
        "that all nodes have under the same path.",
    )


def _place() -> str:
    node = ray.get_runtime_context().get_node_id()
    return f"{ray.util.get_node_ip_address()} ({node[:8]})"
