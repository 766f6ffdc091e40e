"""Tasks over `/v1/responses` and `/v1/messages`: as strict and as well recorded as chat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from tests.integration.server.conftest import Service, open_service
from tests.integration.server.test_gateway import client, exposures, units
from tests.raw_provider import (
    MESSAGE,
    MESSAGE_EVENTS,
    RESPONSE,
    RESPONSE_EVENTS,
    RawProvider,
    event,
    raw_provider,
    whole,
)
from tests.waiting import eventually

from tuneproof.experiments import Arm
from tuneproof.settings import Secret, Settings, Url

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
PATHS = (RESPONSES, MESSAGES)
EVENTS = {RESPONSES: RESPONSE_EVENTS, MESSAGES: MESSAGE_EVENTS}
IDS = {RESPONSES: b'"resp_1"', MESSAGES: b'"msg_1"'}
"""The id of the answer; a response has parts with ids, too, which stay."""


@pytest.fixture
async def provider() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
async def service(settings: Settings, provider: RawProvider) -> AsyncIterator[Service]:
    async with open_service(at(settings, provider)) as opened:
        yield opened


def at(settings: Settings, provider: RawProvider, **more: Any) -> Settings:
    """The settings with this provider."""
    default = replace(
        settings.providers["default"], base_url=Url(provider.url), timeout_seconds=2.0, **more
    )
    hook = replace(settings.tasks["hook"], aliases=("gpt-4.1-nano",))
    return replace(
        settings,
        providers={**settings.providers, "default": default},
        tasks={**settings.tasks, "hook": hook},
    )


@pytest.fixture
async def candidates(service: Service, test_id: str) -> str:
    """A unit that the candidate serves."""
    return (await units(service))[Arm.CANDIDATE]


@pytest.fixture
async def baselines(service: Service, test_id: str) -> str:
    """A unit that the baseline serves."""
    return (await units(service))[Arm.BASELINE]


def ask(path: str, unit: str, **more: Any) -> dict[str, Any]:
    """A request for the task `hook` by a unit."""
    said = "Our summer sale starts"
    if path == RESPONSES:
        return {"model": "tuneproof/hook", "input": said, "user": unit, **more}
    message = {"role": "user", "content": said}
    return {
        "model": "tuneproof/hook",
        "messages": [message],
        "max_tokens": 100,
        "metadata": {"user_id": unit},
        **more,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_each_wire_is_served_by_the_arm_and_recorded(
    service, provider, candidates, baselines, test_id, path, stream
):
    for unit, model in ((candidates, "cand"), (baselines, "base")):
        answer = await service.post(path, ask(path, unit, stream=stream))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tuneproof-model"] == model
        assert (provider.seen[-1].path, provider.bodies[-1]["model"]) == (path, model)
        receipt = answer.headers["x-tuneproof-response"].encode()
        sent = b"".join(EVENTS[path]) if stream else json.dumps(WHOLE[path]).encode()
        parts = b'"item_id": "msg_1"', b'"id": "msg_1"' if path == RESPONSES else b""
        assert all(part in answer.content for part in parts if part in sent)
        ours = sent.replace(b'"id": ' + IDS[path], b'"id": "' + receipt + b'"')
        assert answer.content == ours
    for found in await exposures(service, test_id, 2):
        assert (found["error"], found["tokens"]) == (False, 10), found
        price = 1 if found["arm"] == "baseline" else 10
        assert found["cost_usd"] == pytest.approx((7 * price + 3 * 2 * price) / 1e6)
        assert found["latency_ms"] > 0
    given = {"response_id": receipt.decode(), "value": 0.1}
    assert (await service.post("/v1/feedback", given)).json()["accepted"] == 1


WHOLE = {RESPONSES: RESPONSE, MESSAGES: MESSAGE}


def changed(path: str, **changes: Any) -> bytes:
    return whole(json.dumps({**WHOLE[path], **changes}).encode())


NO_ANSWERS = {
    RESPONSES: {
        "failed": changed(RESPONSES, status="failed", error={"message": "oops"}),
        "an error": changed(RESPONSES, error={"message": "oops"}),
        "under way": changed(RESPONSES, status="in_progress"),
        "cancelled": changed(RESPONSES, status="cancelled"),
        "no output": changed(RESPONSES, output=[]),
        "a chat": whole(b'{"id": "x", "choices": [{"message": {"content": "ok"}}]}'),
    },
    MESSAGES: {
        "an error": whole(b'{"type": "error", "error": {"message": "overloaded"}}'),
        "no content": changed(MESSAGES, content=None),
        "nothing said": changed(MESSAGES, content=[], stop_reason=None),
        "a chat": whole(b'{"id": "x", "choices": [{"message": {"content": "ok"}}]}'),
    },
}
EVERYWHERE = {
    "HTML": b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
    "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a list": whole(b"[]"),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "529": whole(b'{"type": "error"}', status="529 Overloaded"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_what_is_no_answer_is_the_providers_failure(
    service, provider, candidates, test_id, path, stream
):
    breaker = service.app.providers.breakers["chat:default:cand"]
    bad_ones = {**NO_ANSWERS[path], **EVERYWHERE}
    for name, bad in bad_ones.items():
        breaker.reset()
        provider.say("cand", bad)
        answered = await service.post(path, ask(path, candidates, stream=stream))
        assert answered.status_code == 200, (name, answered.text)
        assert answered.headers["x-tuneproof-fallback"] == "true", name
        assert b"ok" in answered.content, name
    events = await exposures(service, test_id, len(bad_ones))
    assert {(found["arm"], found["error"]) for found in events} == {("candidate", True)}


BEGUN = {
    RESPONSES: [event({"type": "response.failed", "response": {"error": {"message": "full"}}})],
    MESSAGES: [event({"type": "error", "error": {"type": "overloaded_error", "message": "full"}})],
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_fails_before_its_answer_is_replaced(
    service, provider, candidates, test_id, path
):
    for bad in (BEGUN[path], []):
        provider.stream("cand", [*EVENTS[path][:1], *bad])
        answer = await service.post(path, ask(path, candidates, stream=True))
        assert answer.headers["x-tuneproof-fallback"] == "true"
        assert b"full" not in answer.content
        assert answer.content.count(b"event: ") == len(EVENTS[path])
    assert all(found["error"] for found in await exposures(service, test_id, 2))


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_without_its_end_is_told_and_counts_as_failed(
    service, provider, candidates, test_id, path
):
    for number, bad in enumerate(([], BEGUN[path]), 1):
        seen = asyncio.Event()
        provider.stream("cand", [*EVENTS[path][:4], seen, *bad])
        body = ask(path, candidates, stream=True)
        async with service.http.stream("POST", path, json=body) as answer:
            parts = []
            async for part in answer.aiter_bytes():
                parts.append(part)
                seen.set()
        *_, last = b"".join(parts).strip().split(b"\n\n")
        name, data = last.split(b"\n")
        assert name == b"event: error"
        told = json.loads(data.removeprefix(b"data: "))
        assert told["type"] == "error"
        said = "full" if bad else "before the answer was whole"
        assert said in told["error"]["message"]
        events = await exposures(service, test_id, number)
        assert all(found["error"] for found in events)


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_is_whole_ends_also_where_the_provider_stays(
    service, provider, baselines, test_id, path
):
    provider.stall("base", EVENTS[path])
    answer = await service.post(path, ask(path, baselines, stream=True))
    assert answer.content.endswith(b"\n\n")
    [found] = await exposures(service, test_id)
    assert (found["error"], found["tokens"]) == (False, 10)
    await eventually(lambda: provider.open == 0)


async def test_openais_client_asks_for_responses(service, candidates, test_id):
    async with client(service) as ai:
        found = await ai.responses.create(model="tuneproof/hook", input="Hi", user=candidates)
        assert found.output_text == "ok"
        assert found.id.startswith("tp-")
        asked = ai.responses.create(model="gpt-4.1-nano", input="Hi", user="u", stream=True)
        kinds = [part.type async for part in await asked]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


async def test_openais_client_hears_of_a_response_that_broke_off(service, provider, baselines):
    provider.stream("base", RESPONSE_EVENTS[:4])
    async with client(service) as ai:
        asked = ai.responses.create(model="tuneproof/hook", input="Hi", user=baselines, stream=True)
        with pytest.raises(openai.APIError, match="before the answer was whole"):
            _ = [part async for part in await asked]


async def test_a_response_goes_on_from_another_by_the_providers_own_id(
    service, provider, baselines
):
    first = (await service.post(RESPONSES, ask(RESPONSES, baselines))).json()
    body = {"model": "tuneproof/hook", "input": "More", "previous_response_id": first["id"]}
    second = await service.post(RESPONSES, body)
    assert second.status_code == 200, second.text
    assert provider.bodies[-1]["previous_response_id"] == "resp_1"
    assert second.headers["x-tuneproof-unit"] == baselines
    streamed = await service.post(RESPONSES, ask(RESPONSES, baselines, stream=True))
    body["previous_response_id"] = streamed.headers["x-tuneproof-response"]
    assert (await service.post(RESPONSES, body)).status_code == 200
    assert provider.bodies[-1]["previous_response_id"] == "resp_1"
    for wrong in ("tp-nonsense", (await chatted(service)).json()["id"]):
        refused = await service.post(RESPONSES, {**body, "previous_response_id": wrong})
        assert refused.status_code == 400
        assert wrong[:80] in refused.json()["error"]["message"]


async def chatted(service: Service) -> Any:
    return await service.post(
        "/v1/chat/completions", {"model": "tuneproof/hook", "messages": [], "user": "u"}
    )


async def test_a_response_in_the_background_is_refused(service, baselines):
    refused = await service.post(RESPONSES, ask(RESPONSES, baselines, background=True))
    assert refused.status_code == 400
    assert "background" in refused.json()["error"]["message"]


UNITS = (
    (RESPONSES, {"x-tuneproof-unit": "header"}, {"user": "user"}, "header"),
    (RESPONSES, {}, {"safety_identifier": "safe", "metadata": {"unit": "meta"}}, "safe"),
    (RESPONSES, {}, {"metadata": {"unit": "meta"}, "prompt_cache_key": "shared"}, "meta"),
    (MESSAGES, {"x-tuneproof-unit": "header"}, {"metadata": {"user_id": "meta"}}, "header"),
    (MESSAGES, {}, {"metadata": {"user_id": "meta"}}, "meta"),
)


async def test_where_the_unit_stands(service, test_id):
    for path, headers, more, unit in UNITS:
        body = {**ask(path, ""), "user": None, "metadata": None, **more}
        answer = await service.http.post(path, json=body, headers=headers)
        assert answer.headers["x-tuneproof-unit"] == unit


async def test_errors_have_the_shape_of_their_wire(service, test_id):
    for path, body in ((RESPONSES, {"input": "x"}), (MESSAGES, {"messages": []})):
        no_model = await service.post(path, body)
        unknown = await service.post(path, {**body, "model": "tuneproof/nothing"})
        found = [(answer.status_code, answer.json()) for answer in (no_model, unknown)]
        assert [status for status, _ in found] == [400, 404]
        if path == RESPONSES:
            assert found[1][1]["error"]["code"] == "model_not_found"
        else:
            assert [told["type"] for _, told in found] == ["error", "error"]
            kinds = [told["error"]["type"] for _, told in found]
            assert kinds == ["invalid_request_error", "not_found_error"]


async def test_anthropics_provider_gets_its_own_key_header(settings, provider):
    given = at(settings, provider, kind="anthropic", api_key=Secret("sk-ant"))
    hook = replace(given.tasks["hook"], model="base")
    async with open_service(replace(given, tasks={**given.tasks, "hook": hook})) as service:
        named = {"x-api-key": "any", "anthropic-version": "2024-01-01", "anthropic-beta": "x"}
        answers = [
            await service.http.post(MESSAGES, json=ask(MESSAGES, "u"), headers=headers)
            for headers in ({}, named)
        ]
        answers.append(await chatted(service))
    assert [answer.status_code for answer in answers] == [200] * 3
    first, second, chat = (seen.headers for seen in provider.seen)
    assert (first["x-api-key"], first["anthropic-version"]) == ("sk-ant", "2023-06-01")
    assert (second["anthropic-version"], second["anthropic-beta"]) == ("2024-01-01", "x")
    assert second["x-api-key"] == "sk-ant"
    assert "authorization" not in first
    assert (chat["authorization"], "x-api-key" in chat) == ("Bearer sk-ant", False)


async def test_other_providers_get_the_key_where_they_always_do(service, provider, test_id):
    await service.post(MESSAGES, ask(MESSAGES, "u"))
    assert provider.seen[-1].headers["authorization"] == "Bearer provider-key"
