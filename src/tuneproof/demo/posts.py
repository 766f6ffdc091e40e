"""The demo's `posts` table: the user's own table, as an application would keep it.

The pipeline reads it like any other source. `served` beside it is the application's memory of
what is still to be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from tuneproof.demo.audience import Audience
from tuneproof.demo.draws import draws, poisson
from tuneproof.demo.writing import write
from tuneproof.workflow import Tx

POSTS_PER_HOUR = 20.0
HOUR = timedelta(hours=1)
PERSONAS = ("ana", "ben", "chloe", "dario", "emine", "felix", "grace", "hugo")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHUNK = 1000


class UtcTime(sa.TypeDecorator[datetime]):
    """An instant as users' tables hold it: timestamptz, or naive UTC where there is no such."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


_metadata = sa.MetaData()

POSTS_TABLE = sa.Table(
    "posts",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("persona_id", sa.Text),
    sa.Column("original_input", sa.Text),
    sa.Column("hook", sa.Text),
    sa.Column("body", sa.Text),
    sa.Column("engagement_rate", sa.Float),
    sa.Column("ts", UtcTime, nullable=False),
    sa.Column("tokens_used", sa.Integer),
    sa.Column("impressions", sa.Integer),
    sa.Column("clicks", sa.Integer),
    sa.Column("version", sa.Text),
    sa.Index("posts_ts_engagement_rate", "ts", "engagement_rate"),
)

SERVED_TABLE = sa.Table(
    "demo_served",
    _metadata,
    sa.Column("post_id", sa.Text, primary_key=True),
    sa.Column("at", UtcTime, nullable=False, index=True),
    sa.Column("due", UtcTime, nullable=False),
    sa.Column("measured", sa.Boolean, nullable=False),
    sa.Column("subject", sa.Text),
    sa.Column("phase", sa.Integer, nullable=False),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("disliked", sa.Boolean, nullable=False),
    sa.Column("hook_tokens", sa.Integer, nullable=False),
    sa.Column("body_tokens", sa.Integer, nullable=False),
    sa.Index("demo_served_due", "measured", "due"),
)


@dataclass(frozen=True, kw_only=True)
class ServedPost:
    """A post that the application made with a model, and what it still has to tell of it."""

    post_id: str
    at: datetime
    due: datetime
    subject: str | None
    phase: int
    arm: str
    disliked: bool
    hook_tokens: int
    body_tokens: int
    measured: bool = False


class PostsTable:
    """The `posts` table and the application's memory, in any database of SQLAlchemy's."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(tuneproof_read=True)

    async def create(self) -> None:
        """Make both tables where they are absent."""
        async with self._engine.begin() as tx:
            await tx.run_sync(_metadata.create_all)

    async def add(
        self, posts: Sequence[Mapping[str, Any]], served: Sequence[ServedPost] = ()
    ) -> int:
        """Insert posts, and what was served, in one transaction; those that exist stay as they
        are. Returns how many posts were given."""
        async with self._engine.begin() as tx:
            await self._insert(tx, POSTS_TABLE, posts)
            await self._insert(tx, SERVED_TABLE, [asdict(one) for one in served])
        return len(posts)

    async def _insert(self, tx: Tx, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            insert = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
            await tx.execute(insert(table).on_conflict_do_nothing(), list(rows))

    async def served_between(self, since: datetime, until: datetime) -> list[ServedPost]:
        """What was served at since ≤ `at` < until, in order."""
        at = SERVED_TABLE.c.at
        query = sa.select(SERVED_TABLE).where(at >= since, at < until)
        async with self._reader.connect() as tx:
            rows = await tx.execute(query.order_by(at, SERVED_TABLE.c.post_id))
            return [ServedPost(**row._mapping) for row in rows]

    async def due_before(self, until: datetime) -> list[tuple[ServedPost, str, str]]:
        """What is to be measured before `until` and was not yet, with hook and body."""
        served, posts = SERVED_TABLE, POSTS_TABLE
        query = (
            sa.select(served, posts.c.hook, posts.c.body)
            .join(posts, posts.c.id == served.c.post_id)
            .where(served.c.measured == sa.false(), served.c.due < until)
            .order_by(served.c.due, served.c.post_id)
        )
        async with self._reader.connect() as tx:
            return [
                (ServedPost(**_only(row)), row.hook, row.body) for row in await tx.execute(query)
            ]

    async def measured(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what came of posts: each row has `id`, `engagement_rate`, `impressions`,
        `clicks`."""
        if not rows:
            return
        fields = ("engagement_rate", "impressions", "clicks")
        fill = (
            sa.update(POSTS_TABLE)
            .where(POSTS_TABLE.c.id == sa.bindparam("key"))
            .values({name: sa.bindparam(f"new_{name}") for name in fields})
        )
        done = (
            sa.update(SERVED_TABLE)
            .where(SERVED_TABLE.c.post_id == sa.bindparam("key"))
            .values(measured=sa.true())
        )
        values = [{"key": r["id"], **{f"new_{name}": r[name] for name in fields}} for r in rows]
        async with self._engine.begin() as tx:
            await tx.execute(fill, values)
            await tx.execute(done, [{"key": r["id"]} for r in rows])

    async def texts(self, subject: str) -> dict[str, list[tuple[str, str]]]:
        """Hook and body of what each arm of an experiment or rollout served."""
        query = (
            sa.select(SERVED_TABLE.c.arm, POSTS_TABLE.c.hook, POSTS_TABLE.c.body)
            .join(POSTS_TABLE, POSTS_TABLE.c.id == SERVED_TABLE.c.post_id)
            .where(SERVED_TABLE.c.subject == subject)
        )
        found: dict[str, list[tuple[str, str]]] = {}
        async with self._reader.connect() as tx:
            for arm, hook, body in await tx.execute(query):
                found.setdefault(arm, []).append((hook, body))
        return found

    async def count(self) -> int:
        """How many posts there are."""
        async with self._reader.connect() as tx:
            found = await tx.execute(sa.select(sa.func.count()).select_from(POSTS_TABLE))
            return int(found.scalar_one())


_SERVED_FIELDS = tuple(column.name for column in SERVED_TABLE.columns)


def _only(row: Any) -> dict[str, Any]:
    return {name: row._mapping[name] for name in _SERVED_FIELDS}


def slot_of(at: datetime) -> int:
    """The whole hours since 1970: the number of the hour that `at` lies in."""
    return int((at - _EPOCH) // HOUR)


def slot_start(slot: int) -> datetime:
    """When the hour with this number begins."""
    return _EPOCH + slot * HOUR


def post_id(slot: int, index: int) -> str:
    """The name of the `index`-th post of an hour; sorts by time."""
    return f"post-{slot_start(slot):%Y%m%dT%H}-{index:03d}"


def times(seed: int, slot: int, per_hour: float) -> list[datetime]:
    """When the posts of one hour go out, in order; their number is Poisson around `per_hour`."""
    random = draws(seed, "hour", slot)
    count = poisson(random, per_hour)
    start = slot_start(slot)
    offsets = sorted(random.randrange(3_600_000) for _ in range(count))
    return [start + timedelta(milliseconds=offset) for offset in offsets]


def seeded_posts(
    audience: Audience,
    *,
    until: datetime,
    days: float = 28.0,
    per_hour: float = POSTS_PER_HOUR,
) -> Iterator[dict[str, Any]]:
    """The posts of the `days` before `until`, written by people and long since measured."""
    first, end = slot_of(until - timedelta(days=days)), slot_of(until)
    for slot in range(first, end):
        for index, at in enumerate(times(audience.seed, slot, per_hour)):
            yield _seeded(audience, post_id(slot, index), at)


def _seeded(audience: Audience, key: str, at: datetime) -> dict[str, Any]:
    random = draws(audience.seed, "person", key)
    draft = write(random)
    reaction = audience.react(key, draft.hook, draft.body)
    return {
        "id": key,
        "persona_id": random.choice(PERSONAS),
        "original_input": draft.original_input,
        "hook": draft.hook,
        "body": draft.body,
        "engagement_rate": reaction.rate,
        "ts": at,
        "tokens_used": (len(draft.hook) + len(draft.body)) // 4,
        "impressions": reaction.impressions,
        "clicks": reaction.clicks,
        "version": None,
    }


async def seed_posts(
    engine: AsyncEngine,
    audience: Audience,
    *,
    until: datetime,
    days: float = 28.0,
    per_hour: float = POSTS_PER_HOUR,
) -> int:
    """Create the tables and fill them with the weeks before `until`; repeating changes nothing.

    Returns how many posts there are.
    """
    table = PostsTable(engine)
    await table.create()
    for chunk in _chunks(seeded_posts(audience, until=until, days=days, per_hour=per_hour)):
        await table.add(chunk)
    return await table.count()


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
