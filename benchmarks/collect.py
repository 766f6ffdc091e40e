"""Collecting posts from PostgreSQL: against what a user would write, and against a bare copy."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from tests.servers import postgres_server

from collecting import FILL, measured

ROWS = 250_000
ROUNDS = 3


def records() -> list[dict[str, Any]]:
    """Time and memory of our collector, the ORM and `\\copy`, in turn."""
    found: dict[str, list[dict[str, float]]] = {"tuneproof": [], "orm_all": [], "copy_csv": []}
    with postgres_server() as server, tempfile.TemporaryDirectory() as folder:
        url = server.create_database()
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            for statement in FILL.replace("%s", str(ROWS)).split(";"):
                connection.execute(statement)
        for _ in range(ROUNDS):
            for way, taken in found.items():
                taken.append(measured(way, url, Path(folder)))
    ours, orm, copy = (_median(found[way]) for way in ("tuneproof", "orm_all", "copy_csv"))
    return [
        _speed(ours, orm, "SQLAlchemy ORM .all() and json.dumps", "≥ 5× the ORM", 5.0),
        _speed(ours, copy, "psql \\copy csv: no look at the rows", "≥ 0.5× \\copy", 0.5),
        {
            "name": f"collect: peak memory for {ROWS:,} posts",
            "ours": round(ours["peak_mb"]),
            "unit": "MB",
            "peer": "SQLAlchemy ORM .all() and json.dumps",
            "peer_value": round(orm["peak_mb"]),
            "ratio": round(orm["peak_mb"] / ours["peak_mb"], 2),
            "goal": "< 200 MB",
            "met": ours["peak_mb"] < 200,
        },
    ]


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(f[key] for f in found) for key in found[0]}


def _speed(
    ours: dict[str, float], theirs: dict[str, float], peer: str, goal: str, least: float
) -> dict[str, Any]:
    ratio = theirs["seconds"] / ours["seconds"]
    rates = [ROWS * 0.8 / way["seconds"] / 1000 for way in (ours, theirs)]
    return {
        "name": "collect: validated, without duplicates and personal data, written",
        "ours": round(rates[0], 1),
        "unit": "k posts/s",
        "peer": peer,
        "peer_value": round(rates[1], 1),
        "ratio": round(ratio, 2),
        "goal": goal,
        "met": ratio >= least,
    }
