"""What is for no task is passed on unread, where that is switched on, for whom it is meant for."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from tests.integration.server.conftest import Service, open_service
from tests.integration.server.test_gateway import client
from tests.raw_provider import (
    ANSWER,
    DONE,
    MESSAGE,
    RawProvider,
    chunk,
    raw_provider,
    whole,
)
from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.settings import RelayConfig, Secret, Settings, Url
from tuneproof.testing import MemoryProvider, MemorySource

CHAT, EMBEDDINGS, SPEECH = "/v1/chat/completions", "/v1/embeddings", "/v1/audio/speech"
EMBEDDED = json.dumps(
    {
        "object": "list",
        "model": "e",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1_000_000, "total_tokens": 1_000_000},
    }
).encode()


@pytest.fixture
async def provider() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
async def other() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
def relaying(settings: Settings, provider: RawProvider, other: RawProvider) -> Settings:
    """Settings that pass on what is for no task, for as much as anybody likes."""
    default = replace(settings.providers["default"], base_url=Url(provider.url))
    claude = replace(
        default,
        name="claude",
        kind="anthropic",
        base_url=Url(other.url),
        api_key=Secret("sk-ant"),
        organization=None,
    )
    hook = replace(settings.tasks["hook"], model="base", aliases=("gpt-4.1-nano",))
    return replace(
        settings,
        providers={**settings.providers, "default": default, "claude": claude},
        tasks={**settings.tasks, "hook": hook},
        relay=RelayConfig(enabled=True, budget_usd_per_day="unlimited"),
    )


@pytest.fixture
async def service(relaying: Settings) -> AsyncIterator[Service]:
    async with open_service(relaying) as opened:
        yield opened


def budget(settings: Settings, usd: float, **more: Any) -> Settings:
    """The same settings with a budget."""
    relay = replace(settings.relay, budget_usd_per_day=usd, **more)
    return replace(settings, relay=relay)


async def test_bytes_and_headers_go_on_in_both_directions(service, provider):
    """Seen: 404 for every model that is no task, and for every path but chat's."""
    sent = b'{ "model":"gpt-9",  "messages": [], "odd": 1.50, "user": 5 }'
    answer = whole(ANSWER, headers=b"X-Request-Id: r1\r\nX-Odd: 1\r\nAlt-Svc: h3\r\nDate: x\r\n")
    provider.say("gpt-9", answer)
    headers = {
        "content-type": "application/json",
        "authorization": "Bearer mine",
        "openai-organization": "mine",
        "x-forwarded-for": "10.0.0.1",
        "x-custom": "kept",
        "cookie": "a=b",
        "x-hop": "1",
        "x-goog-api-key": "mine",
        "connection": "close, x-hop",
    }
    got = await service.http.post(f"{CHAT}?a=b%20c", content=sent, headers=headers)
    assert (got.status_code, got.content) == (200, ANSWER)
    assert (got.headers["x-request-id"], got.headers["x-odd"]) == ("r1", "1")
    assert got.headers["x-tuneproof-provider"] == "default"
    assert "alt-svc" not in got.headers
    assert len(got.headers.get_list("date")) == 1
    [seen] = provider.seen
    assert (seen.path, seen.content) == (f"{CHAT}?a=b%20c", sent)
    assert seen.headers["authorization"] == "Bearer provider-key"
    assert seen.headers["x-custom"] == "kept"
    assert seen.headers["accept-encoding"] == "identity"
    gone = {"openai-organization", "x-forwarded-for", "cookie", "x-hop", "x-tuneproof-provider"}
    gone.add("x-goog-api-key")
    assert not gone & set(seen.headers)


async def test_a_model_or_a_header_names_another_provider(service, provider, other):
    for body, headers in (
        ({"model": "claude/opus"}, {}),
        ({"model": "opus"}, {"x-tuneproof-provider": "claude"}),
    ):
        got = await service.http.post(
            "/v1/messages", json=body, headers={**headers, "anthropic-version": "2023-06-01"}
        )
        assert (got.status_code, got.json()) == (200, MESSAGE)
        assert json.loads(other.seen[-1].content) == {"model": "opus"}
        assert other.seen[-1].headers["x-api-key"] == "sk-ant"
        assert "authorization" not in other.seen[-1].headers
    assert (await service.post(CHAT, {"model": "meta/llama", "messages": []})).status_code == 200
    assert provider.bodies[-1]["model"] == "meta/llama"
    assert (await service.post(CHAT, {"model": "default/meta/llama"})).status_code == 200
    assert provider.bodies[-1]["model"] == "meta/llama"
    named = {"x-tuneproof-provider": "nobody"}
    unknown = await service.http.post("/v1/messages", json={"model": "x"}, headers=named)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")


async def test_tasks_stay_tasks(service, provider):
    for model, headers in (
        ("tuneproof/hook", {}),
        ("hook", {}),
        ("gpt-4.1-nano", {}),
        ("gpt-9", {"x-tuneproof-task": "hook"}),
    ):
        body = {"model": model, "messages": [], "user": "u"}
        got = await service.http.post(CHAT, json=body, headers=headers)
        assert (got.headers["x-tuneproof-task"], provider.bodies[-1]["model"]) == ("hook", "base")
    for model, headers in (("tuneproof/x", {}), ("gpt-9", {"x-tuneproof-task": "x"})):
        body = {"model": model, "messages": []}
        assert (await service.http.post(CHAT, json=body, headers=headers)).status_code == 404


async def test_openais_client_does_everything_through_it(service, provider):
    provider.say(EMBEDDINGS, whole(EMBEDDED))
    provider.say(SPEECH, whole(b"\x00\xffsound"))
    provider.say("/v1/audio/transcriptions", whole(b'{"text": "said"}'))
    provider.say("/v1/images/edits", whole(b'{"created": 1, "data": []}'))
    async with client(service) as ai:
        stream = await ai.chat.completions.create(model="gpt-9", messages=[], stream=True)
        said = [part.choices[0].delta.content async for part in stream]
        assert "".join(said) == "ok"
        response = await ai.responses.create(model="gpt-9", input="x")
        assert (response.id, response.output_text) == ("resp_1", "ok")
        parts = await ai.responses.create(model="gpt-9", input="x", stream=True)
        assert [part.type async for part in parts][-1] == "response.completed"
        assert (await ai.embeddings.create(model="e", input="x")).data[0].embedding == [0.5]
        sound = await ai.audio.speech.create(model="tts", voice="alloy", input="x")
        assert await sound.aread() == b"\x00\xffsound"
        heard = await ai.audio.transcriptions.create(model="whisper", file=("a.wav", b"\x00" * 99))
        assert heard.text == "said"
        await ai.images.edit(model="image", image=("a.png", b"\x89PNG"), prompt="x")
    assert b"\x89PNG" in provider.seen[-1].content


async def test_an_upload_beyond_the_bound_of_a_body_goes_on_as_it_comes(service, provider):
    """A body that is read is at most 16 MiB long; what is passed on as it comes may be longer."""
    provider.say("/v1/audio/transcriptions", whole(b'{"text": "x"}'))
    part = b"\x00\x01" * 500_000

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield part

    headers = {"content-type": "multipart/form-data; boundary=b"}
    for more in ({}, {"content-length": str(20 * len(part))}):
        got = await service.http.post(
            "/v1/audio/transcriptions", content=parts(), headers={**headers, **more}
        )
        assert got.json() == {"text": "x"}, got.text
        seen = provider.seen[-1]
        assert seen.headers["content-type"] == headers["content-type"]
        assert seen.headers.get("content-length") == more.get("content-length")
        assert seen.content == part * 20


async def test_a_stream_arrives_as_it_is_sent_and_ends_with_its_reader(service, provider):
    held = asyncio.Event()
    provider.stream("gpt-9", [chunk("one "), held, chunk("two"), DONE])
    body = {"model": "gpt-9", "messages": [], "stream": True}
    async with service.http.stream("POST", CHAT, json=body) as answer:
        arriving = answer.aiter_raw()
        assert await anext(arriving) == chunk("one ")
        held.set()
        assert b"".join([part async for part in arriving]) == chunk("two") + DONE
    provider.stall("gpt-9", [chunk("one ")])
    async with service.http.stream("POST", CHAT, json=body) as answer:
        assert await anext(answer.aiter_raw()) == chunk("one ")
    await eventually(lambda: provider.open == 0)
    provider.stall("gpt-9")
    with pytest.raises(httpx2.ReadTimeout):
        await service.http.post(CHAT, json=body, timeout=0.5)
    await eventually(lambda: provider.open == 0)


async def test_who_leaves_in_an_upload_takes_it_along(service, provider):
    sending, held = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        sending.set()
        await held.wait()

    headers = {"content-type": "multipart/form-data; boundary=b"}
    asked = asyncio.create_task(
        service.http.post("/v1/audio/transcriptions", content=parts(), headers=headers)
    )
    await eventually(lambda: sending.is_set() and provider.open == 1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await eventually(lambda: provider.open == 0)
    provider.say("/v1/audio/transcriptions", whole(b'{"text": "x"}'))
    files = {"file": ("a.wav", b"\x00")}
    again = await service.http.post("/v1/audio/transcriptions", files=files)
    assert again.json() == {"text": "x"}


ANSWERS = {
    "a limit": whole(b'{"error": {}}', status="429 Slow", headers=b"Retry-After: 7\r\n"),
    "an error": whole(b"<oops>", status="500 Oops"),
    "a refusal": whole(b'{"error": {"message": "key"}}', status="401 No"),
    "a move": whole(b"", status="302 Found", headers=b"Location: /x\r\n"),
    "nothing": b"HTTP/1.1 204 No Content\r\n\r\n",
    "packed": whole(gzip.compress(b'{"a": 1}'), headers=b"Content-Encoding: gzip\r\n"),
}


async def test_what_the_provider_answers_is_what_the_caller_gets(service, provider):
    for name, answer in ANSWERS.items():
        provider.say(EMBEDDINGS, answer)
        body = {"model": "e", "input": "x"}
        async with service.http.stream("POST", EMBEDDINGS, json=body) as got:
            raw = b"".join([part async for part in got.aiter_raw()])
        head, _, content = answer.partition(b"\r\n\r\n")
        assert (str(got.status_code).encode(), raw) == (head.split(b" ")[1], content), name
    assert got.headers["content-encoding"] == "gzip"


async def test_a_provider_that_is_silent_is_waited_for_as_long_as_is_set(relaying, provider):
    impatient = replace(relaying, relay=replace(relaying.relay, timeout_seconds=0.3))
    async with open_service(impatient) as service:
        provider.stall("gpt-9")
        body = {"model": "gpt-9", "messages": []}
        got = await service.post(CHAT, body)
        assert (got.status_code, got.json()["error"]["code"]) == (503, "provider_unavailable")
        provider.stall("gpt-9", [chunk("one ")])
        with pytest.raises(httpx2.RemoteProtocolError):  # no end is made up
            await service.post(CHAT, {**body, "stream": True})
        await eventually(lambda: provider.open == 0)


async def test_only_what_is_listed_is_passed_on(relaying, provider):
    paths = ("/v1/embeddings", "/v1/responses/*", "GET /v1/responses/*", "GET /v1/batches")
    paths += ("DELETE /v1/responses/*",)
    listed = replace(relaying, relay=replace(relaying.relay, paths=paths))
    provider.say("/v1/responses/resp_1", whole(b'{"id": "resp_1"}'))
    provider.say("/v1/batches", whole(b'{"data": []}'))
    async with open_service(listed) as service:
        got = await service.http.get("/v1/responses/resp_1")
        assert got.json() == {"id": "resp_1"}
        assert (await service.http.delete("/v1/responses/resp_1")).status_code == 200
        assert (await service.http.get("/v1/batches")).json() == {"data": []}
        assert [seen.method for seen in provider.seen] == ["GET", "DELETE", "GET"]
        for path in (
            CHAT,
            SPEECH,
            "/v1/files",
            "/v1/responses/../files",
            "/v1/responses/%2e%2e/files",
            "/v1/responses/%252e%252e/files",
            "/v1/embeddings/x",
        ):
            refused = await service.http.post(path, json={"model": "gpt-9", "messages": []})
            assert refused.status_code in (404, 405), path
        assert (await service.http.get(EMBEDDINGS)).status_code == 405  # it was POST alone
        assert (await service.post("/v1/batches", {})).status_code in (404, 405)
        assert len(provider.seen) == 3
        assert (await service.http.get("/v1/models")).json()["object"] == "list"


async def test_it_is_off_unless_it_is_switched_on(relaying, provider):
    off = replace(relaying, relay=RelayConfig())
    async with open_service(off) as service:
        for path in (CHAT, "/v1/responses", "/v1/messages", EMBEDDINGS, SPEECH, "/v1/completions"):
            refused = await service.post(path, {"model": "gpt-9", "messages": []})
            assert refused.status_code == 404
            assert "relay" in refused.json()["error"]["message"]
    assert provider.seen == []


async def test_only_a_token_for_it_spends_the_providers_money(relaying, provider):
    server = replace(relaying.server, require_token=True)
    async with (
        App.open(
            replace(relaying, server=server), source=MemorySource([]), provider=MemoryProvider()
        ) as app,
        serving(app, relaying) as (address, _),
        httpx2.AsyncClient(base_url=address, timeout=30, trust_env=False) as http,
    ):
        tokens = {
            scopes: await app.tokens.create("-".join(scopes), scopes=scopes)
            for scopes in (("read",), ("write",), ("relay",), ("write", "relay"), ("admin",))
        }

        async def status(token: str, model: str, path: str = CHAT) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            if path == "/v1/messages":
                headers = {"x-api-key": token}
            body = {"model": model, "messages": []}
            return (await http.post(path, json=body, headers=headers)).status_code

        for path in (CHAT, "/v1/messages"):
            got = {
                scopes: [await status(token, model, path) for model in ("tuneproof/hook", "gpt-9")]
                for scopes, token in tokens.items()
                for _ in range(2)
            }
            assert got == {
                ("read",): [403, 403],
                ("write",): [200, 403],
                ("relay",): [403, 200],
                ("write", "relay"): [200, 200],
                ("admin",): [200, 200],
            }
            assert await status("tp_nobody", "gpt-9", path) == 401
        headers = {"Authorization": f"Bearer {tokens['relay',]}"}
        for path in ("/status", "/routing", "/v1/models"):
            assert (await http.get(path, headers=headers)).status_code == 403
        assert (await http.post("/events", json={}, headers=headers)).status_code == 403
        made = {"name": "new", "scopes": ["read", "write", "relay", "admin"]}
        admin = {"Authorization": f"Bearer {tokens['admin',]}"}
        assert (await http.post("/tokens", json=made, headers=admin)).status_code == 201
        assert (
            await status(
                (await http.post("/tokens", json={**made, "name": "newer"}, headers=admin)).json()[
                    "token"
                ],
                "gpt-9",
            )
            == 200
        )


async def test_a_caller_past_its_budget_is_told_so_also_after_a_restart(relaying, provider):
    """`base` is 1 USD a million tokens read; each answer says that it read a million."""
    provider.say(EMBEDDINGS, whole(EMBEDDED))
    bounded = budget(relaying, 1.5)
    body = {"model": "base", "input": "x"}
    async with open_service(bounded) as service:
        for _ in range(2):
            assert (await service.post(EMBEDDINGS, body)).status_code == 200
        asked = len(provider.seen)
        async with client(service) as ai:
            with pytest.raises(openai.RateLimitError) as caught:
                await ai.embeddings.create(model="base", input="x")
        assert caught.value.body["type"] == caught.value.body["code"] == "insufficient_quota"
        assert "relay.budget_usd_per_day" in caught.value.body["message"]
        assert int(caught.value.response.headers["retry-after"]) <= 86_400
        refused = await service.post("/v1/messages", {"model": "base"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert len(provider.seen) == asked
        task = {"model": "tuneproof/hook", "messages": [], "user": "u"}
        assert (await service.post(CHAT, task)).status_code == 200  # tasks are no part of it
        metrics = (await service.http.get("/metrics")).text
        assert 'tuneproof_relay_spent_usd_total{caller="local"} 2.0' in metrics
    async with open_service(bounded) as service:
        assert (await service.post(EMBEDDINGS, body)).status_code == 429


async def test_what_each_answer_costs_is_read_from_it(relaying, provider):
    """1 USD a million tokens read, 2 written."""
    usage = {"prompt_tokens": 100_000, "completion_tokens": 50_000, "total_tokens": 150_000}
    provider.stream(
        CHAT, [chunk("x") * 3000, chunk(finish="stop"), chunk(choices=[], usage=usage), DONE]
    )
    async with open_service(budget(relaying, 100.0)) as service:
        spending = service.app.spending

        async def cost(path: str, **body: Any) -> float:
            before = spending.spent_usd("local")
            assert (await service.post(path, {"model": "base", **body})).status_code == 200
            await eventually(lambda: spending.spent_usd("local") > before)
            return float(spending.spent_usd("local") - before)

        assert await cost(CHAT, messages=[], stream=True) == pytest.approx(0.2)
        assert await cost("/v1/responses", stream=True) == pytest.approx(13e-6)
        assert await cost("/v1/messages", stream=True) == pytest.approx(13e-6)
        assert await cost("/v1/messages") == pytest.approx(13e-6)
        provider.stream(CHAT, [chunk("x")] * 10 + [DONE])  # it names no usage
        assert 10e-6 < await cost(CHAT, messages=[], stream=True) < 60e-6
        before = spending.spent_usd("local")
        provider.say(CHAT, whole(b"{}", status="500 Oops"))
        assert (await service.post(CHAT, {"model": "base", "messages": []})).status_code == 500
        assert spending.spent_usd("local") == before


async def test_where_a_budget_holds_a_price_must_be_known(relaying, provider):
    provider.say(SPEECH, whole(b"\x00" * 10_000).replace(b"application/json", b"audio/mpeg"))
    async with open_service(budget(relaying, 1.0)) as service:
        refused = await service.post(SPEECH, {"model": "tts", "input": "x"})
        assert refused.status_code == 400
        assert "[providers.default.prices]" in refused.json()["error"]["message"]
    assert provider.seen == []
    async with open_service(budget(relaying, 1.0, request_usd=0.4)) as service:
        got = [(await service.post(SPEECH, {"model": "tts"})).status_code for _ in range(4)]
        assert got == [200, 200, 200, 429]
        assert service.app.spending.spent_usd("local") == pytest.approx(1.2)


async def test_requests_under_way_count_for_the_budget(relaying, provider):
    """A caller that asks for many at once does not get them all for the price of one."""
    provider.stall("base", [])
    async with open_service(budget(relaying, 1.0)) as service:
        body = {"model": "base", "messages": [], "max_tokens": 400_000, "stream": True}
        held = [asyncio.create_task(service.post(CHAT, body)) for _ in range(2)]
        await eventually(lambda: provider.open == 2)
        assert (await service.post(CHAT, body)).status_code == 429
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await eventually(lambda: provider.open == 0)
        provider.well("base")
        assert (await service.post(CHAT, body)).status_code == 200
