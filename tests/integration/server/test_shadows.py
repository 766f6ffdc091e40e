"""Shadow traffic: copies of requests for a model that serves nobody, which no user ever feels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service, open_service
from tests.integration.server.test_gateway import exposures, units
from tests.raw_provider import (
    ANSWER,
    ANSWERS,
    DONE,
    RawProvider,
    chunk,
    raw_provider,
    whole,
)
from tests.waiting import eventually

from tuneproof import assignment, cli
from tuneproof.experiments import Arm
from tuneproof.experiments.histories import WEEK, shadow_of, week_of
from tuneproof.settings import Settings, Url

CHAT = "/v1/chat/completions"
STREAM = [chunk("ok"), chunk(finish="stop"), DONE]
COPY_USD = (7 * 10 + 3 * 20) / 1e6
"""What an answer of `cand` costs."""


@pytest.fixture
async def provider() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
def shadowed(settings: Settings, provider: RawProvider) -> Settings:
    """Settings that copy each request for `hook` to `cand`."""
    default = replace(settings.providers["default"], base_url=Url(provider.url))
    at_it = replace(settings, providers={**settings.providers, "default": default})
    said = {"shadow_share": 1.0, "shadow_budget_usd_per_day": "unlimited"}
    return shadow(at_it, model="base", shadow_model="cand", **said)


def shadow(settings: Settings, **changed: Any) -> Settings:
    """The same settings with this said of the task."""
    hook = replace(settings.tasks["hook"], **changed)
    return replace(settings, tasks={**settings.tasks, "hook": hook})


@pytest.fixture
async def service(shadowed: Settings) -> AsyncIterator[Service]:
    async with open_service(shadowed) as opened:
        yield opened


def ask(unit: str = "u", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Our summer sale starts"}
    return {"model": "tuneproof/hook", "messages": [message], "user": unit, **more}


def copies(provider: RawProvider, model: str = "cand") -> list[dict[str, Any]]:
    """What was asked of the shadow."""
    return [body for body in provider.bodies if body["model"] == model]


def results(service: Service) -> dict[str, int]:
    """What became of the copies, by the service's metrics."""
    told = service.app.metrics.render()[0].decode().splitlines()
    named = [line for line in told if line.startswith("tuneproof_shadow_requests_total{")]
    return {line.split('result="')[1].split('"')[0]: int(float(line.split()[-1])) for line in named}


async def ended(service: Service, count: int) -> dict[str, int]:
    """What became of the copies once so many requests were copied or not."""
    await eventually(lambda: sum(results(service).values()) >= count)
    return results(service)


async def shown(service: Service, requests: int) -> dict[str, Any]:
    """The one week of the report, once it has so many requests."""
    report = await service.until(
        "/evaluation/shadow/hook",
        lambda found: (
            found["weeks"]
            and found["weeks"][0]["shadow"]["requests"] == requests
            and found["weeks"][0]["baseline"]["requests"] == requests
        ),
    )
    [week] = report["weeks"]
    return dict(week)


def misbehave(provider: RawProvider, how: str) -> None:
    """Let the shadow answer badly from now on."""
    if how == "stalls":
        provider.stall("cand")
    elif how == "stalls in its stream":
        provider.stall("cand", [chunk("o")])
    elif how == "breaks off":
        provider.stream("cand", [chunk("o")])
    elif how == "fails":
        provider.say("cand", whole(b"{}", status="500 Oops"))
    elif how == "answers HTML":
        provider.say("cand", whole(b"<html>").replace(b"application/json", b"text/html"))


HOWS = ("answers", "stalls", "stalls in its stream", "breaks off", "fails", "answers HTML")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", HOWS)
async def test_users_get_the_same_bytes_whatever_becomes_of_the_copy(
    service, provider, how, stream
):
    misbehave(provider, how)
    for number in range(3):
        answer = await service.post(CHAT, ask(stream=stream))
        receipt = answer.headers["x-tuneproof-response"].encode()
        sent = b"".join(STREAM) if stream else ANSWER
        assert answer.status_code == 200
        assert answer.content == sent.replace(b"chatcmpl-1", receipt)
        assert answer.headers["x-tuneproof-model"] == "base"
        assert answer.headers["x-tuneproof-arm"] == "baseline"
        await eventually(lambda number=number: len(copies(provider)) > number)
    users = {key: value for key, value in ask(stream=stream).items() if key != "model"}
    copy = copies(provider)[0]
    assert {key: copy[key] for key in users} == users
    assert provider.seen[-1].headers["authorization"] == "Bearer provider-key"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_copy_is_sent_once_its_user_has_the_answer(service, provider, stream):
    go_on = asyncio.Event()
    if stream:
        provider.stream("base", [chunk("o"), go_on, chunk(finish="stop"), DONE])
    else:
        head, body = whole(ANSWER).split(b"\r\n\r\n")
        provider.pieces("base", [head + b"\r\n\r\n", go_on, body])
    asking = asyncio.create_task(service.post(CHAT, ask(stream=stream)))
    await eventually(lambda: len(provider.bodies) == 1)
    assert not copies(provider)
    go_on.set()
    assert (await asking).status_code == 200
    await eventually(lambda: len(copies(provider)) == 1)


async def test_units_are_copied_or_not_for_good_and_apart_from_tests(shadowed, provider):
    names = [f"u{number}" for number in range(60)]
    async with open_service(shadow(shadowed, shadow_share=0.3, shadow_concurrency=100)) as service:
        for _ in range(2):
            for unit in names:
                assert (await service.post(CHAT, ask(unit))).status_code == 200
        chosen = [n for n in names if assignment.bucket("shadow:hook", n) < 3000]
        await ended(service, 2 * len(chosen))
        assert sorted(body["user"] for body in copies(provider)) == sorted(2 * chosen)
        assert 5 < len(chosen) < 35
    provider.bodies.clear()
    async with open_service(shadow(shadowed, shadow_share=0.0)) as service:
        assert (await service.post(CHAT, ask())).status_code == 200
        assert results(service) == {}


async def test_both_answers_to_a_request_stand_beside_each_other(shadowed, provider, database_url):
    stored = replace(shadowed, store=replace(shadowed.store, url=database_url))
    async with open_service(shadow(stored, shadow_concurrency=20)) as service:
        for number in range(4):
            assert (await service.post(CHAT, ask(f"u{number % 2}"))).status_code == 200
            await ended(service, number + 1)
        provider.say("base", whole(b"{}", status="500 Oops"))
        assert (await service.post(CHAT, ask("u0"))).status_code == 503
        await ended(service, 5)
        provider.well("base")
        provider.say("cand", whole(b'{"error": {"message": "no"}}', status="400 No"))
        assert (await service.post(CHAT, ask("u1", stream=True))).status_code == 200
        assert await ended(service, 6) == {"answered": 5, "failed": 1}
        week = await shown(service, 6)
        base, cand = week["baseline"], week["shadow"]
        assert (base["errors"], cand["errors"]) == (1, 1)
        assert cand["tokens"] == 50
        assert cand["cost_usd"] == pytest.approx(5 * COPY_USD)
        assert 40 < base["tokens"] < 60  # the stream names no usage, so it is estimated
        assert 4 * 13e-6 < base["cost_usd"] < 6 * 13e-6
        for side in (base, cand):
            assert 0 < side["p50_latency_ms"] <= side["p95_latency_ms"]
        subject = shadow_of("hook", "cand", service.app.clock.now())
        assert (week["subject"], week["model"]) == (subject, "cand")
        told = await service.http.get("/events", params={"subject": subject})
        by_unit = {event["unit"]: event["arm"] for event in told.json()}
        assert len(by_unit) == 12
        assert all(by_unit[f"{unit}-copy"] == "candidate" for unit in by_unit if "-" not in unit)
        report = (await service.http.get("/evaluation/shadow/hook")).json()
        assert report["shadow"] == {
            "model": "cand",
            "provider": "default",
            "share": 1.0,
            "concurrency": 20,
            "budget_usd": None,
        }
        assert report["spent_usd"] == pytest.approx(5 * COPY_USD)
        events = service.app.store.events
        assert await events.recount(subject) == await events.stored(subject)


async def test_no_more_copies_are_under_way_than_may_be_and_nobody_waits(shadowed, provider):
    provider.stall("cand")
    async with open_service(shadow(shadowed, shadow_concurrency=2)) as service:
        answers = await asyncio.gather(*(service.post(CHAT, ask(f"u{n}")) for n in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        await eventually(lambda: len(copies(provider)) == 2)
        assert await ended(service, 48) == {"busy": 48}
    await eventually(lambda: provider.open == 0)  # those that stall went with the service
    assert len(copies(provider)) == 2


@pytest.mark.parametrize("at_once", [1, 50])
async def test_the_budget_of_a_day_ends_the_copies(shadowed, provider, at_once):
    budget = 0.001
    said = shadow(shadowed, shadow_budget_usd_per_day=budget, shadow_concurrency=50)
    async with open_service(said) as service:
        for turn in range(50 // at_once):
            got = [service.post(CHAT, ask(f"u{n}", max_tokens=3)) for n in range(at_once)]
            assert {answer.status_code for answer in await asyncio.gather(*got)} == {200}
            await ended(service, (turn + 1) * at_once)
        made, spent = results(service), service.app.spending.spent_usd("shadow:hook")
        assert 2 <= made["answered"] <= budget / COPY_USD
        assert made["budget"] == 50 - made["answered"] == 50 - len(copies(provider))
        assert spent == pytest.approx(made["answered"] * COPY_USD)
        assert f'shadow_spent_usd_total{{task="hook"}} {spent}' in str(
            service.app.metrics.render()[0]
        )
    if at_once == 1:
        provider.bodies.clear()
        async with open_service(said) as service:  # a restart is no new day
            assert (await service.post(CHAT, ask(max_tokens=3))).status_code == 200
            assert await ended(service, 1) == {"budget": 1}
        assert not copies(provider)


async def test_a_budget_needs_a_price(shadowed, provider):
    said = shadow(shadowed, shadow_model="unpriced", shadow_budget_usd_per_day=5)
    async with open_service(said) as service:
        assert (await service.post(CHAT, ask())).status_code == 200
        assert await ended(service, 1) == {"unpriced": 1}
    assert not copies(provider, "unpriced")


async def test_a_shadow_that_fails_is_spared_and_nothing_is_sent_twice(service, provider):
    provider.say("cand", whole(b"{}", status="500 Oops"))
    for number in range(8):
        assert (await service.post(CHAT, ask())).status_code == 200
        await ended(service, number + 1)
    assert results(service) == {"failed": 3, "unavailable": 5}
    assert len(copies(provider)) == 3


async def test_a_shadow_that_is_asked_too_often_is_left_alone(service, provider):
    limit = whole(b"{}", status="429 Slow", headers=b"Retry-After: 60\r\n")
    provider.say("cand", limit)
    for number in range(3):
        assert (await service.post(CHAT, ask())).status_code == 200
        await ended(service, number + 1)
    assert results(service) == {"limited": 3}
    assert len(copies(provider)) == 1


async def test_a_shadow_that_cannot_be_reached_costs_nothing(shadowed, provider):
    away = replace(shadowed.providers["default"], name="away", base_url=Url("http://127.0.0.1:1/"))
    there = replace(shadowed, providers={**shadowed.providers, "away": away})
    said = shadow(there, shadow_provider="away", shadow_budget_usd_per_day=1.0)
    async with open_service(said) as service:
        assert (await service.post(CHAT, ask())).status_code == 200
        assert await ended(service, 1) == {"failed": 1}
        assert service.app.spending.spent_usd("shadow:hook") == 0.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", list(ANSWERS))
async def test_other_wires_are_copied_too(service, provider, path, stream):
    said = {"input": "Begin"} if path.endswith("responses") else {"messages": [], "max_tokens": 9}
    body = {"model": "tuneproof/hook", **said, "stream": stream}
    assert (await service.post(path, body)).status_code == 200
    assert await ended(service, 1) == {"answered": 1}
    assert (await shown(service, 1))["shadow"]["tokens"] == 10
    assert [seen.path for seen in provider.seen] == [path, path]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "mcp", "server_url": "https://x"}]},
        {"previous_response_id": "the answer before"},
        {"conversation": "conv_1"},
    ],
    ids=["a tool that the provider runs", "an answer of another provider", "a conversation"],
)
async def test_what_would_act_twice_or_lean_on_another_provider_is_not_copied(
    service, provider, more
):
    body = {"model": "tuneproof/hook", "input": "Begin"}
    if "previous_response_id" in more:
        more = {"previous_response_id": (await service.post("/v1/responses", body)).json()["id"]}
        await ended(service, 1)
    assert (await service.post("/v1/responses", {**body, **more})).status_code == 200
    await eventually(lambda: results(service).get("not_copyable") == 1)


async def test_functions_of_the_caller_are_copied(service, provider):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert (await service.post(CHAT, ask(tools=[tool]))).status_code == 200
    assert await ended(service, 1) == {"answered": 1}
    assert copies(provider)[0]["tools"] == [tool]


async def test_nothing_of_it_reaches_a_test(shadowed, provider):
    """A shadow that fails all the time takes no candidate back, and counts for no arm."""
    async with open_service(shadow(shadowed, shadow_model="other")) as service:
        made = await service.post(
            "/evaluation/create-ab-test",
            {
                "baseline_model": {"model_id": "base"},
                "candidate_model": {"model_id": "cand"},
                "traffic_split": 0.5,
                "tasks": ["hook"],
            },
        )
        assert made.status_code == 201, made.text
        test = made.json()["ab_test_id"]
        both = await units(service)
        provider.bodies.clear()
        provider.say("other", whole(b'{"error": {"message": "no"}}', status="400 No"))
        for number in range(25):
            assert (await service.post(CHAT, ask(both[Arm.BASELINE]))).status_code == 200
            await ended(service, number + 1)
        answer = await service.post(CHAT, ask(both[Arm.CANDIDATE]))
        assert answer.headers["x-tuneproof-arm"] == "candidate"
        found = await exposures(service, test, 26)
        assert (await shown(service, 25))["shadow"]["errors"] == 25
        assert len(copies(provider, "other")) == 25  # none of the candidate's
        assert {(event["arm"], event["error"]) for event in found} == {
            ("baseline", False),
            ("candidate", False),
        }
        shows = (await service.http.get(f"/evaluation/metrics/{test}")).json()
        assert shows["status"] == "running"
        subject = shadow_of("hook", "other", service.app.clock.now())
        of_a_copy = {"id": "o", "subject": subject, "unit": "u", "value": 1.0}
        at = service.app.clock.now().isoformat()
        taken = (await service.post("/events", {"outcomes": [{**of_a_copy, "at": at}]})).json()
        assert "nobody saw its answers" in taken["rejected"][0]["reason"]


async def test_its_raw_events_are_forgotten_and_what_they_summed_up_stays(shadowed):
    pipeline = replace(shadowed.pipelines["default"], retention_days=1e-6)
    async with open_service(replace(shadowed, pipelines={"default": pipeline})) as service:
        old = week_of(service.app.clock.now()) - WEEK + timedelta(hours=1)
        subject = shadow_of("hook", "cand", old)
        told = {"id": "r", "subject": subject, "phase": 1, "at": old.isoformat(), "task": "hook"}
        both = [
            {**told, "arm": "baseline", "unit": "r", "latency_ms": 100},
            {**told, "arm": "candidate", "unit": "r-copy", "latency_ms": 200},
        ]
        taken = (await service.post("/events", {"exposures": both})).json()
        assert taken["accepted"] == 2
        stray = {**both[1], "subject": shadow_of("hook", "nobody", old)}
        taken = (await service.post("/events", {"exposures": [stray]})).json()
        assert taken["accepted"] == 0
        assert subject in await service.app.outcomes.forget()
        assert await service.app.store.events.newest(subject) == []
        assert (await shown(service, 1))["shadow"]["mean_latency_ms"] == 200


async def test_the_command_line_shows_both_sides(shadowed, provider, capsys):
    said = shadow(shadowed, shadow_budget_usd_per_day=5.0, shadow_share=1.0)
    async with open_service(said) as service:
        assert (await service.post(CHAT, ask())).status_code == 200
        await shown(service, 1)
        command = ["experiment", "shadow", "hook", "--url", service.address]
        assert await asyncio.to_thread(cli.run, command) == 0
        told = capsys.readouterr().out
        for part in ("cand at default", "100", "5 USD", "the baseline, to users", "0.0001"):
            assert part in told
        assert await asyncio.to_thread(cli.run, [*command[:2], "body", *command[3:]]) == 0
        said = capsys.readouterr()
        assert "body has no shadow" in said.out + said.err


async def test_what_is_shown_where_there_is_none(service):
    body = (await service.http.get("/evaluation/shadow/body")).json()
    assert body == {"task": "body", "shadow": None, "spent_usd": 0.0, "weeks": []}
    assert (await service.http.get("/evaluation/shadow/poem")).status_code == 404


async def test_a_reader_who_leaves_is_compared_with_nobody(service, provider):
    provider.stall("base", [chunk("o")])
    async with service.http.stream("POST", CHAT, json=ask(stream=True)) as answer:
        async for _ in answer.aiter_bytes():
            break
    await eventually(lambda: provider.open == 0)
    provider.well("base")
    assert (await service.post(CHAT, ask())).status_code == 200
    assert await ended(service, 1) == {"answered": 1}
    assert json.loads(provider.seen[-1].content)["model"] == "cand"
