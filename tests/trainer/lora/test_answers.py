"""Conversations as tokens, whole models made of fine-tunes, and answers by vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from tests.servers import free_port
from tests.trainer.integration.conftest import ended, upload
from tests.trainer.lora.conftest import examples, messages
from tests.trainer.lora.tiny import lines, make_model, pairs
from tests.trainer.lora.vllm_fake import FakeVllm, vllm_server

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.lora.conversations import Conversations
from tuneproof_trainer.engines.lora.engine import LoraEngine
from tuneproof_trainer.engines.lora.loading import load_conversations, load_model
from tuneproof_trainer.engines.lora.measures import knows_nothing, measure
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.engines.protocol import Generation, Message
from tuneproof_trainer.settings import TrainerSettings

pytestmark = pytest.mark.lora
SAID = messages(
    [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "red"},
        {"role": "assistant", "content": "apple", "weight": 0},
        {"role": "user", "content": "green"},
        {"role": "assistant", "content": "pear pear"},
    ]
)


@pytest.fixture
def talk(tiny: Path) -> Conversations:
    return load_conversations(named_bases([str(tiny)])[0])


def learned(talk: Conversations, said: tuple[Message, ...]) -> list[str]:
    """The text that each sequence of a conversation is to learn."""
    return [
        talk.tokenizer.decode([label for label in one.labels if label >= 0])
        for one in talk.encode(said)
    ]


def test_answers_of_weight_1_and_their_ends_are_learned(talk: Conversations) -> None:
    assert learned(talk, SAID) == ["pear pear<|end|>"]
    (encoded,) = talk.encode(SAID)
    assert talk.tokenizer.decode(encoded.ids) == (
        "<|system|>\nBe short.<|end|>\n<|user|>\nred<|end|>\n<|assistant|>\napple<|end|>\n"
        "<|user|>\ngreen<|end|>\n<|assistant|>\npear pear<|end|>"
    )


def test_a_model_is_asked_with_the_tokens_that_it_was_taught(talk: Conversations) -> None:
    (encoded,) = talk.encode(SAID)
    prompt = talk.prompt(SAID[:-1])
    assert encoded.ids[: len(prompt)] == prompt
    assert all(label == -100 for label in encoded.labels[: len(prompt)])
    assert encoded.labels[-1] in talk.stop_ids
    assert talk.scored(SAID).labels == encoded.labels


def test_a_pair_shares_its_prompt(talk: Conversations) -> None:
    (example,) = examples(pairs(1, 1))
    pair = talk.pair(example)
    assert pair.prompt == talk.prompt(example.messages)
    assert talk.tokenizer.decode(pair.chosen) == example.preferred[0].content + "<|end|>"
    assert talk.tokenizer.decode(pair.rejected) == example.rejected[0].content + "<|end|>"


def test_a_model_without_a_template_gets_a_plain_one(talk: Conversations) -> None:
    tokenizer = talk.tokenizer
    tokenizer.chat_template = None
    plain = Conversations(tokenizer)
    assert learned(plain, SAID) == ["pear pear<|end|>"]
    assert tokenizer.decode(plain.prompt(SAID[1:2])) == "### User:\nred\n\n### Assistant:\n"


def test_a_template_that_refuses_systems_gets_them_in_the_next_question(
    talk: Conversations,
) -> None:
    talk.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + talk.tokenizer.chat_template
    )
    strict = Conversations(talk.tokenizer)
    shown = strict.tokenizer.decode(strict.prompt(SAID[:2]))
    assert shown == "<|user|>\nBe short.\n\nred<|end|>\n<|assistant|>\n"


def test_a_template_that_changes_earlier_answers_makes_several_sequences(
    talk: Conversations,
) -> None:
    talk.tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n"
        "{% if m['role'] == 'assistant' and not loop.last %}...{% else %}{{ m['content'] }}"
        "{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    both = tuple(Message(role=m.role, content=m.content) for m in SAID[1:])
    assert learned(Conversations(talk.tokenizer), both) == ["apple<|end|>", "pear pear<|end|>"]


def test_a_random_model_knows_nothing(tiny: Path, talk: Conversations) -> None:
    options = LoraOptions(bases=named_bases([str(tiny)]), threads=1)
    model = load_model(options.bases[0], options)
    encoded = [one for e in examples(lines(10, 1)) for one in talk.encode(e.messages)]
    assert knows_nothing(model, encoded)
    loss, accuracy = measure(model, encoded)
    assert 5 < loss < 7
    assert accuracy < 0.1


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tied", tied=True)


def test_a_fine_tune_becomes_a_whole_model_that_says_the_same(tied: Path, tmp_path: Path) -> None:
    """On a base whose embeddings are its output layer, too, as in most small models."""
    settings = TrainerSettings(dir=tmp_path / "trainer", engine="lora", models=(str(tied),))
    with EmbeddedTrainer(settings) as trainer:
        client = OpenAI(base_url=trainer.base_url, api_key="any", max_retries=0)
        job = client.fine_tuning.jobs.create(
            model="tied",
            training_file=upload(client, lines(200, 1)),
            hyperparameters={"n_epochs": 2, "batch_size": 8},
            seed=1,
        )
        job = ended(client, job, timeout_s=120)
        assert job.fine_tuned_model is not None, job.error
        question: Any = {"role": "user", "content": "red green small"}
        spoken = client.chat.completions.create(
            model=job.fine_tuned_model, messages=[question], temperature=0, max_tokens=20
        )
    command = [sys.executable, "-c", "from tuneproof_trainer.cli import main; main()", "export"]
    command += [job.fine_tuned_model, "--to", str(tmp_path / "whole"), "--model", str(tied)]
    subprocess.run([*command, "--dir", str(tmp_path / "trainer")], check=True)
    assert (tmp_path / "whole" / "model.safetensors").exists()
    options = LoraOptions(bases=named_bases([str(tmp_path / "whole")]), threads=1)
    engine = LoraEngine(options, environment=os.environ)
    engine.load("whole", None)
    how = Generation(max_tokens=20, temperature=0)
    tokens = engine.generate("whole", messages([question]), how)
    assert "".join(t.text for t in tokens) == spoken.choices[0].message.content


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVllm]:
    with vllm_server("tiny") as fake:
        yield fake


@pytest.fixture(scope="module")
def served(
    vllm: FakeVllm, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenAI]:
    settings = TrainerSettings(
        dir=tmp_path_factory.mktemp("trainer"),
        engine="lora",
        models=(str(tiny),),
        vllm=(vllm.url,),
    )
    with EmbeddedTrainer(settings) as trainer:
        yield OpenAI(base_url=trainer.base_url, api_key="any", max_retries=0)


def test_vllm_gets_each_adapter_and_answers_for_it(served: OpenAI, vllm: FakeVllm) -> None:
    training = upload(served, lines(12, 1))
    job = served.fine_tuning.jobs.create(
        model="tiny", training_file=training, hyperparameters={"n_epochs": 1}
    )
    job = ended(served, job, timeout_s=120)
    model = job.fine_tuned_model
    assert model is not None, job.error
    assert vllm.adapters == {}
    question: Any = {"role": "user", "content": "red"}
    stream = served.chat.completions.create(
        model=model, messages=[question], stream=True, seed=4, temperature=0.5, logprobs=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "three small words"
    assert (Path(vllm.adapters[model]) / "adapter_model.safetensors").exists()
    asked = vllm.asked[-1]
    assert (asked["model"], asked["seed"], asked["temperature"]) == (model, 4, 0.5)
    base = served.chat.completions.create(model="tiny", messages=[question], max_tokens=2)
    assert base.choices[0].message.content == "three small"
    assert base.choices[0].finish_reason == "length"
    assert served.models.delete(model).deleted
    assert vllm.adapters == {}


def test_vllm_scores_the_last_answer(served: OpenAI, vllm: FakeVllm) -> None:
    said: Any = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "an apple"}]
    scored = served.chat.completions.create(
        model="tiny",
        messages=said,
        max_tokens=1,
        extra_body={"prompt_logprobs": 1, "add_generation_prompt": False},
    )
    found = scored.prompt_logprobs  # type: ignore[attr-defined]
    told = [next(iter(entry.values()))["decoded_token"] if entry else None for entry in found]
    assert told == [None, None, None, None, "an", "apple", "<|end|>"]


def test_a_vllm_that_refuses_is_named_and_one_that_was_restarted_is_told_again(
    served: OpenAI, vllm: FakeVllm
) -> None:
    question: Any = {"role": "user", "content": "red"}
    job = served.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(served, lines(12, 1)),
        hyperparameters={"n_epochs": 1},
    )
    job = ended(served, job, timeout_s=120)
    assert job.fine_tuned_model is not None
    vllm.refuses = True
    with pytest.raises(BadRequestError, match="--enable-lora"):
        served.chat.completions.create(model=job.fine_tuned_model, messages=[question])
    vllm.refuses = False
    answer = served.chat.completions.create(model=job.fine_tuned_model, messages=[question])
    assert answer.choices[0].message.content == "three small words"
    vllm.adapters.clear()  # it was restarted
    answer = served.chat.completions.create(model=job.fine_tuned_model, messages=[question])
    assert answer.choices[0].message.content == "three small words"


def test_a_vllm_that_does_not_answer_is_named(tiny: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    settings = TrainerSettings(dir=tmp_path, engine="lora", models=(str(tiny),), vllm=(url,))
    with EmbeddedTrainer(settings) as trainer:
        client = OpenAI(base_url=trainer.base_url, api_key="any", max_retries=0)
        with pytest.raises(BadRequestError, match=f"vLLM at {url} does not answer"):
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "red"}]
            )
