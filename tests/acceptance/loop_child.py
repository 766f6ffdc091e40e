"""One process that turns the loop in virtual time and may be told to kill itself.

`live` is called in a process of its own, forked from one that has imported all. The plan names the
directory, the databases, changes of the pipeline's settings, and how to die: at each step in turn
(`memo`; at those of `steps` alone, where it is there), or after some seconds (`die_after_s`).
At the end it prints what came of the run and how many effects there are of each kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from tests.waiting import eventually

from tuneproof.app.demonstration import Demonstration, demonstration
from tuneproof.settings import (
    FilesConfig,
    PipelineConfig,
    Settings,
    StoreConfig,
    TrackingConfig,
    Url,
    revealed,
)
from tuneproof.workflow import Moment

CONFIG = PipelineConfig(
    a_b_test_duration_hours=72,
    traffic_split=0.5,
    steps=(0.25, 1.0),
    increment_interval_hours=6,
    holdback_days=1,
    gate_samples=4,
)
LATER = 3
"""The later occurrence at which a step is killed again."""


class Killer:
    """Kills this process at each distinct step: before, inside and after, first and later."""

    def __init__(self, memo: Path, steps: list[str] | None = None) -> None:
        self._memo = memo
        self._steps = steps
        self._done = set(memo.read_text().splitlines()) if memo.exists() else set()
        self._seen: Counter[tuple[str, Moment]] = Counter()

    def __call__(self, name: str, moment: Moment) -> None:
        self._seen[name, moment] += 1
        count = self._seen[name, moment]
        if self._steps is not None and name not in self._steps:
            return
        for which in ["first"] if count == 1 else ["later"] if count == LATER else []:
            key = f"{name} {moment} {which}"
            if key not in self._done:
                with self._memo.open("a") as file:
                    file.write(key + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.kill(os.getpid(), signal.SIGKILL)


def settings(plan: dict[str, Any]) -> Settings:
    store = StoreConfig(url=plan["database"]) if plan.get("database") else StoreConfig()
    return Settings(
        dir=Path(plan["dir"]),
        pipelines={"default": replace(CONFIG, **plan.get("changes", {}))},
        store=store,
        tracking=TrackingConfig(uri=plan.get("mlflow")),
        files=FilesConfig(url=Url(plan["files"]) if plan.get("files") else None),
    )


async def effects(demo: Demonstration) -> dict[str, int]:
    """How many of each effect there are, asked from those who hold them."""
    app = demo.app
    client = AsyncOpenAI(base_url=app.providers.trainer_url, api_key="any")
    jobs = [job async for job in client.fine_tuning.jobs.list()]
    files = [file.filename async for file in client.files.list(purpose="fine-tune")]
    experiments = (await app.store.experiments.page()).items
    rollouts = (await app.store.deployments.page()).items
    counted = {
        "jobs": len(jobs),
        "files": len(files),
        "file contents": len(set(files)),
        "experiments": len(experiments),
        "rollouts": len(rollouts),
        "versions": len(await app.store.versions.list()),
        "runs": len((await app.store.runs.page()).items),
    }
    for subject in [*(e.id for e in experiments), *(r.id for r in rollouts)]:
        kept, recounted = (
            await app.store.events.stored(subject),
            await app.store.events.recount(subject),
        )
        counted[f"rollups differ ({subject})"] = int(kept != recounted)
    if app.tracker is not None:
        counted |= await tracked(demo)
    return counted


async def tracked(demo: Demonstration) -> dict[str, int]:
    """What reached MLflow, once the outbox is empty."""
    from mlflow import MlflowClient

    async def delivered() -> bool:
        return not await demo.app.store.outbox.pending()

    await eventually(delivered, 120, every_s=0.1)
    client = MlflowClient(revealed(demo.app.settings.tracking.uri) or "")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.tuneproof_run = '{demo.run_id}'")
    versions = client.search_model_versions("name = 'default'")
    return {
        "outbox": await demo.app.store.outbox.pending(),
        "mlflow runs": len(runs),
        "mlflow versions": len(versions),
        "mlflow champion": int("champion" in client.get_registered_model("default").aliases),
    }


async def main(plan: dict[str, Any]) -> None:
    if plan.get("die_after_s"):
        threading.Timer(plan["die_after_s"], os.kill, [os.getpid(), signal.SIGKILL]).start()
    killer = Killer(Path(plan["memo"]), plan.get("steps")) if plan.get("memo") else None
    async with demonstration(
        Path(plan["dir"]),
        seed=plan.get("seed", 7),
        settings=settings(plan),
        on_step=killer,
        takeover_s=0.2,
    ) as demo:
        await demo.wait()
        print(json.dumps({"outcome": await demo.outcome(), "effects": await effects(demo)}))
        sys.stdout.flush()
    os._exit(0)


def live(plan: Path, said: Path) -> None:
    """Carry the plan out; what is printed, on both streams, goes into the file `said`."""
    with said.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    asyncio.run(main(json.loads(plan.read_text())))
