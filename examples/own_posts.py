"""Train on a table of your own, up to the gate: no user sees anything yet.

Here the table is in SQLite and its columns have names of their own; a PostgreSQL address works
the same. The trainer is the one that TuneProof starts in this process: it learns to imitate,
and is for trying the loop, not for your users.

    python examples/own_posts.py
"""

import asyncio
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuneproof import FineTuningPipeline, PipelineConfig, Settings
from tuneproof.settings import SourceConfig, TaskConfig

NOW = datetime(2025, 1, 6, tzinfo=UTC)


def application_database(path: Path) -> None:
    """What your application has already: newsletters with their click rate."""
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE newsletters (number INTEGER PRIMARY KEY, topic TEXT, subject_line TEXT,"
            " click_rate REAL, sent_at TEXT)"
        )
        database.executemany(
            "INSERT INTO newsletters VALUES (?, ?, ?, ?, ?)",
            (
                (
                    i,
                    f"{('tea', 'soil', 'rain', 'bees')[i % 4]} in week {i}",
                    f"Why {('tea', 'soil', 'rain', 'bees')[i % 4]} will surprise you, part {i}",
                    (i % 100) / 1000,
                    (NOW - timedelta(hours=i % 160 + 1)).isoformat(),
                )
                for i in range(1, 801)
            ),
        )
    database.close()


async def main() -> None:
    """Collect, curate, train and check, and print what the gate says."""
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory) / "application.db"
        application_database(table)
        settings = Settings(
            dir=Path(directory) / "tuneproof",
            sources={
                "posts": SourceConfig(
                    url=f"sqlite:///{table}",
                    table="newsletters",
                    columns={
                        "id": "number",
                        "engagement_rate": "click_rate",
                        "ts": "sent_at",
                    },
                )
            },
            tasks={
                "subject": TaskConfig(
                    name="subject",
                    prompt="Write a subject line about {topic}",
                    completion="subject_line",
                )
            },
            pipelines={
                "default": (
                    config := PipelineConfig(
                        tasks=("subject",), engagement_threshold=0.06, poll_seconds=0.2
                    )
                )
            },
        )
        pipeline = FineTuningPipeline(config, settings=settings)
        result = await pipeline.run(as_of=NOW, last_stage="gate")
    print(f"{result.status}: {dict(result.training_data.examples)} examples")
    print(f"left out: {dict(result.training_data.dropped)}")
    print(result.gate.reason)
    print(f"e.g. {result.gate.samples[0].prompt!r} -> {result.gate.samples[0].text!r}")


if __name__ == "__main__":
    asyncio.run(main())
