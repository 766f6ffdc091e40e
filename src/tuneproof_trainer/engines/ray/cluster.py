"""The cluster as the driver sees it: connect, and what it has."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import ray
from ray.exceptions import AuthenticationError

from tuneproof_trainer.engines.lora.options import Device
from tuneproof_trainer.engines.protocol import EngineError
from tuneproof_trainer.engines.ray.options import RayOptions

__all__ = ["beside_driver", "connected", "device_for", "shortage"]

_ANSWER_S = 15.0
"""How long a head may take to listen. Ray itself would wait for minutes."""

_STORE_BYTES = 1 << 27
"""Object store of a Ray of our own: nothing large goes through it."""


@contextlib.contextmanager
def connected(options: RayOptions) -> Iterator[None]:
    """Be a driver of the cluster, or of a Ray of our own, for the length of a block.

    Raises EngineError `cluster_not_available`.
    """
    try:
        if options.address is None:
            _start_own(options)
        else:
            _await_head(options.address)
            ray.init(address=options.address, logging_level="WARNING")
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        where = options.address or "this machine"
        first_line = str(error).strip().split("\n")[0].rstrip(".")
        mend = "Start it, or give another --ray-address."
        if isinstance(error, AuthenticationError):
            mend = "Give the server the cluster's RAY_AUTH_MODE and RAY_AUTH_TOKEN."
        raise EngineError(
            "cluster_not_available", f"Ray at {where} cannot be used: {first_line}. {mend}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _await_head(address: str) -> None:
    """Return when somebody listens at HOST:PORT; raises OSError if nobody does for long."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _ANSWER_S
    while host:  # `auto` names no head
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _start_own(options: RayOptions) -> None:
    ray.init(
        address="local",
        num_cpus=max(options.workers * options.cpus, os.cpu_count() or 1),
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        logging_level="WARNING",
    )


def device_for(folder: Path, options: RayOptions) -> Device:
    """What the workers run on: as the job says, else CUDA where the cluster has any."""
    given: Device = orjson.loads((folder / "task.json").read_bytes())["options"]["device"]
    if given != "auto":
        return given
    return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"


def shortage(options: RayOptions, device: Device) -> str | None:
    """What the cluster lacks for the whole worker group; None if it lacks nothing."""
    needed = {"CPU": options.workers * options.cpus}
    if device == "cuda":
        needed["GPU"] = options.workers
    has = ray.cluster_resources()
    lacking = [
        f"{count} {name}s, of which it has {has.get(name, 0):g}"
        for name, count in needed.items()
        if has.get(name, 0) < count
    ]
    if not lacking:
        return None
    wait = "starts with fewer" if options.fewest_workers else "waits until nodes join"
    return (
        f"{options.workers} workers need {' and '.join(lacking)} in the Ray cluster; "
        f"the job {wait}."
    )


def beside_driver() -> dict[str, Any]:
    """Options of an actor that is to run on the driver's node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=False)}
