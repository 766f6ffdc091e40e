"""Two people at the same moment: the second is told what the first did, and undoes none of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.integration.server.conftest import Service
from tests.waiting import eventually

from tuneproof.experiments import Variant

MODELS = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}


@pytest.fixture
async def rollout(on_either: Service) -> str:
    """A rollout that has begun: 10 % get the candidate."""
    app = on_either.app
    manager = app.managers.of(replace(app.pipelines.get("default"), tasks=("hook",)))
    declared = await manager.declare(Variant(model_id="cand"), Variant(model_id="base"))
    begun = await manager.begin(declared.id)
    await app.routing.board.refresh()
    return begun.id


class People:
    """Ann and Bob, each with a token of their own."""

    def __init__(self, service: Service, tokens: dict[str, str]) -> None:
        self._http = service.http
        self._tokens = tokens

    async def post(self, who: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["authorization"] = f"Bearer {self._tokens[who]}"
        said = {"reason": f"{who} says so"} if body is None else body
        return await self._http.post(path, json=said, headers=named)


@pytest.fixture
async def people(on_either: Service) -> People:
    tokens = on_either.app.tokens
    return People(
        on_either, {who: await tokens.create(who, scopes=["write"]) for who in ("ann", "bob")}
    )


async def state(service: Service, id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await service.http.get(f"/deployment/status/{id}")).json()
    return found


async def version_of(service: Service, id: str) -> str:
    """What both have on their screens: without it, who comes a moment later sees the newer one."""
    etag: str = (await service.http.get(f"/deployment/status/{id}")).headers["etag"]
    return etag


def told_what_changed(refused: httpx2.Response, first: str, kind: str) -> None:
    """Who was refused learns who did what, when and why."""
    assert refused.status_code == 409, refused.text
    said = refused.json()
    changed = said["details"]["changed"]
    assert (changed["who"], changed["kind"]) == (f"rest:{first}", kind)
    assert changed["reason"] == f"{first} says so"
    assert changed["at"]
    assert f"rest:{first} did {kind} at " in said["detail"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("advance", "pause"), ("pause", "advance"), ("advance", "advance"), ("pause", "pause")],
)
async def test_of_two_who_act_at_once_the_second_is_told_what_the_first_did(
    on_either: Service, people: People, rollout: str, first: str, second: str
) -> None:
    """Seen: both took effect, one after the other; two who pressed `advance` took two steps."""
    seen = await version_of(on_either, rollout)
    answers = await asyncio.gather(
        people.post("ann", f"/deployment/{first}/{rollout}", If_Match=seen),
        people.post("bob", f"/deployment/{second}/{rollout}", If_Match=seen),
    )
    assert sorted(a.status_code for a in answers) == [200, 409], [a.text for a in answers]
    won = 0 if answers[0].status_code == 200 else 1
    told_what_changed(answers[1 - won], ("ann", "bob")[won], (first, second)[won])
    after = await state(on_either, rollout)
    assert after["version"] == 2
    assert after["state"] == ("paused" if (first, second)[won] == "pause" else "stepping")


async def test_of_resume_and_advance_at_once_one_is_done(
    on_either: Service, people: People, rollout: str
) -> None:
    await people.post("ann", f"/deployment/pause/{rollout}")
    seen = await version_of(on_either, rollout)
    answers = await asyncio.gather(
        people.post("ann", f"/deployment/resume/{rollout}", If_Match=seen),
        people.post("bob", f"/deployment/advance/{rollout}", If_Match=seen),
    )
    assert sorted(a.status_code for a in answers) == [200, 409], [a.text for a in answers]


async def test_what_was_seen_before_another_acted_is_not_acted_on(
    on_either: Service, people: People, rollout: str
) -> None:
    """Seen: the 409 named the version and the state, and neither who nor when."""
    seen = await version_of(on_either, rollout)
    assert (await people.post("ann", f"/deployment/pause/{rollout}")).status_code == 200
    for verb in ("resume", "advance", "rollback"):
        late = await people.post("bob", f"/deployment/{verb}/{rollout}", If_Match=seen)
        told_what_changed(late, "ann", "pause")
    assert (await state(on_either, rollout))["state"] == "paused"
    again = await people.post("bob", f"/deployment/pause/{rollout}")
    told_what_changed(again, "ann", "pause")


async def test_a_rollback_is_done_whoever_advances_at_that_moment_and_says_so(
    on_either: Service, people: People, rollout: str
) -> None:
    """The way back is never refused: in either order all traffic is with the old model.

    On a busy machine it was seen that the one was done before the other had begun.
    """
    advanced, back = await asyncio.gather(
        people.post("ann", f"/deployment/advance/{rollout}"),
        people.post("bob", f"/deployment/rollback/{rollout}"),
    )
    assert back.status_code == 200, back.text
    if advanced.status_code == 200:
        overtook = back.json()["overtook"]  # nothing, where it was done before Bob's was begun
        assert overtook == "" or overtook.startswith("rest:ann did advance at ")
    else:
        told_what_changed(advanced, "bob", "rollback")
        assert back.json()["overtook"] == ""
    after = await state(on_either, rollout)
    assert (after["state"], after["current_traffic"]) == ("rolled_back", 0.0)
    late = await people.post("ann", f"/deployment/advance/{rollout}")
    told_what_changed(late, "bob", "rollback")
    repeated = await people.post("ann", f"/deployment/rollback/{rollout}")
    assert (repeated.status_code, repeated.json()["overtook"]) == (200, "")


async def test_of_many_who_press_anything_at_once_one_moves_it_and_nothing_fails(
    on_either: Service, people: People, rollout: str
) -> None:
    verbs = ["advance", "pause", "resume", "advance", "pause", "resume"]
    answers = await asyncio.gather(
        *(people.post("ann", f"/deployment/{verb}/{rollout}") for verb in verbs)
    )
    assert {a.status_code for a in answers} <= {200, 409}
    done = [a for a in answers if a.status_code == 200]
    assert done
    assert (await state(on_either, rollout))["version"] == 1 + len(done)
    for refused in (a for a in answers if a.status_code == 409):
        changed = refused.json()["details"]["changed"]
        # A `resume` that comes first of all finds what the system began, and nothing paused.
        assert (changed["who"], changed["kind"]) != ("system", "pause")
        assert changed["who"] in ("rest:ann", "system")


async def test_who_ends_a_test_that_another_has_ended_is_told_who_it_was(
    on_either: Service, people: People
) -> None:
    """Seen: "Experiment ... is aborted already", without who, when or why."""
    made = (await on_either.post("/evaluation/create-ab-test", MODELS)).json()["ab_test_id"]
    answers = await asyncio.gather(
        people.post("ann", f"/evaluation/end/{made}"),
        people.post("bob", f"/evaluation/end/{made}"),
    )
    assert sorted(a.status_code for a in answers) == [200, 409], [a.text for a in answers]
    won = 0 if answers[0].status_code == 200 else 1
    refused = answers[1 - won].json()
    assert refused["details"]["changed"]["who"] == ("rest:ann", "rest:bob")[won]
    assert refused["details"]["changed"]["kind"] == "end"


async def test_of_stop_and_promote_at_once_the_test_is_stopped_and_nothing_is_rolled_out(
    on_either: Service, people: People
) -> None:
    made = (await on_either.post("/evaluation/create-ab-test", MODELS)).json()["ab_test_id"]
    asked = {"model_version": "cand", "evaluation_result": {"ab_test_id": made}}
    stopped, promoted = await asyncio.gather(
        people.post("ann", f"/evaluation/end/{made}"),
        on_either.post("/deployment/deploy", asked),
    )
    assert stopped.status_code == 200, stopped.text
    assert promoted.status_code == 409, promoted.text
    [routing, *_] = (await on_either.http.get("/routing")).json()["routing"]
    assert routing["candidate"] is None


async def test_of_two_who_retry_a_run_at_once_one_takes_it_up(
    on_either: Service, people: People
) -> None:
    """Seen: both could pass the check of its state, and the run was rewound twice."""
    started = await on_either.post("/fine-tuning/start", {"force_run": True})
    run = started.json()["pipeline_id"]
    aborted = await on_either.post(f"/fine-tuning/abort/{run}")
    assert aborted.status_code == 200, aborted.text
    await eventually(lambda: on_either.app.engine.returned(run), 60)
    answers = await asyncio.gather(
        people.post("ann", f"/fine-tuning/retry/{run}", {}),
        people.post("bob", f"/fine-tuning/retry/{run}", {}),
    )
    assert sorted(a.status_code for a in answers) == [200, 409], [a.text for a in answers]
    won = 0 if answers[0].status_code == 200 else 1
    changed = answers[1 - won].json()["details"]["changed"]
    assert (changed["who"], changed["kind"]) == (("rest:ann", "rest:bob")[won], "run retry")
