"""The demo's world beside the real parts: its posts as a source, its events in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from tests.conftest import HandClock

from tuneproof.collection import PostQuery, Window
from tuneproof.demo import Audience, DemoTraffic, PostsTable, seed_posts, seeded_posts
from tuneproof.experiments import (
    ABTest,
    Arm,
    ExperimentStatus,
    Exposure,
    Ingested,
    Outcome,
    Variant,
)
from tuneproof.rollout import Lane, Routing
from tuneproof.settings import Declaration, SourceConfig
from tuneproof.sources import open_source
from tuneproof.store import Store
from tuneproof.testing import MemoryProvider

HOUR = timedelta(hours=1)


async def test_seeded_posts_are_collected_by_the_real_source(
    store: Store, clock: HandClock
) -> None:
    now = clock.now()
    await seed_posts(store.database.engine, Audience(7), until=now, days=3)
    url = store.database.url.render_as_string(hide_password=False)
    source = open_source(SourceConfig(url=url.replace("+aiosqlite", "")))
    window = Window(since=now - timedelta(days=2), until=now)
    query = PostQuery(window=window, threshold=0.06, max_records=None)
    check = await source.check(query)
    found = [post async for chunk in source.posts(query) for post in chunk]
    await source.close()
    wanted = {
        post["id"]: post
        for post in seeded_posts(Audience(7), until=now, days=3)
        if window.since <= post["ts"] < now and post["engagement_rate"] >= 0.06
    }
    assert check.missing == ()
    assert {post.id for post in found} == set(wanted)
    rates = [post.engagement_rate or 0.0 for post in found]
    assert rates == sorted(rates, reverse=True)
    assert all(post.ts == wanted[post.id]["ts"] for post in found)
    assert all(post.impressions and post.impressions >= 100 for post in found)


async def test_events_of_the_application_are_taken_by_the_real_store(
    store: Store, clock: HandClock
) -> None:
    test = _test(clock)
    await store.experiments.add(test)
    await store.experiments.open_phase(test.id, number=1, share=0.3, at=clock.now())
    answers: list[Ingested] = []

    async def routings() -> Mapping[str, Routing]:
        lane = Lane(subject=test.id, candidate=test.candidate, share=0.3)
        return {
            task: Routing(task=task, baseline=test.baseline, lanes=(lane,), salt=test.salt, phase=1)
            for task in ("hook", "body")
        }

    async def sink(exposures: Sequence[Exposure], outcomes: Sequence[Outcome]) -> Ingested:
        answers.append(await store.events.ingest(exposures, outcomes, now=clock.now()))
        return answers[-1]

    posts = PostsTable(store.database.engine)
    await posts.create()
    traffic = DemoTraffic(
        seed=7,
        audience=Audience(7),
        provider=MemoryProvider(base_models=("base", "tuned")),
        posts=posts,
        routings=routings,
        sink=sink,
        base_model="base",
    )
    for _ in range(30):
        await traffic.advance(clock.now(), clock.now() + HOUR)
        clock.move(hours=1)
    again = clock.now() - HOUR
    await traffic.advance(again, clock.now())
    assert not any(answer.unknown for answer in answers)
    assert not any(answer.duplicates for answer in answers[:-1])
    assert answers[-1].accepted == 0
    assert answers[-1].duplicates > 0
    exposed = await store.events.exposed(test.id, clock.now())
    assert sum(exposed.values()) == traffic.made == await posts.count()
    assert {Arm(arm) for _, arm in exposed} == {Arm.BASELINE, Arm.CANDIDATE}


def _test(clock: HandClock) -> ABTest:
    return ABTest(
        id="ab-test-20250120-001",
        run_id=None,
        pipeline="default",
        tasks=("hook", "body"),
        baseline=Variant(model_id="base"),
        candidate=Variant(model_id="tuned", version="ver-1"),
        declaration=Declaration(traffic_split=0.3),
        family="salt",
        status=ExperimentStatus.RUNNING,
        start_at=clock.now(),
        end_at=clock.now() + timedelta(hours=168),
    )
