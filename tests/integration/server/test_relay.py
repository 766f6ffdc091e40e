"""The gateway is true to the wire: what a provider or a caller may send, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.integration.server.conftest import Service, open_service
from tests.integration.server.test_gateway import ask, exposures, units
from tests.raw_provider import DONE, RawProvider, chunk, raw_provider, whole
from tests.waiting import eventually

from tuneproof.experiments import Arm
from tuneproof.settings import Settings, Url

CHAT = "/v1/chat/completions"


@pytest.fixture
async def provider() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
async def service(settings: Settings, provider: RawProvider) -> AsyncIterator[Service]:
    default = replace(
        settings.providers["default"], base_url=Url(provider.url), timeout_seconds=2.0
    )
    hook = replace(settings.tasks["hook"], aliases=("gpt-4.1-nano",))
    used = replace(
        settings,
        providers={**settings.providers, "default": default},
        tasks={**settings.tasks, "hook": hook},
    )
    async with open_service(used) as opened:
        yield opened


@pytest.fixture
async def candidates(service: Service, test_id: str) -> str:
    """A unit that the candidate serves."""
    return (await units(service))[Arm.CANDIDATE]


@pytest.fixture
async def baselines(service: Service, test_id: str) -> str:
    """A unit that the baseline serves."""
    return (await units(service))[Arm.BASELINE]


def told(text: bytes) -> list[bytes]:
    """The events of a stream, without the id that is the gateway's own."""
    return [event for event in text.split(b"\n\n") if event]


async def streamed(service: Service, unit: str, **more: Any) -> httpx2.Response:
    return await service.post(CHAT, ask(unit, stream=True, **more))


# --- what a provider may send ---------------------------------------------------------


async def test_only_line_ends_end_lines(service, provider, baselines):
    """Seen: U+2028, U+2029 or U+0085 inside a chunk broke the stream off."""
    text = "a\u2028b\u2029c\u0085d"
    provider.stream("base", [chunk(text), chunk(finish="stop"), DONE])
    answer = await streamed(service, baselines)
    first = json.loads(told(answer.content)[0].removeprefix(b"data: "))
    assert first["choices"][0]["delta"]["content"] == text
    assert answer.content.endswith(DONE)
    assert (await exposures(service, (await tests(service))[0]))[0]["error"] is False


async def tests(service: Service) -> list[str]:
    table = (await service.http.get("/routing")).json()["routing"]
    return [row["subject"] for row in table if row["subject"]]


async def test_heartbeats_and_other_legal_lines_pass(service, provider, baselines):
    body = json.loads(chunk("ok").removeprefix(b"data: "))
    lines = json.dumps(body, indent=1).encode().split(b"\n")
    several = b"event: message\r\n" + b"".join(b"data: " + line + b"\r\n" for line in lines)
    pieces = [b": waking up\n\n", b"data:\n\n", several + b"\r\n", chunk(finish="stop"), DONE]
    provider.stream("base", pieces)
    answer = await streamed(service, baselines)
    assert answer.content.startswith(b": waking up\n\ndata:\n\nevent: message\r\ndata: {\r\n")
    assert answer.content.endswith(DONE)
    assert answer.content.count(answer.headers["x-tuneproof-response"].encode()) == 2


async def test_a_stream_is_the_providers_own_but_for_its_id(service, provider, baselines):
    pieces = [chunk("größe", fingerprint={"x": 1.0e5}), chunk("z", finish="stop"), DONE]
    provider.stream("base", [b"".join(pieces)])
    answer = await streamed(service, baselines)
    ours = answer.headers["x-tuneproof-response"].encode()
    assert answer.content == b"".join(pieces).replace(b"chatcmpl-1", ours)


BAD_WHOLE = {
    "an error in a 200": whole(b'{"error": {"message": "overloaded", "code": 529}}'),
    "HTML": b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
    "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no choices": whole(b'{"id": "x", "choices": []}'),
    "a list": whole(b"[]"),
    "NaN": whole(b'{"id": "x", "choices": [{"index": NaN}]}'),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "302": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "half": whole(b"{" * 100)[:-50],
    "no HTTP": b"hello\r\n\r\n",
}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_answer_is_the_providers_failure(
    service, provider, candidates, test_id, stream
):
    """Seen: 200 with an error object, HTML or nothing counted as success with 0 tokens; a streamed
    call answered with 204, 302, HTML or JSON gave the user 200 and an empty stream."""
    breaker = service.app.providers.breakers["chat:default:cand"]
    for name, bad in BAD_WHOLE.items():
        breaker.reset()
        provider.say("cand", bad)
        answered = await service.post(CHAT, ask(candidates, stream=stream))
        assert answered.status_code == 200, (name, answered.text)
        assert answered.headers["x-tuneproof-fallback"] == "true", name
        assert b"ok" in answered.content, name
        assert provider.bodies[-2]["model"] == "cand", name
    events = await exposures(service, test_id, len(BAD_WHOLE))
    assert {(event["arm"], event["error"]) for event in events} == {("candidate", True)}


async def test_where_nobody_answers_the_caller_learns_it(service, provider, baselines, test_id):
    provider.say("base", BAD_WHOLE["an error in a 200"])
    answer = await service.post(CHAT, ask(baselines))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "provider_unavailable"
    assert "overloaded" in answer.json()["error"]["message"]
    [event] = await exposures(service, test_id)
    assert (event["arm"], event["error"]) == ("baseline", True)


@pytest.mark.parametrize("stream", [False, True])
async def test_whole_json_to_a_streamed_call_is_a_failure(service, provider, candidates, stream):
    provider.say("cand", whole(b'{"id": "x", "choices": [{"index": 0}]}'))
    answer = await service.post(CHAT, ask(candidates, stream=stream))
    assert answer.headers.get("x-tuneproof-fallback") == ("true" if stream else None)


async def test_a_stream_without_an_end_gets_none_made_up(service, provider, candidates, test_id):
    """Seen: it got a `[DONE]` of ours, and "ok" in the books."""
    provider.stream("cand", [chunk("one "), chunk("two")])
    answer = await streamed(service, candidates)
    assert b"[DONE]" not in answer.content
    *_, last = told(answer.content)
    assert b"before the answer was whole" in last
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
    [event] = await exposures(service, test_id)
    assert event["error"] is True


async def test_what_breaks_off_behind_the_end_is_no_failure(service, provider, baselines, test_id):
    """Seen: an answer that was whole got an error behind it, and OpenAI's client raised."""
    pieces = chunk("one ") + chunk(finish="stop")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99999\r\n\r\n"
    provider.say("base", head + pieces)
    answer = await streamed(service, baselines)
    assert b"error" not in answer.content
    assert len(told(answer.content)) == 2
    [event] = await exposures(service, test_id)
    assert event["error"] is False


async def test_an_event_that_breaks_off_does_not_swallow_the_error(service, provider, baselines):
    """Seen: `<html>data: {"error": ...}`, which is an unknown field to whoever reads it."""
    provider.stream("base", [chunk("one "), b"<html>"])
    answer = await streamed(service, baselines)
    *_, broken, last = told(answer.content)
    assert broken == b"<html>"
    assert b"before the answer was whole" in last
    assert last.startswith(b"data: ")


async def test_an_end_without_done_is_passed_on_as_it_is(service, provider, baselines, test_id):
    provider.stream("base", [chunk("one "), chunk(finish="length")])
    answer = await streamed(service, baselines)
    assert b"[DONE]" not in answer.content
    assert b"error" not in answer.content
    [event] = await exposures(service, test_id)
    assert event["error"] is False


async def test_done_is_the_end_also_where_the_provider_stays(service, provider, baselines):
    provider.stall("base", [chunk("one ", finish="stop"), DONE])
    answer = await streamed(service, baselines)
    assert answer.content.endswith(DONE)
    assert (await exposures(service, (await tests(service))[0]))[0]["error"] is False


async def test_half_a_surrogate_pair_and_a_huge_number_pass(service, provider, baselines):
    odd = rb'{"id": "chatcmpl-1", "choices": [{"message": {"content": "\ud83d"}}], "x": 1e400}'
    provider.say("base", whole(odd))
    answer = await service.post(CHAT, ask(baselines))
    assert answer.status_code == 200
    ours = answer.headers["x-tuneproof-response"].encode()
    assert answer.content == odd.replace(b"chatcmpl-1", ours)


async def test_a_rate_limit_stays_one_and_closes_nothing(service, provider, baselines, test_id):
    """Seen: three of them with `Retry-After: 1` closed the task for 120 s."""
    error = b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'
    limited = whole(error, status="429 Too Many Requests", headers=b"Retry-After: 1\r\n")
    provider.say("base", limited)
    for _ in range(5):
        answer = await service.post(CHAT, ask(baselines))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.content == error
    provider.well("base")
    assert (await service.post(CHAT, ask(baselines))).status_code == 200
    events = await exposures(service, test_id, 6)
    assert [event["error"] for event in events].count(True) == 5


@pytest.mark.parametrize("said", [b"<html>\n <b>Slow</b>", b"", b"[]", b'"slow"', b"\xff"])
async def test_a_refusal_that_is_no_json_is_said_in_json(service, provider, baselines, said):
    """Seen: a proxy's HTML came as `application/json`, at which OpenAI's clients stumble."""
    headers = b"Retry-After: 7\r\nX-RateLimit-Remaining-Requests: 0\r\n"
    for status in (b"429 Slow", b"422 Odd"):
        head = b"HTTP/1.1 %s\r\nContent-Type: text/html\r\n%s" % (status, headers)
        provider.say("base", head + b"Content-Length: %d\r\n\r\n" % len(said) + said)
        answer = await service.post(CHAT, ask(baselines))
        assert answer.status_code == int(status[:3])
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == ("rate_limit_exceeded" if status[:3] == b"429" else None)
        assert ("Slow" in error["message"]) is (b"Slow" in said)


async def test_where_a_provider_is_stays_in_the_log(service, provider, baselines, caplog):
    """Seen: applications were told the addresses of machines behind the gateway."""
    provider.say("base", b"")
    answer = await service.post(CHAT, ask(baselines))
    assert answer.status_code == 503
    assert "did not answer" in answer.json()["error"]["message"]
    address = provider.url.removeprefix("http://").removesuffix("/v1")
    assert address not in answer.text
    assert any(address in message for message in caplog.messages)


async def test_a_limited_candidate_is_waited_for_as_told(service, provider, candidates, test_id):
    provider.say("cand", whole(b"{}", status="429 Too Many", headers=b"Retry-After: 60\r\n"))
    for _ in range(4):
        answer = await service.post(CHAT, ask(candidates))
        assert (answer.status_code, answer.headers["x-tuneproof-model"]) == (200, "base")
    assert [body["model"] for body in provider.bodies].count("cand") == 1
    breakers = (await service.http.get("/health")).json()["components"]
    assert breakers["chat:default:cand_circuit_breaker"] == "CLOSED"
    events = await exposures(service, test_id, 4)
    assert all(event["error"] and event["arm"] == "candidate" for event in events)


async def test_a_provider_that_is_back_is_used_at_once(service, provider, baselines):
    """Seen: three failed calls closed the task for 120 s, after the provider had recovered."""
    provider.say("base", whole(b"{}", status="500 Oops"))
    for _ in range(5):
        assert (await service.post(CHAT, ask(baselines))).status_code == 503
    provider.well("base")
    assert (await service.post(CHAT, ask(baselines))).status_code == 200
    breakers = (await service.http.get("/health")).json()["components"]
    assert breakers["chat:default:base_circuit_breaker"] == "CLOSED"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_candidate_alone_refuses_the_baseline_answers(
    service, provider, candidates, test_id, stream
):
    provider.say("cand", whole(b'{"error": {"message": "no tools"}}', status="400 Bad Request"))
    answer = await service.post(CHAT, ask(candidates, stream=stream))
    assert (answer.status_code, answer.headers["x-tuneproof-model"]) == (200, "base")
    [event] = await exposures(service, test_id)
    assert (event["arm"], event["error"]) == ("candidate", True)


async def test_a_provider_without_usage_in_streams_is_learnt_once(service, provider, baselines):
    def strict(body: dict[str, Any]) -> bytes:
        if "stream_options" in body:
            error = b'{"error": {"message": "unknown field stream_options"}}'
            return whole(error, status="400 Bad Request")
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        return head + chunk("ok") + chunk(finish="stop") + DONE

    provider.say("base", strict)
    for _ in range(3):
        answer = await streamed(service, baselines)
        assert answer.content.endswith(DONE)
    assert ["stream_options" in body for body in provider.bodies] == [True, False, False, False]
    asked = await streamed(service, baselines, stream_options={"include_usage": True})
    assert asked.status_code == 400


# --- time-outs and readers who leave --------------------------------------------------


@pytest.mark.parametrize("pieces", [None, [b": still there\n\n"]])
async def test_a_candidate_that_stalls_is_replaced(service, provider, candidates, test_id, pieces):
    provider.stall("cand", pieces)
    answer = await streamed(service, candidates)
    assert answer.headers["x-tuneproof-fallback"] == "true"
    assert answer.content.endswith(DONE)
    await eventually(lambda: provider.open == 0)
    [event] = await exposures(service, test_id)
    assert event["error"] is True


async def test_one_request_at_a_time_waits_for_a_candidate_that_hangs(
    service, provider, candidates, test_id
):
    provider.stall("cand")
    for _ in range(3):  # each of them waits: then the breaker is open
        assert (await streamed(service, candidates)).headers["x-tuneproof-fallback"] == "true"
    before = len(provider.bodies)
    answers = await asyncio.gather(*(streamed(service, candidates) for _ in range(6)))
    assert {answer.headers["x-tuneproof-fallback"] for answer in answers} == {"true"}
    asked = [body["model"] for body in provider.bodies[before:]]
    assert (asked.count("cand"), asked.count("base")) == (1, 6)


async def test_a_stream_that_stalls_is_told_to_its_reader(service, provider, candidates, test_id):
    provider.stall("cand", [chunk("one ")])
    answer = await streamed(service, candidates)
    assert b"did not answer" in told(answer.content)[-1]
    await eventually(lambda: provider.open == 0)
    [event] = await exposures(service, test_id)
    assert event["error"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_leaves_one_exposure_and_no_call(settings, provider, stream) -> None:
    default = replace(
        settings.providers["default"], base_url=Url(provider.url), timeout_seconds=600.0
    )
    patient = replace(settings, providers={**settings.providers, "default": default})
    provider.stall("base", [chunk("one ")] if stream else None)
    async with open_service(patient) as service:
        body = {
            "baseline_model": {"model_id": "base"},
            "candidate_model": {"model_id": "cand"},
            "traffic_split": 0.5,
        }
        test_id = (await service.post("/evaluation/create-ab-test", body)).json()["ab_test_id"]
        unit = (await units(service))[Arm.BASELINE]
        with pytest.raises(httpx2.ReadTimeout):
            await service.http.post(CHAT, json=ask(unit, stream=stream), timeout=0.5)
        await eventually(lambda: provider.open == 0)
        [event] = await exposures(service, test_id)
        assert (event["unit"], event["error"]) == (unit, False)
        # What was written until then is known of a stream; of a whole answer nothing is.
        assert (event["tokens"] is None, event["cost_usd"] is None) == (not stream, not stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_after_the_candidate_failed_hides_no_failure(
    service, provider, candidates, test_id, stream
):
    """Seen: whoever left while the baseline was asked in its place counted as served well by the
    candidate: the longer it had stalled, the likelier."""
    provider.say("cand", whole(b"{}", status="503 Service Unavailable"))
    provider.stall("base")
    with pytest.raises(httpx2.ReadTimeout):
        await service.http.post(CHAT, json=ask(candidates, stream=stream), timeout=0.8)
    await eventually(lambda: provider.open == 0)
    [event] = await exposures(service, test_id)
    assert (event["arm"], event["error"], event["cost_usd"]) == ("candidate", True, None)


# --- what a caller may send -----------------------------------------------------------


BAD_REQUESTS = (
    b'{"model": "tuneproof/hook", "messages": [], "user": "a\\u0000b"}',
    b'{"model": "tuneproof/hook", "messages": [], "user": "\\ud800"}',
    b'{"model": "tuneproof/hook", "messages": [], "user": "%s"}' % (b"x" * 1_000_000),
    b'{"model": "tuneproof/hook", "messages": [], "user": 5}',
    b'{"model": "tuneproof/hook", "stream": true, "stream_options": 5}',
    b'{"model": "tuneproof/hook", "x": NaN}',
    b"[" * 100_000 + b"]" * 100_000,
)


async def test_one_bad_request_harms_nobody_elses(service, test_id):
    """Seen: one NUL in one caller's `user` dropped the whole batch: 17 of 40 were kept."""
    for number, body in enumerate(BAD_REQUESTS):
        assert (await service.post(CHAT, ask(f"before-{number}"))).status_code == 200
        refused = await service.http.post(CHAT, content=body)
        assert refused.status_code == 400, refused.text[:300]
        assert refused.json()["error"]["type"] == "invalid_request_error"
        assert (await service.post(CHAT, ask(f"behind-{number}"))).status_code == 200
    told = 2 * len(BAD_REQUESTS)
    assert len(await exposures(service, test_id, told)) == told


async def test_a_request_that_is_too_large_is_told_so(service, test_id):
    body = b'{"model": "tuneproof/hook", "x": "%s"}' % (b"x" * 17_000_000)
    refused = await service.http.post(CHAT, content=body)
    assert refused.status_code == 413
    assert refused.json()["error"]["type"] == "invalid_request_error"


UNITS = (
    ({"x-tuneproof-unit": "header"}, {"user": "user"}, "header"),
    ({"x-tuneproof-unit": "größe".encode()}, {"user": "user"}, "gr%C3%B6%C3%9Fe"),
    ({}, {"user": "user", "safety_identifier": "safe"}, "user"),
    ({}, {"safety_identifier": "safe", "metadata": {"unit": "meta"}}, "safe"),
    ({}, {"metadata": {"unit": "meta"}, "prompt_cache_key": "shared"}, "meta"),
)


async def test_where_the_unit_stands(service, test_id):
    for headers, more, unit in UNITS:
        body = {"model": "tuneproof/hook", "messages": [], **more}
        answer = await service.http.post(CHAT, json=body, headers=headers)
        assert answer.headers["x-tuneproof-unit"] == unit


async def test_only_the_address_need_change(service, provider, test_id):
    for model, named in (("gpt-4.1-nano", {}), ("anything", {"x-tuneproof-task": "hook"})):
        body = {"model": model, "messages": [], "user": "u"}
        answer = await service.post(CHAT, body, **named)
        assert answer.status_code == 200
        assert answer.headers["x-tuneproof-task"] == "hook"
        assert provider.bodies[-1]["model"] in ("base", "cand")


async def test_declared_tasks_are_served_before_any_test(settings, provider):
    """Seen: 404 until the first test."""
    default = replace(settings.providers["default"], base_url=Url(provider.url))
    hook = replace(settings.tasks["hook"], model="base")
    used = replace(
        settings,
        providers={**settings.providers, "default": default},
        tasks={**settings.tasks, "hook": hook},
    )
    async with open_service(used) as service:
        models = (await service.http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["tuneproof/hook"]
        answer = await service.post(CHAT, ask("u"))
        assert (answer.status_code, answer.headers["x-tuneproof-model"]) == (200, "base")
        decided = (await service.http.get("/decide?task=hook&unit=u")).json()
        assert (decided["model"], decided["arm"], decided["subject"]) == ("base", "baseline", None)
        other = {"baseline_model": {"model_id": "better"}, "candidate_model": {"model_id": "cand"}}
        refused = await service.post("/evaluation/create-ab-test", {**other, "tasks": ["hook"]})
        assert refused.status_code == 409
        assert "not the model in use of hook, base" in refused.json()["detail"]


async def test_each_answer_carries_its_receipt(service, test_id):
    whole_one = await service.post(CHAT, ask("u"))
    assert whole_one.json()["id"] == whole_one.headers["x-tuneproof-response"]
    streamed_one = await streamed(service, "u")
    receipt = streamed_one.headers["x-tuneproof-response"]
    given = {"response_id": receipt, "value": 0.1}
    assert (await service.post("/v1/feedback", given)).json() == {"accepted": 1, "duplicates": 0}
