"""Ends are final: looks and people at one instant, in two connections, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy.exc import DBAPIError
from tests.conftest import HandClock
from tests.integration.store.records import T0

from tuneproof.errors import ConflictError, StateError
from tuneproof.experiments import ABTest, ExperimentStatus, Look, ModelEvaluator, Variant, Verdict
from tuneproof.rollout import Deployment, DeploymentManager, DeploymentState
from tuneproof.settings import PipelineConfig
from tuneproof.store import Store, open_store
from tuneproof.testing import MemoryProvider

CONFIG = PipelineConfig(tasks=("hook",), a_b_test_duration_hours=24, maturation_hours=0)
LAST = T0 + timedelta(hours=24)
"""A look at this instant ends a test without traffic: it is over without an answer."""
BY_HAND = "Ended by cli: offensive texts"


@pytest.fixture
async def other(store: Store, database_url: str, clock: HandClock) -> AsyncIterator[Store]:
    """The same database, as another process sees it."""
    opened = await open_store(database_url, clock=clock)
    yield opened
    await opened.close()


def evaluator(store: Store) -> ModelEvaluator:
    return ModelEvaluator(store=store, clock=store.clock, config=CONFIG)


async def declared(store: Store, *candidates: str) -> tuple[ABTest, ...]:
    return await evaluator(store).declare("base", candidates, 0.2, at=T0)


async def end(store: Store, *tests: ABTest) -> None:
    """What a person does."""
    await store.withdrawal.withdraw([test.id for test in tests], LAST, BY_HAND)


def names(looks: Sequence[Look]) -> list[tuple[str, int, datetime, str]]:
    """Which looks these are, read back or just taken."""
    return [(x.experiment_id, x.number, x.at, x.reason) for x in looks]


# --- tests --------------------------------------------------------------------------------------


async def test_look_that_comes_after_the_end_changes_nothing(store: Store) -> None:
    [test] = await declared(store, "one")
    await end(store, test)
    assert await evaluator(store).look(test.family, at=LAST) == ()
    found = await store.experiments.get(test.id)
    assert (found.status, found.verdict) == (ExperimentStatus.ABORTED, Verdict.REJECT)
    assert found.reason == BY_HAND
    assert await store.experiments.looks(test.id) == []
    with pytest.raises(StateError, match="offensive texts"):
        await evaluator(store).evaluate_performance(test.id)


async def test_end_that_comes_after_the_verdict_changes_nothing(store: Store) -> None:
    [test] = await declared(store, "one")
    [look] = await evaluator(store).look(test.family, at=LAST)
    await end(store, test)
    found = await store.experiments.get(test.id)
    assert (found.status, found.reason) == (ExperimentStatus.COMPLETED, look.reason)
    late = await evaluator(store).look(test.family, at=LAST + timedelta(hours=1))
    assert names(late) == names([look])


@pytest.mark.parametrize("candidates", [("one",), ("one", "two", "three")])
async def test_end_and_look_at_once_leave_one_end(
    store: Store, other: Store, candidates: tuple[str, ...]
) -> None:
    tests = await declared(store, *candidates)
    await asyncio.gather(
        end(other, *tests), evaluator(store).look(tests[0].family, at=LAST), end(store, tests[0])
    )
    for test in tests:
        found = await store.experiments.get(test.id)
        looks = await store.experiments.looks(test.id)
        if found.status is ExperimentStatus.ABORTED:
            assert found.reason == BY_HAND
            assert [x for x in looks if x.verdict is not Verdict.CONTINUE] == []
        else:
            assert (found.status, found.reason) == (ExperimentStatus.COMPLETED, looks[-1].reason)


@pytest.mark.parametrize("candidates", [("one",), ("one", "two")])
async def test_two_looks_at_one_instant_are_one(
    store: Store, other: Store, candidates: tuple[str, ...]
) -> None:
    tests = await declared(store, *candidates)
    at = T0 + timedelta(hours=2)
    found = await asyncio.gather(
        *(evaluator(s).look(tests[0].family, at=at) for s in (store, other, store, other))
    )
    assert all(names(looks) == names(found[0]) for looks in found)
    for test in tests:
        assert [x.number for x in await store.experiments.looks(test.id)] == [1]


async def test_looks_at_two_instants_are_numbered_one_after_the_other(
    store: Store, other: Store
) -> None:
    [test] = await declared(store, "one")
    hours = [timedelta(hours=h) for h in (1, 2, 3)]
    await asyncio.gather(
        *(
            evaluator(s).look(test.family, at=T0 + hour)
            for hour, s in zip(hours, (store, other, store), strict=True)
        )
    )
    looks = await store.experiments.looks(test.id)
    assert [x.number for x in looks] == list(range(1, len(looks) + 1))
    assert looks[-1].at == T0 + hours[-1]


async def test_look_with_an_old_snapshot_is_begun_again_not_numbered_twice(
    store: Store, other: Store
) -> None:
    """A run's transaction sees the database as it began, and is tried again where it clashes."""
    [test] = await declared(store, "one")
    if store.database.dialect == "sqlite":
        pytest.skip("SQLite lets one writer in at a time, before it reads.")
    async with store.database.engine.connect() as tx:
        await tx.execution_options(isolation_level="REPEATABLE READ")
        assert await store.experiments.looks(test.id, tx=tx) == []
        [look] = await evaluator(other).look(test.family, at=T0 + timedelta(hours=1))
        with pytest.raises(DBAPIError) as refused:
            await evaluator(store).look(test.family, at=T0 + timedelta(hours=2), tx=tx)
        assert getattr(refused.value.orig, "sqlstate", None) == "40001"
    assert names(await store.experiments.looks(test.id)) == names([look])


async def test_look_row_is_refused_once_the_test_has_ended(store: Store) -> None:
    [test] = await declared(store, "one")
    await evaluator(store).look(test.family, at=T0 + timedelta(hours=1))
    [look] = await store.experiments.looks(test.id)
    await store.experiments.add_look(look)  # the same one again changes nothing
    await end(store, test)
    with pytest.raises(ConflictError, match="it has ended"):
        await store.experiments.add_look(replace(look, number=2))


# --- rollouts -----------------------------------------------------------------------------------

OVERDUE = T0 + timedelta(days=30)
"""A look at this instant moves a rollout without traffic: it waited too long, and pauses."""


def manager(store: Store) -> DeploymentManager:
    return DeploymentManager(
        store=store, provider=MemoryProvider(), clock=store.clock, config=CONFIG
    )


async def rolling(store: Store) -> Deployment:
    made = await manager(store).declare(Variant(model_id="new"), Variant(model_id="base"), at=T0)
    return await manager(store).begin(made.id, at=T0)


async def roll_back(store: Store, deployment: Deployment) -> Deployment:
    """What a person does."""
    return await manager(store).act(
        deployment.id, "rollback", actor="cli", reason="offensive texts", at=OVERDUE
    )


async def test_look_at_a_rollout_that_was_taken_back_changes_nothing(store: Store) -> None:
    deployment = await rolling(store)
    ended = await roll_back(store, deployment)
    found, seen = await manager(store).look(deployment.id, at=OVERDUE)
    assert found == ended
    assert seen.reason == "It is over."
    assert [e.kind for e in await store.deployments.history(deployment.id)] == [
        "begin",
        "rollback",
    ]


async def test_rollback_and_looks_at_once_end_rolled_back(store: Store, other: Store) -> None:
    deployment = await rolling(store)
    await asyncio.gather(
        manager(store).look(deployment.id, at=OVERDUE),
        roll_back(other, deployment),
        manager(other).look(deployment.id, at=OVERDUE),
    )
    found = await store.deployments.get(deployment.id)
    assert (found.state, found.cause) == (DeploymentState.ROLLED_BACK, "offensive texts")
    kinds = [e.kind for e in await store.deployments.history(deployment.id)]
    assert kinds in (["begin", "rollback"], ["begin", "pause", "rollback"])
    routing = await store.routing.get("hook")
    assert routing is not None
    assert (routing.baseline.model_id, routing.subjects) == ("base", ())


async def test_two_rollbacks_at_once_are_one(store: Store, other: Store) -> None:
    deployment = await rolling(store)
    first, second = await asyncio.gather(roll_back(store, deployment), roll_back(other, deployment))
    assert first == second
    kinds = [e.kind for e in await store.deployments.history(deployment.id)]
    assert kinds == ["begin", "rollback"]


async def test_rollout_is_moved_only_from_the_version_that_was_read(store: Store) -> None:
    deployment = await rolling(store)
    await store.deployments.update(deployment.id, cause="moved meanwhile")
    with pytest.raises(ConflictError, match="at version"):
        await store.deployments.update(
            deployment.id, expected_version=deployment.version, cause="stale"
        )
