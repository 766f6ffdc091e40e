"""Several vLLM servers behind one trainer, and what only they do: tools and structured outputs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
from openai import BadRequestError, OpenAI
from tests.trainer.integration.conftest import client_of
from tests.trainer.integration.test_engines import Scripted
from tests.trainer.lora.vllm_fake import WORDS, FakeVllm, vllm_server

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.lora.vllm import VllmAnswers
from tuneproof_trainer.engines.protocol import EngineError, Generation, Message, Relayed, Token
from tuneproof_trainer.settings import TrainerSettings

ASKED = [Message(role="user", content="x")]
HOW = Generation(max_tokens=3)


@pytest.fixture
def fakes() -> Iterator[list[FakeVllm]]:
    with contextlib.ExitStack() as running:
        yield [running.enter_context(vllm_server("scripted-1")) for _ in range(3)]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def said(answers: VllmAnswers, model: str) -> str:
    return "".join(token.text for token in answers.generate(model, ASKED, HOW))


def counts(fakes: Sequence[FakeVllm], model: str) -> list[int]:
    """How many answers each was asked for, without the one that shows that it answers."""
    return [sum(a["model"] == model and bool(a.get("stream")) for a in f.asked) for f in fakes]


def test_an_adapter_is_on_all_and_each_has_answered(fakes: list[FakeVllm], adapter: Path) -> None:
    answers = VllmAnswers(*(fake.url for fake in fakes))
    answers.load("ft:a", adapter)
    assert all(fake.adapters == {"ft:a": str(adapter)} for fake in fakes)
    assert all(fake.asked[-1]["model"] == "ft:a" for fake in fakes)
    answers.unload("ft:a")
    assert all(fake.adapters == {} for fake in fakes)


def test_one_that_lists_an_adapter_and_does_not_answer_is_named(
    fakes: list[FakeVllm], adapter: Path
) -> None:
    fakes[1].broken = True
    answers = VllmAnswers(*(fake.url for fake in fakes))
    with pytest.raises(EngineError, match=r"does not fit") as refused:
        answers.load("ft:a", adapter)
    assert refused.value.code == "model_not_served"
    assert fakes[1].url in refused.value.message


def test_who_has_the_least_to_do_is_asked(fakes: list[FakeVllm], adapter: Path) -> None:
    answers = VllmAnswers(*(fake.url for fake in fakes))
    answers.load("ft:a", adapter)
    begun = [answers.generate("ft:a", ASKED, HOW) for _ in range(6)]
    firsts = [next(one).text for one in begun]  # type: ignore[call-overload]
    assert firsts == [WORDS[0]] * 6
    assert counts(fakes, "ft:a") == [2, 2, 2]
    for one in begun[:2]:
        one.close()  # type: ignore[attr-defined]
    assert said(answers, "ft:a") == "".join(WORDS)
    assert sorted(counts(fakes, "ft:a")) == [2, 2, 3]


def test_one_that_is_back_gets_what_it_missed(adapter: Path) -> None:
    with vllm_server("scripted-1") as stays:
        with vllm_server("scripted-1") as leaves:
            answers = VllmAnswers(leaves.url, stays.url)
            answers.load("ft:a", adapter)
            assert {said(answers, "ft:a") for _ in range(4)} == {"".join(WORDS)}
        assert {said(answers, "ft:a") for _ in range(4)} == {"".join(WORDS)}, "nobody notices"
        answers.load("ft:b", adapter)
        assert "ft:b" in stays.adapters
        port = int(leaves.url.rsplit(":", 1)[1].removesuffix("/v1"))
        with vllm_server("scripted-1", port) as back:
            replicas = answers._replicas._all
            for replica in replicas:
                replica.away_until = 0.0
            held = [
                answers.generate(model, ASKED, HOW) for model in ("ft:a", "ft:b", "ft:b", "ft:a")
            ]
            for one in held:
                next(one)  # type: ignore[call-overload]
            assert set(back.adapters) == {"ft:a", "ft:b"}
            assert back.adapters == stays.adapters


def test_where_none_answers_that_is_said(adapter: Path) -> None:
    with vllm_server("scripted-1") as one, vllm_server("scripted-1") as two:
        answers = VllmAnswers(one.url, two.url)
        answers.load("ft:a", adapter)
    with pytest.raises(EngineError, match="does not answer") as away:
        said(answers, "ft:a")
    assert away.value.code == "engine_unavailable"


class Behind(Scripted):
    """An engine with vLLM servers behind it."""

    relays = True

    def __init__(self, answers: VllmAnswers) -> None:
        super().__init__()
        self._answers = answers

    def load(self, model: str, path: Path | None) -> None:
        self._answers.load(model, path)

    def loaded(self, model: str) -> bool:
        return self._answers.loaded(model)

    def generate(self, model: str, messages: Sequence[Message], how: Generation) -> Iterator[Token]:
        return self._answers.generate(model, messages, how)

    def relay(self, model: str, body: dict[str, Any]) -> Relayed:
        return self._answers.relay(model, body)


@pytest.fixture
def client(fakes: list[FakeVllm], tmp_path: Path) -> Iterator[OpenAI]:
    engine = Behind(VllmAnswers(*(fake.url for fake in fakes)))
    settings = TrainerSettings(dir=tmp_path / "trainer")
    with EmbeddedTrainer(settings, engines=[engine]) as trainer:
        yield client_of(trainer)


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
QUESTION: Any = [{"role": "user", "content": "Is it dry in Ulm?"}]


def test_a_loop_of_tools_ends_in_an_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "scripted-1", "tools": TOOLS, "store": True}
    first = client.chat.completions.create(messages=QUESTION, **asked)
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert call.function.arguments == '{"place":"Ulm"}'
    result = {"role": "tool", "tool_call_id": call.id, "content": "dry"}
    again = [*QUESTION, first.choices[0].message.model_dump(), result]
    last = client.chat.completions.create(messages=again, **asked)
    assert last.choices[0].message.content == "It is dry in Ulm."
    kept = client.chat.completions.list().data
    assert [one.choices[0].finish_reason for one in kept] == ["tool_calls", "stop"]
    stored: Any = client.chat.completions.messages.list(kept[1].id).data
    assert [one.role for one in stored] == ["user", "assistant", "tool"]
    assert stored[1].tool_calls[0].function.name == "weather"


def test_streamed_calls_come_as_the_server_says_them(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="scripted-1", messages=QUESTION, tools=TOOLS, store=True
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.arguments == '{"place":"Ulm"}'
    kept = client.chat.completions.list().data[0].choices[0]
    assert kept.message.tool_calls is not None
    assert kept.message.tool_calls[0].to_dict() == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"place":"Ulm"}'},
    }


class Weather(pydantic.BaseModel):
    place: str
    dry: bool


def test_structured_outputs_are_passed_on(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="scripted-1", messages=QUESTION, response_format=Weather
    )
    assert answer.choices[0].message.parsed == Weather(place="Ulm", dry=True)


def test_what_the_server_refuses_is_told_in_its_words(
    client: OpenAI, fakes: list[FakeVllm]
) -> None:
    client.chat.completions.create(model="scripted-1", messages=QUESTION, tools=TOOLS)
    for fake in fakes:
        fake.broken = True
    with pytest.raises(BadRequestError, match="does not fit") as refused:
        client.chat.completions.create(model="scripted-1", messages=QUESTION, tools=TOOLS)
    assert refused.value.code == "refused_by_engine"


def test_answers_of_many_clients_are_spread(client: OpenAI, fakes: list[FakeVllm]) -> None:
    def ask() -> None:
        client.chat.completions.create(model="scripted-1", messages=QUESTION)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts(fakes, "scripted-1")) == 12
    assert min(counts(fakes, "scripted-1")) >= 1
