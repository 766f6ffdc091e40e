"""Bars for the stages of a run, on stderr; plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tuneproof.cli import output

STAGES = {
    "collect": "Collect",
    "curate": "Curate",
    "train": "Train",
    "gate": "Gate",
    "experiment": "A/B test",
    "rollout": "Rollout",
}
"""Stage -> how people call it."""


class StageBars:
    """Shows each stage as it works, and its figures once it has ended."""

    def __init__(self) -> None:
        console = output.err()
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:9}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )
        self._tasks: dict[str, TaskID] = {}
        self._ended: set[str] = set()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, run: Mapping[str, Any]) -> None:
        """Show a run as the service reports it."""
        for name, stage in run["stages"].items():
            status = stage.get("status", "pending")
            if status == "pending" or name in self._ended:
                continue
            ended = status not in ("pending", "in_progress")
            self._show(name, status, stage.get("detail") or {}, ended=ended)
            if ended:
                self._ended.add(name)

    def _show(self, name: str, status: str, detail: Mapping[str, Any], *, ended: bool) -> None:
        title = STAGES.get(name, name)
        if self._bars is None:
            if ended:
                output.say(f"{title}: {status}. {figures(detail)}".rstrip())
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(title, total=None, figures="")
        done, total = detail.get("step"), detail.get("total_steps")
        if ended:
            done, total = 1, 1
        text = output.clean(f"{status} {figures(detail)}" if ended else figures(detail))
        self._bars.update(self._tasks[name], completed=done or 0, total=total, figures=text[:100])
        if ended:
            self._bars.stop_task(self._tasks[name])


def figures(detail: Mapping[str, Any]) -> str:
    """The figures of a stage in a line."""
    short = {
        name.replace("_", " "): value
        for name, value in detail.items()
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 60)
    }
    return output.shown(short)
