"""Two claims of the pipeline that TuneProof comes from, about reading posts, measured.

It said: 90 % fewer queries by reading in bulk, and 60 % less memory by chunks. Each is
measured against the way that it improves on: a query for each post, and the ORM's `.all()`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psycopg
from tests.servers import postgres_server

from collecting import FILL, measured

FEW = 10_000
MANY = 100_000
CHUNK = 1000


def records() -> list[dict[str, Any]]:
    """Queries of a small table, memory of a larger one."""
    with postgres_server() as server, tempfile.TemporaryDirectory() as folder:
        few, many = _filled(server, FEW), _filled(server, MANY)
        each = measured("n_plus_one", few, Path(folder))
        ours = measured("tuneproof", few, Path(folder))
        everything = measured("orm_all", many, Path(folder))
        chunked = measured("tuneproof", many, Path(folder))
    # Our one query is fetched in chunks: count those, as round trips are what takes time.
    trips = 1 + -(-int(each["queries"] - 1) // CHUNK)
    return [
        _claim(
            "claim: 90 % fewer queries (round trips) for a dataset",
            trips,
            each["queries"],
            "round trips",
            "a query for each post",
            0.90,
        ),
        _claim(
            f"claim: 60 % less memory at {MANY:,} posts",
            chunked["peak_mb"],
            everything["peak_mb"],
            "MB",
            "ORM .all()",
            0.60,
        ),
        {
            "name": "claim: time of the dataset that the queries above made",
            "ours": round(ours["seconds"], 2),
            "unit": "s",
            "peer": "a query for each post",
            "peer_value": round(each["seconds"], 2),
            "ratio": round(each["seconds"] / ours["seconds"], 2),
            "goal": "faster",
            "met": ours["seconds"] < each["seconds"],
        },
    ]


def _filled(server: Any, rows: int) -> str:
    url: str = server.create_database()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in FILL.replace("%s", str(rows)).split(";"):
            connection.execute(statement)
    return url


def _claim(
    name: str, ours: float, theirs: float, unit: str, peer: str, share: float
) -> dict[str, Any]:
    saved = 1 - ours / theirs
    return {
        "name": name,
        "ours": round(ours, 1),
        "unit": unit,
        "peer": peer,
        "peer_value": round(theirs, 1),
        "ratio": round(theirs / ours, 2),
        "goal": f"{share:.0%} less",
        "met": saved >= share,
        "saved": round(saved, 3),
    }
