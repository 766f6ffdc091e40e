"""`tuneproof run …`: start, list, show, logs, abort, retry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import FAILED, OK, WAITS
from tuneproof.cli.progress import StageBars
from tuneproof.cli.service import connect, path_to
from tuneproof.errors import ConfigError, StateError

if TYPE_CHECKING:
    from tuneproof.cli.service import Service

POLL_S = 0.25
MAX_FIGURES = 200
ENDED = ("success", "skipped", "rejected", "rolled_back", "aborted", "failed")


async def start(
    *,
    pipeline: Annotated[str, Parameter(help="Which pipeline.")] = "default",
    posts: Annotated[
        str | None,
        Parameter(help="A file (Parquet, CSV, JSON Lines) or database address to collect from."),
    ] = None,
    as_of: Annotated[
        datetime | None, Parameter(help="Collect as if it were this instant (UTC).")
    ] = None,
    days_back: Annotated[float | None, Parameter(help="Days before it to look at.")] = None,
    engagement_threshold: Annotated[
        float | None, Parameter(help="The least engagement rate of a post that is learnt from.")
    ] = None,
    training_data_threshold: Annotated[
        int | None, Parameter(help="The least number of examples to train with.")
    ] = None,
    set: Annotated[
        list[str] | None,
        Parameter(name="--set", help="Another threshold or duration, as NAME=VALUE.", negative=""),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        Parameter(
            help="How a candidate is made: make=as_is,model=M,provider=P, or make=prompt,hash=H, "
            "or make=train. May be given several times; instead of those of the settings.",
            negative="",
        ),
    ] = None,
    force: Annotated[
        bool, Parameter(help="Go on with fewer examples than the threshold.", negative="")
    ] = False,
    wait: Annotated[bool, Parameter(help="Follow it until it ends or meets real users.")] = True,
    options: CommonOptions = NONE,
) -> int:
    """Start a run and follow it.

    Without a running service the run is done in this process: collect, curate, train, gate.
    When its experiment begins, which takes days of real traffic, the command ends; the run
    goes on under `tuneproof serve`.
    """
    changes = {
        "days_back": days_back,
        "engagement_threshold": engagement_threshold,
        "training_data_threshold": training_data_threshold,
        **_assignments(set or []),
    }
    config = {name: value for name, value in changes.items() if value is not None}
    at = None if as_of is None else (as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of)
    async with connect(options, engine=True, makes=True) as service:
        given: dict[str, Any] = {"pipeline": pipeline, "config": config, "force": force, "at": at}
        given["recipes"] = [_recipe(one) for one in recipe or []]
        try:
            begun = await _begin(service, posts, **given)
        except StateError as error:
            raise _unfinished(error, service) from error
        run_id = begun["pipeline_id"]
        address = _address(service, run_id)
        output.say(f"Run {run_id} began: {address}" if address else f"Run {run_id} began.")
        if not wait and not service.local:
            output.data(begun) if options.json else None
            return OK
        run = await _follow(service, run_id)
        return _finish(run, service, as_json=options.json)


async def _begin(service: Service, posts: str | None, **given: Any) -> dict[str, Any]:
    if posts is not None:
        return await _start_from(service, posts, **given)
    body = {name: given[name] for name in ("pipeline", "config", "recipes")}
    body["force_run"] = given["force"]
    if given["at"] is not None:
        body["as_of"] = given["at"].isoformat()
    begun: dict[str, Any] = await service.post("/fine-tuning/start", body)
    return begun


def _unfinished(error: StateError, service: Service) -> StateError:
    """Where no service runs, an earlier run of this directory waits for one, not for time."""
    if not service.local or error.details.get("reason") != "predecessor_running":
        return error
    run_id = error.details["run_id"]
    return StateError(
        f"Run {run_id} is unfinished.",
        mend=f"Go on with `tuneproof serve`, or abort it: tuneproof run abort {run_id}",
        **error.details,
    )


def _address(service: Service, run_id: str) -> str | None:
    """Where people open a run; None where no service listens."""
    return None if service.local else f"{service.address}/fine-tuning/status/{run_id}"


async def _start_from(service: Service, posts: str, **given: Any) -> dict[str, Any]:
    """Start a run on posts that the settings do not name: only in this process."""
    from tuneproof.server.fine_tuning import started
    from tuneproof.settings import SourceConfig, Url

    app = service.app
    if app is None:
        raise ConfigError(
            "A running service collects from the sources in its settings, not from --posts.",
            mend=f"Load them with `tuneproof posts import {posts}`, or stop the service.",
        )
    SourceConfig(url=Url(posts))  # refuses an address that cannot be one
    if "://" not in posts and not Path(posts).exists():
        raise ConfigError(f"The file {posts!r} does not exist.", mend="Check --posts.")
    run = await app.runs.start(
        given["pipeline"],
        config_overrides=given["config"] or None,
        recipes=given["recipes"],
        force=given["force"],
        posts=posts if "://" in posts else str(Path(posts).resolve()),
        as_of=given["at"],
        actor="cli",
    )
    return started(run).model_dump(mode="json")


async def _follow(service: Service, run_id: str) -> dict[str, Any]:
    """Watch a run until it ends, holds, or its experiment begins."""
    with StageBars() as bars:
        while True:
            run: dict[str, Any] = await service.get(path_to("/fine-tuning/status", run_id))
            bars.update(run)
            tested = "ab_test_id" in run["result"]  # the stage begins before its test is declared
            live = tested and run["stage"] in ("experiment", "rollout")
            if live or run["status"] in ENDED:
                return run
            await asyncio.sleep(POLL_S)


def _finish(run: Mapping[str, Any], service: Service, *, as_json: bool) -> int:
    if as_json:
        output.data(run)
    else:
        _print(run, _address(service, run["pipeline_id"]))
    if run["status"] not in ENDED:
        stays = "serve the run with `tuneproof serve`: it goes on where it stands."
        if service.local:
            output.say(f"The {run['stage']} takes days of real traffic; {stays}")
        return OK
    return FAILED if run["status"] in ("failed", "aborted") else OK


def _assignments(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as settings; numbers become numbers."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or not name:
            mend = "For example --set traffic_split=0.2"
            raise ConfigError(f"--set {pair!r} is not NAME=VALUE.", mend=mend)
        found[name.strip()] = _number(pair, value.strip())
    return found


def _recipe(text: str) -> dict[str, Any]:
    """`make=as_is,model=M,provider=P` as a table."""
    found: dict[str, str] = {}
    for part in re.split(r",(?=\s*[a-z]+=)", text):
        name, mark, value = (one.strip() for one in part.partition("="))
        if not mark or name in found:
            mend = "For example --recipe make=as_is,model=MODEL,provider=PROVIDER"
            raise ConfigError(f"--recipe {text!r} is no list of NAME=VALUE.", mend=mend)
        found[name] = value
    if "parameters" not in found:
        return found
    try:
        return {**found, "parameters": json.loads(found["parameters"])}
    except ValueError as error:
        mend = """For example --recipe 'make=prompt,parameters={"temperature": 0.4}'"""
        said = f"parameters of --recipe {text!r} is no JSON: {error}."
        raise ConfigError(said, mend=mend) from error


def _number(pair: str, text: str) -> Any:
    with contextlib.suppress(ValueError):
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        raise ConfigError(f"--set {pair!r} is no finite number.", mend="Give another value.")
    return value


async def list_(
    *, pipeline: str | None = None, limit: int = 20, options: CommonOptions = NONE
) -> int:
    """All runs, newest first."""
    async with connect(options) as service:
        page = await service.get("/fine-tuning/runs", pipeline=pipeline, limit=limit)
    if options.json:
        output.data(page)
        return OK
    rows = [
        (
            r["pipeline_id"],
            r["pipeline"],
            r["status"],
            r["stage"],
            output.moment(r["created_at"]),
        )
        for r in page["items"]
    ]
    if not rows:
        output.say("No runs yet. Run: tuneproof run start")
        return OK
    output.table(["run", "pipeline", "status", "stage", "began"], rows)
    return OK


async def show(run_id: str, /, *, options: CommonOptions = NONE) -> int:
    """Where a run stands. Exit 3 when a person must decide."""
    async with connect(options) as service:
        run = await service.get(path_to("/fine-tuning/status", run_id))
        address = _address(service, run_id)
    if options.json:
        output.data(run)
    else:
        _print(run, address)
    return WAITS if run["status"] == "failed" else OK


def _print(run: Mapping[str, Any], address: str | None) -> None:
    version = run["model_version"]
    told = _told(run)
    output.facts(
        [
            ("run", run["pipeline_id"]),
            ("status", run["status"]),
            ("reason", None if told else run["reason"]),
            ("began", output.moment(run["created_at"])),
            ("ended", output.moment(run["ended_at"]) if run["ended_at"] else None),
            ("examples", run["training_data"]["examples"]),
            ("model", version["model_id"]),
            ("base model", version["base_model"]),
            ("trained with", _chosen(run["stages"].get("train", {}).get("detail") or {})),
            ("held-out loss", _losses(run["result"])),
            ("plan", run["result"].get("plan", {}).get("sentence")),
            ("experiment", run["result"].get("ab_test_id")),
            ("rollout", run["result"].get("deployment_id")),
            ("address", address),
        ]
    )
    rows = [
        (name, stage.get("status"), output.moment(stage.get("started_at")), _detail(stage, told))
        for name, stage in run["stages"].items()
    ]
    if rows:
        output.table(["stage", "status", "began", "figures"], rows)
    gate = run["stages"].get("gate", {}).get("detail") or {}
    forms = _forms(gate)
    if forms:
        output.table(["form of", "figure", "candidate", "baseline", "published", "state"], forms)
    faulty = _faulty(gate)
    if faulty:
        output.table(["faults", "sampled answer"], faulty)
    if told:
        output.say(told)
        output.say(f"Run: tuneproof run retry {run['pipeline_id']}")


def _forms(gate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How each candidate writes each task, beside the model in use and what was published."""
    return [
        (
            f"{form['task']} by {one['version']}" if "version" in one else form["task"],
            figure["name"],
            *(
                _level(figure["name"], figure[whose])
                for whose in ("candidate", "baseline", "posts")
            ),
            _drifted(figure, form["allowed"]),
        )
        for one in gate.get("candidates") or [gate]
        for form in one.get("forms", ())
        for figure in form["figures"]
    ]


def _level(name: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0f} characters" if name == "length" else f"{value:.0%}"


def _drifted(figure: Mapping[str, Any], allowed: Sequence[str]) -> str:
    if figure["beyond"] is None:
        return "unknown"
    if not figure["beyond"]:
        return "as before"
    return "drifted, allowed" if figure["name"] in allowed else "drifted"


def _faulty(gate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sampled answers that the gate found something wrong with, and what."""
    return [
        (", ".join(sample["faults"]), _shortened(sample["text"]))
        for sample in gate.get("samples", ())
        if sample.get("faults")
    ]


def _told(run: Mapping[str, Any]) -> str:
    """A failed run's error with its mend; empty where there is none. It is told once."""
    error = run["error"]
    return f"{error.get('message', error)} {error.get('mend', '')}".strip() if error else ""


def _chosen(train: Mapping[str, Any]) -> str | None:
    """The hyperparameters in force, those that "auto" chose among them."""
    found = train.get("hyperparameters") or {}
    return ", ".join(f"{n.replace('_', ' ')} {output.shown(v)}" for n, v in found.items()) or None


def _losses(result: Mapping[str, Any]) -> str | None:
    tuned, base = result.get("heldout_loss"), result.get("base_heldout_loss")
    if not isinstance(tuned, float) or not isinstance(base, float):
        return None
    return f"{tuned:.4f}, base {base:.4f} ({output.signed(tuned / base - 1)})"


def _detail(stage: Mapping[str, Any], told: str = "") -> str:
    """A stage's figures; its reason is not said again where it is `told` as the run's error."""
    detail = stage.get("detail") or {}
    plain = {
        k: v
        for k, v in detail.items()
        if isinstance(v, bool | int | float | str) and v != "" and not (told and k == "reason")
    }
    return _shortened(output.shown(plain))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_FIGURES else text[: MAX_FIGURES - 1].rstrip() + "…"


async def logs(run_id: str, /, *, options: CommonOptions = NONE) -> int:
    """What a run did, line by line, oldest first."""
    async with connect(options) as service:
        lines = await service.get(path_to("/fine-tuning/log", run_id))
    if options.json:
        output.data(lines)
        return OK
    for entry in lines:
        text = f"{entry['at'][:19]}Z {entry['level']:7} {entry['stage']:10} {entry['message']}"
        output.out().print(output.clean(text), soft_wrap=True)
    return OK


async def abort(
    run_id: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; kept in the history.")] = "user_requested",
    options: CommonOptions = NONE,
) -> int:
    """End a run: its job is cancelled, its candidate loses its traffic."""
    async with connect(options, engine=True) as service:
        run = await service.get(path_to("/fine-tuning/status", run_id))
        output.confirm(f"Abort {run_id}, which is {run['status']}?", yes=options.yes)
        done = await service.post(path_to("/fine-tuning/abort", run_id), {"reason": reason})
    if options.json:
        output.data(done)
        return OK
    cleaned = ", ".join(done["resources_cleaned"]) or "nothing had to be cleaned"
    output.say(f"{run_id} is {done['status']}; cleaned: {cleaned}.")
    return OK


async def retry(
    run_id: str,
    /,
    *,
    stage: Annotated[str | None, Parameter(help="From this stage [the one that failed].")] = None,
    options: CommonOptions = NONE,
) -> int:
    """Take a failed run up again."""
    async with connect(options, engine=True) as service:
        await service.post(path_to("/fine-tuning/retry", run_id), {"stage": stage})
        run = await _follow(service, run_id)
        return _finish(run, service, as_json=options.json)
