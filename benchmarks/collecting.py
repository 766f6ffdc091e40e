"""Ways to make training files of a table of posts; each runs in a process of its own.

    python benchmarks/collecting.py WAY URL FOLDER      prints {"seconds", "cpu_s", "peak_mb", …}

`tuneproof` is our collector with all of its curation. `orm_all` is what a user would write:
SQLAlchemy's ORM, `.all()`, `json.dumps` of two examples a row. `n_plus_one` reads the ids and
then each post by itself. `copy_csv` is psql's `\\copy` to a CSV file: nothing is looked at.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

THRESHOLD = 0.06
SINCE, UNTIL = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
WORDS = "some words that make a post about as long as posts are, and then a few more of them"

FILL = f"""
CREATE TABLE posts (id bigint PRIMARY KEY, persona_id text, original_input text, hook text,
    body text, engagement_rate double precision, ts timestamptz, tokens_used int);
INSERT INTO posts SELECT i, 'persona ' || i % 50, 'about topic ' || i || ' {WORDS}',
    'hook ' || i || ' {WORDS}', 'body ' || i || ' {WORDS} {WORDS} {WORDS}',
    CASE WHEN i % 5 = 0 THEN 0.01 ELSE 0.06 + (i * 7919 % 100000) / 1e6 END,
    timestamptz '2025-01-01' + i % 2600000 * interval '1 second', 100
FROM generate_series(1, %s) i;
CREATE INDEX posts_ts_engagement_rate ON posts (ts, engagement_rate);
ANALYZE posts
"""


def tuneproof(url: str, folder: Path) -> int:
    """Our collector, with validation, personal data, duplicates and split; one query."""
    from tuneproof.collection import DataCollector
    from tuneproof.sources import open_source

    collector = DataCollector(
        THRESHOLD, source=open_source(url), dir=folder, days_back=31, max_records=None
    )
    asyncio.run(collector.collect_training_data(until=UNTIL))
    return 1


def orm_all(url: str, folder: Path) -> int:
    """All rows as objects, then a file of them."""
    session, model, sa = _orm(url)
    wanted = sa.select(model).where(
        model.ts >= SINCE, model.ts < UNTIL, model.engagement_rate >= THRESHOLD
    )
    posts = session.scalars(wanted.order_by(model.engagement_rate.desc())).all()
    lines = []
    for post in posts:
        lines += _examples(post)
    (folder / "train.jsonl").write_text("\n".join(lines))
    return 1


def n_plus_one(url: str, folder: Path) -> int:
    """The ids first, then a query for each post."""
    session, model, sa = _orm(url)
    ids = session.scalars(
        sa.select(model.id).where(
            model.ts >= SINCE, model.ts < UNTIL, model.engagement_rate >= THRESHOLD
        )
    ).all()
    with (folder / "train.jsonl").open("w") as file:
        for id in ids:
            file.write("\n".join(_examples(session.get_one(model, id))) + "\n")
            session.expunge_all()
    return 1 + len(ids)


def copy_csv(url: str, folder: Path) -> int:
    """psql's `\\copy` to a CSV file."""
    query = (
        "SELECT original_input, hook, body FROM posts WHERE ts >= '2025-01-01Z' AND "
        f"ts < '2025-02-01Z' AND engagement_rate >= {THRESHOLD} ORDER BY engagement_rate DESC, id"
    )
    command = f"\\copy ({query}) TO '{folder}/posts.csv' CSV"
    subprocess.run(["psql", "-q", url.replace("+psycopg", ""), "-c", command], check=True)
    return 1


WAYS: dict[str, Callable[[str, Path], int]] = {
    way.__name__: way for way in (tuneproof, orm_all, n_plus_one, copy_csv)
}


def measured(way: str, url: str, folder: Path) -> dict[str, float]:
    """One way in a process of its own: `seconds` of its work, `peak_mb` of resident memory."""
    place = folder / way
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, way, url, str(place)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _orm(url: str):  # type: ignore[no-untyped-def]
    import sqlalchemy as sa
    from sqlalchemy import orm

    class Base(orm.DeclarativeBase):
        pass

    class Post(Base):
        __tablename__ = "posts"
        id = sa.Column(sa.BigInteger, primary_key=True)
        persona_id = sa.Column(sa.Text)
        original_input = sa.Column(sa.Text)
        hook = sa.Column(sa.Text)
        body = sa.Column(sa.Text)
        engagement_rate = sa.Column(sa.Double)
        ts = sa.Column(sa.DateTime(timezone=True))
        tokens_used = sa.Column(sa.Integer)

    return orm.Session(sa.create_engine(url)), Post, sa


def _examples(post) -> list[str]:  # type: ignore[no-untyped-def]
    pairs = [
        (post.original_input or "Create engaging content", post.hook),
        (f"{post.hook}\n\nWrite a detailed post:", post.body),
    ]
    return [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        for asked, answer in pairs
    ]


def main() -> None:
    """Run one way and print what it took."""
    way, url, folder = sys.argv[1:]
    started = time.perf_counter()
    queries = WAYS[way](url, Path(folder))
    seconds = time.perf_counter() - started
    who = resource.RUSAGE_CHILDREN if way == "copy_csv" else resource.RUSAGE_SELF
    peak = resource.getrusage(who).ru_maxrss / 1024
    used = resource.getrusage(who)
    cpu = used.ru_utime + used.ru_stime
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak, "queries": queries}))


if __name__ == "__main__":
    main()
