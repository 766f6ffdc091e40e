"""Calls of tools: learned whole and nothing else by each chat template of TRL, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from tests.trainer.integration.conftest import ended, upload
from tests.trainer.lora.tiny import WORDS, make_model

from tuneproof_trainer.datasets import LineFile, check_file
from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.lora.conversations import IGNORED, Conversations
from tuneproof_trainer.engines.protocol import EngineError, TrainingExample
from tuneproof_trainer.settings import TrainerSettings

pytestmark = pytest.mark.lora

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["town"],
        },
    },
}
ASKED = {"role": "user", "content": "How is it in Riga?"}
SUNNY = {"role": "assistant", "content": "It is sunny there."}

LEARN = {
    "deepseekv3", "diffusion_gemma", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5",
    "glm4moe", "gptoss", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "lfm2_v2", "llama3_1",
    "llama3_2", "muse_glimmer", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super",
    "nemotron_3_ultra", "qwen2_5", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6",
    "qwen3_8", "qwen3_instruct_2507", "qwen3_vl",
}  # fmt: skip
REFUSE = {
    "cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "lfm2", "llama3", "phi3",
    "phi3_5", "qwen2_5_vl",
}  # fmt: skip
"""Those that show no tools, or drop calls without a word."""
IMAGES = {"idefics3", "llava_next", "smolvlm"}
"""Of models that see: their messages are parts, which is another matter."""
UNTOLD = {"deepseekv3", "diffusion_gemma", "muse_glimmer"}
"""Those of which neither the tokenizer nor TRL says how calls are told from the text."""
CALLS_ALONE = {"llama3_1", "llama3_2", "muse_glimmer"}
"""Those that leave out what an answer says beside its call."""
ONE_CALL = {"gptoss", "llama3_1", "llama3_2"}
"""Those that show one call a message."""

EXACTLY = {
    "qwen3_instruct_2507": '<tool_call>\n{"name": "weather", "arguments": '
    '{"town": "Riga", "days": 3}}\n</tool_call><|im_end|>',
    "llama3_1": '{"name": "weather", "parameters": {"town": "Riga", "days": 3}}<|eot_id|>',
    "gptoss": " to=functions.weather<|channel|>commentary json<|message|>"
    '{"town": "Riga", "days": 3}<|call|>',
    "gemma4": '<|tool_call>call:weather{days:3,town:<|"|>Riga<|"|>}<tool_call|><|tool_response>',
    "deepseekv3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"town": "Riga", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    "<｜end▁of▁sentence｜>",
    "nemotron_3_nano": "</think>\n<tool_call>\n<function=weather>\n<parameter=town>\nRiga\n"
    "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<|im_end|>",
}


def call(*towns: str, content: str | None = None) -> dict[str, Any]:
    calls = [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"town": town, "days": 3})},
        }
        for number, town in enumerate(towns)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def gave(number: int, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{number:05}", "content": text}


def chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages), "tools": [TOOL]}


def read(folder: Path, *rows: dict[str, Any], method: Any = "supervised") -> list[TrainingExample]:
    """Lines as the server reads them for an engine."""
    path = folder / "lines.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    checked = check_file(
        path, method=method, param="training_file", count_tokens=len, min_examples=1, tools=True
    )
    with LineFile(path, checked.places, method) as file:
        return [file[number] for number in range(len(file))]


def template(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def talk_of(tiny: Path, name: str) -> Conversations:
    """A tokenizer with this template, to which its marks are single tokens, as to its model's."""
    from transformers import AutoTokenizer

    text = template(name)
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    marks = re.findall(r"<\|[^<>|\s'\"]+\|?>|<[^<>|\s'\"/]+\|>|<｜[^<>\s'\"]+｜>", text)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(marks))})
    tokenizer.bos_token = "<|user|>"
    tokenizer.chat_template = text
    return Conversations(tokenizer)


def learned(talk: Conversations, example: TrainingExample) -> list[str]:
    """The texts that are learned, one for each answer."""
    found = []
    for row in talk.encode(example.messages, example.tools):
        text: list[int] = []
        for label in [*row.labels, IGNORED]:
            if label != IGNORED:
                text.append(label)
            elif text:
                found.append(talk.tokenizer.decode(text))
                text = []
    return found


def test_each_template_of_trl_is_known() -> None:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    names = {path.stem for path in folder.glob("*.jinja")}
    assert {name for name in names if not name.endswith("_training")} == LEARN | REFUSE | IMAGES


@pytest.mark.parametrize("name", sorted(LEARN))
def test_calls_are_learned_whole_and_nothing_else(tiny: Path, tmp_path: Path, name: str) -> None:
    talk = talk_of(tiny, name)
    system = {"role": "system", "content": "Be brief."}
    alone, loop, weighed = read(
        tmp_path,
        chat(ASKED, call("Riga")),
        chat(system, ASKED, call("Riga"), gave(0, '{"sky": "sunny"}'), SUNNY),
        chat(ASKED, {**call("Riga"), "weight": 0}, gave(0, "sunny"), SUNNY),
    )
    [text] = learned(talk, alone)
    assert text.startswith(EXACTLY.get(name, ""))
    assert {"weather", "town", "Riga", "3"} <= set(re.findall(r"\w+", text))
    assert "How" not in text
    called, answered = learned(talk, loop)
    assert "Riga" in called
    assert "sunny there." in answered
    assert not {"sky", "brief", "How"} & set(re.findall(r"\w+", called + answered))
    [only] = learned(talk, weighed)
    assert "It is sunny there." in only
    assert "Riga" not in only
    for row in talk.encode(loop.messages, loop.tools):
        ends = [
            at
            for at, label in enumerate(row.labels)
            if label != IGNORED and (at + 1 == len(row.labels) or row.labels[at + 1] == IGNORED)
        ]
        assert all(row.labels[at] in talk.stop_ids for at in ends)


@pytest.mark.parametrize("name", sorted(LEARN))
def test_words_beside_a_call_are_learned_with_it_or_the_example_is_refused(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    talk = talk_of(tiny, name)
    [told] = read(tmp_path, chat(ASKED, call("Riga", content="Let me look."), gave(0, ""), SUNNY))
    if name in CALLS_ALONE:
        with pytest.raises(EngineError, match=r"says beside its call, 'Let me look\.'"):
            talk.encode(told.messages, told.tools)
        return
    text = learned(talk, told)[0]
    assert "Riga" in text
    assert "Let me look." in text


BY_TEXT = "<call>{{ c.function.name }} {{ c.function.arguments }}</call>"
WRITTEN = (
    '{"days": 1e5}', '{"x": 1E-7}', '{"p": "a\\/b"}', '{"p": "\\u00E9"}', '{"p": "\\u00e9é"}',
    '{"p": "\\u003cb>"}', '{"p": ""}', '{"p": true, "q": null}', "{}",
)  # fmt: skip


def talk_by(tiny: Path, call: str) -> Conversations:
    """A tokenizer whose template writes each call `c` of a message `m` so."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>\n"
        "{{ m.content }}{% for c in m.tool_calls or [] %}" + call + "{% endfor %}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    return Conversations(tokenizer)


def test_a_template_that_prints_arguments_gets_them_as_text(tiny: Path, tmp_path: Path) -> None:
    """Of an object it would print what Python writes: single quotes, True and None."""
    talk = talk_by(tiny, BY_TEXT)
    for arguments in WRITTEN:
        row = call("Riga")
        row["tool_calls"][0]["function"]["arguments"] = arguments
        [example] = read(tmp_path, chat(ASKED, row))
        assert learned(talk, example) == [f"<call>weather {arguments}</call><|end|>"]


@pytest.mark.parametrize(
    ("template", "calls", "left_out"),
    [
        (
            "{% if loop.first %}" + BY_TEXT + "{% endif %}",
            ("weather_of", "weather"),
            "weather with",
        ),
        (
            "{% if c.function.name != 'stop' %}" + BY_TEXT + "{% endif %}",
            ("weather", "stop"),
            "stop",
        ),
    ],
)
def test_a_call_that_is_left_out_is_noticed_whatever_else_says_its_name(
    tiny: Path, tmp_path: Path, template: str, calls: tuple[str, ...], left_out: str
) -> None:
    talk = talk_by(tiny, template)
    row = call("Riga", "Riga", content="I look at the weather, then stop.")
    for made, name in zip(row["tool_calls"], calls, strict=True):
        made["function"]["name"] = name
    tools = [{"type": "function", "function": {"name": name}} for name in calls]
    for messages in ([ASKED, row], [ASKED, {**row, "weight": 0}, gave(0, ""), gave(1, ""), SUNNY]):
        [example] = read(tmp_path, {"messages": messages, "tools": tools})
        with pytest.raises(EngineError, match=f"does not show the call of {left_out}"):
            talk.encode(example.messages, example.tools)


@pytest.mark.parametrize(
    "breaks",
    [
        "{{ 1 // 0 }}",
        "{{ c.function.name.index('no such') }}",
        "{{ '{x}'.format() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_breaks_at_calls_answers_all_else(
    tiny: Path, tmp_path: Path, breaks: str
) -> None:
    talk = talk_by(tiny, breaks)
    plain, called = read(tmp_path, {"messages": [ASKED, SUNNY]}, chat(ASKED, call("Riga")))
    assert learned(talk, plain) == ["It is sunny there.<|end|>"]
    with pytest.raises(EngineError) as caught:
        talk.encode(called.messages, called.tools)
    assert caught.value.code == "tools_not_supported"


@pytest.mark.parametrize("name", sorted(LEARN))
def test_several_calls_of_one_answer_are_all_learned_or_the_example_is_refused(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    talk = talk_of(tiny, name)
    [both] = read(tmp_path, chat(ASKED, call("Riga", "Oslo")))
    if name in ONE_CALL:
        with pytest.raises(EngineError, match=r"call|refuses") as caught:
            talk.encode(both.messages, both.tools)
        assert caught.value.code == "invalid_training_file"
        return
    text = "".join(learned(talk, both))
    assert text.count("weather") >= 2
    assert "Riga" in text
    assert "Oslo" in text


@pytest.mark.parametrize("name", sorted(LEARN))
def test_calls_are_told_from_the_text_that_was_learned(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    talk = talk_of(tiny, name)
    if name in UNTOLD:
        with pytest.raises(EngineError, match="Nobody says how the chat template"):
            talk.ensure_calls()
        return
    talk.ensure_calls()
    one, two = read(tmp_path, chat(ASKED, call("Riga")), chat(ASKED, call("Riga", "Oslo")))
    for example, towns in ((one, ["Riga"]), (two, ["Riga", "Oslo"])):
        if len(towns) > 1 and name in ONE_CALL:
            continue
        labels = talk.encode(example.messages, example.tools)[-1].labels
        said = [label for label in labels if label != IGNORED][:-1]  # it stops before the end
        found = talk.called(talk.prompt(example.messages[:-1], example.tools), said, example.tools)
        assert found is not None
        words, calls = found
        assert words == ""
        assert [(name, json.loads(given)) for name, given in calls] == [
            ("weather", {"town": town, "days": 3}) for town in towns
        ]


@pytest.mark.parametrize("name", sorted(REFUSE))
def test_a_template_that_drops_calls_refuses_the_example(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    """Otherwise an empty answer would be learned."""
    talk = talk_of(tiny, name)
    called, plain = read(tmp_path, chat(ASKED, call("Riga")), {"messages": [ASKED, SUNNY]})
    with pytest.raises(EngineError) as caught:
        talk.encode(called.messages, called.tools)
    assert caught.value.code == "tools_not_supported"
    assert "sunny" in "".join(learned(talk, plain))


@pytest.mark.parametrize("name", sorted(EXACTLY))
def test_a_pair_may_be_a_call_and_an_answer(tiny: Path, tmp_path: Path, name: str) -> None:
    talk = talk_of(tiny, name)
    row = {
        "input": {"messages": [ASKED], "tools": [TOOL]},
        "preferred_output": [call("Riga")],
        "non_preferred_output": [SUNNY],
    }
    [example] = read(tmp_path, row, method="dpo")
    pair = talk.pair(example)
    assert talk.tokenizer.decode(pair.chosen).startswith(EXACTLY[name])
    shown = talk.tokenizer.decode(pair.prompt)
    assert ("weather" in shown) is (name != "deepseekv3")  # which shows no definitions
    assert "It is sunny there." in talk.tokenizer.decode(pair.rejected)


# --- trained ------------------------------------------------------------------------------------

SHORT = (
    "{% if tools %}<|system|>\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>\n",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": r"</call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}
"""How calls are told from the text again, in the words of Transformers."""


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template shows tools."""
    from transformers import AutoTokenizer

    folder = make_model(tmp_path_factory.mktemp("callers") / "caller")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template, tokenizer.response_template = SHORT, RESPONSE
    tokenizer.save_pretrained(str(folder))
    return folder


PICK = {"type": "function", "function": {"name": "pick"}}


def picked(colour: str) -> dict[str, Any]:
    arguments = json.dumps({"fruit": WORDS[colour]})
    function = {"name": "pick", "arguments": arguments}
    call = {"id": "call00000", "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [call]}


def picks(colours: Sequence[str]) -> list[dict[str, Any]]:
    """Who is asked for a colour is to pick its fruit, and to say so once it is done."""
    return [
        {
            "messages": [
                {"role": "user", "content": colour},
                picked(colour),
                {"role": "tool", "tool_call_id": "call00000", "content": "picked"},
                {"role": "assistant", "content": f"{WORDS[colour]} picked"},
            ],
            "tools": [PICK],
        }
        for colour in colours
    ]


@pytest.fixture(scope="module")
def server(caller: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    settings = TrainerSettings(
        dir=tmp_path_factory.mktemp("caller"),
        engine="lora",
        models=(str(caller),),
        training_threads=1,
    )
    with EmbeddedTrainer(settings) as running:
        yield OpenAI(base_url=running.base_url, api_key="any", max_retries=0)


@pytest.fixture(scope="module")
def tuned(server: OpenAI) -> str:
    """A fine-tune that calls."""
    content = "\n".join(json.dumps(row) for row in picks([*WORDS] * 4)).encode()
    job = server.fine_tuning.jobs.create(
        model="caller",
        training_file=upload(server, content),
        hyperparameters={"n_epochs": 50, "batch_size": 4},
        seed=3,
    )
    job = ended(server, job, timeout_s=300)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def asked(client: OpenAI, model: str, *messages: Any, **how: Any) -> Any:
    given: dict[str, Any] = {"tools": [PICK], "temperature": 0, "max_tokens": 60} | how
    return client.chat.completions.create(model=model, messages=list(messages), **given)


def test_a_tuned_model_calls_and_goes_on_from_what_came_back(server: OpenAI, tuned: str) -> None:
    """A client's whole loop, plain and streamed."""
    right = 0
    for colour, fruit in WORDS.items():
        question = {"role": "user", "content": colour}
        answer = asked(server, tuned, question)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "pick")
        right += json.loads(call.function.arguments) == {"fruit": fruit}
        assert 1 < answer.usage.completion_tokens < 60
        said = choice.message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": call.id, "content": "picked"}
        last = asked(server, tuned, question, said, result).choices[0]
        assert (last.finish_reason, last.message.tool_calls) == ("stop", None)
        assert last.message.content.endswith("picked")
    assert right == len(WORDS)


def test_calls_are_streamed_as_one_delta_at_the_end(server: OpenAI, tuned: str) -> None:
    stream = asked(server, tuned, {"role": "user", "content": "red"}, stream=True)
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert "".join(one.delta.content or "" for one in chunks) == ""
    [calls] = [one.delta.tool_calls for one in chunks if one.delta.tool_calls]
    assert (calls[0].index, calls[0].function.name) == (0, "pick")
    assert json.loads(calls[0].function.arguments) == {"fruit": WORDS["red"]}
    assert chunks[-1].finish_reason == "tool_calls"


def test_without_tools_or_cut_off_the_answer_is_text(server: OpenAI, tuned: str) -> None:
    question = {"role": "user", "content": "red"}
    cut = asked(server, tuned, question, max_tokens=6).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    assert cut.message.content.startswith("<call>")
    for how in ({"tools": None}, {"tool_choice": "none"}):
        plain = asked(server, tuned, question, **how).choices[0]
        assert plain.message.tool_calls is None


@pytest.mark.parametrize(
    ("how", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
            "messages[0]",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {**picked("red"), "tool_calls": [{}]}]},
            "messages[1].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "x"}, picked("red")]}, "messages[1]"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(
    server: OpenAI, tuned: str, how: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        asked(server, tuned, {"role": "user", "content": "x"}, extra_body=how)
    assert refused.value.param == param


def test_a_model_of_whose_calls_nobody_knows_refuses_tools(client: OpenAI) -> None:
    """Before a stream begins, too."""
    for how in ({}, {"stream": True}):
        with pytest.raises(BadRequestError, match="Nobody says how the chat template") as refused:
            asked(client, "tiny", {"role": "user", "content": "red"}, **how)
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


def test_a_job_with_tools_for_a_model_without_them_says_why(
    client: OpenAI,
) -> None:
    """The tiny model's template drops calls."""
    content = "\n".join(json.dumps(row) for row in picks([*WORDS] * 2)).encode()
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, content))
    job = ended(client, job)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "tools_not_supported"
    assert "Take a base model whose template does" in job.error.message
