"""One worker of several on a PostgreSQL database, on the machine's own clock.

Run as `python -m tests.acceptance.worker_child PLAN.json`; `start` in the plan makes it start a
run over the demo's posts, `alone` a test and a rollout that no run drives, `tasks` names a file
into which it writes how its tasks do. It says "ready" when it is open, and lives until it is
killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tuneproof.app import App
from tuneproof.demo import Audience, seed_posts
from tuneproof.experiments import Variant
from tuneproof.pipeline import rollout_alone
from tuneproof.settings import BODY, HOOK, PipelineConfig, ProviderConfig, Settings, StoreConfig

LOOK_EVERY_S = 2.0

CONFIG = PipelineConfig(
    base_model="tuneproof-ngram-1",
    poll_seconds=1,
    look_interval_hours=LOOK_EVERY_S / 3600,
    gate_samples=2,
    schedule_driver="external",
)


MANUAL = replace(CONFIG, name="manual", tasks=("caption",))
RELEASE = replace(CONFIG, name="release", tasks=("title",))
OWN = {"served_by": "application"}
"""Of tasks whose models are nowhere: nobody asks them."""

TASKS = {
    task.name: task
    for task in (
        HOOK,
        BODY,
        replace(HOOK, name="caption", **OWN),
        replace(HOOK, name="title", **OWN),
    )
}
PIPELINES = {"default": CONFIG, "manual": MANUAL, "release": RELEASE}


async def begin_alone(app: App) -> None:
    """A test that a person declared, and a rollout of a model that nobody trained here."""
    base, tuned = Variant(model_id="base"), Variant(model_id="tuned")
    await app.experiments.create(
        baseline=base, candidates=[tuned], pipeline=MANUAL.name, tasks=MANUAL.tasks
    )
    manager = app.managers.of(RELEASE)
    async with app.store.database.begin() as tx:
        at = app.clock.now()
        declared = await manager.declare(tuned, base, ab_test_id=None, salt="salt", at=at, tx=tx)
        begun = await manager.begin(declared.id, at=at, tx=tx)
    await app.engine.start(rollout_alone, begun.id, RELEASE)


async def write_tasks(app: App, path: Path) -> None:
    found = [asdict(task) for task in app.supervisor.tasks]
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, default=datetime.isoformat))
    part.replace(path)


async def main(plan: dict[str, Any]) -> None:
    settings = Settings(
        dir=Path(plan["dir"]),
        tasks=TASKS,
        pipelines=PIPELINES,
        providers={"default": ProviderConfig(kind="compatible", base_url=plan["trainer"])},
        store=StoreConfig(url=plan["database"]),
    )
    async with App.open(settings) as app:
        if plan.get("start"):
            await seed_posts(
                app.store.database.engine, Audience(3), until=datetime.now(UTC), days=7
            )
            await app.runs.start(actor="test")
        if plan.get("alone"):
            await begin_alone(app)
        if plan.get("tasks"):
            report = partial(write_tasks, app, Path(plan["tasks"]))
            await report()
            app.supervisor.every("report", 0.5, report)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
