"""Decisions over HTTP: the quick way in front and the ordinary route say the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.server.conftest import Service
from tests.waiting import eventually

from tuneproof.app import App, RoutingSnapshot
from tuneproof.cli.serve import serving
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.server.auth import TRUST_S
from tuneproof.server.gateway import decide
from tuneproof.server.hot import decision
from tuneproof.testing import MemoryProvider

LANE = Lane(
    subject="ab-test-20250120-001",
    candidate=Variant(model_id="cand", version="ver-1"),
    share=0.5,
)
HALF = Routing(
    task="hook",
    baseline=Variant(model_id="base"),
    lanes=(LANE,),
    salt="salt",
    phase=2,
)


def at_share(share: float, **changes: Any) -> Routing:
    """The routing with this share for its candidate."""
    return replace(HALF, lanes=(replace(LANE, share=share),), **changes)


@pytest.fixture
async def routed(service: Service) -> Service:
    """A service with one task at a half."""
    await service.app.store.routing.set(HALF)
    await service.app.routing.board.refresh()
    return service


async def test_a_decision_is_that_of_the_gateway_by_either_way(routed):
    for number in range(40):
        unit = f"post {number}/ü"
        expected = decide(HALF, unit, datetime.now(UTC), None)
        answer = await routed.http.get("/decide", params={"task": "hook", "unit": unit})
        assert answer.json() == {
            "task": "hook",
            "model": expected.model.model_id,
            "model_version": expected.model.version,
            "arm": str(expected.arm),
            "subject": "ab-test-20250120-001",
            "phase": 2,
            "version": 1,
            "unit": unit,
        }
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"


@given(unit=st.text(min_size=1, max_size=50))
def test_the_quick_way_reads_a_query_as_written_or_not_at_all(unit):
    snapshot = RoutingSnapshot.of([HALF])
    try:
        query = f"task=hook&unit={quote(unit, safe='')}".encode()
    except UnicodeEncodeError:
        return
    if "\0" in unit:  # it is refused, by who says why
        assert decision(snapshot, query) is None
        return
    assert decision(snapshot, query) == snapshot.answers[False]["hook"].decide(unit)
    swapped = f"unit={quote(unit, safe='')}&task=hook".encode()
    assert decision(snapshot, swapped) == snapshot.answers[False]["hook"].decide(unit)


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"task=hook",
        b"task=hook&unit=",
        b"task=poem&unit=1",
        b"task=hook&unit=1&unit=2",
        b"task=hook&unit=%ff",
        b"task=hook&unit=a%00",
        b"task=hook&unit=" + b"x" * 501,
        "task=hook&unit=ü".encode(),
    ],
)
def test_the_quick_way_leaves_what_is_not_plain_to_the_route(query):
    snapshot = RoutingSnapshot.of([HALF])
    assert decision(snapshot, query) is None


async def test_bad_questions_are_explained(routed):
    await routed.http.get("/decide", params={"task": "hook", "unit": "1"})
    unknown = await routed.http.get("/decide", params={"task": "poem", "unit": "1"})
    assert unknown.status_code == 404
    assert "hook" in unknown.json()["detail"]
    for params in (
        {"task": "hook"},
        {"task": "hook", "unit": ""},
        {"task": "hook", "unit": "x" * 501},
    ):
        assert (await routed.http.get("/decide", params=params)).status_code == 422
    assert (await routed.http.post("/decide")).status_code == 405


async def test_a_foreign_page_is_refused_also_after_the_owner_was_let_in(routed):
    asked = {"params": {"task": "hook", "unit": "1"}}
    assert (await routed.http.get("/decide", **asked)).status_code == 200
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert (await routed.http.get("/decide", headers=headers, **asked)).status_code == 403
        assert (await routed.http.get("/routing", headers=headers)).status_code == 403
    wrong = {"Authorization": "Bearer nobody"}
    assert (await routed.http.get("/decide", headers=wrong, **asked)).status_code == 401


async def test_decisions_follow_a_change_at_once(routed):
    asked = {"params": {"task": "hook", "unit": "1"}}
    for share, arm in ((0.0, "baseline"), (1.0, "candidate"), (0.0, "baseline")):
        await routed.app.store.routing.set(at_share(share))
        await routed.app.routing.board.refresh()
        assert (await routed.http.get("/decide", **asked)).json()["arm"] == arm


async def test_a_change_by_another_worker_is_seen_and_told(routed):
    first = (await routed.http.get("/routing")).json()
    with routed.app.live.listen() as events:
        await routed.app.store.routing.set(at_share(0.25, task="body"))
        await routed.app.store.routing.set(at_share(1.0))
        async with asyncio.timeout(20):
            seen = [await events.get(), await events.get()]
    assert {(e.kind, e.id) for e in seen} == {("routing", "body"), ("routing", "hook")}
    table = (await routed.http.get("/routing")).json()
    assert [(r["task"], r["share"]) for r in table["routing"]] == [("body", 0.25), ("hook", 1.0)]
    assert table["version"] == first["version"] + 2


async def test_the_table_s_version_grows_with_each_write_of_any_task(routed):
    versions = []
    for task in ("hook", "hook", "body", "body", "hook"):
        await routed.app.store.routing.set(replace(HALF, task=task))
        await routed.app.routing.board.refresh()
        answer = await routed.http.get("/routing")
        versions.append(answer.json()["version"])
        again = await routed.http.get("/routing", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert versions == [2, 3, 4, 5, 6]
    assert versions[-1] == await routed.app.store.routing.version()


async def test_a_revoked_token_is_refused_after_a_moment(settings):
    locked = replace(settings, server=replace(settings.server, require_token=True))
    async with (
        App.open(locked, provider=MemoryProvider()) as app,
        serving(app, locked) as (address, _),
        httpx2.AsyncClient(base_url=address, trust_env=False) as http,
    ):
        await app.store.routing.set(HALF)
        await app.routing.board.refresh()
        token = await app.store.tokens.create("reader", ["read"])
        http.headers["Authorization"] = f"Bearer {token}"
        asked = {"params": {"task": "hook", "unit": "1"}}
        assert (await http.get("/decide", **asked)).status_code == 200
        assert (await http.get("/decide", **asked)).status_code == 200
        await app.store.tokens.revoke("reader")

        async def refused() -> int | None:
            status = (await http.get("/decide", **asked)).status_code
            return None if status == 200 else status

        assert await eventually(refused, 2 * TRUST_S + 10) == 401
        del http.headers["Authorization"]
        assert (await http.get("/routing")).status_code == 401
