"""`tuneproof models`, `data`, `posts`, `events`: what was trained, from what, with what effect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import FAILED, OK
from tuneproof.cli.service import connect, embedded, path_to
from tuneproof.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tuneproof.app.doctor import Finding
    from tuneproof.app.rehearsal import Rehearsal
    from tuneproof.settings import Settings

BATCH = 2_000
TAIL_S = 1.0
DATASET_SHOWN = 8
"""How many characters of a dataset's hash are shown."""


async def models(*, pipeline: str | None = None, options: CommonOptions = NONE) -> int:
    """All versions with their lineage, newest first."""
    async with connect(options) as service:
        found = await service.get("/models", pipeline=pipeline)
    if options.json:
        output.data(found)
        return OK
    numbers = {v["id"]: v["version"] for v in found}
    rows: list[tuple[Any, ...]] = [
        (
            v["version"],
            v["status"],
            v["model_id"],
            v["base_model"],
            v["provider"],
            (v["dataset_hash"] or "")[:DATASET_SHOWN],
            numbers.get(v["parent_id"], ""),
            v["heldout_loss"],
            v["run_id"],
            output.moment(v["created_at"]),
        )
        for v in found
    ]
    if not rows:
        output.say("No versions yet. Run: tuneproof run start")
        return OK
    columns = ["version", "status", "model", "base", "provider", "dataset", "follows"]
    columns += ["held-out loss", "run", "made"]
    if any(v["prompt"] for v in found):
        columns.append("prompt")
        rows = [(*row, v["prompt"] or "") for row, v in zip(rows, found, strict=True)]
    output.table(columns, rows)
    return OK


async def export(
    run_id: str,
    /,
    *,
    to: Annotated[Path | None, Parameter(help="Write to this file instead of stdout.")] = None,
    options: CommonOptions = NONE,
) -> int:
    """The manifest of a run's dataset: its hash, its examples, what was dropped and why."""
    async with connect(options) as service:
        manifest = await service.get(path_to("/data/manifest", run_id))
    if to is None:
        output.data(manifest)
    else:
        to.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")
        output.say(f"Wrote {to}.")
    return OK


async def import_posts(
    file: Path,
    /,
    *,
    table: Annotated[str, Parameter(help="The table to load into.")] = "posts",
    database: Annotated[str | None, Parameter(help="Its database [our own].")] = None,
    options: CommonOptions = NONE,
) -> int:
    """Load a file of posts (Parquet, CSV, JSON Lines) into a table; those that are there stay."""
    if not file.is_file():
        raise DataError(f"The file {str(file)!r} does not exist.", mend="Check the path.")
    settings = options.settings()
    if table == settings.sources["posts"].table:
        await _refuse_absent_columns(file, settings)
    with _bar("posts") as (bars, task):
        async with embedded(settings, engine=False) as service:
            assert service.app is not None

            def shown(count: int) -> None:
                bars.update(task, completed=count)

            count = await service.app.import_posts(
                file, table=table, database_url=database, progress=shown
            )
    if options.json:
        output.data({"imported": count, "table": table})
    else:
        output.say(f"{count} posts are in {table}. Next: tuneproof run start")
    return OK


async def check_posts(
    posts: str | None = None,
    /,
    *,
    pipeline: Annotated[str, Parameter(help="As this pipeline would use them.")] = "default",
    as_of: Annotated[datetime | None, Parameter(help="As if it were this instant (UTC).")] = None,
    options: CommonOptions = NONE,
) -> int:
    """Do what a run does up to ten examples, of the source or a file or an address; keep nothing.

    Exit 1 where a run would fail or be skipped.
    """
    from tuneproof.app.doctor import posts_finding
    from tuneproof.app.rehearsal import rehearse
    from tuneproof.collection import Task
    from tuneproof.settings import Url
    from tuneproof.workflow import SystemClock

    settings = options.settings()
    config = settings.pipelines.get(pipeline)
    if config is None:
        known = ", ".join(sorted(settings.pipelines))
        raise ConfigError(f"There is no pipeline {pipeline!r}.", mend=f"Known are: {known}.")
    described = settings.sources[config.source]
    url = Url(posts) if posts else described.url or settings.store.url
    source = settings.adapter("source")(replace(described, url=url))
    try:
        tasks = [Task.of(settings.tasks[name]) for name in config.tasks]
        at = None if as_of is None else as_of.replace(tzinfo=as_of.tzinfo or UTC)
        found = await rehearse(config, source, tasks, clock=SystemClock(), until=at)
    finally:
        await source.close()
    finding = posts_finding(config, found)
    if options.json:
        output.data(
            {
                "status": finding.status,
                "detail": finding.detail,
                "mend": finding.mend,
                "columns": dict(found.columns),
                "left_out": found.left_out(),
                "examples": {
                    task: [json.loads(e) for e in es] for task, es in found.examples.items()
                },
            }
        )
    else:
        _tell_posts(found, finding)
    return FAILED if finding.status == "failed" or found.short_of(config) else OK


def _tell_posts(found: Rehearsal, finding: Finding) -> None:
    output.say(f"{finding.status}: {finding.detail}")
    columns = ", ".join(f"{word} = {name}" for word, name in found.columns.items())
    output.say(f"Columns: {columns}.")
    for reason in found.left_out():
        output.say(f"Left out: {reason}.")
    if finding.mend:
        output.say(finding.mend)
    for task, lines in found.examples.items():
        output.say(f"{task}, as the provider would see it:")
        for line in lines:
            output.line(json.loads(line))


async def _refuse_absent_columns(file: Path, settings: Settings) -> None:
    """Raise `DataError` where the default pipeline would look for a column in vain."""
    from tuneproof.collection import DataCollector
    from tuneproof.settings import Url
    from tuneproof.sources import open_source

    pipeline = settings.pipelines.get("default")
    if pipeline is None:
        return
    tasks = [settings.tasks[name] for name in pipeline.tasks]
    query = DataCollector(tasks=tasks).query(pipeline.days_back, datetime.now(UTC))
    source = open_source(replace(settings.sources["posts"], url=Url(str(file)), where=None))
    check = await source.check(query)
    if check.missing:
        raise DataError(
            f"{file} has no column for {', '.join(check.missing)}, which the pipeline default "
            f"needs (tasks {', '.join(pipeline.tasks)}).",
            mend="Name them in [sources.posts.columns], change the tasks, or mend the file.",
            missing=list(check.missing),
        )


async def import_events(file: Path, /, *, options: CommonOptions = NONE) -> int:
    """Send a file of events, a JSON object a line: exposures have an `arm`, outcomes a `value`."""
    total = {"accepted": 0, "duplicates": 0, "unknown": 0}
    unknown: list[str] = []
    lines = _lines(file)
    with _bar("events") as (bars, task):
        async with connect(options) as service:
            while batch := list(islice(lines, BATCH)):
                body: dict[str, list[Any]] = {"exposures": [], "outcomes": []}
                for event in batch:
                    body["exposures" if "arm" in event else "outcomes"].append(event)
                taken = await service.post("/events", body)
                total["accepted"] += taken["accepted"]
                total["duplicates"] += taken["duplicates"]
                unknown += taken["unknown"]
                bars.advance(task, len(batch))
    total["unknown"] = len(unknown)
    if options.json:
        output.data(total)
    else:
        output.say(f"{total['accepted']} events taken, {total['duplicates']} were there already.")
    if unknown:
        named = ", ".join(unknown[:5])
        output.say(f"{len(unknown)} events have a subject that nobody knows: {named}.")
        output.say("Run: tuneproof experiment list")
        return FAILED
    return OK


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise DataError(f"The file {str(file)!r} does not exist.", mend="Check the path.")
    with file.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                event = json.loads(text)
            except ValueError as error:
                where = f"{file}, line {number}"
                raise DataError(f"{where} is not JSON: {error}.", mend="Mend it.") from error
            if not isinstance(event, dict):
                raise DataError(f"{file}, line {number} is no object.", mend="Mend it.")
            yield event


async def tail(
    *,
    subject: Annotated[
        str | None, Parameter(help="Of this experiment or rollout [all that routing serves].")
    ] = None,
    follow: Annotated[bool, Parameter(help="Wait for more.")] = True,
    limit: int = 20,
    options: CommonOptions = NONE,
) -> int:
    """The newest exposures, then each as it comes; one JSON object a line. Ctrl-C ends it."""
    seen: set[str] = set()
    since: str | None = None
    async with connect(options) as service:
        while True:
            found = await service.get("/events", subject=subject, since=since, limit=limit)
            for event in found:
                if event["id"] not in seen:
                    output.line(event)
            if not follow:
                return OK
            if found:
                since = found[-1]["at"]
            seen = {event["id"] for event in found}
            limit = 1000
            await asyncio.sleep(TAIL_S)


class _bar:  # noqa: N801 - used as a context manager only
    """A bar on stderr that counts things."""

    def __init__(self, what: str) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=output.err(),
            disable=not output.err().is_terminal,
        )
        self._what = what

    def __enter__(self) -> tuple[Progress, Any]:
        self._bars.start()
        return self._bars, self._bars.add_task(self._what, total=None)

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
