"""Bars for the stages of a run, on stderr; plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
                output.say(f"{title}: {status}. {told(name, detail, status)}".rstrip())
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(title, total=None, figures="")
        done, total = detail.get("step"), detail.get("total_steps")
        if ended:
            done, total = 1, 1
        said = f"{status}: {told(name, detail, status)}".rstrip(": ")
        text = output.clean(said if ended else figures(detail))
        self._bars.update(self._tasks[name], completed=done or 0, total=total, figures=text)
        if ended:
            self._bars.stop_task(self._tasks[name])


def told(stage: str, detail: Mapping[str, Any], status: str = "") -> str:
    """What a stage that has ended did, in a line for people; why it failed says the run's error."""
    if status == "failed":
        return ""
    tell = _TELLERS.get(stage)
    return (tell(detail) if tell else "") or figures(detail)


def _collect(detail: Mapping[str, Any]) -> str:
    if "posts" not in detail:
        return str(detail.get("reason", ""))
    since, until = str(detail.get("since"))[:10], str(detail.get("until"))[:10]
    posts = "rated posts" if detail.get("method") == "dpo" else "posts that did well"
    changes = detail.get("changes") or ()
    changed = f"; columns: {'; '.join(changes)}" if changes else ""
    return f"{detail['posts']:,} {posts}, {since} to {until}{changed}"


def _curate(detail: Mapping[str, Any]) -> str:
    if "examples" not in detail:
        return str(detail.get("reason", ""))
    kept = ", ".join(f"{count:,} {task}" for task, count in detail["examples"].items())
    dropped = ", ".join(f"{n:,} {why}" for why, n in (detail.get("dropped") or {}).items() if n)
    made = "pairs" if detail.get("method") == "dpo" else "examples"
    return f"{kept} {made}; dropped: {dropped or 'none'}"


def _train(detail: Mapping[str, Any]) -> str:
    if not detail.get("model_id"):
        return str(detail.get("reason", ""))
    tokens = detail.get("trained_tokens")
    counted = f" on {tokens:,} tokens" if isinstance(tokens, int) else ""
    return f"{detail['model_id']}{counted}"


def _reason(detail: Mapping[str, Any]) -> str:
    return str(detail.get("reason") or "")


def _experiment(detail: Mapping[str, Any]) -> str:
    if detail.get("lift") is None:
        return _reason(detail)
    span = f"{output.signed(detail.get('lower'))} to {output.signed(detail.get('upper'))}"
    lift = output.signed(detail["lift"])
    return f"{detail.get('verdict')}: lift {lift} ({span}) after {detail.get('looks')} looks"


def _rollout(detail: Mapping[str, Any]) -> str:
    if not detail.get("state"):
        return _reason(detail)
    share = output.percent(detail.get("share"))
    cause = f": {detail['cause']}" if detail.get("cause") else ""
    return f"{detail['state']} at {share}{cause}"


_TELLERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "collect": _collect,
    "curate": _curate,
    "train": _train,
    "gate": _reason,
    "experiment": _experiment,
    "rollout": _rollout,
}


def figures(detail: Mapping[str, Any]) -> str:
    """The figures of a stage in a line."""
    short = {
        name.replace("_", " "): value
        for name, value in detail.items()
        if isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= 60)
    }
    return output.shown(short)
