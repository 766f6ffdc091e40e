"""What it means for a job when Ray Train gives up."""

from __future__ import annotations

from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import WorkerGroupError

from tuneproof_trainer.engines.lora.child import failure
from tuneproof_trainer.engines.protocol import EngineError
from tuneproof_trainer.engines.ray.options import RayOptions

__all__ = ["meaning"]

_MEMORY_SIGNS = ("running low on memory", "OutOfMemoryError")


def meaning(error: Exception, folder: Path, options: RayOptions) -> EngineError:
    """The error of a job whose worker group ended with `error`."""
    causes = _causes(error)
    for cause in causes:
        known = failure(cause, folder)
        if known is not None:
            return known
    if any(_ran_out_of_memory(cause) for cause in causes):
        return EngineError(
            "out_of_memory",
            "Ray ended workers because memory ran out. Use shorter examples, a smaller batch or a "
            "smaller model.",
        )
    lost = [cause for cause in causes if isinstance(cause, RayActorError)]
    if lost:
        return EngineError(
            "workers_lost",
            f"Workers were lost more than {options.losses} times; the last time: {_line(lost[0])} "
            "Memory may have run out on their nodes, or the nodes may be gone.",
        )
    return EngineError("server_error", f"The workers failed: {_line(causes[-1])}")


def _causes(error: BaseException) -> list[BaseException]:
    """The error and all that lies beneath it."""
    beneath: list[BaseException | None] = [
        getattr(error, "health_check_failure", None),
        getattr(error, "controller_failure", None),
        getattr(error, "_base_exc", None),
        getattr(error, "cause", None) if isinstance(error, RayError) else None,
        error.__cause__,
    ]
    if isinstance(error, WorkerGroupError):
        beneath += error.worker_failures.values()
    found = [error]
    for one in beneath:
        if isinstance(one, BaseException):
            found += _causes(one)
    return found


def _ran_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OutOfMemoryError):
        return True
    return isinstance(error, RayActorError) and any(sign in str(error) for sign in _MEMORY_SIGNS)


def _line(error: BaseException) -> str:
    """The last line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
