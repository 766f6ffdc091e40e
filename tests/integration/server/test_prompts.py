"""Prompts over real HTTP: client, gateway and `/decide` say the same, and older ones are safe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.chat import Chat
from tests.integration.server.conftest import Service, open_service
from tests.integration.server.test_wires import at
from tests.raw_provider import raw_provider
from tests.waiting import eventually

from tuneproof.client import Client, Prompt
from tuneproof.client.state import HeldRouting
from tuneproof.errors import InputError, StateError
from tuneproof.experiments import Arm
from tuneproof.settings import Settings, TaskConfig

HOOK = TaskConfig(
    name="hook",
    prompt="A hook about {original_input}.",
    completion="hook",
    empty_prompt="Any hook.",
    prompt_owner="variant",
)
OTHER = Prompt(
    messages=(("system", "You ask."), ("user", 'As {"hook": …}: {original_input}?')),
    parameters={"temperature": 0.5, "max_tokens": 60, "stop": ["\n"]},
    variables=("original_input",),
)
TEA = {"original_input": "tea"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Variants own the prompt of `hook`, and its pipeline has no other task."""
    pipelines = {n: replace(c, tasks=("hook",)) for n, c in settings.pipelines.items()}
    return replace(settings, tasks={"hook": HOOK}, pipelines=pipelines)


@pytest.fixture
async def tested(settings: Settings) -> AsyncIterator[Service]:
    """`base` by its first prompt against `base` by another, a half each."""
    async with open_service(settings) as service:
        await begin(service)
        yield service


async def begin(service: Service) -> None:
    """The test."""
    added = await service.post("/prompts", {"task": "hook", **OTHER.document()})
    assert added.status_code == 201, added.text
    answer = await service.post(
        "/evaluation/create-ab-test",
        {
            "baseline_model": {"model_id": "base"},
            "candidate_model": {"model_id": "base", "prompt": added.json()["hash"]},
            "traffic_split": 0.5,
            "duration_hours": 24,
        },
    )
    assert answer.status_code == 201, answer.text
    shown = (await service.http.get("/evaluation/tests")).json()["items"][0]
    assert shown["candidate_model"]["prompt"] == OTHER.hash


def units(service: Service) -> dict[Arm, str]:
    """A unit of each arm."""
    routing = service.app.routing.board.snapshot.by_task["hook"]
    return {routing.serve(f"u{n}").arm: f"u{n}" for n in range(100)}


def ask(unit: str, **more: Any) -> dict[str, Any]:
    return {"model": "tuneproof/hook", "user": unit, "prompt_variables": TEA, **more}


async def test_client_gateway_and_decide_agree(tested: Service, chat: Chat) -> None:
    """On 10,000 units; the gateway on some of them, by what the provider really got."""
    board = tested.app.routing.board.snapshot
    answers, routing = board.answers[True]["hook"], board.by_task["hook"]
    seen: Counter[str | None] = Counter()
    with Client(tested.address, push=False) as client:
        await eventually(lambda: client.status().connected, 30)
        for number in range(10_000):
            unit = f"unit-{number}"
            chosen, decided = client.choose("hook", unit), json.loads(answers.decide(unit))
            served = routing.serve(unit)
            assert chosen.prompt is not None
            assert chosen.prompt.hash == decided["prompt"] == served.model.prompt
            assert (chosen.arm, chosen.subject) == (decided["arm"], decided["subject"])
            seen[served.model.prompt] += 1
        assert len(seen) == 2
        assert min(seen.values()) > 4000
        for number in range(20):
            choice = client.choose("hook", f"unit-{number}")
            answer = await tested.post("/v1/chat/completions", ask(choice.unit))
            assert answer.status_code == 200, answer.text
            assert choice.prompt is not None
            assert answer.headers["x-tuneproof-prompt"] == choice.prompt.hash
            wanted = {"messages": choice.messages(**TEA), **choice.parameters}
            assert {name: chat.bodies[-1][name] for name in wanted} == wanted
            assert not {"prompt_variables", "temperature"} - wanted.keys() & chat.bodies[-1].keys()


async def test_openais_client_sends_variables(tested: Service, chat: Chat) -> None:
    """Its own messages follow, and what it says of parameters gives way."""
    unit = units(tested)[Arm.CANDIDATE]
    async with openai.AsyncOpenAI(base_url=f"{tested.address}/v1", api_key="x") as ai:
        answer = await ai.chat.completions.create(
            model="tuneproof/hook",
            messages=[{"role": "assistant", "content": "Tea?"}, {"role": "user", "content": "Go"}],
            user=unit,
            temperature=1.5,
            max_completion_tokens=7,
            seed=3,
            extra_body={"prompt_variables": TEA},
        )
    assert answer.choices[0].message.content == "three small words"
    body = chat.bodies[-1]
    assert [m["content"] for m in body["messages"]] == [
        "You ask.",
        'As {"hook": …}: tea?',
        "Tea?",
        "Go",
    ]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 60, 3)
    assert "max_completion_tokens" not in body
    streamed = await tested.post("/v1/chat/completions", ask(unit, stream=True))
    assert streamed.headers["x-tuneproof-prompt"] == OTHER.hash
    assert chat.bodies[-1]["messages"][0]["content"] == "You ask."


async def test_who_knows_no_prompts_gets_the_model_in_use_and_is_no_evidence(
    tested: Service, chat: Chat
) -> None:
    """A client, a caller of `/decide` and one of the gateway that were written before."""
    unit = units(tested)[Arm.CANDIDATE]
    table = (await tested.http.get("/routing")).json()
    [row] = table["routing"]
    assert "prompts" not in table
    assert row["baseline"] == {"model_id": "base", "version": None}
    assert (row["candidate"], row["subject"], row["share"]) == (None, None, 0.0)
    decided = (await tested.http.get("/decide", params={"task": "hook", "unit": unit})).json()
    assert (decided["model"], decided["arm"], decided["subject"]) == ("base", "baseline", None)
    assert "prompt" not in decided
    own = {"model": "tuneproof/hook", "user": unit, "messages": [{"role": "user", "content": "Hi"}]}
    answer = await tested.post("/v1/chat/completions", own)
    assert answer.headers["x-tuneproof-arm"] == "baseline"
    assert not {"x-tuneproof-prompt", "x-tuneproof-subject"} & answer.headers.keys()
    assert [m["content"] for m in chat.bodies[-1]["messages"]] == ["Hi"]
    knowing = (await tested.http.get("/routing?knows=prompts")).json()
    assert knowing["version"] == table["version"]
    assert knowing["prompts"][OTHER.hash] == OTHER.document()
    slow = await tested.http.get("/routing?knows=prompts&after=0")
    assert slow.json() == knowing
    same = await tested.http.get(
        "/routing?knows=prompts", headers={"If-None-Match": slow.headers["ETag"]}
    )
    assert same.status_code == 304
    other = await tested.http.get("/routing", headers={"If-None-Match": slow.headers["ETag"]})
    assert other.status_code == 200
    for query in (f"task=hook&unit={unit}", f"unit={unit}&task=hook"):
        prompted = (await tested.http.get(f"/decide?{query}&knows=prompts")).json()
        assert (prompted["arm"], prompted["prompt"]) == ("candidate", OTHER.hash)


async def test_what_cannot_be_filled_is_refused_before_anybody_is_asked(
    tested: Service, chat: Chat
) -> None:
    """As OpenAI's clients read it, with what is missing."""
    own = [{"role": "system", "content": "Mine."}]
    for body, said in (
        (ask("u", prompt_variables={"topic": "tea"}), "original_input is missing"),
        (ask("u", prompt_variables={"original_input": ["tea"]}), "neither text nor a number"),
        (ask("u", prompt_variables="tea"), "no object"),
        (ask("u", messages=own), "system message"),
        (ask("u", messages=5), "messages '5', which is no list"),
        (ask("u", messages="tea"), "messages 'tea', which is no list"),
        ({"model": "tuneproof/hook", "messages": []}, "no prompt_variables to fill it by"),
    ):
        answer = await tested.post("/v1/chat/completions", body)
        assert answer.status_code == 400, answer.text
        assert said in answer.json()["error"]["message"]
    for path in ("/v1/responses", "/v1/messages"):
        answer = await tested.post(path, {"model": "tuneproof/hook"})
        assert (answer.status_code, "to fill it by" in answer.text) == (400, True)
    assert chat.bodies == []


SHORTER = Prompt(
    messages=(("system", "You ask."), ("user", "On {original_input}?")),
    parameters={"temperature": 0.5, "max_tokens": 60},
    variables=("original_input",),
)


async def begin_with(service: Service, prompt: Prompt) -> None:
    """A test of this prompt, a half each."""
    added = await service.post("/prompts", {"task": "hook", **prompt.document()})
    asked = {
        "baseline_model": {"model_id": "base"},
        "candidate_model": {"model_id": "base", "prompt": added.json()["hash"]},
        "traffic_split": 0.5,
        "duration_hours": 24,
    }
    answer = await service.post("/evaluation/create-ab-test", asked)
    assert answer.status_code == 201, answer.text


def over(path: str, unit: str, **more: Any) -> dict[str, Any]:
    """A request over a wire, of variables alone."""
    limit = {"max_tokens": 100} if path == "/v1/messages" else {}
    return {"model": "tuneproof/hook", "user": unit, "prompt_variables": TEA, **limit, **more}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_each_wire_takes_variables(settings: Settings, path: str) -> None:
    async with raw_provider() as provider, open_service(at(settings, provider)) as service:
        await begin_with(service, SHORTER)
        for arm, unit in units(service).items():
            for stream in (False, True):
                answer = await service.post(path, over(path, unit, stream=stream))
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-tuneproof-arm"] == arm
                body = provider.bodies[-1]
                given = body["input" if path == "/v1/responses" else "messages"]
                text = "On tea?" if arm is Arm.CANDIDATE else "A hook about tea."
                assert given[-1] == {"role": "user", "content": text}
                assert ("temperature" in body) is (arm is Arm.CANDIDATE)
                assert "prompt_variables" not in body


async def test_a_wire_that_cannot_say_a_candidate_s_parameters_is_no_evidence(
    settings: Settings,
) -> None:
    """Of a test, which would else compare those of its units alone that can ask both."""
    async with raw_provider() as provider, open_service(at(settings, provider)) as service:
        await begin_with(service, OTHER)  # it has `stop`
        for unit in units(service).values():
            answer = await service.post("/v1/responses", over("/v1/responses", unit))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-tuneproof-arm"] == "baseline"
            assert "x-tuneproof-subject" not in answer.headers
            assert provider.bodies[-1]["input"] == [
                {"role": "user", "content": "A hook about tea."}
            ]
        said = await service.post(
            "/v1/messages", over("/v1/messages", units(service)[Arm.CANDIDATE])
        )
        assert said.headers["x-tuneproof-prompt"] == OTHER.hash
        assert provider.bodies[-1]["stop_sequences"] == ["\n"]


async def test_a_prompt_that_the_provider_refuses_is_its_candidates_fault(
    tested: Service, chat: Chat
) -> None:
    """The baseline answers, by its own prompt, and the failure counts."""
    chat.refusing = lambda body: "temperature" in body
    unit = units(tested)[Arm.CANDIDATE]
    answer = await tested.post("/v1/chat/completions", ask(unit))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tuneproof-fallback"] == "true"
    assert answer.headers["x-tuneproof-prompt"] != OTHER.hash
    assert [m["content"] for m in chat.bodies[-1]["messages"]] == ["A hook about tea."]
    test_id = tested.app.routing.board.snapshot.by_task["hook"].subjects[0]
    [event] = await tested.until(f"/events?subject={test_id}", lambda found: len(found) == 1)
    assert (event["arm"], event["error"]) == ("candidate", True)


async def test_prompts_are_kept_shown_and_refused(tested: Service) -> None:
    """By their hash, which the content makes."""
    shown = await tested.http.get(f"/prompts/{OTHER.hash}")
    assert {name: shown.json()[name] for name in OTHER.document()} == OTHER.document()
    assert (shown.json()["hash"], shown.json()["origin"]) == (OTHER.hash, "person")
    assert "immutable" in shown.headers["cache-control"]
    listed = (await tested.http.get("/prompts")).json()
    assert {one["hash"] for one in listed["prompts"]} >= {OTHER.hash}
    [test] = (await tested.http.get("/evaluation/tests")).json()["items"]
    for page in ("/", f"/evaluation/report/{test['ab_test_id']}"):
        assert f"base with {OTHER.hash}" in (await tested.http.get(page)).text
    again = await tested.post("/prompts", {"task": "hook", **OTHER.document()})
    assert again.json()["hash"] == OTHER.hash
    assert (await tested.http.get(f"/prompts/{'0' * 16}")).status_code == 404
    for body, said in (
        ({"task": "body", "messages": []}, "Variants own no prompt"),
        ({"task": "hook", "messages": [{"role": "user", "content": "x"}]}, "does not say"),
        ({"task": "hook", "messages": []}, "ends with a message of the user"),
        ({"task": "hook", **OTHER.document(), "variables": []}, "has the variables none, and hook"),
    ):
        refused = await tested.post("/prompts", body)
        assert refused.status_code == 422, refused.text
        assert said in refused.text
    unknown = {
        "baseline_model": {"model_id": "base"},
        "candidate_model": {"model_id": "base", "prompt": "0" * 16},
    }
    assert (await tested.post("/evaluation/create-ab-test", unknown)).status_code == 404


async def test_the_settings_prompt_is_there_by_the_hash_that_is_told(settings: Settings) -> None:
    """Before any run; and a prompt that says nothing of blank variables has the task's."""
    served = replace(settings, tasks={"hook": replace(HOOK, model="base")})
    async with open_service(served) as service:
        told = (await service.http.get("/decide?task=hook&unit=u&knows=prompts")).json()["prompt"]
        shown = await service.http.get(f"/prompts/{told}")
        assert shown.status_code == 200, shown.text
        assert (shown.json()["origin"], shown.json()["empty_prompt"]) == ("settings", "Any hook.")
        messages = [{"role": "user", "content": "Of {original_input}"}]
        for said, empty in (({}, "Any hook."), ({"empty_prompt": ""}, "")):
            added = await service.post("/prompts", {"task": "hook", "messages": messages, **said})
            assert added.json()["empty_prompt"] == empty


async def test_an_application_that_owns_its_prompt_again_is_asked_by_none(
    settings: Settings, chat: Chat
) -> None:
    """Also who knows prompts and sends variables; what is tested gets nobody, and the doctor says
    so."""
    async with open_service(settings) as service:
        await begin(service)
        unit = units(service)[Arm.CANDIDATE]
    tasks = {"hook": replace(HOOK, prompt_owner="application")}
    async with open_service(replace(settings, tasks=tasks)) as service:
        told = (await service.http.get(f"/decide?task=hook&unit={unit}&knows=prompts")).json()
        assert (told["arm"], told["subject"], told["prompt"]) == ("baseline", None, None)
        own = [{"role": "user", "content": "Hi"}]
        answer = await service.post("/v1/chat/completions", ask(unit, messages=own))
        assert answer.status_code == 200, answer.text
        assert chat.bodies[-1]["messages"] == own
        assert "x-tuneproof-prompt" not in answer.headers
        rows = (await service.http.get("/doctor")).json()
        [row] = [one for one in rows if one["name"] == "hook: prompt"]
        assert "nobody is in ab-test" in row["detail"]


async def test_a_client_keeps_prompts_on_disk_where_an_older_one_is_safe(
    tested: Service, tmp_path: Path
) -> None:
    """What an older one reads there is the baseline alone."""
    with Client(tested.address, state_dir=tmp_path, push=False) as client:
        await eventually(lambda: client.status().connected, 30)
        chosen = {unit: client.choose("hook", unit) for unit in units(tested).values()}
    [row] = json.loads((tmp_path / "routing.json").read_text())["routing"]
    assert row.keys() == {"task", "baseline", "version", "knowing"}
    with Client("http://127.0.0.1:9", state_dir=tmp_path, push=False) as client:
        for unit, before in chosen.items():
            assert client.choose("hook", unit) == before._replace(source="disk")


def test_a_choice_without_a_prompt_says_so() -> None:
    """Where the application owns it, or the service was not heard yet; `prompts` is for then."""
    bare = HeldRouting(path=None, defaults={"hook": "base"}).choose("hook", "u")
    assert (bare.prompt, bare.parameters) == (None, {})
    with pytest.raises(StateError, match="No prompt is known for hook"):
        bare.messages(original_input="tea")
    held = HeldRouting(path=None, defaults={"hook": "base"}, prompts={"hook": OTHER})
    assert held.choose("hook", "u").messages(original_input="tea")[0]["content"] == "You ask."
    with pytest.raises(InputError, match="original_input is missing"):
        held.choose("hook", "u").messages()
