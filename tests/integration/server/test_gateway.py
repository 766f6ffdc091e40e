"""The gateway over real HTTP: OpenAI's own client before it, a real provider behind it."""

from __future__ import annotations

from datetime import UTC, datetime

import openai
import pytest
from tests.integration.server.conftest import Service

from tuneproof import assignment
from tuneproof.experiments import Arm, Variant


async def units(service: Service) -> dict[Arm, str]:
    """A unit of each arm."""
    routing = (await service.http.get("/routing")).json()["routing"][0]
    found = {}
    for number in range(1000):
        unit = f"unit-{number}"
        side = assignment.arm(assignment.bucket(routing["salt"], unit), routing["share"])
        found.setdefault(Arm(side), unit)
    return found


def client(service: Service) -> openai.AsyncOpenAI:
    """OpenAI's client, which always sends a key; on loopback any will do."""
    return openai.AsyncOpenAI(base_url=f"{service.address}/v1", api_key="x", max_retries=0)


def ask(unit: str, **more):
    message = {"role": "user", "content": "Our summer sale starts"}
    return {"model": "tuneproof/hook", "messages": [message], "user": unit, **more}


async def exposures(service: Service, test_id: str, count: int = 1):
    return await service.until(f"/events?subject={test_id}", lambda found: len(found) >= count)


async def test_each_unit_is_answered_by_its_arm(service, chat, test_id):
    both = await units(service)
    for arm, unit in both.items():
        answer = await service.post("/v1/chat/completions", ask(unit))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tuneproof-arm"] == arm
        assert answer.headers["x-tuneproof-unit"] == unit
        model = "cand" if arm is Arm.CANDIDATE else "base"
        assert answer.json()["model"] == answer.headers["x-tuneproof-model"] == model
        assert answer.json()["choices"][0]["message"]["content"] == "three small words"
    assert [h["authorization"] for h in chat.headers] == ["Bearer provider-key"] * 2
    found = await exposures(service, test_id, 2)
    by_unit = {e["unit"]: e for e in found}
    base, cand = by_unit[both[Arm.BASELINE]], by_unit[both[Arm.CANDIDATE]]
    assert (base["arm"], cand["arm"]) == ("baseline", "candidate")
    assert base["tokens"] == cand["tokens"] == 10
    assert base["cost_usd"] == pytest.approx((7 * 1 + 3 * 2) / 1e6)
    assert cand["cost_usd"] == pytest.approx((7 * 10 + 3 * 20) / 1e6)
    assert not base["error"]
    assert base["latency_ms"] > 0
    assert base["task"] == "hook"


async def test_openais_client_streams_through_it(service, chat, test_id):
    both = await units(service)
    async with client(service) as ai:
        stream = await ai.chat.completions.create(**ask(both[Arm.CANDIDATE], stream=True))
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == "three small words "
    assert {chunk.model for chunk in chunks} == {"cand"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].id.startswith("tp-")
    event = (await exposures(service, test_id))[0]
    assert (event["arm"], event["tokens"], event["error"]) == ("candidate", 10, False)
    assert chat.bodies[-1]["stream_options"] == {"include_usage": True}


async def test_usage_reaches_who_asked_for_it(service, test_id):
    async with client(service) as ai:
        stream = await ai.chat.completions.create(
            **ask("u", stream=True, stream_options={"include_usage": True})
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.total_tokens == 10
    assert chunks[-1].choices == []


@pytest.mark.parametrize("status", [500, 503, 429, 401, 404])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_candidate_is_replaced_and_blamed(service, chat, test_id, status, stream):
    chat.fail("cand", status=status)
    unit = (await units(service))[Arm.CANDIDATE]
    answer = await service.post("/v1/chat/completions", ask(unit, stream=stream))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tuneproof-model"] == "base"
    assert answer.headers["x-tuneproof-arm"] == "candidate"
    assert answer.headers["x-tuneproof-fallback"] == "true"
    event = (await exposures(service, test_id))[0]
    assert (event["arm"], event["error"], event["tokens"]) == ("candidate", True, 10)


@pytest.mark.parametrize("first", [Arm.BASELINE, Arm.CANDIDATE])
async def test_an_outage_of_their_provider_is_over_for_both_arms(service, chat, test_id, first):
    """Before: the candidate's breaker stayed open for two minutes beside a baseline that answered,
    and ten requests later the test was ended for an outage."""
    both = await units(service)
    for model in ("cand", "base"):
        chat.fail(model, status=500)
    for _ in range(4):
        for unit in both.values():
            answer = await service.post("/v1/chat/completions", ask(unit))
            assert answer.json()["error"]["code"] == "provider_unavailable"
    chat.failing.clear()
    order = [first, *(arm for arm in both if arm is not first)]
    for arm in order:
        answer = await service.post("/v1/chat/completions", ask(both[arm]))
        assert "x-tuneproof-fallback" not in answer.headers
        assert answer.headers["x-tuneproof-model"] == {"baseline": "base", "candidate": "cand"}[arm]


async def test_three_failures_do_not_become_two_minutes_of_them(service, chat, test_id):
    chat.fail("cand", status=500)
    unit = (await units(service))[Arm.CANDIDATE]
    for _ in range(4):
        answer = await service.post("/v1/chat/completions", ask(unit))
        assert answer.headers["x-tuneproof-model"] == "base"
    chat.failing.clear()
    answer = await service.post("/v1/chat/completions", ask(unit))
    assert answer.headers["x-tuneproof-model"] == "cand"


async def test_when_both_fail_the_caller_learns_it_in_openais_shape(service, chat, test_id):
    chat.fail("cand", status=500)
    chat.fail("base", status=500)
    both = await units(service)
    async with client(service) as ai:
        for unit in both.values():
            with pytest.raises(openai.InternalServerError) as caught:
                await ai.chat.completions.create(**ask(unit))
            assert caught.value.body["code"] == "provider_unavailable"
    found = await exposures(service, test_id, 2)
    assert all(event["error"] for event in found)
    # Before: 0 and 0.0, as if to fail made a model cheap.
    assert all((event["tokens"], event["cost_usd"]) == (None, None) for event in found)


async def test_the_requests_own_fault_goes_back_and_blames_nobody(service, chat, test_id):
    chat.fail("cand", status=400)
    chat.fail("base", status=400)
    for unit in (await units(service)).values():
        answer = await service.post("/v1/chat/completions", ask(unit))
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "told to fail"
    assert (await service.http.get(f"/events?subject={test_id}")).json() == []


async def test_a_stream_that_breaks_off_counts_as_an_error(service, chat, test_id):
    chat.cut("cand")
    unit = (await units(service))[Arm.CANDIDATE]
    answer = await service.post("/v1/chat/completions", ask(unit, stream=True))
    lines = [line for line in answer.text.splitlines() if line]
    assert "three" in lines[0]
    assert "error" in lines[-1]
    event = (await exposures(service, test_id))[0]
    assert (event["arm"], event["error"]) == ("candidate", True)


async def test_feedback_by_response_id_becomes_the_units_outcome(service, test_id):
    unit = "größe-漢字"
    answered = (await service.post("/v1/chat/completions", ask(unit))).json()
    naive = f"{service.app.clock.now():%Y-%m-%dT%H:%M:%S}"
    body = {"response_id": answered["id"], "value": 0.08, "at": naive}
    first = await service.post("/v1/feedback", body)
    again = await service.post("/v1/feedback", body)
    assert first.json() == {"accepted": 1, "duplicates": 0}
    assert again.json() == {"accepted": 0, "duplicates": 1}
    old = (await service.post("/v1/feedback", {**body, "at": "2001-01-01T00:00:00Z"})).json()
    assert old["accepted"] == 0
    assert "at is 2001-01-01T00:00:00+00:00, before ab-test-" in old["reason"]
    wrong = await service.post("/v1/feedback", {"response_id": "chatcmpl-1", "value": 1})
    assert wrong.status_code == 404
    assert wrong.json()["error"]["type"] == "invalid_request_error"


async def test_feedback_sent_again_without_a_time_or_an_id_counts_once(service, test_id):
    answered = (await service.post("/v1/chat/completions", ask("unit-1"))).json()
    body = {"response_id": answered["id"], "value": 0.08}
    sent = [(await service.post("/v1/feedback", body)).json() for _ in range(2)]
    assert sent == [{"accepted": 1, "duplicates": 0}, {"accepted": 0, "duplicates": 1}]
    changes = [{"value": 0.09}, {"at": service.app.clock.now().isoformat()}, {"id": "mine"}]
    for change in changes:
        taken = (await service.post("/v1/feedback", {**body, **change})).json()
        assert taken == {"accepted": 1, "duplicates": 0}


async def test_a_value_that_is_no_share_is_taken_and_warned_of_once(service, test_id, caplog):
    answered = (await service.post("/v1/chat/completions", ask("unit-1"))).json()
    for value in (7.1, 8.2, 0.5):
        body = {"response_id": answered["id"], "value": value}
        assert (await service.post("/v1/feedback", body)).json()["accepted"] == 1
    outcome = {
        "id": "o",
        "subject": test_id,
        "unit": "u",
        "at": service.app.clock.now().isoformat(),
    }
    await service.post("/events", {"outcomes": [{**outcome, "value": -1}]})
    warned = [r.getMessage() for r in caplog.records if "is a share" in r.getMessage()]
    assert len(warned) == 1
    assert "7.1" in warned[0]
    assert test_id in warned[0]


async def test_a_header_names_the_unit_before_the_body_does(service, test_id):
    answer = await service.post(
        "/v1/chat/completions", ask("by-body"), **{"x-tuneproof-unit": "by-header"}
    )
    assert answer.headers["x-tuneproof-unit"] == "by-header"
    body = ask("x")
    del body["user"]
    given = {(await service.post("/v1/chat/completions", body)).headers["x-tuneproof-unit"]}
    given |= {(await service.post("/v1/chat/completions", body)).headers["x-tuneproof-unit"]}
    assert len(given) == 2


async def test_models_are_the_tasks(service, test_id):
    async with client(service) as ai:
        assert [m.id async for m in ai.models.list()] == ["tuneproof/body", "tuneproof/hook"]
        assert (await ai.models.retrieve("tuneproof/hook")).owned_by == "tuneproof"
        with pytest.raises(openai.NotFoundError):
            await ai.models.retrieve("tuneproof/nothing")
        with pytest.raises(openai.NotFoundError) as caught:
            await ai.chat.completions.create(**{**ask("u"), "model": "gpt-4o"})
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages": []}', b'{"model": 3}'])
async def test_malformed_chat_requests_are_refused(service, test_id, body):
    answer = await service.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_without_a_test_the_baseline_answers_and_no_test_hears_of_it(service, chat, test_id):
    await service.post(f"/evaluation/end/{test_id}", {"reason": "enough"})
    routing = (await service.http.get("/routing")).json()["routing"]
    assert [r["candidate"] for r in routing] == [None, None]
    answer = await service.post("/v1/chat/completions", ask("u"))
    assert answer.headers["x-tuneproof-model"] == "base"
    assert "x-tuneproof-subject" not in answer.headers
    told = await service.post("/v1/feedback", {"response_id": answer.json()["id"], "value": 1})
    assert told.json()["accepted"] == 1
    assert await exposures(service, test_id, 0) == []
    metrics = (await service.http.get(f"/evaluation/metrics/{test_id}")).json()
    assert [arm["sample_size"] for arm in metrics["metrics"].values()] == [0, 0]


def test_a_ticket_survives_its_id():
    from tuneproof.server.tickets import Ticket

    ticket = Ticket(exposure="e", task="hook", subject=None, unit="größe 🙂")
    assert Ticket.decode(ticket.encode()) == ticket


def test_a_decision_is_the_one_that_assignment_makes():
    from tuneproof.rollout import Lane, Routing
    from tuneproof.server.gateway import decide

    routing = Routing(
        task="hook",
        baseline=Variant(model_id="b"),
        lanes=(Lane(subject="ab-test-1", candidate=Variant(model_id="c"), share=0.3),),
        salt="s",
    )
    for number in range(500):
        unit = f"u{number}"
        side = assignment.arm(assignment.bucket("s", unit), 0.3)
        assert decide(routing, unit, datetime.now(UTC), None).arm == side
