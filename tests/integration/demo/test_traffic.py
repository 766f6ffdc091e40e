"""The simulated application: same seed, same events; asked twice, told once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tuneproof import assignment
from tuneproof.demo import (
    POSTS_TABLE,
    Audience,
    DemoTraffic,
    PostsTable,
    broken_from_half,
    seed_posts,
    seeded_posts,
    write,
)
from tuneproof.demo.draws import draws
from tuneproof.experiments import Arm, Exposure, Ingested, Outcome, Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.store import make_engine
from tuneproof.testing import MemoryProvider

START = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
TUNED = "tuned"


class World:
    """A database, an application and what it told."""

    def __init__(self, engine: AsyncEngine, *, seed: int = 7, **options: Any) -> None:
        self.posts = PostsTable(engine)
        self.audience = Audience(seed)
        self.provider = MemoryProvider(base_models=("base", TUNED), answer=_answer)
        self.routing: dict[str, Routing] = {}
        self.exposures: list[Exposure] = []
        self.outcomes: list[Outcome] = []
        self.fail = False
        self.traffic = DemoTraffic(
            seed=seed,
            audience=self.audience,
            provider=self.provider,
            posts=self.posts,
            routings=self._routings,
            sink=self._sink,
            base_model="base",
            **options,
        )

    async def _routings(self) -> Mapping[str, Routing]:
        return self.routing

    async def _sink(self, exposures: Sequence[Exposure], outcomes: Sequence[Outcome]) -> Ingested:
        if self.fail:
            raise ConnectionError("killed")
        self.exposures += exposures
        self.outcomes += outcomes
        return Ingested(accepted=len(exposures) + len(outcomes), duplicates=0)

    def route(self, share: float, *, subject: str = "ab-test-1", phase: int = 1) -> None:
        for task in ("hook", "body"):
            self.routing[task] = Routing(
                task=task,
                baseline=Variant(model_id="base"),
                lanes=(
                    Lane(
                        subject=subject,
                        candidate=Variant(model_id=TUNED, version="ver-1"),
                        share=share,
                    ),
                ),
                salt="salt",
                phase=phase,
            )


def _answer(model: str, messages: Sequence[Mapping[str, str]], index: int) -> str:
    random = draws("answer", model, messages[-1]["content"], index)
    draft = write(random, style="numbered list" if model == TUNED else None)
    return draft.body if messages[-1]["content"].endswith("post:") else draft.hook


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/posts.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    made = make_engine(url)
    await PostsTable(made).create()
    yield made
    await made.dispose()


async def _run(world: World, hours: int, start: datetime = START) -> None:
    for hour in range(hours):
        await world.traffic.advance(start + hour * HOUR, start + (hour + 1) * HOUR)


async def _rows(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as tx:
        return list(await tx.execute(sa.select(POSTS_TABLE).order_by(POSTS_TABLE.c.id)))


async def test_seeded_posts_are_the_same_for_the_same_seed_and_reseeding_adds_none(
    engine: AsyncEngine,
) -> None:
    count = await seed_posts(engine, Audience(7), until=START, days=2)
    assert count == await seed_posts(engine, Audience(7), until=START, days=2)
    assert 2 * 24 * 16 < count < 2 * 24 * 24
    rows = [row._asdict() for row in await _rows(engine)]
    assert rows == list(seeded_posts(Audience(7), until=START, days=2))
    assert rows != list(seeded_posts(Audience(8), until=START, days=2))
    assert max(row["ts"] for row in rows) < START


async def test_posts_without_an_experiment_tell_nothing(engine: AsyncEngine) -> None:
    world = World(engine)
    await _run(world, 30)
    rows = await _rows(engine)
    assert 480 < len(rows) < 720
    assert world.exposures == world.outcomes == []
    assert {row.version for row in rows} == {None}
    measured = [row for row in rows if row.engagement_rate is not None]
    assert len(measured) > 100
    assert all(row.ts < START + 24 * HOUR for row in measured)
    assert all(row.clicks / row.impressions == row.engagement_rate for row in measured)


async def test_arms_follow_the_assignment_and_hook_and_body_agree(engine: AsyncEngine) -> None:
    world = World(engine)
    world.route(0.3)
    await _run(world, 10)
    arms: dict[str, set[Arm]] = {}
    for event in world.exposures:
        arms.setdefault(event.unit, set()).add(event.arm)
        expected = assignment.arm(assignment.bucket("salt", event.unit), 0.3)
        assert event.arm == expected
    assert all(len(seen) == 1 for seen in arms.values())
    share = sum(seen == {Arm.CANDIDATE} for seen in arms.values()) / len(arms)
    assert 0.2 < share < 0.4
    assert {e.task for e in world.exposures} == {"hook", "body"}
    assert all(e.tokens > 0 and e.cost_usd > 0 for e in world.exposures if not e.error)
    versions = {row.id: row.version for row in await _rows(engine)}
    assert all(
        (versions[unit] == "ver-1") == (seen == {Arm.CANDIDATE}) for unit, seen in arms.items()
    )


async def test_outcomes_come_6_to_24_hours_later_once_each(engine: AsyncEngine) -> None:
    world = World(engine)
    world.route(0.5)
    await _run(world, 40)
    served = {event.unit: event.at for event in world.exposures}
    assert len(world.outcomes) == len({outcome.id for outcome in world.outcomes})
    delays = [(outcome.at - served[outcome.unit]) / HOUR for outcome in world.outcomes]
    assert min(delays) >= 6
    assert max(delays) <= 24
    settled = {unit for unit, at in served.items() if at < START + 16 * HOUR}
    assert settled <= {outcome.unit for outcome in world.outcomes}
    posts = {row.id: row.engagement_rate for row in await _rows(engine)}
    assert all(posts[outcome.unit] == outcome.value for outcome in world.outcomes)


async def test_same_seed_gives_the_same_events_whatever_the_strides(tmp_path: Path) -> None:
    told = []
    for name, stride in (("a", HOUR), ("b", 7 * HOUR), ("c", timedelta(minutes=17))):
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/{name}.db")
        await PostsTable(engine).create()
        world, at = World(engine), START
        world.route(0.4)
        while at < START + 14 * HOUR:
            until = min(at + stride, START + 14 * HOUR)
            await world.traffic.advance(at, until)
            at = until
        told.append(
            (
                sorted(world.exposures, key=lambda e: e.id),
                sorted(world.outcomes, key=lambda o: o.id),
                [row._asdict() for row in await _rows(engine)],
            )
        )
        await engine.dispose()
    assert told[0] == told[1] == told[2]


async def test_stretch_that_was_cut_off_is_told_again_under_the_same_ids(
    engine: AsyncEngine,
) -> None:
    world = World(engine)
    world.route(0.4)
    await _run(world, 8)
    told, kept = list(world.exposures), await _rows(engine)
    world.fail = True
    with pytest.raises(ConnectionError):
        await world.traffic.advance(START + 8 * HOUR, START + 9 * HOUR)
    cut = await _rows(engine)
    assert len(cut) > len(kept)
    # The process is killed here; the next one finds another routing, and the posts as they were.
    again = World(engine)
    again.route(1.0, subject="deploy-1", phase=2)
    await again.traffic.advance(START + 8 * HOUR, START + 9 * HOUR)
    assert {e.subject for e in again.exposures} == {"ab-test-1"}
    assert {e.unit for e in again.exposures} == {r.id for r in cut} - {r.id for r in kept}
    assert not {e.id for e in again.exposures} & {e.id for e in told}
    first = list(again.exposures)
    await again.traffic.advance(START + 8 * HOUR, START + 9 * HOUR)
    assert again.exposures == first + first
    assert len(await _rows(engine)) == len(cut)


async def test_loved_candidate_shows_its_true_effect_and_breaks_from_half(
    engine: AsyncEngine,
) -> None:
    world = World(engine, broken_from=broken_from_half)
    world.route(0.4, subject="deploy-1")
    await _run(world, 60)
    await _run(world, 30, START + 60 * HOUR)
    assert _lift(world) > 0.2
    world.outcomes.clear()
    world.route(0.5, subject="deploy-1", phase=2)
    await _run(world, 60, START + 90 * HOUR)
    late = [o for o in world.outcomes if o.at > START + 114 * HOUR]
    world.outcomes[:] = late
    assert _lift(world) < -0.2


def _lift(world: World) -> float:
    arms = {event.unit: event.arm for event in world.exposures}
    values: dict[Arm, list[float]] = {Arm.BASELINE: [], Arm.CANDIDATE: []}
    for outcome in world.outcomes:
        values[arms[outcome.unit]].append(outcome.value)
    means = {arm: sum(found) / len(found) for arm, found in values.items()}
    return means[Arm.CANDIDATE] / means[Arm.BASELINE] - 1


async def test_few_requests_serve_many_posts(engine: AsyncEngine) -> None:
    world = World(engine)
    world.route(0.5)
    await _run(world, 48)
    assert world.traffic.made > 800
    assert world.provider.calls["complete"] < 1.2 * world.traffic.made


async def test_routing_without_a_candidate_serves_the_baseline(engine: AsyncEngine) -> None:
    world = World(engine)
    world.route(0.0)
    tuned = Variant(model_id=TUNED, version="ver-1")
    world.routing = {
        task: replace(
            routing, baseline=tuned, lanes=tuple(Lane(subject=s) for s in routing.subjects)
        )
        for task, routing in world.routing.items()
    }
    await _run(world, 3)
    assert {row.version for row in await _rows(engine)} == {"ver-1"}
    assert {event.arm for event in world.exposures} == {Arm.BASELINE}
