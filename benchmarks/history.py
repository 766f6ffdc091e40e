"""What a plan needs of 2 million posts: added up by the database, and by handing each post over.

`python benchmarks/history.py --posts 200000`, or TUNEPROOF_BENCH_POSTS in the environment, does it
on fewer. Both ways are timed in a process of their own, with its peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from collecting import FILL

POSTS = int(os.environ.get("TUNEPROOF_BENCH_POSTS", 2_000_000))
ROUNDS = int(os.environ.get("TUNEPROOF_BENCH_ROUNDS", 3))
SINCE, UNTIL = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
FILL_SQLITE = """
CREATE TABLE posts (id INTEGER PRIMARY KEY, persona_id TEXT, original_input TEXT, hook TEXT,
    body TEXT, engagement_rate REAL, ts TEXT, tokens_used INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {posts})
INSERT INTO posts SELECT i, 'persona ' || i % 50, 'about topic ' || i, 'hook ' || i,
    'body ' || i || ' some words that make a post about as long as posts are, and a few more',
    CASE WHEN i % 5 = 0 THEN 0.01 ELSE 0.06 + (i * 7919 % 100000) / 1e6 END,
    datetime(1735689600 + i % 2600000, 'unixepoch'), 100
FROM n;
"""


def records() -> list[dict[str, Any]]:
    """Both ways in turn, on PostgreSQL and on SQLite."""
    from tests.servers import postgres_server

    with postgres_server() as server, tempfile.TemporaryDirectory() as folder:
        url = server.create_database()
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            for statement in FILL.replace("%s", f"{POSTS}::bigint").split(";"):
                connection.execute(statement)
        file = Path(folder) / "posts.db"
        with sqlite3.connect(file) as made:
            made.executescript(FILL_SQLITE.format(posts=POSTS))
        made.close()
        return [*_compared("PostgreSQL", url), *_compared("SQLite", f"sqlite:///{file}")]


def _compared(database: str, url: str) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {"added": [], "read": []}
    for _ in range(ROUNDS):
        for way, taken in found.items():
            taken.append(_measured(way, url))
    ours, theirs = (
        {key: statistics.median(f[key] for f in found[way]) for key in found[way][0]}
        for way in ("added", "read")
    )
    assert ours["n"] == theirs["n"] > 0.9 * POSTS
    off = max(abs(ours[f] / theirs[f] - 1) for f in ("cv", "mean", "variance"))
    assert off < 1e-12, off
    name = f"plan: history of {POSTS:,} posts, {database}"
    ratio = theirs["seconds"] / ours["seconds"]
    return [
        {
            "name": name,
            "ours": round(ours["seconds"], 2),
            "unit": "s",
            "peer": "each post handed over",
            "peer_value": round(theirs["seconds"], 2),
            "ratio": round(ratio, 1),
            "goal": "≥ 5 ×",
            "met": ratio >= 5,
            "peak_mb": round(ours["peak_mb"]),
            "peer_peak_mb": round(theirs["peak_mb"]),
        }
    ]


def _measured(way: str, url: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, url], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


class Reading:
    """A source that can only hand its posts over."""

    def __init__(self, source: Any) -> None:
        self.check, self.posts, self.close = source.check, source.posts, source.close


async def _history(way: str, url: str) -> dict[str, float]:
    from tuneproof.collection import Window
    from tuneproof.experiments.planning import read_history
    from tuneproof.sources import open_source
    from tuneproof.stats.design import coefficient_of_variation
    from tuneproof.stats.effects import mean

    source = open_source(url)
    started = time.perf_counter()
    history = await read_history(
        source if way == "added" else Reading(source), Window(since=SINCE, until=UNTIL)
    )
    return {
        "seconds": time.perf_counter() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "n": history.units.n,
        "cv": coefficient_of_variation(history.units),
        "mean": mean(history.units).value,
        "variance": mean(history.units).variance,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=int, default=POSTS)
    parser.add_argument("--way", choices=["added", "read"])
    parser.add_argument("url", nargs="?")
    options = parser.parse_args()
    POSTS = options.posts
    if options.way:
        print(json.dumps(asyncio.run(_history(options.way, options.url))))
    else:
        for record in records():
            print(record)
