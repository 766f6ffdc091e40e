"""Plans and tests of numbers at all edges are made or refused; no arithmetic fails."""

from __future__ import annotations

from itertools import product

import pytest
from tests.integration.server.conftest import Service

TINY = (5e-324, 1e-300, 2.5e-224)
SHARES, HOURS = (*TINY, 1e-9, 0.5), (*TINY, 1e-9, 8760.0)
LIFTS = (-0.9999999999999999, -1e-300, -5e-324, 0.0, *TINY, 1e-9, 100.0)
DECISIONS = ("spec", "confirmed")


async def test_a_plan_of_any_numbers_is_made_or_refused(service: Service) -> None:
    """Seen: `share=5e-324` and a few seconds were a 500, ZeroDivisionError."""
    for share, hours, lift in product(SHARES, HOURS, LIFTS):
        asked = {"share": share, "hours": hours, "lift": lift}
        answer = await service.http.get("/evaluation/plan", params=asked)
        assert answer.status_code in (200, 422), (asked, answer.text)


@pytest.mark.parametrize("decision", DECISIONS)
async def test_a_test_of_any_numbers_is_made_or_refused(service: Service, decision: str) -> None:
    models = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
    for share, hours in product(SHARES, HOURS):
        body = {**models, "traffic_split": share, "duration_hours": hours, "decision": decision}
        answer = await service.post("/evaluation/create-ab-test", body)
        assert answer.status_code in (201, 409, 422), (share, hours, answer.text)
        if answer.status_code == 201:
            test = answer.json()["ab_test_id"]
            for path in ("status", "metrics", "looks", "report"):
                shown = await service.http.get(f"/evaluation/{path}/{test}")
                assert shown.status_code == 200, (path, share, hours, shown.text[:300])
            ended = await service.post(f"/evaluation/end/{test}", {"reason": "seen"})
            assert ended.status_code == 200, ended.text
