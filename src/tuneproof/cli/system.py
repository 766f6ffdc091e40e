"""`tuneproof init`, `status`, `doctor`, `config check`, `token create`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import FAILED, OK, USAGE, WAITS
from tuneproof.cli.service import Service, connect
from tuneproof.errors import ConflictError

WATCH_S = 2.0

TEMPLATE = """\
# Settings of TuneProof. What is left out keeps its default; `tuneproof config check` shows all.
# Arguments win over the environment, which wins over this file.

[pipelines.default]
# tasks = ["hook", "body"]

[pipelines.default.data_collection]
training_data_threshold = 100
engagement_threshold = 0.06
days_back = 7

[pipelines.default.evaluation]
traffic_split = 0.1
duration_hours = 168

[pipelines.default.deployment]
strategy = "gradual_rollout"

[pipelines.default.schedule]
weekly_schedule = "0 2 * * 0"
time_zone = "UTC"

# Where the posts are. Without a url it is the table `posts` in our own database.
# [sources.posts]
# url = "postgresql://user@host/app"
# table = "posts"

# Who trains. Without it our own trainer runs in this process. The key comes from the
# environment variable that is named here.
# [providers.default]
# base_url = "https://api.openai.com/v1"
# api_key_env = "OPENAI_API_KEY"
"""


def init(*, options: CommonOptions = NONE) -> int:
    """Write a settings file to start from."""
    path = options.config or Path("tuneproof.toml")
    if path.exists() and not options.yes:
        raise ConflictError(f"{path} is there already.", mend="Overwrite it with --yes.")
    path.write_text(TEMPLATE, "utf-8")
    if options.json:
        output.data({"file": str(path)})
    output.say(f"Wrote {path}. Next: tuneproof doctor, then tuneproof run start")
    return OK


async def status(
    *,
    watch: Annotated[bool, Parameter(help="Keep it on the screen.", negative="")] = False,
    options: CommonOptions = NONE,
) -> int:
    """All pipelines at a glance. Exit 3 when something waits for a person."""
    async with connect(options) as service:
        if watch:
            return await _watch(service)
        found = await service.get("/status")
        if options.json:
            output.data(found)
        else:
            for made in _overview(found):
                output.out().print(made)
            output.say(service.address if not service.local else "No service runs: tuneproof serve")
    return WAITS if any(p.get("waits_for_person") for p in found["pipelines"]) else OK


async def _watch(service: Service) -> int:
    from rich.console import Group
    from rich.live import Live

    with Live(console=output.out(), auto_refresh=False, screen=False) as screen:
        while True:
            screen.update(Group(*_overview(await service.get("/status"))), refresh=True)
            await asyncio.sleep(WATCH_S)


def _overview(found: Mapping[str, Any]) -> list[Any]:
    """Each pipeline as facts below each other: it must fit a narrow terminal."""
    return [output.as_facts(_pipeline(pipeline)) for pipeline in found["pipelines"]]


def _pipeline(pipeline: Mapping[str, Any]) -> list[tuple[str, Any]]:
    run = pipeline.get("run") or {}
    models = pipeline["model_in_use"]
    same = set(models.values())
    in_use = models if len(same) > 1 else next(iter(same), None)
    traffic = pipeline.get("traffic")
    starts = pipeline.get("next_start_at")
    return [
        ("pipeline", pipeline["name"] + ("" if pipeline["enabled"] else " (disabled)")),
        ("needs you", "; ".join(pipeline["waits_for_person"])),
        ("next", pipeline.get("next_action")),
        ("in use", in_use),
        ("run", run and f"{run['id']}: {run['status']}, {run['stage'] or 'not begun'}"),
        ("", run.get("progress")),
        ("", run.get("note")),
        ("experiment", pipeline.get("experiment_id")),
        ("rollout", pipeline.get("deployment_id")),
        ("candidate", None if traffic is None else f"serves {output.percent(traffic)}"),
        ("next start", output.moment(starts) if starts else None),
        ("shutdown", _shutdown(pipeline.get("shutdown"))),
        ("drift", _drift(pipeline.get("drift"))),
    ]


def _drift(found: Mapping[str, Any] | None) -> str | None:
    """What was last seen of the posts; nothing while they look like those that were trained on."""
    if not found:
        return None
    return found["sentence"] if found["drifted"] else found["error"] or None


def _shutdown(announced: Mapping[str, Any] | None) -> str | None:
    if not announced:
        return None
    said = f"{announced['model']} on {announced['at'][:10]}, in {announced['days']} days"
    return "; ".join(filter(None, (said, announced.get("mend"))))


async def doctor(*, options: CommonOptions = NONE) -> int:
    """Check everything by real calls, and say how to mend what is wrong. Exit 1 if it must be."""
    async with connect(options, needs_store=False) as service:
        found = await service.get("/doctor")
    if options.json:
        output.data(found)
    else:
        rows = [(f["name"], f["status"], f["detail"], f["mend"]) for f in found]
        output.table(["check", "status", "finding", "mend"], rows)
    return FAILED if any(f["status"] == "failed" for f in found) else OK


def config(*, options: CommonOptions = NONE) -> int:
    """What holds, and where each value came from; exit 2 if something is lacking. Secrets are
    masked."""
    from tuneproof.app.unready import unready

    settings = options.settings()
    rows = [(name, value, f"({origin})") for name, value, origin in settings.describe()]
    if options.json:
        output.data([{"name": n, "value": v, "origin": o.strip("()")} for n, v, o in rows])
    else:
        output.listing(rows)
    lacking = unready(settings)
    for error in lacking:
        output.failure(error, as_json=options.json)
    return USAGE if lacking else OK


async def token(
    name: str,
    /,
    *,
    scope: Annotated[
        list[Literal["read", "write", "relay", "admin"]],
        Parameter(name="--scope", help="What it may do; may be given several times.", negative=""),
    ],
    options: CommonOptions = NONE,
) -> int:
    """Make a bearer token. It is shown this once; we keep only its hash."""
    async with connect(options, makes=True) as service:
        made = await service.post("/tokens", {"name": name, "scopes": scope})
    if options.json:
        output.data(made)
    else:
        output.out().print(made["token"], soft_wrap=True)
        output.say(f"Keep it: it is not shown again. {name} may {', '.join(made['scopes'])}.")
    return OK
