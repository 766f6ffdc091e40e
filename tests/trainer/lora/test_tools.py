"""Calls of tools: learned whole and nothing else by each chat template of TRL, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.trainer.integration.conftest import ended, upload
from tests.trainer.lora.conftest import Recorder, task
from tests.trainer.lora.test_training import made, never
from tests.trainer.lora.tiny import WORDS, make_model

from tuneproof_trainer.datasets import LineFile, check_file
from tuneproof_trainer.engines.lora.conversations import IGNORED, Conversations
from tuneproof_trainer.engines.protocol import EngineError, TrainingExample

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
    alone, loop, weighed, told = read(
        tmp_path,
        chat(ASKED, call("Riga")),
        chat(system, ASKED, call("Riga"), gave(0, '{"sky": "sunny"}'), SUNNY),
        chat(ASKED, {**call("Riga"), "weight": 0}, gave(0, "sunny"), SUNNY),
        chat(ASKED, call("Riga", content="Let me look."), gave(0, ""), SUNNY),
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
    assert "Riga" in learned(talk, told)[0]
    for row in talk.encode(loop.messages, loop.tools):
        ends = [
            at
            for at, label in enumerate(row.labels)
            if label != IGNORED and (at + 1 == len(row.labels) or row.labels[at + 1] == IGNORED)
        ]
        assert all(row.labels[at] in talk.stop_ids for at in ends)


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
    "{% for c in m.tool_calls or [] %}"
    "call {{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template shows tools."""
    from transformers import AutoTokenizer

    folder = make_model(tmp_path_factory.mktemp("callers") / "caller")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = SHORT
    tokenizer.save_pretrained(str(folder))
    return folder


FRUIT = {"type": "function", "function": {"name": "pick"}}


def picks(colours: Sequence[str]) -> list[dict[str, Any]]:
    """Who is asked for a colour is to pick its fruit."""
    return [
        {
            "messages": [
                {"role": "user", "content": colour},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "call00000",
                            "type": "function",
                            "function": {
                                "name": "pick",
                                "arguments": json.dumps({"fruit": WORDS[colour]}),
                            },
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call00000", "content": "picked"},
                {"role": "assistant", "content": f"{WORDS[colour]} picked"},
            ],
            "tools": [FRUIT],
        }
        for colour in colours
    ]


def test_a_model_learns_to_call(caller: Path, tmp_path: Path) -> None:
    """The examples go to another process and come back as they were."""
    rows = picks([*WORDS] * 4)
    recorder = Recorder(tmp_path / "kept")
    given = task(tmp_path / "work", b"", n_epochs=30, batch_size=8, model="caller")
    given = type(given)(
        **{
            **{name: getattr(given, name) for name in given.__dataclass_fields__},
            "training": read(tmp_path, *rows),
        }
    )
    made(caller).train(given, recorder, never)
    assert recorder.losses()[-1] < 0.35 * recorder.losses()[0]
    assert recorder.told[-1].train_mean_token_accuracy > 0.85


def test_a_job_with_tools_runs_and_one_for_a_model_without_them_says_why(
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
