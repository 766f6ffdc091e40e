"""The parent's side of a training: start the child, pass on what it tells, stop it.

Whatever becomes of this process, the child ends with it: it dies when its input closes, and a
lock on the job's folder keeps a second child waiting until the first is gone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from tuneproof_trainer.engines.lora import pipe
from tuneproof_trainer.engines.lora.adapters import copy_adapter
from tuneproof_trainer.engines.lora.options import LoraOptions
from tuneproof_trainer.engines.protocol import (
    EngineError,
    Examples,
    Reporter,
    ShouldStop,
    StopReason,
    TrainingOutcome,
    TrainingTask,
)

__all__ = ["prepare", "train_in_child"]

_POLL_S = 0.1
_STDERR = "training.log"


def prepare(task: TrainingTask, options: LoraOptions, base: str, adapter: Path | None) -> None:
    """Write what the child needs into the job's folder; does nothing twice."""
    folder = task.folder
    if (folder / "task.json").exists():
        return
    if adapter is not None:
        parent = folder / "parent"
        shutil.rmtree(parent, ignore_errors=True)
        parent.mkdir()
        copy_adapter(adapter, parent)
    _write_examples(folder / "training.jsonl", task.training)
    if task.validation is not None:
        _write_examples(folder / "validation.jsonl", task.validation)
    child = pipe.ChildTask(
        base=base,
        adapter=str(folder / "parent") if adapter is not None else None,
        method=task.method,
        hyperparameters=task.hyperparameters,
        seed=task.seed,
        folder=str(folder),
        validation=task.validation is not None,
    )
    content = orjson.dumps({"task": child.as_dict(), "options": options.as_dict()})
    temporary = folder / "task.json.part"
    temporary.write_bytes(content)
    temporary.replace(folder / "task.json")


def _write_examples(path: Path, examples: Examples) -> None:
    with path.open("wb") as file:
        for number in range(len(examples)):
            file.write(pipe.write_example(examples[number]))


def train_in_child(
    module: str,
    folder: Path,
    report: Reporter,
    should_stop: ShouldStop,
    environment: Mapping[str, str],
) -> TrainingOutcome:
    """Run the child of a prepared folder, the program `module`, to its end.

    Raises EngineError with the code under which the child failed, `out_of_memory` if it was
    killed; what `report` raises ends the child, too.
    """
    with _child(module, folder, environment) as child:
        return _Conversation(child, report, should_stop, folder).run()


@contextlib.contextmanager
def _child(
    module: str, folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / _STDERR).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=dict(environment),
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class _Conversation:
    """Reads what the child tells until it has ended."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        report: Reporter,
        should_stop: ShouldStop,
        folder: Path,
    ) -> None:
        self._child, self._report, self._should_stop = child, report, should_stop
        self._folder = folder
        self._stop_passed_on = False
        self._partial_line = b""

    def run(self) -> TrainingOutcome:
        for message in self._messages():
            kind = message["kind"]
            if kind == "done":
                outcome: TrainingOutcome = message["outcome"]
                return outcome
            if kind == "failed":
                raise EngineError(message["code"], message["message"], message["param"])
            if kind == "cancelled":
                return TrainingOutcome(stopped=StopReason.CANCEL, trained_tokens=0, steps=0)
            self._tell(kind, message)
            self._say("ack")
        raise self._died()

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What the child tells; asks between whiles whether the job is to stop."""
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while True:
                ready = selector.select(_POLL_S)
                if self._pass_stop_on():
                    yield {"kind": "cancelled"}
                if not ready:
                    continue
                read = os.read(self._child.stdout.fileno(), 1 << 16)
                if not read:
                    return
                *lines, self._partial_line = (self._partial_line + read).split(b"\n")
                for line in lines:
                    yield pipe.read(line)

    def _pass_stop_on(self) -> bool:
        """Pass a wish to stop on, once; True for a job that is cancelled: it ends at once."""
        if self._stop_passed_on:
            return False
        reason = self._should_stop()
        if reason is None:
            return False
        if reason is StopReason.CANCEL:
            return True
        self._stop_passed_on = True
        self._say("stop", reason=reason)
        return False

    def _say(self, kind: str, **content: Any) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is read from its output
            pipe.write(self._child.stdin, kind, **content)

    def _tell(self, kind: str, message: dict[str, Any]) -> None:
        report = self._report
        if kind == "chosen":
            report.chosen(message["hyperparameters"])
        elif kind == "metrics":
            report.metrics(message["metrics"])
        elif kind == "checkpoint":
            source = Path(message["path"])
            metrics = message["metrics"]
            report.checkpoint(metrics.step, metrics, lambda to: copy_adapter(source, to))
        elif kind == "message":
            report.message(message["text"], message["level"])
        else:
            raise ValueError(f"the child said {kind!r}, which nobody knows")

    def _died(self) -> EngineError:
        status = self._child.wait()
        if status == -signal.SIGKILL:
            return EngineError(
                "out_of_memory",
                "The training was killed by the system, as happens when memory runs out. Use "
                "shorter examples, a smaller batch or a smaller model.",
            )
        last = self._last_words()
        return EngineError("server_error", f"The training ended with status {status}: {last}")

    def _last_words(self) -> str:
        lines = (self._folder / _STDERR).read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
