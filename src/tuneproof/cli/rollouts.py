"""`tuneproof rollout …` and `tuneproof rollback`, the shortest path back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK, WAITS
from tuneproof.cli.service import connect, path_to

Reason = Annotated[str, Parameter(help="Why; kept in the history.")]


async def list_(
    *, pipeline: str | None = None, limit: int = 20, options: CommonOptions = NONE
) -> int:
    """All rollouts, newest first."""
    async with connect(options) as service:
        page = await service.get("/deployment/rollouts", pipeline=pipeline, limit=limit)
    if options.json:
        output.data(page)
        return OK
    rows = [
        (
            d["deployment_id"],
            d["status"],
            output.percent(d["current_traffic"]),
            d["tasks"],
            output.moment(d["created_at"]),
        )
        for d in page["items"]
    ]
    if not rows:
        output.say("No rollouts yet. Run: tuneproof run start")
        return OK
    output.table(["rollout", "state", "traffic", "tasks", "began"], rows)
    return OK


async def show(rollout_id: str, /, *, options: CommonOptions = NONE) -> int:
    """Where a rollout stands. Exit 3 when it is paused and waits for a person."""
    async with connect(options) as service:
        rollout = await service.get(path_to("/deployment/status", rollout_id))
        address = "" if service.local else service.address
    if options.json:
        output.data(rollout)
    else:
        _print(rollout, address)
    return WAITS if rollout["status"] == "paused" else OK


def _print(rollout: Mapping[str, Any], address: str) -> None:
    output.facts(
        [
            ("rollout", rollout["deployment_id"]),
            ("state", rollout["status"]),
            ("candidate serves", output.percent(rollout["current_traffic"])),
            ("next step", output.moment(rollout["next_at"]) if rollout["next_at"] else None),
            ("cause", rollout["cause"]),
            ("candidate", output.variant(rollout["candidate"])),
            ("baseline", output.variant(rollout["previous"])),
            ("steps", [output.percent(step) for step in rollout["steps"]]),
            ("holdback", output.percent(rollout["holdback"])),
            ("rolls back at", rollout["monitoring"]["rollback_triggers"]),
            ("evidence", rollout["evidence"]),
            ("address", f"{address}{rollout['monitoring']['deployment_dashboard']}"),
        ]
    )
    rows = [
        (output.moment(line["at"]), line["kind"], line["who"], line["reason"])
        for line in rollout["history"]
    ]
    if rows:
        output.table(["when", "what", "who", "why"], rows)


async def pause(
    rollout_id: str, /, *, reason: Reason = "paused by hand", options: CommonOptions = NONE
) -> int:
    """Keep the share as it is until somebody resumes."""
    return await _change("pause", rollout_id, reason, options)


async def resume(
    rollout_id: str, /, *, reason: Reason = "resumed by hand", options: CommonOptions = NONE
) -> int:
    """Go on after a pause."""
    return await _change("resume", rollout_id, reason, options)


async def advance(
    rollout_id: str, /, *, reason: Reason = "advanced by hand", options: CommonOptions = NONE
) -> int:
    """Take the next step now, before its time; guardrails hold all the same."""
    return await _change("advance", rollout_id, reason, options)


async def _change(action: str, rollout_id: str, reason: str, options: CommonOptions) -> int:
    async with connect(options, engine=True) as service:
        before = await service.get(path_to("/deployment/status", rollout_id))
        served = output.percent(before["current_traffic"])
        question = f"{action.capitalize()} {rollout_id}, whose candidate serves {served}?"
        output.confirm(question, yes=options.yes)
        after = await service.post(
            path_to("/deployment", action, rollout_id), {"reason": reason}, seen=before["version"]
        )
    if options.json:
        output.data(after)
    else:
        output.say(
            f"{rollout_id} is {after['status']} at {output.percent(after['current_traffic'])}."
        )
    return OK


async def rollback(
    task: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; kept in the history for ever.")],
    options: CommonOptions = NONE,
) -> int:
    """Return all traffic of a task (or of a rollout, by its id) to the old model, now.

    It asks nothing: the way back is always open, and repeating it does no harm.
    """
    async with connect(options) as service:
        done = await service.post(path_to("/routing", task, "rollback"), {"reason": reason})
        address = f"{service.address}/dashboard/deployment/{done['deployment_id']}"
    if options.json:
        output.data(done)
        return OK
    seconds = done["rollback_time_seconds"]
    output.say(f"Rolled back to {done['restored_model']} in {seconds:.3f} s. {address}")
    if done.get("overtook"):
        output.say(f"It took back what was done at the same moment: {done['overtook']}")
    return OK
