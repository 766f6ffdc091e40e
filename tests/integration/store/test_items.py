"""Items of a unit, and covariates: what is declared is counted, by whatever order it came."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.store.records import deployment, experiment

from tuneproof.errors import DataError
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.stats.aggregates import Aggregate
from tuneproof.store import Store

HOUR = timedelta(hours=1)
T0 = datetime(2025, 1, 20, 10, 0, tzinfo=UTC)
_numbers = count()

DECLARATIONS: list[dict[str, Any]] = [
    {"analysis_unit": "item"},
    {"cuped": True},
    {},
    {"missing": "zero", "cuped": True},
    {"missing": "worst", "cap": 0.7},
]


async def subject_of(store: Store, **declared: Any) -> str:
    id = f"ab-test-20250122-{next(_numbers):06d}"
    await store.experiments.add(experiment(id, **declared))
    return id


def shown(subject: str, unit: str, *, at: float = 0.0, **more: Any) -> Exposure:
    arm = more.pop("arm", Arm.BASELINE)
    return Exposure(
        id=more.pop("id", f"e-{unit}-{arm.value}-{at}"), subject=subject, unit=unit, arm=arm,
        phase=more.pop("phase", 0), at=T0 + at * HOUR, tokens=10, cost_usd=0.001, **more,
    )  # fmt: skip


def told(subject: str, unit: str, item: str, value: float, **more: Any) -> Outcome:
    at = more.pop("at", 1.0)
    return Outcome(
        id=more.pop("id", f"o-{item}-{at}"), subject=subject, unit=unit, item=item,
        at=T0 + at * HOUR, value=value, **more,
    )  # fmt: skip


async def units(store: Store, subject: str, arm: Arm = Arm.BASELINE) -> Aggregate:
    """The sums of one arm, which has one phase."""
    (stratum,) = [s for s in await store.events.strata(subject) if s.arm is arm]
    return stratum.units


async def test_newest_outcome_of_each_item_counts(store: Store) -> None:
    subject = await subject_of(store, analysis_unit="item")
    await store.events.ingest(
        [shown(subject, "author")],
        [
            told(subject, "author", "post-1", 0.01, at=1),
            told(subject, "author", "post-1", 0.05, at=3),
            told(subject, "author", "post-2", 0.2, at=2),
        ],
    )
    await store.events.ingest([], [told(subject, "author", "post-1", 0.9, at=2)])
    found = await units(store, subject)
    assert (found.n, found.sum_y, found.sum_m) == (1, 0.25, 2)
    assert (found.sum_mm, found.sum_ym) == (4, 0.5)
    await store.events.ingest([], [told(subject, "author", "post-3", 0.05, at=0.5)])
    found = await units(store, subject)
    assert (found.n, found.sum_y, found.sum_m) == (1, pytest.approx(0.3), 3)


async def test_histogram_and_engagement_are_those_of_an_item(store: Store) -> None:
    subject = await subject_of(store, analysis_unit="item")
    outcomes = [told(subject, f"a{i}", f"p{i}-{j}", 0.07) for i in range(4) for j in range(i + 1)]
    await store.events.ingest([shown(subject, f"a{i}") for i in range(4)], outcomes)
    evidence = await store.events.evidence(subject, before=T0 + 48 * HOUR)
    arm = evidence.arm(Arm.BASELINE)
    assert arm.sample_size == 4
    assert arm.engagement_rate == pytest.approx(0.07)
    assert arm.p95_engagement == pytest.approx(0.07, abs=0.02)


async def test_items_after_a_move_to_the_other_arm_do_not_count(store: Store) -> None:
    subject = await subject_of(store, analysis_unit="item")
    await store.events.ingest(
        [shown(subject, "author", at=0)],
        [
            told(subject, "author", "early", 0.1, at=2),
            told(subject, "author", "early", 0.7, at=6),
            told(subject, "author", "late", 0.9, at=7),
        ],
    )
    assert (await units(store, subject)).sum_m == 2
    await store.events.ingest([shown(subject, "author", at=5, phase=1, arm=Arm.CANDIDATE)], [])
    found = await units(store, subject)
    assert (found.n, found.sum_y, found.sum_m) == (1, 0.1, 1)
    await store.events.ingest([shown(subject, "author", at=1, phase=1, arm=Arm.CANDIDATE)], [])
    assert (await units(store, subject)).n == 0
    assert await store.events.stored(subject) == await store.events.recount(subject)


async def test_quality_of_a_unit_is_the_mean_of_its_items(store: Store) -> None:
    subject = await subject_of(store, analysis_unit="item")
    await store.events.ingest(
        [shown(subject, "author")],
        [
            told(subject, "author", "a", 0.1, quality=0.4),
            told(subject, "author", "b", 0.1, quality=0.8),
            told(subject, "author", "c", 0.1),
        ],
    )
    (stratum,) = await store.events.strata(subject)
    assert stratum.quality == pytest.approx(0.6)
    assert stratum.quality_n == 1


async def test_covariate_is_that_of_the_first_exposure(store: Store) -> None:
    subject = await subject_of(store, cuped=True)
    await store.events.ingest(
        [
            shown(subject, "u1", at=2, covariate=0.5),
            shown(subject, "u1", at=3, covariate=0.9),
            shown(subject, "u2"),
        ],
        [told(subject, "u1", "", 0.2), told(subject, "u2", "", 0.1)],
    )
    found = await units(store, subject)
    assert (found.n, found.sum_x, found.sum_xx, found.sum_xy) == (2, 0.5, 0.25, 0.1)
    assert found.sum_m == 0
    await store.events.ingest([shown(subject, "u1", at=1, covariate=-0.25)], [])
    found = await units(store, subject)
    assert (found.sum_x, found.sum_xx) == (-0.25, 0.0625)
    await store.events.ingest([shown(subject, "u1", at=0)], [])
    assert (await units(store, subject)).sum_x == 0
    kept = await store.events.newest(subject)
    assert sorted(e.covariate for e in kept if e.covariate is not None) == [-0.25, 0.5, 0.9]


async def test_what_is_not_declared_is_kept_and_counts_nowhere(store: Store) -> None:
    subject = await subject_of(store)
    exposures = [shown(subject, "u1", covariate=0.5)]
    outcomes = [told(subject, "u1", item, v, at=v) for item, v in (("a", 0.1), ("b", 0.2))]
    await store.events.ingest(exposures, outcomes)
    found = await units(store, subject)
    assert (found.n, found.sum_y) == (1, 0.2)
    assert (found.sum_m, found.sum_x) == (0, 0)
    assert (await store.events.newest(subject))[0].covariate == 0.5


async def test_rollouts_count_what_they_declare(store: Store) -> None:
    id = "deploy-20250122-001"
    await store.deployments.add(deployment(id, analysis_unit="item"))
    outcomes = [told(id, "author", item, 0.1) for item in ("a", "b")]
    await store.events.ingest([shown(id, "author")], outcomes)
    assert (await units(store, id)).sum_m == 2
    assert (await store.deployments.get(id)).declaration.analysis_unit == "item"


async def test_segments_count_items_and_covariates_too(store: Store) -> None:
    items, adjusted = [await subject_of(store, **declared) for declared in DECLARATIONS[:2]]
    for subject in (items, adjusted):
        exposures = [
            shown(subject, f"u{i}", attributes={"persona": "ab"[i % 2]}, covariate=i / 8)
            for i in range(8)
        ]
        outcomes = [
            told(subject, f"u{i}", f"p{i}-{j}", (i + j) / 100) for i in range(8) for j in range(3)
        ]
        await store.events.ingest(exposures, outcomes)
        evidence = await store.events.evidence(subject, before=T0 + 48 * HOUR, segments=["persona"])
        (cell,) = evidence.cells
        for name in ("sum_y", "sum_m", "sum_mm", "sum_ym", "sum_x", "sum_xx", "sum_xy"):
            parts = sum(getattr(c.units, name) for p in evidence.segments.values() for c in p)
            assert parts == pytest.approx(getattr(cell.units, name)), name
        assert (cell.units.sum_m, cell.units.sum_x) == ((24, 0) if subject == items else (0, 3.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e10])
async def test_covariate_that_is_no_usable_number_is_refused(store: Store, value: float) -> None:
    subject = await subject_of(store, cuped=True)
    with pytest.raises(DataError, match="covariate"):
        await store.events.ingest([shown(subject, "u1", covariate=value)], [])


async def test_items_that_sum_up_to_more_than_is_kept_are_refused_and_leave_nothing(
    store: Store,
) -> None:
    subject = await subject_of(store, analysis_unit="item")
    await store.events.ingest([shown(subject, "u1")], [told(subject, "u1", "a", 8e9)])
    with pytest.raises(DataError, match="2 items of unit 'u1'"):
        await store.events.ingest([], [told(subject, "u1", "b", 8e9)])
    assert (await units(store, subject)).sum_y == 8e9
    assert await store.events.stored(subject) == await store.events.recount(subject)


@pytest.mark.parametrize(
    ("declared", "baseline", "candidate"),
    [
        ({}, (2, 1.0), (2, 1.0)),
        ({"missing": "zero"}, (3, 1.0), (3, 1.0)),
        ({"missing": "worst"}, (2, 1.0), (3, 1.0)),
        ({"cap": 0.3}, (2, 0.5), (2, 0.5)),
        ({"missing": "worst", "cap": 0.3}, (2, 0.5), (3, 0.5)),
    ],
)
async def test_absent_and_large_outcomes_count_as_declared(
    store: Store,
    declared: dict[str, Any],
    baseline: tuple[int, float],
    candidate: tuple[int, float],
) -> None:
    subject = await subject_of(store, segments=("persona",), **declared)
    kinds = {"persona": "anna"}
    shows = [
        shown(subject, f"{arm}{i}", arm=arm, attributes=kinds) for arm in Arm for i in range(3)
    ]
    tells = [told(subject, f"{arm}{i}", "", v) for arm in Arm for i, v in enumerate((0.2, 0.8))]
    await ingest(store, [*shows, *tells])
    for arm, (n, total) in ((Arm.BASELINE, baseline), (Arm.CANDIDATE, candidate)):
        found = await units(store, subject, arm)
        assert (found.n, found.sum_y) == (n, pytest.approx(total))
        assert found.sum_yy == pytest.approx(0.68 if total == 1.0 else 0.13)
    seen = await store.events.evidence(subject, segments=("persona",))
    cells = {cell.arm: cell.units for cell in seen.segments["persona", "anna"]}
    for arm, (n, total) in ((Arm.BASELINE, baseline), (Arm.CANDIDATE, candidate)):
        assert (cells[arm].n, cells[arm].sum_y) == (n, pytest.approx(total))
    assert await store.events.stored(subject) == await store.events.recount(subject)


async def test_an_outcome_that_comes_late_takes_the_place_of_the_0(store: Store) -> None:
    subject = await subject_of(store, missing="zero")
    await ingest(store, [shown(subject, "u")])
    assert (await units(store, subject)).sum_y == 0
    await ingest(store, [told(subject, "u", "", 0.5)])
    found = await units(store, subject)
    assert (found.n, found.sum_y) == (1, 0.5)
    assert await store.events.stored(subject) == await store.events.recount(subject)


# --- the property: no order of arrival shows --------------------------------------------

_UNIT = st.integers(0, 2)
_WHEN = st.integers(0, 12)  # quarters of an hour: many ties
_EXPOSURES = st.tuples(
    st.just("e"), _UNIT, _WHEN, st.integers(0, 9), st.sampled_from(Arm), st.integers(-3, 3)
)
_OUTCOMES = st.tuples(st.just("o"), _UNIT, _WHEN, st.integers(0, 9), st.integers(0, 3), _WHEN)
EVENTS = st.lists(_EXPOSURES | _OUTCOMES, min_size=1, max_size=40)


def as_event(subject: str, raw: tuple[Any, ...]) -> Exposure | Outcome:
    kind, unit, when, number, *rest = raw
    id = f"{kind}{'-'.join(map(str, raw[1:]))}"  # what an event says follows from its id
    if kind == "e":
        arm, x = rest
        return shown(
            subject, f"u{unit}", at=when / 4, arm=arm, phase=number % 3, id=id,
            covariate=x / 4 if x else None,
        )  # fmt: skip
    item, value = rest
    quality = value / 7 if number % 2 else None
    return told(subject, f"u{unit}", f"p{item}", value / 9, at=when / 4, id=id, quality=quality)


async def ingest(store: Store, events: Sequence[Exposure | Outcome]) -> int:
    got = await store.events.ingest(
        [e for e in events if isinstance(e, Exposure)],
        [e for e in events if isinstance(e, Outcome)],
    )
    return got.accepted


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(raw=EVENTS, order=st.randoms(use_true_random=False))
async def test_any_order_with_duplicates_gives_the_recount(
    store: Store, raw: list[tuple[Any, ...]], order: random.Random
) -> None:
    straight = [await subject_of(store, **declared) for declared in DECLARATIONS]
    mixed = [await subject_of(store, **declared) for declared in DECLARATIONS]
    await ingest(store, [as_event(subject, r) for r in raw for subject in straight])

    arrivals = [as_event(subject, r) for r in raw for subject in mixed] * 2
    order.shuffle(arrivals)
    accepted = 0
    while arrivals:
        size = order.randint(1, 20)
        accepted += await ingest(store, arrivals[:size])
        arrivals = arrivals[size:]

    assert accepted == len(DECLARATIONS) * len(set(raw))
    for one, other in zip(straight, mixed, strict=True):
        assert await store.events.stored(other) == await store.events.recount(other)
        assert await store.events.strata(other) == await store.events.strata(one)


async def test_concurrent_ingests_lose_and_double_nothing(store: Store) -> None:
    subjects = [await subject_of(store, **declared) for declared in DECLARATIONS]
    order = random.Random(7)
    events: list[Exposure | Outcome] = []
    for i in range(40):
        arm = order.choice(list(Arm))
        at, x = order.random() * 3, order.random()
        told_at = [4 + order.random() for _ in range(3)]
        for s in subjects:
            events.append(shown(s, f"u{i}", at=at, arm=arm, id=f"e{i}", covariate=x))
            events += [
                told(s, f"u{i}", f"p{j % 2}", 0.1 * j, at=told_at[j], id=f"o{i}-{j}")
                for j in range(3)
            ]

    async def sender(seed: int) -> int:
        mine = list(events)
        random.Random(seed).shuffle(mine)
        return sum([await ingest(store, mine[i : i + 24]) for i in range(0, len(mine), 24)])

    accepted = sum(await asyncio.gather(*(sender(seed) for seed in range(5))))
    assert accepted == len(events)
    for subject in subjects:
        assert await store.events.stored(subject) == await store.events.recount(subject)
