"""What Ray's errors mean for a job, and which settings are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from tuneproof_trainer.engines.ray.failures import meaning
from tuneproof_trainer.engines.ray.options import RayOptions
from tuneproof_trainer.errors import ServerError

pytestmark = pytest.mark.ray


def actor_died(message: str) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16)))


def died(error: Exception) -> WorkerGroupError:
    """One of two workers was lost; the other only noticed."""
    noticed = RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    return WorkerGroupError(
        "worker 1 died",
        {
            0: UserExceptionWithTraceback(noticed, f"Traceback:\n{noticed}"),
            1: WorkerHealthCheckFailedError("A worker health check failed.", error),
        },
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (died(actor_died("The actor died: SIGKILL by OOM killer, perhaps.")), "workers_lost"),
        (died(OutOfMemoryError("Task was killed.")), "out_of_memory"),
        (died(actor_died("killed as the node was running low on memory")), "out_of_memory"),
        (died(RuntimeError("CUDA out of memory.")), "out_of_memory"),
        (died(OSError(28, "No space left on device")), "disk_full"),
        (ControllerError(RuntimeError("odd")), "server_error"),
    ],
)
def test_the_end_of_a_worker_group_has_a_code(error: Exception, code: str, tmp_path: Path) -> None:
    found = meaning(error, tmp_path, RayOptions(losses=3))
    assert found.code == code
    if code == "workers_lost":
        assert "more than 3 times" in found.message
    if code == "server_error":
        assert "odd" in found.message


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"address": "ray://head:10001"}, "Run this server on a node"),
        ({"workers": 2, "fewest_workers": 3}, "--min-workers 3"),
        ({"storage": "/nowhere/at/all"}, "Name one that all nodes share"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ServerError, match=said):
        RayOptions(**given)
