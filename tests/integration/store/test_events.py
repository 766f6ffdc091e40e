"""Events: the rollups are what a recount finds, whatever came twice, late or out of order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.store.records import deployment, experiment

from tuneproof.errors import DataError, NotFoundError
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.store import Store

HOUR = timedelta(hours=1)
T0 = datetime(2025, 1, 20, 10, 0, tzinfo=UTC)
_numbers = count()


async def subject_of(store: Store) -> str:
    id = f"ab-test-20250120-{next(_numbers):06d}"
    await store.experiments.add(experiment(id))
    return id


def shown(
    subject: str,
    unit: str,
    *,
    at: float = 0.0,
    arm: Arm = Arm.BASELINE,
    phase: int = 0,
    id: str | None = None,
    tokens: int | None = 10,
    cost_usd: float | None = 0.001,
    latency_ms: float | None = 100.0,
    error: bool = False,
) -> Exposure:
    return Exposure(
        id=id or f"e-{unit}-{arm.value}-{at}",
        subject=subject,
        phase=phase,
        arm=arm,
        unit=unit,
        at=T0 + at * HOUR,
        task="hook",
        tokens=tokens,
        cost_usd=cost_usd,
        latency_ms=latency_ms,
        error=error,
    )


def told(
    subject: str, unit: str, value: float, *, at: float = 1.0, id: str | None = None
) -> Outcome:
    return Outcome(
        id=id or f"o-{unit}-{at}", subject=subject, unit=unit, at=T0 + at * HOUR, value=value
    )


async def values(store: Store, subject: str) -> dict[tuple[int, str], tuple[int, int, float]]:
    strata = await store.events.strata(subject)
    return {(s.phase, s.arm.value): (s.exposed, s.units.n, s.units.sum_y) for s in strata}


async def test_event_sent_twice_counts_once(store: Store) -> None:
    subject = await subject_of(store)
    exposures = [shown(subject, "u1"), shown(subject, "u2", arm=Arm.CANDIDATE)]
    outcomes = [told(subject, "u1", 0.05), told(subject, "u2", 0.08)]
    first = await store.events.ingest(exposures, outcomes)
    again = await store.events.ingest(exposures * 2, outcomes * 3)
    assert (first.accepted, first.duplicates) == (4, 0)
    assert (again.accepted, again.duplicates) == (0, 10)
    assert await values(store, subject) == {
        (0, "baseline"): (1, 1, 0.05),
        (0, "candidate"): (1, 1, 0.08),
    }


async def test_duplicate_within_one_batch_counts_once(store: Store) -> None:
    subject = await subject_of(store)
    got = await store.events.ingest([shown(subject, "u1")] * 3, [told(subject, "u1", 0.5)] * 2)
    assert (got.accepted, got.duplicates) == (2, 3)
    requests = await store.events.requests(subject)
    assert requests[Arm.BASELINE].n == 1


async def test_newest_outcome_of_a_unit_counts(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest([shown(subject, "u1")], [told(subject, "u1", 0.05, at=3)])
    await store.events.ingest([], [told(subject, "u1", 0.01, at=2)])
    assert (await values(store, subject))[0, "baseline"] == (1, 1, 0.05)
    await store.events.ingest([], [told(subject, "u1", 0.09, at=4)])
    assert (await values(store, subject))[0, "baseline"] == (1, 1, 0.09)


async def test_outcome_before_its_exposure_is_joined_when_it_comes(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest([], [told(subject, "u1", 0.05)])
    assert await values(store, subject) == {}
    await store.events.ingest([shown(subject, "u1", phase=2)], [])
    assert await values(store, subject) == {(2, "baseline"): (1, 1, 0.05)}


async def test_unit_counts_in_phase_and_arm_of_its_first_exposure(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest([shown(subject, "u1", at=5, phase=1, arm=Arm.CANDIDATE)], [])
    await store.events.ingest([], [told(subject, "u1", 0.05, at=2)])
    await store.events.ingest([shown(subject, "u1", at=1, phase=0, arm=Arm.BASELINE)], [])
    assert await values(store, subject) == {(0, "baseline"): (1, 1, 0.05)}


async def test_outcomes_after_a_move_to_the_other_arm_do_not_count(store: Store) -> None:
    subject = await subject_of(store)
    early, late = told(subject, "u1", 0.05, at=2), told(subject, "u1", 0.9, at=6)
    await store.events.ingest([shown(subject, "u1", at=0)], [early, late])
    assert (await values(store, subject))[0, "baseline"] == (1, 1, 0.9)
    await store.events.ingest([shown(subject, "u1", at=5, phase=1, arm=Arm.CANDIDATE)], [])
    assert await values(store, subject) == {(0, "baseline"): (1, 1, 0.05)}


async def test_cost_and_tokens_are_those_of_the_unit_in_its_arm(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest(
        [
            shown(subject, "u1", at=0, tokens=10, cost_usd=0.0000045),
            shown(subject, "u1", at=1, tokens=5, cost_usd=0.0000005),
            shown(subject, "u1", at=2, tokens=7, cost_usd=9.0, arm=Arm.CANDIDATE),
        ],
        [told(subject, "u1", 0.5, at=1)],
    )
    (stratum,) = await store.events.strata(subject)
    assert stratum.units.sum_c == pytest.approx(0.000005, abs=0)
    assert stratum.units.sum_d == 15
    assert stratum.units.sum_cy == pytest.approx(0.0000025, abs=1e-18)
    assert stratum.units.histogram is not None
    assert stratum.units.histogram.n == 1


async def test_what_a_unit_took_is_unknown_where_that_of_any_of_its_requests_is(
    store: Store,
) -> None:
    subject = await subject_of(store)
    took: dict[str, list[tuple[int | None, float | None]]] = {
        "known": [(10, 0.5), (20, 0.25)],
        "free": [(0, 0.0)],
        "no cost": [(10, 0.5), (30, None)],
        "no tokens": [(None, 2.0), (5, 1.0)],
        "neither": [(None, None)],
    }
    shows = [
        shown(subject, unit, at=place, tokens=tokens, cost_usd=cost)
        for unit, requests in took.items()
        for place, (tokens, cost) in enumerate(requests)
    ]
    outcomes = [told(subject, unit, 0.1 * (i + 1)) for i, unit in enumerate(took)]
    await store.events.ingest(shows[::-1], outcomes)
    [cell] = (await store.events.evidence(subject)).cells
    assert (cell.units.n, cell.costed.n, cell.metered.n) == (5, 3, 2)
    assert (cell.costed.sum_c, cell.costed.sum_cc) == (3.75, 0.75**2 + 9)
    assert cell.costed.sum_y == pytest.approx(0.1 + 0.2 + 0.4)
    assert cell.costed.sum_yy == pytest.approx(0.01 + 0.04 + 0.16)
    assert cell.costed.sum_cy == pytest.approx(0.75 * 0.1 + 3 * 0.4)
    metered = cell.metered
    assert (metered.sum_c, metered.sum_d, metered.sum_cd) == (0.75, 30, 22.5)
    assert (metered.sum_cc, metered.sum_dd) == (0.75**2, 900)
    kept = {(e.unit, e.at): (e.tokens, e.cost_usd) for e in await store.events.newest(subject)}
    assert kept == {(e.unit, e.at): (e.tokens, e.cost_usd) for e in shows}


async def test_only_hours_that_ended_before_are_matured(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest([shown(subject, "u1", at=0.5), shown(subject, "u2", at=1.5)], [])
    exposed = store.events.exposed
    assert await exposed(subject, T0 + 0.99 * HOUR) == {}
    assert await exposed(subject, T0 + 1 * HOUR) == {(0, Arm.BASELINE): 1}
    assert await exposed(subject, T0 + 2 * HOUR) == {(0, Arm.BASELINE): 2}
    assert [s.exposed for s in await store.events.strata(subject, before=T0 + HOUR)] == [1]


async def test_any_instant_splits_days_and_hours_without_gap_or_overlap(store: Store) -> None:
    subject = await subject_of(store)
    hours = range(0, 75, 2)
    await store.events.ingest([shown(subject, f"u{h}", at=h) for h in hours], [])
    for end in range(-1, 80, 3):
        ended = sum(h + 1 <= end for h in hours)
        exposed = await store.events.exposed(subject, T0 + end * HOUR)
        assert sum(exposed.values()) == ended
        strata = await store.events.strata(subject, before=T0 + end * HOUR)
        assert sum(s.exposed for s in strata) == ended
        requests = await store.events.requests(subject, since=T0 + end * HOUR)
        assert sum(r.n for r in requests.values()) == sum(h >= end for h in hours)


async def test_requests_count_each_request_from_an_exact_instant(store: Store) -> None:
    subject = await subject_of(store)
    events = [
        shown(subject, "u1", at=0.25, latency_ms=2000.0),
        shown(subject, "u1", at=0.75, latency_ms=2000.1, error=True),
        shown(subject, "u2", at=1.5, latency_ms=None),
        shown(subject, "u3", at=1.6, arm=Arm.CANDIDATE, phase=1, latency_ms=90_000),
    ]
    await store.events.ingest(events, [])
    everything = await store.events.requests(subject)
    baseline = everything[Arm.BASELINE]
    assert baseline.latency is not None
    assert (baseline.n, baseline.errors, baseline.latency.n) == (3, 1, 2)
    assert baseline.latency.above(2000) == 1
    assert baseline.mean_latency_ms == pytest.approx(2000.05)
    since = await store.events.requests(subject, since=T0 + 0.5 * HOUR)
    assert (since[Arm.BASELINE].n, since[Arm.BASELINE].errors) == (2, 1)
    assert list(await store.events.requests(subject, phase=1)) == [Arm.CANDIDATE]


async def test_recent_requests_come_oldest_first(store: Store) -> None:
    subject = await subject_of(store)
    await store.events.ingest([shown(subject, f"u{i}", at=i, error=i > 2) for i in range(5)], [])
    recent = await store.events.recent(subject, Arm.BASELINE, limit=3)
    assert [r.error for r in recent] == [False, True, True]
    assert [r.at for r in recent] == [T0 + i * HOUR for i in (2, 3, 4)]
    earlier = await store.events.recent(subject, Arm.BASELINE, limit=3, until=T0 + 3 * HOUR)
    assert [r.at for r in earlier] == [T0 + i * HOUR for i in (1, 2, 3)]


async def test_who_reads_sees_one_instant(store: Store) -> None:
    subject = await subject_of(store)
    async with store.database.read() as tx:
        before = await store.events.recent(subject, Arm.BASELINE, tx=tx)
        await store.events.ingest([shown(subject, "u1", at=1)], [])
        assert await store.events.recent(subject, Arm.BASELINE, tx=tx) == before == []
    assert len(await store.events.recent(subject, Arm.BASELINE)) == 1


async def test_unknown_subject_is_refused_and_the_rest_taken(store: Store) -> None:
    subject = await subject_of(store)
    got = await store.events.ingest(
        [shown(subject, "u1"), shown("ab-test-nobody", "u1", id="lost")], []
    )
    assert (got.accepted, got.duplicates, got.unknown) == (1, 0, ("lost",))
    with pytest.raises(NotFoundError, match="ab-test-nobody"):
        await store.events.strata("ab-test-nobody")


async def test_rollouts_have_events_too(store: Store) -> None:
    await store.deployments.add(deployment("deploy-20250120-001"))
    got = await store.events.ingest([shown("deploy-20250120-001", "u1")], [])
    assert got.accepted == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e10])
async def test_outcome_that_is_no_usable_number_is_refused(store: Store, value: float) -> None:
    subject = await subject_of(store)
    with pytest.raises(DataError, match="u1"):
        await store.events.ingest([shown(subject, "u1")], [told(subject, "u1", value)])
    assert await values(store, subject) == {}


@pytest.mark.parametrize("unit", ["a\x00b", "\ud800", ""])
async def test_name_that_no_database_keeps_is_refused(store: Store, unit: str) -> None:
    subject = await subject_of(store)
    with pytest.raises(DataError):
        await store.events.ingest([shown(subject, unit, id="e")], [])


async def test_large_outcomes_are_summed_exactly(store: Store) -> None:
    subject = await subject_of(store)
    exposures = [shown(subject, f"u{i}", cost_usd=4000.25) for i in range(3)]
    outcomes = [told(subject, f"u{i}", 5_000_000.5) for i in range(3)]
    await store.events.ingest(exposures, outcomes)
    (stratum,) = await store.events.strata(subject)
    assert stratum.units.sum_yy == 3 * 5_000_000.5**2
    assert stratum.units.sum_cy == 3 * 5_000_000.5 * 4000.25
    assert await store.events.stored(subject) == await store.events.recount(subject)


async def test_evidence_holds_all_that_a_look_needs(store: Store) -> None:
    subject = await subject_of(store)
    await store.experiments.open_phase(subject, 0, 0.1, T0)
    await store.events.ingest([shown(subject, "u1")], [told(subject, "u1", 0.05)])
    evidence = await store.events.evidence(subject, before=T0)
    assert evidence.cells == ()
    assert evidence.exposed == {(0, Arm.BASELINE): 1}
    assert evidence.shares == {0: 0.1}
    evidence = await store.events.evidence(subject, before=T0 + HOUR)
    assert evidence.cells[0].units.n == 1


async def test_phase_that_never_was_is_left_out_of_a_look(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    subject = await subject_of(store)
    await store.experiments.open_phase(subject, 0, 0.1, T0)
    exposures = [shown(subject, "u1"), shown(subject, "stray", phase=7)]
    await store.events.ingest(exposures, [told(subject, unit, 0.05) for unit in ("u1", "stray")])
    evidence = await store.events.evidence(subject, before=T0 + HOUR)
    assert evidence.exposed == {(0, Arm.BASELINE): 1}
    assert [(cell.phase, cell.units.n) for cell in evidence.cells] == [(0, 1)]
    assert "1 units" in caplog.text
    assert "in phase 7, which it never had" in caplog.text


# --- the property: no order of arrival shows --------------------------------------------


def events_of(unit_count: int) -> st.SearchStrategy[list[tuple[object, ...]]]:
    unit = st.integers(0, unit_count - 1)
    when = st.integers(0, 12)  # quarters of an hour: many ties
    id = st.integers(0, 30)
    exposure = st.tuples(
        st.just("e"), unit, when, id, st.sampled_from(Arm), st.integers(0, 2), st.booleans()
    )
    outcome = st.tuples(st.just("o"), unit, when, id, st.integers(0, 1000))
    return st.lists(exposure | outcome, min_size=1, max_size=40)


def as_event(subject: str, raw: tuple[object, ...]) -> Exposure | Outcome:
    kind, unit, when, number, *rest = raw
    # An id stands for one event: what it says follows from it.
    at = int(when) / 4  # type: ignore[call-overload]
    if kind == "e":
        arm, phase, error = rest
        return shown(
            subject,
            f"u{unit}",
            at=at,
            arm=arm,  # type: ignore[arg-type]
            phase=phase,  # type: ignore[arg-type]
            error=bool(error),
            id=f"e{number}-{when}-{arm}-{phase}-{error}",
            tokens=None if int(number) % 7 == 0 else int(number),  # type: ignore[call-overload]
            cost_usd=None if int(number) % 5 == 0 else int(number) / 1e7,  # type: ignore[call-overload]
            latency_ms=None if error else float(number) * 100,  # type: ignore[arg-type]
        )
    (value,) = rest
    return told(subject, f"u{unit}", int(value) / 1000, at=at, id=f"o{number}-{when}-{value}")  # type: ignore[call-overload]


async def ingest(store: Store, events: Sequence[Exposure | Outcome]) -> int:
    got = await store.events.ingest(
        [e for e in events if isinstance(e, Exposure)],
        [e for e in events if isinstance(e, Outcome)],
    )
    return got.accepted


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(raw=events_of(4), order=st.randoms(use_true_random=False))
async def test_any_order_with_duplicates_gives_the_recount(
    store: Store, raw: list[tuple[object, ...]], order: random.Random
) -> None:
    straight, mixed = await subject_of(store), await subject_of(store)
    await ingest(store, [as_event(straight, r) for r in raw])

    arrivals = [as_event(mixed, r) for r in raw] * 2
    order.shuffle(arrivals)
    accepted = 0
    while arrivals:
        size = order.randint(1, 7)
        accepted += await ingest(store, arrivals[:size])
        arrivals = arrivals[size:]

    kept = await store.events.stored(mixed)
    assert kept == await store.events.recount(mixed)
    assert accepted == len({(type(e), e.unit, e.id) for e in (as_event("", r) for r in raw)})
    assert await store.events.strata(mixed) == await store.events.strata(straight)
    assert await store.events.requests(mixed) == await store.events.requests(straight)


async def test_concurrent_ingests_lose_and_double_nothing(store: Store) -> None:
    subject = await subject_of(store)
    order = random.Random(7)
    events: list[Exposure | Outcome] = []
    for i in range(60):
        arm = order.choice(list(Arm))
        events.append(shown(subject, f"u{i}", at=order.random() * 3, arm=arm, id=f"e{i}"))
        events.append(told(subject, f"u{i}", order.random(), at=4 + order.random(), id=f"o{i}"))
        if i % 3 == 0:
            other = Arm.CANDIDATE if arm is Arm.BASELINE else Arm.BASELINE
            events.append(shown(subject, f"u{i}", at=order.random() * 6, arm=other, id=f"m{i}"))

    async def sender(seed: int) -> int:
        mine = list(events)
        random.Random(seed).shuffle(mine)
        return sum([await ingest(store, mine[i : i + 9]) for i in range(0, len(mine), 9)])

    accepted = sum(await asyncio.gather(*(sender(seed) for seed in range(6))))
    assert accepted == len(events)
    assert await store.events.stored(subject) == await store.events.recount(subject)
    strata = await store.events.strata(subject)
    assert sum(s.exposed for s in strata) == 60
