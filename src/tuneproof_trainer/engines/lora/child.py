"""The process that trains one job: `python -m tuneproof_trainer.engines.lora.child FOLDER`.

Another engine's child is made of the same parts, with its own way to train. A child speaks
through its standard input and output (`pipe`), and ends when its input does. What the libraries
print goes to standard error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from tuneproof_trainer.engines.lora import pipe
from tuneproof_trainer.engines.protocol import (
    EngineError,
    Hyperparameters,
    StepMetrics,
    StopReason,
    TrainingOutcome,
)

__all__ = ["ParentProcess", "Train", "failure", "run"]

_NO_SPACE = ("No space left on device", "os error 28", "inline_container.cc")
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


class ParentProcess:
    """The server's process, as the child sees it: hears what is told, may ask to stop."""

    def __init__(self, read: IO[bytes], write: IO[bytes]) -> None:
        self._read, self._write = read, write
        self._acks: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._reason: StopReason | None = None
        self._over = False
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def _listen(self) -> None:
        for line in self._read:
            message = pipe.read(line)
            if message["kind"] == "stop":
                self._reason = StopReason(message["reason"])
            else:
                self._acks.put(None)
        os._exit(1)  # the parent is gone, and nobody would hear of what comes now

    def stop(self) -> StopReason | None:
        """Whether the training is to stop, and why."""
        return self._reason

    def chosen(self, hyperparameters: Hyperparameters) -> None:
        """The values in force."""
        self._tell("chosen", hyperparameters=hyperparameters)

    def metrics(self, metrics: StepMetrics) -> None:
        """One step was done."""
        self._tell("metrics", metrics=metrics)

    def checkpoint(self, metrics: StepMetrics, folder: Path) -> None:
        """A model that can be used lies in `folder`."""
        self._tell("checkpoint", metrics=metrics, path=str(folder))

    def message(self, text: str, level: Literal["info", "warn", "error"] = "info") -> None:
        """Something to read."""
        self._tell("message", text=text, level=level)

    def _tell(self, kind: str, **content: Any) -> None:
        pipe.write(self._write, kind, **content)
        self._acks.get()

    def done(self, outcome: TrainingOutcome) -> None:
        """The training ended."""
        self._end("done", outcome=outcome)

    def failed(self, error: EngineError) -> None:
        """The training cannot succeed."""
        self._end("failed", code=error.code, message=error.message, param=error.param)

    def _end(self, kind: str, **content: Any) -> None:
        """Tell how it ended; what is told after that is told to nobody."""
        if not self._over:
            self._over = True
            pipe.write(self._write, kind, **content)


Train = Callable[[Path, ParentProcess], TrainingOutcome]
"""Trains the job that was prepared in a folder."""


def run(folder: Path, train: Train) -> NoReturn:
    """Be the child of the job in `folder`, and end."""
    try:
        _speak(folder, train)
        status = 0
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # at once: a thread of ours still reads from standard input


def _speak(folder: Path, train: Train) -> None:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    parent = ParentProcess(sys.stdin.buffer, output)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until an earlier child of this job is gone
        try:
            parent.done(train(folder, parent))
        except Exception as error:
            known = failure(error, folder)
            if known is None:
                raise
            parent.failed(known)


def failure(error: BaseException, folder: Path) -> EngineError | None:
    """What an exception means for the job's owner; None where only the log can tell."""
    if isinstance(error, EngineError):
        return error
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(sign in text for sign in _NO_SPACE) or _full(folder):
        message = "The server's disk is full. Free some space and start again."
        return EngineError("disk_full", message)
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return EngineError(
            "out_of_memory",
            "Memory ran out in the training. Use shorter examples, a smaller batch or a smaller "
            "model.",
        )
    return None


def _full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 1 << 20


def _train(folder: Path, parent: ParentProcess) -> TrainingOutcome:
    from tuneproof_trainer.engines.lora.training import train_prepared

    return train_prepared(folder, parent)


if __name__ == "__main__":
    run(Path(sys.argv[1]), _train)
