"""Runs, versions, experiments, rollouts and the rest come back as they were kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.conftest import HandClock
from tests.integration.store.records import T0, deployment, experiment, look, version

from tuneproof.errors import ConflictError, DataError, InputError, NotFoundError
from tuneproof.experiments import ExperimentStatus, Variant, Verdict
from tuneproof.rollout import DeploymentState, Lane, Routing
from tuneproof.store import Claim, Run, RunStatus, Store, SubjectKind, open_store, uuid7
from tuneproof.training import VersionStatus


def run(id: str = "ft-pipeline-20250120-001", **changes: object) -> Run:
    return Run(**{"id": id, "pipeline": "default", "created_at": T0, **changes})  # type: ignore[arg-type]


# --- ids --------------------------------------------------------------------------------


async def test_ids_count_by_kind_and_day(store: Store) -> None:
    day = datetime(2025, 1, 20, 23, 59, tzinfo=UTC)
    assert await store.ids.next("ft-pipeline", day) == "ft-pipeline-20250120-001"
    assert await store.ids.next("ft-pipeline", day) == "ft-pipeline-20250120-002"
    assert await store.ids.next("deploy", day) == "deploy-20250120-001"
    assert await store.ids.next("deploy", day + timedelta(days=1)) == "deploy-20250121-001"
    with pytest.raises(DataError, match="no ids of kind 'job'"):
        await store.ids.next("job", day)


async def test_ids_grow_past_999(store: Store) -> None:
    async with store.database.begin() as tx:
        for _ in range(999):
            await store.ids.next("ab-test", T0, tx=tx)
        assert await store.ids.next("ab-test", T0, tx=tx) == "ab-test-20250120-1000"


async def test_workers_never_get_the_same_id(store: Store, database_url: str) -> None:
    other = await open_store(database_url, clock=store.clock)
    takers = [s.ids.next("deploy", T0) for s in (store, other) for _ in range(20)]
    taken = await asyncio.gather(*takers)
    await other.close()
    assert len(set(taken)) == 40


def test_version_ids_sort_by_time() -> None:
    ids = [str(uuid7(T0 + timedelta(milliseconds=i))) for i in range(5)]
    assert ids == sorted(ids)
    assert uuid7(T0).version == 7
    assert uuid7(T0).variant == "specified in RFC 4122"


# --- transactions -----------------------------------------------------------------------


async def test_failed_transaction_leaves_nothing(store: Store) -> None:
    async def fail() -> None:
        async with store.database.begin() as tx:
            await store.runs.create(run(), tx=tx)
            await store.meta.set("key", 1, tx=tx)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await store.runs.find("ft-pipeline-20250120-001") is None
    assert await store.meta.get("key") is None


async def test_reader_does_not_wait_for_a_writer(store: Store) -> None:
    async with store.database.begin() as tx:
        await store.meta.set("key", 1, tx=tx)
        async with asyncio.timeout(5):
            assert await store.meta.get("key") is None


async def test_ping_answers_as_long_as_the_store_is_open(store: Store) -> None:
    assert await store.database.ping() is None


# --- runs -------------------------------------------------------------------------------


async def test_run_comes_back_as_it_was_kept(store: Store) -> None:
    created = await store.runs.create(
        run(config={"steps": [0.1, None]}, arguments={"as_of": "2014-12-01"})
    )
    assert await store.runs.get(created.id) == created
    assert created.status is RunStatus.PENDING
    with pytest.raises(ConflictError):
        await store.runs.create(run())
    with pytest.raises(NotFoundError, match="no run x"):
        await store.runs.get("x")


async def test_run_stages_keep_their_times_and_details(store: Store, clock: HandClock) -> None:
    await store.runs.create(run())
    await store.runs.stage("ft-pipeline-20250120-001", "collect", "in_progress", {"a": 1}, T0)
    later = T0 + timedelta(hours=1)
    got = await store.runs.stage(
        "ft-pipeline-20250120-001", "collect", "completed", {"b": 2}, later
    )
    assert got.current_stage == "collect"
    assert got.version == 2
    assert got.stages["collect"] == {
        "status": "completed",
        "detail": {"a": 1, "b": 2},
        "started_at": T0.isoformat(),
        "ended_at": later.isoformat(),
    }
    assert await store.runs.get(got.id) == got


async def test_run_at_another_version_is_not_changed(store: Store) -> None:
    await store.runs.create(run())
    await store.runs.update("ft-pipeline-20250120-001", status=RunStatus.RUNNING)
    with pytest.raises(ConflictError, match="version 1, not 0"):
        await store.runs.update("ft-pipeline-20250120-001", expected_version=0, reason="x")
    with pytest.raises(DataError, match="pipeline"):
        await store.runs.update("ft-pipeline-20250120-001", pipeline="other")


async def test_concurrent_stage_writes_lose_nothing(store: Store) -> None:
    await store.runs.create(run())
    id = "ft-pipeline-20250120-001"
    await asyncio.gather(
        *(store.runs.stage(id, f"stage{i}", "completed", {"i": i}, T0) for i in range(8))
    )
    got = await store.runs.get(id)
    assert len(got.stages) == 8
    assert got.version == 8


async def test_runs_page_newest_first_without_gaps(store: Store) -> None:
    for i in range(7):
        at = T0 + timedelta(minutes=i // 2)  # ties
        await store.runs.create(run(f"ft-pipeline-20250120-{i:03d}", created_at=at))
    await store.runs.create(run("other", pipeline="weekly"))
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        page = await store.runs.page("default", cursor, limit=3)
        seen += [r.id for r in page.items]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == [f"ft-pipeline-20250120-{i:03d}" for i in reversed(range(7))]
    for bad in ("zzz", "", "AAAA"):
        with pytest.raises(InputError, match="did not come from a page"):
            await store.runs.page(None, bad)
    with pytest.raises(InputError, match="limit"):
        await store.runs.page(limit=0)


async def test_active_runs_are_those_that_have_not_ended(store: Store) -> None:
    for i, status in enumerate(RunStatus):
        await store.runs.create(run(f"r{i}", status=status, created_at=T0 + timedelta(hours=i)))
    statuses = [r.status for r in await store.runs.active("default")]
    assert statuses == [RunStatus.PENDING, RunStatus.RUNNING, RunStatus.HOLDING]


# --- versions ---------------------------------------------------------------------------


async def test_versions_come_back_and_are_found(store: Store) -> None:
    await store.versions.add(version())
    changed = await store.versions.update(
        "ver-1", status=VersionStatus.LIVE, model_id="ft:base:1", heldout_loss=0.1 + 0.2
    )
    assert await store.versions.get("ver-1") == changed
    assert await store.versions.live("default") == changed
    assert await store.versions.live("weekly") is None
    assert await store.versions.list(model_id="ft:base:1") == [changed]
    with pytest.raises(ConflictError):
        await store.versions.add(version("ver-2"))


async def test_version_numbers_go_up_with_runs_and_base_models(store: Store) -> None:
    assert await store.versions.next_number("default", "base") == "1.0.0"
    at = iter(range(20))
    for base, number in [("base", "1.0.0"), *(("base", f"1.{i}.0") for i in range(1, 11))]:
        created = T0 + timedelta(days=next(at))
        await store.versions.add(
            version(f"ver-{number}", version=number, base_model=base, created_at=created)
        )
    assert await store.versions.next_number("default", "base") == "1.11.0"
    assert await store.versions.next_number("default", "other") == "2.0.0"


# --- experiments ------------------------------------------------------------------------


async def test_experiment_and_its_looks_come_back(store: Store) -> None:
    test = experiment()
    await store.experiments.add(test)
    assert await store.experiments.get(test.id) == test
    looks = [look(test.id, i) for i in (1, 2, 3)]
    for one in (*looks, looks[0]):
        await store.experiments.add_look(one)
    assert await store.experiments.looks(test.id) == looks
    assert await store.experiments.looks(test.id, after=2) == looks[2:]
    assert await store.experiments.last_look(test.id) == looks[2]
    assert (await store.experiments.numbers_of_looks([test.id]))[test.id] == 3
    with pytest.raises(ConflictError, match="takes no look 1"):
        await store.experiments.add_look(look(test.id, 1, reason="changed"))
    with pytest.raises(DataError, match="lift of a look is NaN"):
        await store.experiments.add_look(look(test.id, 4, lift=float("nan")))


async def test_experiment_verdict_is_set(store: Store) -> None:
    await store.experiments.add(experiment())
    id, completed = "ab-test-20250120-001", ExperimentStatus.COMPLETED
    assert await store.experiments.end(
        id, status=completed, verdict=Verdict.PROMOTE, reason="it won"
    )
    assert not await store.experiments.end(
        id, status=ExperimentStatus.ABORTED, verdict=Verdict.REJECT, reason="too late"
    )
    done = await store.experiments.get(id)
    assert (done.status, done.verdict, done.reason) == (completed, Verdict.PROMOTE, "it won")
    with pytest.raises(ConflictError, match="it has ended"):
        await store.experiments.add_look(look(id, 1))
    page = await store.experiments.page("default")
    assert page.items == (done,)


async def test_phase_keeps_its_share(store: Store) -> None:
    first = await store.experiments.open_phase("s", 1, 0.1, T0)
    assert await store.experiments.open_phase("s", 1, 0.1, T0 + timedelta(hours=1)) == first
    with pytest.raises(ConflictError, match=r"share 0\.1, not 0\.2"):
        await store.experiments.open_phase("s", 1, 0.2, T0)
    second = await store.experiments.open_phase("s", 2, 0.2, T0 + timedelta(days=1))
    assert await store.experiments.phases("s") == [first, second]


# --- rollouts and routing ---------------------------------------------------------------


async def test_rollout_comes_back_and_changes_by_version(store: Store) -> None:
    await store.deployments.add(deployment())
    id = deployment().id
    assert await store.deployments.get(id) == deployment()
    stepped = await store.deployments.update(
        id, expected_version=0, state=DeploymentState.STEPPING, share=0.1, step_started_at=T0
    )
    assert (stepped.version, stepped.state) == (1, DeploymentState.STEPPING)
    assert await store.deployments.active() == [stepped]
    with pytest.raises(ConflictError, match=r"stepping at share 0\.1") as caught:
        await store.deployments.update(id, expected_version=0, share=0.2)
    assert caught.value.details["version"] == 1
    await store.deployments.update(id, state=DeploymentState.COMPLETE)
    assert await store.deployments.active() == []


async def test_subject_says_what_it_is(store: Store) -> None:
    await store.experiments.add(experiment("one"))
    await store.deployments.add(deployment("two"))
    kinds = [await store.subjects.kind(id) for id in ("one", "two", "three")]
    assert kinds == [SubjectKind.TEST, SubjectKind.ROLLOUT, None]


async def test_rollout_history_is_in_order(store: Store) -> None:
    await store.deployments.add(deployment())
    for kind in ("step", "pause", "rollback"):
        await store.deployments.add_history(deployment().id, T0, kind, "loop", "why", {"x": 1})
    history = await store.deployments.history(deployment().id)
    assert [(h.kind, h.who, h.detail) for h in history] == [
        (kind, "loop", {"x": 1}) for kind in ("step", "pause", "rollback")
    ]


async def test_routing_is_written_at_the_next_version(store: Store) -> None:
    assert await store.routing.get("hook") is None
    assert await store.routing.version() == 0
    base = Routing(task="hook", baseline=Variant(model_id="base"))
    first = await store.routing.set(base, expected_version=0)
    assert (first.version, first.updated_at) == (1, store.clock.now())
    second = await store.routing.set(
        replace(base, lanes=(Lane(subject="s", candidate=Variant(model_id="ft"), share=0.1),))
    )
    assert await store.routing.get("hook") == second
    with pytest.raises(ConflictError, match="version 2, not 1"):
        await store.routing.set(base, expected_version=1)
    await store.routing.set(Routing(task="body", baseline=base.baseline))
    assert await store.routing.version() == 3
    assert [r.task for r in await store.routing.all()] == ["body", "hook"]


async def test_each_write_of_any_task_moves_the_polled_version(store: Store) -> None:
    seen = []
    for task in ("hook", "hook", "body", "hook", "body"):
        await store.routing.set(Routing(task=task, baseline=Variant(model_id="m")))
        seen.append(await store.routing.version())
    assert seen == [1, 2, 3, 4, 5]


# --- outbox -----------------------------------------------------------------------------


async def test_outbox_takes_a_key_once_and_keeps_order(store: Store, clock: HandClock) -> None:
    add = store.outbox.add
    assert await add("r1/params", "params", {"run_id": "r1", "n": 1})
    assert not await add("r1/params", "params", {"run_id": "r1", "n": 2})
    await add("r2/params", "params", {"run_id": "r2"})
    await add("r1/metrics", "metrics", {"run_id": "r1"})
    due = await store.outbox.due(clock.now())
    assert [item.key for item in due] == ["r1/params", "r2/params", "r1/metrics"]
    assert due[0].payload == {"run_id": "r1", "n": 1}
    assert await store.outbox.pending() == 3


async def test_item_that_waits_holds_back_only_its_run(store: Store, clock: HandClock) -> None:
    for key in ("r1/a", "r1/b", "r2/a"):
        await store.outbox.add(key, "x", {"run_id": key[:2]})
    first = (await store.outbox.due(clock.now()))[0]
    await store.outbox.failed(first.id, "no answer", clock.now() + timedelta(minutes=1))
    assert [i.key for i in await store.outbox.due(clock.now())] == ["r2/a"]
    clock.move(minutes=1)
    again = await store.outbox.due(clock.now())
    assert [(i.key, i.attempts) for i in again] == [("r1/a", 1), ("r1/b", 0), ("r2/a", 0)]
    await store.outbox.delivered(first.id)
    assert [i.key for i in await store.outbox.due(clock.now())] == ["r1/b", "r2/a"]


# --- the small ones ---------------------------------------------------------------------


async def test_activity_pages_newest_first(store: Store) -> None:
    for i in range(5):
        await store.activity.add(T0, "cli", f"deed{i}", "run-1", "why", {"i": i})
    await store.activity.add(T0, "loop", "other", "run-2")
    page = await store.activity.page("run-1", limit=3)
    assert [a.action for a in page.items] == ["deed4", "deed3", "deed2"]
    rest = await store.activity.page("run-1", page.next_cursor, limit=3)
    assert ([a.action for a in rest.items], rest.next_cursor) == (["deed1", "deed0"], None)
    with pytest.raises(InputError, match="cursor"):
        await store.activity.page(cursor="-1")


async def test_token_is_verified_until_it_is_revoked(store: Store) -> None:
    token = await store.tokens.create("ci", ["read", "write"])
    assert await store.tokens.verify(token) == ("read", "write")
    assert await store.tokens.verify(token + "x") is None
    assert await store.tokens.verify("\ud800") is None
    with pytest.raises(ConflictError, match="'ci' already"):
        await store.tokens.create("ci", ["read"])
    await store.tokens.revoke("ci")
    assert await store.tokens.verify(token) is None
    with pytest.raises(NotFoundError):
        await store.tokens.revoke("ci")
    await store.tokens.create("ci", ["admin"])
    with pytest.raises(DataError, match="root"):
        await store.tokens.create("x", ["root"])


async def test_token_is_hashed_at_rest(store: Store) -> None:
    from sqlalchemy import select

    from tuneproof.store.tables import tokens

    token = await store.tokens.create("ci", ["read"])
    async with store.database.read() as tx:
        row = (await tx.execute(select(tokens))).one()
    assert token not in str(tuple(row))
    assert len(row.hash) == 64


async def test_answer_is_kept_by_key_for_a_week(store: Store, clock: HandClock) -> None:
    claim = await store.idempotency.take("k", "hash")
    assert isinstance(claim, Claim)
    await claim.answered(202, {"id": 1})
    kept = await store.idempotency.get("k")
    assert kept is not None
    assert (kept.request_hash, kept.status, kept.body) == ("hash", 202, {"id": 1})
    assert await store.idempotency.take("k", "other") == kept
    assert await store.idempotency.forget() == 0
    clock.move(days=7, seconds=1)
    assert await store.idempotency.forget() == 1
    assert await store.idempotency.get("k") is None


async def test_ticks_and_values_are_remembered(store: Store) -> None:
    assert await store.schedule.last_tick("default") is None
    await store.schedule.set_tick("default", T0)
    await store.schedule.set_tick("default", T0 + timedelta(days=7))
    assert await store.schedule.last_tick("default") == T0 + timedelta(days=7)
    await store.meta.set("clock", {"now": 1})
    await store.meta.set("clock", {"now": 2})
    assert await store.meta.get("clock") == {"now": 2}
