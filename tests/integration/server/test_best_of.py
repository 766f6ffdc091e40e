"""The best of several answers: which one users get, what all of them cost, and what goes wrong."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.integration.server.conftest import Service, open_service
from tests.integration.server.test_gateway import exposures, units
from tests.integration.server.test_shadows import shadow
from tests.liked import disliked, learnt, liked, unlearnt
from tests.raw_provider import (
    DONE,
    MESSAGE_EVENTS,
    RESPONSE_EVENTS,
    RawProvider,
    chunk,
    raw_provider,
    whole,
)
from tests.waiting import eventually

from tuneproof.experiments import Arm
from tuneproof.experiments.histories import history_of
from tuneproof.settings import Settings, Url

CHAT = "/v1/chat/completions"
DRAW = random.Random(11)
GOOD, BAD, WORSE = liked(DRAW), disliked(DRAW), disliked(DRAW)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
OOPS = [whole(b'{"error": {"message": "oops"}}', status="500 Oops")]
LIMIT = [whole(b'{"error": {"message": "slow"}}', status="429 Slow")]
REFUSAL = b'{"error": {"message": "one at a time", "param": "n"}}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def choices(*texts: str) -> list[dict[str, Any]]:
    return [
        {"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for n, text in enumerate(texts)
    ]


def said(*texts: str, usage: Any = USAGE) -> list[bytes]:
    """An answer with these choices."""
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m"}
    return [whole(json.dumps({**body, "choices": choices(*texts), "usage": usage}).encode())]


def streamed(text: str) -> list[bytes]:
    """An answer as a stream, which names its usage."""
    parts = [chunk(f"{word} ") for word in text.split(" ")]
    return [STREAM, *parts, chunk(finish="stop"), chunk(choices=[], usage=USAGE), DONE]


@pytest.fixture
async def provider() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
def wanted(settings: Settings, provider: RawProvider) -> Settings:
    """Settings by which the best of four answers to `hook` is picked."""
    at_it = replace(settings.providers["default"], base_url=Url(provider.url), timeout_seconds=5)
    there = replace(settings, providers={**settings.providers, "default": at_it})
    return shadow(there, model="base", best_of=4)


def with_n(settings: Settings) -> Settings:
    """The same at a provider that is known to give several answers at once."""
    default = replace(settings.providers["default"], kind="trainer")
    return replace(settings, providers={**settings.providers, "default": default})


async def know(service: Service) -> None:
    await service.app.best_of.keep("hook", learnt(), "run-1")
    await service.app.best_of.refresh()


@pytest.fixture
async def service(wanted: Settings) -> AsyncIterator[Service]:
    async with open_service(wanted) as opened:
        await know(opened)
        yield opened


def ask(unit: str = "u", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Our summer sale starts"}
    return {"model": "tuneproof/hook", "messages": [message], "user": unit, **more}


def content(answer: httpx2.Response) -> str:
    [choice] = answer.json()["choices"]
    assert choice["index"] == 0
    return str(choice["message"]["content"])


def text_of(stream: bytes) -> str:
    """What a chat's stream says; it must be one that any reader takes."""
    *events, last, rest = stream.split(b"\n\n")
    assert (last, rest) == (b"data: [DONE]", b"")
    read = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert all(event["choices"] for event in read), "usage that nobody asked for"
    assert read[-1]["choices"][0]["finish_reason"] == "stop"
    return "".join(event["choices"][0]["delta"].get("content", "") for event in read)


def counted(service: Service) -> dict[str, int]:
    """What became of the answers, by the service's metrics."""
    told = service.app.metrics.render()[0].decode().splitlines()
    named = [line for line in told if line.startswith("tuneproof_best_of_answers_total{")]
    return {line.split('result="')[1].split('"')[0]: int(float(line.split()[-1])) for line in named}


def history(service: Service) -> str:
    """Whose evidence an answer is while nothing is tested."""
    return history_of("hook", service.app.clock.now())


async def told(service: Service) -> list[dict[str, Any]]:
    """The exposures of the task while nothing is tested."""
    path = f"/events?subject={history(service)}"
    return list(await service.until(path, lambda found: found and isinstance(found, list)))


async def attributes(service: Service, subject: str) -> dict[str, str]:
    """Those of the only exposure."""
    [found] = await service.app.store.events.newest(subject)
    return dict(found.attributes)


async def test_the_picked_answer_is_passed_on_and_all_are_counted(service, provider, test_id):
    provider.turns("base", [said(BAD), said(WORSE), said(GOOD), said("")])
    unit = (await units(service))[Arm.BASELINE]
    answer = await service.post(CHAT, ask(unit, seed=5))
    assert content(answer) == GOOD
    assert answer.headers["x-tuneproof-best-of"] == "4"
    assert answer.json()["id"] == answer.headers["x-tuneproof-response"]
    assert sorted(body["seed"] for body in provider.bodies) == [5, 6, 7, 8]
    [found] = await exposures(service, test_id)
    assert found["tokens"] == 40
    assert found["cost_usd"] == pytest.approx(4 * (7 * 1 + 3 * 2) / 1e6)
    assert await attributes(service, test_id) == {"best_of": "4"}
    assert not found["error"]
    assert counted(service) == {"picked": 1, "passed_over": 3}


async def test_a_provider_that_gives_several_at_once_is_asked_once(wanted, provider):
    spent = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}
    provider.turns("base", [said(BAD, GOOD, WORSE, usage=spent)])
    async with open_service(with_n(wanted)) as service:
        await know(service)
        assert content(await service.post(CHAT, ask())) == GOOD
        assert [body["n"] for body in provider.bodies] == [4]
        [found] = await told(service)
        assert found["tokens"] == 19
        assert found["cost_usd"] == pytest.approx((7 * 1 + 12 * 2) / 1e6)
        assert counted(service) == {"picked": 1, "passed_over": 2, "failed": 1}


async def test_a_provider_that_refuses_several_is_asked_one_by_one(wanted, provider):
    refused = [whole(REFUSAL, status="400 No")]
    provider.turns("base", [refused, *(said(text) for text in (BAD, GOOD, BAD, BAD) * 2)])
    async with open_service(with_n(wanted)) as service:
        await know(service)
        for _ in range(2):
            assert content(await service.post(CHAT, ask())) == GOOD
        assert [body.get("n") for body in provider.bodies] == [4, *[None] * 8]


async def test_what_providers_do_not_name_is_estimated_from_all(wanted, provider):
    provider.turns("base", [said(GOOD, GOOD, GOOD, GOOD, usage=None)])
    async with open_service(with_n(wanted)) as service:
        await know(service)
        await service.post(CHAT, ask())
        [found] = await told(service)
        assert found["tokens"] == -(-4 * len(GOOD) // 4) + -(-len("Our summer sale starts") // 4)


async def test_a_stream_is_the_picked_one_as_it_came(service, provider, test_id):
    provider.turns("base", [streamed(text) for text in (BAD, WORSE, GOOD, BAD)])
    unit = (await units(service))[Arm.BASELINE]
    answer = await service.post(CHAT, ask(unit, stream=True))
    assert text_of(answer.content).strip() == GOOD
    assert answer.headers["x-tuneproof-response"].encode() in answer.content
    [found] = await exposures(service, test_id)
    assert (found["tokens"], found["error"]) == (40, False)


@pytest.mark.parametrize(
    ("path", "events", "more"),
    [
        ("/v1/responses", RESPONSE_EVENTS, {"input": "Begin"}),
        ("/v1/messages", MESSAGE_EVENTS, {"messages": [], "max_tokens": 9}),
    ],
    ids=["responses", "messages"],
)
async def test_streams_of_the_other_wires_are_picked_too(service, provider, path, events, more):
    def saying(text: str) -> list[bytes]:
        quoted = json.dumps(text).encode()
        return [STREAM, *(event.replace(b'"ok"', quoted) for event in events)]

    provider.turns(path, [saying(text) for text in (BAD, GOOD, WORSE, BAD)])
    body = {"model": "tuneproof/hook", **more, "stream": True}
    answer = await service.post(path, body)
    assert answer.content.count(b"event: ") == len(events)
    assert GOOD.encode() in answer.content
    assert BAD.encode() not in answer.content
    [found] = await told(service)
    assert found["tokens"] == 40


@pytest.mark.parametrize("stream", [False, True])
async def test_those_that_fail_are_done_without(service, provider, test_id, stream):
    say = streamed if stream else said
    provider.turns("base", [OOPS, say(BAD), LIMIT, say(GOOD)])
    unit = (await units(service))[Arm.BASELINE]
    answer = await service.post(CHAT, ask(unit, stream=stream))
    assert GOOD in (text_of(answer.content) if stream else content(answer))
    [found] = await exposures(service, test_id)
    assert (found["tokens"], found["error"]) == (20, False)  # a failure's status costs nothing
    assert counted(service) == {"picked": 1, "passed_over": 1, "failed": 2}


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_stalls_is_done_without_and_its_cost_is_unknown(
    service, provider, test_id, stream
):
    say = streamed if stream else said
    provider.turns("base", [say(GOOD), say(BAD), say(BAD), None])
    unit = (await units(service))[Arm.BASELINE]
    answer = await service.post(CHAT, ask(unit, stream=stream))
    assert GOOD in (text_of(answer.content) if stream else content(answer))
    await eventually(lambda: provider.open == 0)
    [found] = await exposures(service, test_id)
    assert (found["tokens"], found["cost_usd"], found["error"]) == (None, None, False)
    assert 2_000 <= found["latency_ms"] < 4_500
    assert counted(service) == {"picked": 1, "passed_over": 2, "late": 1}


async def test_one_that_breaks_off_is_never_picked_and_its_cost_is_unknown(
    service, provider, test_id
):
    broken = [STREAM, chunk(f"{GOOD} ")]
    provider.turns("base", [broken, streamed(BAD), streamed(BAD), streamed(BAD)])
    unit = (await units(service))[Arm.BASELINE]
    answer = await service.post(CHAT, ask(unit, stream=True))
    assert text_of(answer.content).strip() == BAD
    [found] = await exposures(service, test_id)
    assert (found["tokens"], found["error"]) == (None, False)


async def test_a_candidate_of_which_no_answer_comes_is_replaced(service, provider, test_id):
    provider.turns("cand", [OOPS])
    provider.turns("base", [said(text) for text in (BAD, BAD, GOOD, BAD)])
    unit = (await units(service))[Arm.CANDIDATE]
    answer = await service.post(CHAT, ask(unit))
    assert content(answer) == GOOD
    assert answer.headers["x-tuneproof-fallback"] == "true"
    [found] = await exposures(service, test_id)
    assert (found["arm"], found["error"], found["tokens"]) == ("candidate", True, 40)


async def test_where_none_comes_it_fails_as_ever(service, provider, test_id):
    unit = (await units(service))[Arm.BASELINE]
    provider.turns("base", [OOPS])
    answer = await service.post(CHAT, ask(unit))
    assert answer.status_code == 503
    assert "oops" in answer.json()["error"]["message"]
    [found] = await exposures(service, test_id)
    assert (found["error"], found["tokens"]) == (True, None)
    assert await attributes(service, test_id) == {"best_of": "4"}
    provider.turns("base", [[whole(b'{"error": {"message": "wrong"}}', status="400 No")]])
    assert (await service.post(CHAT, ask(unit))).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_ends_all_calls_and_leaves_one_exposure(
    service, provider, test_id, stream
):
    provider.turns("base", [None])
    unit = (await units(service))[Arm.BASELINE]
    with pytest.raises(httpx2.ReadTimeout):
        await service.http.post(CHAT, json=ask(unit, stream=stream), timeout=0.5)
    await eventually(lambda: provider.open == 0)
    [found] = await exposures(service, test_id)
    assert (found["tokens"], found["cost_usd"], found["error"]) == (None, None, False)


FORM = {"type": "json_object"}
ALONE: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"n": 2}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    (CHAT, {"response_format": FORM}),
    (CHAT, {"logprobs": True}),
    (CHAT, {"temperature": 0}),
    (CHAT, {"modalities": ["text", "audio"]}),
    ("/v1/responses", {"input": "Begin", "text": {"format": FORM}}),
    ("/v1/responses", {"input": "Begin", "conversation": "conv_1"}),
    ("/v1/messages", {"max_tokens": 9, "output_config": {"format": FORM}}),
]


@pytest.mark.parametrize(("path", "more"), ALONE, ids=[f"{p[4:]}-{[*m][-1]}" for p, m in ALONE])
async def test_what_wants_more_than_a_free_text_is_asked_once_as_it_is(
    service, provider, path, more
):
    answer = await service.post(path, ask(**more))
    assert answer.status_code == 200
    assert "x-tuneproof-best-of" not in answer.headers
    [body] = provider.bodies
    assert body == {**ask(**more), "model": "base"}
    assert len(await told(service)) == 1
    assert await attributes(service, history(service)) == {}
    assert counted(service) == {}


@pytest.mark.parametrize("more", [{"n": 1}, {"response_format": {"type": "text"}}, {"top_p": 0.9}])
async def test_what_asks_for_a_free_text_in_more_words_is_picked(service, provider, more):
    provider.turns("base", [said(text) for text in (BAD, BAD, BAD, GOOD)])
    assert content(await service.post(CHAT, ask(**more))) == GOOD


# --- in force or not --------------------------------------------------------------------------


async def findings(service: Service) -> dict[str, Any]:
    return {one.name: one for one in await service.app.doctor.examine()}


async def test_without_a_model_that_knows_something_one_answer_is_asked_for(wanted, provider):
    async with open_service(wanted) as service:
        assert (await service.post(CHAT, ask())).status_code == 200
        found = (await findings(service))["hook: best of 4"]
        assert found.status == "warning"
        assert "no run has trained an outcome model" in found.detail
        await service.app.best_of.keep("hook", unlearnt(), "run-1")
        await service.app.best_of.refresh()
        assert (await service.post(CHAT, ask())).status_code == 200
        found = (await findings(service))["hook: best of 4"]
        assert found.status == "warning"
        assert "too few posts differ clearly" in found.detail
        assert len(provider.bodies) == 2
        await know(service)
        found = (await findings(service))["hook: best of 4"]
        assert found.status == "ok"
        assert "of 4 answers the best is picked; the outcome model was right on" in found.detail
        assert (await service.post(CHAT, ask())).status_code == 200
        assert len(provider.bodies) == 6
        await service.app.best_of.keep("hook", unlearnt(), "run-2")
        await service.app.best_of.refresh()
        assert (await service.post(CHAT, ask())).status_code == 200
        assert len(provider.bodies) == 7


async def test_a_restart_goes_on_picking_also_where_its_file_is_damaged(
    wanted, provider, database_url
):
    wanted = replace(wanted, store=replace(wanted.store, url=database_url))
    async with open_service(wanted) as service:
        await know(service)
    for lost in (False, True):
        if lost:
            [file] = (wanted.dir / "outcome-models").iterdir()
            file.write_bytes(b"damaged")
        async with open_service(wanted) as service:
            provider.turns("base", [said(text) for text in (BAD, BAD, GOOD, BAD)])
            assert content(await service.post(CHAT, ask())) == GOOD


async def test_a_change_while_a_test_runs_is_told_in_its_activity(service, test_id):
    await service.app.best_of.tell()
    await service.app.best_of.tell()
    for name in ("hook", test_id):
        page = await service.app.store.activity.page(name)
        reasons = [deed.reason for deed in page.items if deed.action == "best_of"]
        assert len(reasons) == 1
        assert reasons[0].startswith("Of 4 answers of hook the outcome model ")
        assert reasons[0].endswith("from now on; before, one was asked for.")
    await service.app.best_of.keep("hook", unlearnt(), "run-2")
    await service.app.best_of.tell()
    page = await service.app.store.activity.page(test_id)
    assert page.items[0].reason.startswith("One answer of hook is asked for from now on")
