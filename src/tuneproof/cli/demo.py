"""`tuneproof demo`: watch one whole turn of the loop, then look around in the running service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import FAILED, OK
from tuneproof.cli.progress import STAGES, told
from tuneproof.cli.service import private_files, usable
from tuneproof.errors import ConfigError

if TYPE_CHECKING:
    from tuneproof.app.demonstration import Demonstration
    from tuneproof.cli.serve import RunningServer
    from tuneproof.settings import Settings
    from tuneproof.store import Run

POLL_S = 0.1
DAY = "%a %d %b"
FOLDER = "demo"
"""Below the data directory: the demo never touches real data."""


async def demo(
    *,
    seed: Annotated[int, Parameter(help="Another seed is another world; the same, the same.")] = 7,
    break_: Annotated[
        bool,
        Parameter(name="--break", help="Ship a candidate that turns harmful.", negative=""),
    ] = False,
    prompts: Annotated[
        bool,
        Parameter(help="Train nothing: test two prompts of one model.", negative=""),
    ] = False,
    exit: Annotated[bool, Parameter(help="End when the turn has ended.", negative="")] = False,
    port: Annotated[int | None, Parameter(help="Where the service listens [8686].")] = None,
    options: CommonOptions = NONE,
) -> int:
    """Watch one whole turn of the loop on simulated users, in about two minutes.

    Everything is real but the users and the clock: collect, curate, train, gate, a week's A/B
    test, a rollout of two. Ctrl-C at any time; run it again and it goes on.
    """
    from tuneproof.app.demonstration import demonstration

    settings = options.settings(port=port)
    directory = settings.dir / FOLDER
    usable(settings.dir)
    stays = not (exit or options.json)
    async with AsyncExitStack() as stack:
        stack.enter_context(private_files())
        shown = await stack.enter_async_context(
            demonstration(directory, seed=seed, broken=break_, prompts=prompts, settings=settings)
        )
        server = None
        if stays:
            served = _served(shown, free=port is None)
            address, server = await stack.enter_async_context(served)
            output.say(f"Watch it at {address} (or: tuneproof status --watch)")
        run = await _watch(shown)
        outcome = await shown.outcome()
        output.data(outcome) if options.json else _print(outcome)
        if server is not None:
            output.say(f"The service stays at {address}. Ctrl-C stops it.")
            await server.ended()
    return FAILED if str(run.status) in ("failed", "aborted") else OK


@asynccontextmanager
async def _served(shown: Demonstration, *, free: bool) -> AsyncIterator[tuple[str, RunningServer]]:
    """Serve the demo's App; on a free port where the usual one is taken and none was asked for."""
    from tuneproof.cli.serve import serving

    settings: Settings = shown.app.settings
    async with AsyncExitStack() as stack:
        try:
            yield await stack.enter_async_context(serving(shown.app, settings))
            return
        except ConfigError as error:
            if not free or error.details.get("field") != "server.port":
                raise
        anywhere = replace(settings, server=replace(settings.server, port=0))
        yield await stack.enter_async_context(serving(shown.app, anywhere))


async def _watch(shown: Demonstration) -> Run:
    """Say what each stage did as it ends, and each step of the rollout as it is taken."""
    teller = Teller()
    ended = asyncio.create_task(shown.wait())
    try:
        while True:
            run = await shown.app.store.runs.get(shown.run_id)
            for text in teller.news(run, f"{shown.app.clock.now():{DAY}}"):
                output.say(text)
            if ended.done():
                return ended.result()
            await asyncio.wait({ended}, timeout=POLL_S)
    finally:
        ended.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(ended, return_exceptions=True)


class Teller:
    """Turns a run, read again and again, into lines that are each said once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._share: float | None = None

    def news(self, run: Run, today: str) -> list[str]:
        """What is new since the last time, each stage at the day it ended; `today` is virtual."""
        lines = []
        for name, stage in run.stages.items():
            status = str(stage.get("status"))
            detail = stage.get("detail") or {}
            if name == "rollout" and status == "in_progress":
                lines += self._step(detail, today)
            if status in ("pending", "in_progress") or name in self._said:
                continue
            self._said.add(name)
            mark = {"completed": "✓", "skipped": "–"}.get(status, "✕")
            day = _day(stage.get("ended_at")) or today
            lines.append(f"{day:11}{mark} {STAGES.get(name, name):9} {told(name, detail)}")
        return lines

    def _step(self, detail: Mapping[str, Any], today: str) -> list[str]:
        share = detail.get("share")
        if share is None or share == self._share:
            return []
        self._share = share
        state = detail.get("state", "")
        said = f"the candidate serves {output.percent(share)}"
        return [f"{today:11}· Rollout   {said}{'; ' + state if state != 'stepping' else ''}"]


def _day(at: Any) -> str:
    return f"{datetime.fromisoformat(at):{DAY}}" if at else ""


def _print(outcome: Mapping[str, Any]) -> None:
    test, rollout = outcome["experiment"] or {}, outcome["rollout"] or {}
    training = outcome["training"]
    interval = [output.signed(bound) for bound in test.get("interval") or ()]
    output.facts(
        [
            ("run", f"{outcome['run']['id']}: {outcome['run']['status']}"),
            ("reason", outcome["run"]["reason"]),
            ("dataset", outcome["dataset"]["hash"]),
            ("model", training["model"]),
            ("held-out loss", _losses(training)),
            ("verdict", test.get("verdict")),
            ("lift", f"{output.signed(test['lift'])} ({' to '.join(interval)})" if test else None),
            ("true effect", output.signed(test.get("true_effect")) if test else None),
            *(_candidate(number, one) for number, one in enumerate(outcome["candidates"], 1)),
            ("looks, units", f"{test['looks']}, {test['units']}" if test else None),
            ("rollout", f"{rollout['id']}: {rollout['state']}" if rollout else None),
            ("cause", rollout.get("cause")),
            *_harm(outcome["rollback"]),
            ("seconds", outcome["seconds"]),
        ]
    )


def _candidate(number: int, found: Mapping[str, Any]) -> tuple[str, str]:
    """One of several candidates, with what only the audience knows."""
    by = f"prompt {found['prompt']}: " if found["prompt"] else ""
    truth = output.signed(found["true_effect"])
    return (
        f"candidate {number}",
        f"{by}{found['verdict']}, {output.signed(found['lift'])} (true effect {truth})",
    )


def _harm(rollback: Mapping[str, Any] | None) -> list[tuple[str, str | None]]:
    """How long harm lasted, in the time of the simulation, and how fast it ended, in ours."""
    if rollback is None:
        return []
    turned = datetime.fromisoformat(rollback["turned_at"])
    reached = rollback["reach_s"]
    said = None if reached is None else f"{reached:.3f} s after its look began, in real time"
    return [
        (
            "harm to rollback",
            f"{rollback['hours']:.1f} h, from when the audience turned ({turned:%a %d %b %H:%M})",
        ),
        ("reached clients", said),
    ]


def _losses(training: Mapping[str, Any]) -> str | None:
    tuned, base = training.get("heldout_loss"), training.get("base_heldout_loss")
    return None if tuned is None or base is None else f"{tuned:.3f}, base {base:.3f}"
