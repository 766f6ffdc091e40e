"""Requests that fail grossly take the candidate back, unless the baseline fails as well."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof.experiments import Arm, Exposure


async def begun(service: Service) -> str:
    models = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
    made = await service.post("/evaluation/create-ab-test", {**models, "traffic_split": 0.5})
    assert made.status_code == 201, made.text
    id: str = made.json()["ab_test_id"]
    return id


async def told(
    service: Service, test_id: str, arm: str, failed: list[bool], *, later: timedelta = timedelta()
) -> None:
    now = (service.app.clock.now() + later).isoformat()
    common: dict[str, Any] = {"subject": test_id, "phase": 1, "arm": arm, "at": now}
    events = [
        {**common, "id": f"{arm}-{i}-{now}", "unit": f"{arm}{i}", "error": error}
        for i, error in enumerate(failed)
    ]
    taken = await service.post("/events", {"exposures": events})
    assert taken.json()["accepted"] == len(failed), taken.text


async def status(service: Service, test_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await service.http.get(f"/evaluation/status/{test_id}")).json()
    return found


def failures(service: Service, test_id: str, batch: int) -> dict[str, Any]:
    now = service.app.clock.now().isoformat()
    common = {"subject": test_id, "phase": 1, "arm": "candidate", "at": now, "error": True}
    names = [f"{batch}-{i}" for i in range(20)]
    return {"exposures": [{**common, "id": name, "unit": name} for name in names]}


async def test_batches_that_fail_at_the_same_moment_are_all_taken(service: Service) -> None:
    """Seen: one of them ended the test, and the others, which were kept, were answered 409."""
    id = await begun(service)
    batches = [failures(service, id, number) for number in range(8)]
    answers = await asyncio.gather(*(service.post("/events", batch) for batch in batches))
    assert [(a.status_code, a.json().get("accepted")) for a in answers] == [(200, 20)] * 8
    assert (await status(service, id))["status"] == "aborted"


async def test_an_outage_of_both_arms_ends_no_test(service: Service) -> None:
    """Before: "10 of the last 20 requests failed: reject", after 1.3 s of 500 to both arms."""
    id = await begun(service)
    await told(service, id, "baseline", [True] * 15 + [False] * 5)
    await told(service, id, "candidate", [False] * 5 + [True] * 15)
    assert (await status(service, id))["status"] == "running"


async def test_a_candidate_that_fails_alone_is_taken_back_at_once(service: Service) -> None:
    id = await begun(service)
    await told(service, id, "baseline", [False] * 18 + [True] * 2)
    await told(service, id, "candidate", [True] * 14)
    found = await status(service, id)
    assert found["status"] == "aborted"
    assert "14 of the last 14 requests failed" in found["reason"]


async def test_both_arms_are_read_at_one_instant(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen, once in some minutes of an outage: what came in between the two queries was counted as
    successes of the baseline alone."""
    id = await begun(service)
    await told(service, id, "baseline", [True] * 20)
    events = service.app.store.events
    read = events.recent

    async def recent(subject: str, arm: Arm, **how: Any) -> Any:
        found = await read(subject, arm, **how)
        if arm is Arm.CANDIDATE:
            monkeypatch.setattr(events, "recent", read)
            at = found[-1].at
            common: dict[str, Any] = {"subject": id, "phase": 1, "at": at, "task": "hook"}
            await events.ingest(
                [
                    Exposure(id=f"other-{arm}-{i}", unit=f"{arm}-{i}", arm=arm, **common)
                    for arm in (Arm.BASELINE, Arm.CANDIDATE)
                    for i in range(20)
                ],
                [],
            )
        return found

    monkeypatch.setattr(events, "recent", recent)
    await told(service, id, "candidate", [True] * 20)
    assert events.recent == read, "nothing came in between"
    assert (await status(service, id))["status"] == "running"


async def test_an_outage_of_a_part_of_both_ends_no_test(service: Service) -> None:
    """Before: 7 of 20 beside 15 of 20 was less than half as often, and ended the test."""
    id = await begun(service)
    await told(service, id, "candidate", [True] * 9 + [False] * 5)
    await told(service, id, "baseline", [True] * 7 + [False] * 13)
    await told(service, id, "candidate", [True] * 6)
    assert (await status(service, id))["status"] == "running"


async def test_a_candidate_with_nothing_beside_it_is_taken_back_too(service: Service) -> None:
    id = await begun(service)
    await told(service, id, "candidate", [True] * 12)
    assert (await status(service, id))["status"] == "aborted"


async def test_requests_that_time_out_are_judged_beside_those_of_their_own_time(
    service: Service,
) -> None:
    """Their failure is told when hundreds of newer requests, which went well at once, are there."""
    id = await begun(service)
    for arm in ("baseline", "candidate"):
        await told(service, id, arm, [False] * 30, later=timedelta(minutes=1))
    await told(service, id, "baseline", [False] * 20)
    await told(service, id, "candidate", [True] * 14)
    assert (await status(service, id))["status"] == "aborted"


async def test_an_outage_that_is_told_late_is_one_of_both_all_the_same(service: Service) -> None:
    id = await begun(service)
    for arm in ("baseline", "candidate"):
        await told(service, id, arm, [False] * 30, later=timedelta(minutes=1))
    await told(service, id, "baseline", [True] * 14)
    await told(service, id, "candidate", [True] * 14)
    assert (await status(service, id))["status"] == "running"
