"""What a task's baseline does before anything is tested: recorded, planned from, no evidence."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service, open_service, posts
from tests.waiting import eventually

from tuneproof.errors import StoreUnavailableError
from tuneproof.experiments.histories import WEEK, history_of, week_of
from tuneproof.server.tickets import Ticket
from tuneproof.settings import Settings
from tuneproof.store import SubjectKind

ASKED = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "Begin"}]}
MODELS = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}


@pytest.fixture
async def served(on_either: Service) -> Service:
    """A service that served a test once, so that its tasks have a model; nothing is tested now."""
    made = await on_either.post("/evaluation/create-ab-test", MODELS)
    assert made.status_code == 201, made.text
    ended = await on_either.post(
        f"/evaluation/end/{made.json()['ab_test_id']}", {"reason": "enough"}
    )
    assert ended.status_code == 200, ended.text
    return on_either


def exposure(unit: str, at: datetime, **changed: Any) -> dict[str, Any]:
    event = {"id": unit, "subject": history_of("hook", at), "phase": 1, "arm": "baseline"}
    return {**event, "unit": unit, "at": at.isoformat(), "task": "hook", **changed}


def outcome(unit: str, at: datetime, value: float) -> dict[str, Any]:
    subject = history_of("hook", at)
    return {"id": unit, "subject": subject, "unit": unit, "at": at.isoformat(), "value": value}


async def recorded(
    service: Service,
) -> tuple[datetime, datetime, list[tuple[str, datetime, float]]]:
    """A history of 500 units, 400 of them with an outcome; from when to when it is looked at."""
    config = service.app.pipelines.get("default")
    until = service.app.clock.now() - timedelta(hours=config.maturation_hours)
    first = (until - timedelta(hours=50)).replace(minute=0, second=0, microsecond=0)
    draw = random.Random(7)
    units = [
        (f"u{i}", first + timedelta(minutes=5 * i), draw.betavariate(2, 18)) for i in range(500)
    ]
    taken = await service.post(
        "/events",
        {
            "exposures": [exposure(unit, at, tokens=80) for unit, at, _ in units],
            "outcomes": [outcome(unit, at, value) for unit, at, value in units[:400]],
        },
    )
    assert taken.json()["accepted"] == 900, taken.text
    return until, first, units


async def test_feedback_waits_while_nobody_can_write_that_the_history_begins(
    served: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on a full disk: 200 and "is no test or rollout … nor a history", and it was lost."""

    async def full(*args: Any, **more: Any) -> None:
        raise StoreUnavailableError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(served.app.store.histories, "open", full)
        answer = await served.post("/v1/chat/completions", {**ASKED, "user": "u"})
        given = answer.headers["x-tuneproof-response"]
        told = await served.post("/v1/feedback", {"response_id": given, "value": 0.07})
        assert told.json() == {"accepted": 1, "duplicates": 0, "waiting": True}
    subject = Ticket.decode(given).subject
    assert subject is not None

    async def counted() -> bool:
        if await served.app.store.subjects.kind(subject) is None:
            return False
        strata = await served.app.store.events.strata(subject)
        return [one.units.sum_y for one in strata] == [pytest.approx(0.07)]

    await eventually(counted, 30)


async def test_a_request_is_recorded_before_anything_is_tested(served: Service) -> None:
    """Seen: of requests without a running test nothing was kept, and feedback on them neither."""
    answer = await served.post("/v1/chat/completions", {**ASKED, "user": "u"})
    given = answer.headers["x-tuneproof-response"]
    subject = Ticket.decode(given).subject
    assert subject == history_of("hook", served.app.clock.now())
    assert "x-tuneproof-subject" not in answer.headers
    [event] = await served.until(f"/events?subject={subject}", lambda found: len(found) == 1)
    assert (event["arm"], event["unit"], event["tokens"]) == ("baseline", "u", 10)
    said = {"response_id": given, "value": {"value": 0.07, "comment": "fine"}}
    taken = [(await served.post("/v1/feedback", said)).json() for _ in range(2)]
    assert taken == [{"accepted": 1, "duplicates": 0}, {"accepted": 0, "duplicates": 1}]
    events = served.app.store.events
    assert await events.recount(subject) == await events.stored(subject)


async def test_a_test_is_planned_from_what_was_recorded(served: Service) -> None:
    """Seen: `plan` knew posts only, so an application without a posts table had no plan."""
    until, first, units = await recorded(served)
    # The test of the fixture, a moment long, is no time in which units could have come.
    plan = (await served.http.get("/evaluation/plan", params={"task": "hook"})).json()
    assert plan["reason"] == ""
    assert plan["mean"] == pytest.approx(sum(v for _, _, v in units[:400]) / 400, rel=1e-6)
    assert plan["units_per_hour"] == pytest.approx(
        400 / ((until - first) / timedelta(hours=1)), 0.02
    )
    assert plan["cv"] > 0.3
    assert "This traffic" in plan["sentence"]


async def test_a_plan_without_a_history_says_so(served: Service) -> None:
    plan = (await served.http.get("/evaluation/plan", params={"task": "hook"})).json()
    assert "there are 0 units with a rate to learn from" in plan["sentence"]
    unknown = await served.http.get("/evaluation/plan", params={"task": "poem"})
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("changed", "hours", "reason"),
    [
        ({"arm": "candidate"}, 0, "is a history, of the baseline alone"),
        ({"phase": 2}, 0, "phase 2 was never open"),
        ({"subject": "history-poem-20250106", "task": "poem"}, 0, "anybody, nor a history"),
        ({"task": "poem"}, 0, "anybody, nor a history"),
        ({"subject": "history-hook-20250106"}, 0, "anybody, nor a history"),
        ({}, -24 * 60, "anybody, nor a history"),
        ({}, 24 * 14, "anybody, nor a history"),
    ],
)
async def test_what_no_history_can_mean_is_turned_away(
    served: Service, changed: dict[str, Any], hours: float, reason: str
) -> None:
    now = served.app.clock.now()
    if "arm" in changed or "phase" in changed:
        await served.post("/events", {"exposures": [exposure("first", now)]})
    event = exposure("u", now + timedelta(hours=hours), **changed)
    taken = (await served.post("/events", {"exposures": [event]})).json()
    assert taken["accepted"] == 0
    assert reason in taken["rejected"][0]["reason"]


async def test_nothing_that_judges_hears_of_a_history(served: Service) -> None:
    now = served.app.clock.now()
    subject = history_of("hook", now)
    failing = [exposure(f"u{i}", now, error=True) for i in range(40)]
    taken = await served.post("/events", {"exposures": failing})
    assert taken.json()["accepted"] == 40
    store = served.app.store
    assert await store.subjects.kind(subject) is SubjectKind.HISTORY
    assert await store.watches.under_way() == []
    back = await served.post(f"/deployment/rollback/{subject}", {"reason": "no"})
    assert back.status_code == 404
    ended = await served.post(f"/evaluation/end/{subject}", {"reason": "no"})
    assert ended.status_code == 404
    made = (await served.post("/evaluation/create-ab-test", MODELS)).json()["ab_test_id"]
    shown = (await served.http.get(f"/evaluation/metrics/{made}")).json()
    assert [arm["sample_size"] for arm in shown["metrics"].values()] == [0, 0]
    assert (await store.events.evidence(made)).exposed == {}


async def test_a_week_is_forgotten_after_its_time_and_what_it_summed_up_stays(
    served: Service,
) -> None:
    app = served.app
    old = week_of(app.clock.now()) - WEEK + timedelta(hours=1)
    events = {"exposures": [exposure("u", old)], "outcomes": [outcome("u", old, 0.1)]}
    assert (await served.post("/events", events)).json()["accepted"] == 2
    assert await app.outcomes.forget() == [], "a week after its week"
    subject = history_of("hook", old)
    assert await app.store.histories.kept(week_of(app.clock.now())) == [subject]
    kept = await app.store.events.stored(subject)
    await app.store.retention.purge(subject, app.clock.now())
    assert await app.store.events.stored(subject) == kept
    assert await app.store.histories.kept(app.clock.now()) == []
    late = await served.post("/events", {"exposures": [exposure("v", old)]})
    assert late.json()["accepted"] == 0


async def test_the_shortest_retention_holds_for_histories_too(
    settings: Settings, database_url: str
) -> None:
    pipeline = replace(settings.pipelines["default"], retention_days=1e-6)
    stored = replace(
        settings,
        store=replace(settings.store, url=database_url),
        pipelines={"default": pipeline},
    )
    async with open_service(stored) as service:
        await service.post("/evaluation/create-ab-test", MODELS)
        old = week_of(service.app.clock.now()) - WEEK + timedelta(hours=1)
        taken = await service.post("/events", {"exposures": [exposure("u", old)]})
        assert taken.json()["accepted"] == 1
        assert history_of("hook", old) in await service.app.outcomes.forget()
        assert await service.app.store.events.newest(history_of("hook", old)) == []


async def test_a_test_expects_the_units_that_were_recorded_where_there_are_no_posts(
    settings: Settings, database_url: str
) -> None:
    """Seen: without posts a test was declared without the units that it may expect."""
    stored = replace(settings, store=replace(settings.store, url=database_url))
    async with open_service(stored, seen=posts(1)) as service:
        first = (await service.post("/evaluation/create-ab-test", MODELS)).json()["ab_test_id"]
        await service.post(f"/evaluation/end/{first}", {"reason": "enough"})
        until, began, _ = await recorded(service)
        asked = {**MODELS, "duration_hours": 100}
        second = (await service.post("/evaluation/create-ab-test", asked)).json()["ab_test_id"]
        tests = service.app.store.experiments
        assert (await tests.get(first)).declaration.planned_units is None
        expected = 100 * 400 / ((until - began) / timedelta(hours=1))
        planned = (await tests.get(second)).declaration.planned_units
        assert planned == pytest.approx(expected, rel=0.03)
