"""One worker of several on a PostgreSQL database, on the machine's own clock.

Run as `python -m tests.acceptance.worker_child PLAN.json`; `start` in the plan makes it start a
run over the demo's posts. It says "ready" when it is open, and lives until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneproof.app import App
from tuneproof.demo import Audience, seed_posts
from tuneproof.settings import PipelineConfig, ProviderConfig, Settings, StoreConfig

LOOK_EVERY_S = 2.0

CONFIG = PipelineConfig(
    base_model="tuneproof-ngram-1",
    poll_seconds=1,
    look_interval_hours=LOOK_EVERY_S / 3600,
    gate_samples=2,
    schedule_driver="external",
)


async def main(plan: dict[str, Any]) -> None:
    settings = Settings(
        dir=Path(plan["dir"]),
        pipelines={"default": CONFIG},
        providers={"default": ProviderConfig(kind="compatible", base_url=plan["trainer"])},
        store=StoreConfig(url=plan["database"]),
    )
    async with App.open(settings) as app:
        if plan.get("start"):
            await seed_posts(
                app.store.database.engine, Audience(3), until=datetime.now(UTC), days=7
            )
            await app.start_run(actor="test")
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
