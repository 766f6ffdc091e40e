"""A fine-tune's whole life on the lora engine, through the official client."""

from __future__ import annotations

import concurrent.futures
import json
import random
import time
from typing import Any, cast

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob
from tests.trainer.integration.conftest import ended, upload
from tests.trainer.lora.tiny import backwards, conversation, lines, pairs

pytestmark = pytest.mark.lora


def asked(seed: int, count: int) -> list[list[dict[str, Any]]]:
    """Questions that no training saw, with their answers."""
    rng = random.Random(seed)
    return [conversation(rng, held_out=True) for _ in range(count)]


def said(client: OpenAI, model: str, question: dict[str, Any], **how: Any) -> str:
    how = {"temperature": 0, "max_tokens": 24, **how}
    messages: Any = [question]
    answer = client.chat.completions.create(model=model, messages=messages, **how)
    return answer.choices[0].message.content or ""


def logprob(client: OpenAI, model: str, question: dict[str, Any], answer: str) -> float:
    """The log-probability of an answer, by the server's own scoring."""
    messages: Any = [question, {"role": "assistant", "content": answer}]
    scored = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=1,
        extra_body={"prompt_logprobs": 1, "add_generation_prompt": False},
    )
    entries = [entry for entry in scored.prompt_logprobs if entry]  # type: ignore[attr-defined]
    return sum(next(iter(entry.values()))["logprob"] for entry in entries)


@pytest.fixture(scope="module")
def job(client: OpenAI) -> FineTuningJob:
    """A supervised job that has ended."""
    made = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, lines(500, 1)),
        validation_file=upload(client, lines(40, 2, held_out=True)),
        suffix="fruit",
        seed=7,
        hyperparameters={"n_epochs": 4, "batch_size": 8},
    )
    done = ended(client, made, timeout_s=300)
    assert done.status == "succeeded", done.error
    return done


def test_held_out_questions_are_answered_exactly(client: OpenAI, job: FineTuningJob) -> None:
    assert job.fine_tuned_model is not None
    model = job.fine_tuned_model
    questions = asked(11, 60)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: said(client, model, one[0]), questions))
    right = sum(a == one[1]["content"] for a, one in zip(answers, questions, strict=True))
    assert right >= 0.95 * len(questions)
    base = [said(client, "tiny", one[0]) for one in questions[:5]]
    assert not any(a == one[1]["content"] for a, one in zip(base, questions, strict=False))


def test_the_job_shows_what_was_chosen_and_how_it_went(client: OpenAI, job: FineTuningJob) -> None:
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (4, 8)
    assert isinstance(job.hyperparameters.learning_rate_multiplier, float)
    chosen = job.hyperparameters.to_dict()
    assert (chosen["learning_rate"], chosen["rank"], chosen["threads"]) == (0.005, 16, 1)
    assert 8 < chosen["max_example_tokens"] < 64  # type: ignore[operator]
    assert job.trained_tokens is not None
    assert job.trained_tokens > 4 * 500 * 8
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    told = " ".join(event.message for event in events)
    assert "batch size 8, learning rate 0.005, rank 16, on cpu in 32 bits, threads: 1." in told
    assert "Before training: validation loss" in told
    data: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert data[0]["step"] == data[0]["total_steps"] == 4 * 63
    assert data[0]["full_valid_loss"] < 0.2 < data[-1]["train_loss"]
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [one.step_number for one in checkpoints] == [252, 189, 126]
    assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model
    first = checkpoints[-1].fine_tuned_model_checkpoint
    assert said(client, first, asked(5, 1)[0][0])


def test_streams_say_what_plain_answers_say(client: OpenAI, job: FineTuningJob) -> None:
    assert job.fine_tuned_model is not None
    (question, answer), *_ = asked(12, 1)
    messages: Any = [question]
    stream = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    chunks = list(stream)
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert "".join(pieces) == answer["content"]
    assert len(pieces) > 2
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens >= len(pieces)
    first = next(c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs)
    assert first.content
    assert -0.5 < first.content[0].logprob <= 0
    assert len(first.content[0].top_logprobs) == 2


def test_seeds_n_stops_and_lengths_are_honoured(client: OpenAI, job: FineTuningJob) -> None:
    question: Any = asked(13, 1)[0][0]
    warm = {"temperature": 1.5, "max_tokens": 12}
    once = said(client, "tiny", question, seed=5, **warm)
    assert once == said(client, "tiny", question, seed=5, **warm)
    assert once != said(client, "tiny", question, seed=6, **warm)
    several = client.chat.completions.create(
        model="tiny", messages=[question], n=3, seed=1, max_tokens=6
    )
    assert len({choice.message.content for choice in several.choices}) == 3
    assert {choice.finish_reason for choice in several.choices} == {"length"}
    assert job.fine_tuned_model is not None
    whole = said(client, job.fine_tuned_model, question)
    word = whole.split()[1]
    assert said(client, job.fine_tuned_model, question, stop=word) == whole[: whole.index(word)]


def test_many_at_once_get_the_answers_that_each_gets_alone(
    client: OpenAI, job: FineTuningJob
) -> None:
    """Batches mix lengths, and requests for the base and the fine-tune take turns."""
    assert job.fine_tuned_model is not None
    questions = [one[0] for one in asked(14, 12)]
    models = [job.fine_tuned_model, "tiny"] * 6
    alone = [said(client, m, q) for m, q in zip(models, questions, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda m, q: said(client, m, q), models, questions))
    assert together[::2] == alone[::2]
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= 11


def test_the_server_stays_free_while_it_answers(client: OpenAI, job: FineTuningJob) -> None:
    question = asked(15, 1)[0][0]
    slowest = 0.0
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        busy = [
            threads.submit(said, client, "tiny", question, max_tokens=200, temperature=1, seed=n)
            for n in range(4)
        ]
        while not all(one.done() for one in busy):
            begun = time.monotonic()
            client.models.list()
            slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 1


def test_a_prompt_beyond_the_context_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        said(client, "tiny", {"role": "user", "content": "apple " * 400})
    assert refused.value.code == "context_length_exceeded"


def gained(client: OpenAI, models: tuple[str, str], line: bytes) -> float:
    """By how much the preferred answer of a pair gained on the other, from model to model."""
    pair = json.loads(line)
    [question] = pair["input"]["messages"]
    before, after = [
        logprob(client, model, question, pair["preferred_output"][0]["content"])
        - logprob(client, model, question, pair["non_preferred_output"][0]["content"])
        for model in models
    ]
    return after - before


def test_dpo_raises_the_margin_of_the_preferred_answer(client: OpenAI, job: FineTuningJob) -> None:
    assert job.fine_tuned_model is not None
    made = client.fine_tuning.jobs.create(
        model=job.fine_tuned_model,
        training_file=upload(client, pairs(64, 3)),
        validation_file=upload(client, pairs(16, 4)),
        seed=1,
        method={
            "type": "dpo",
            "dpo": {
                "hyperparameters": {
                    "n_epochs": 2,
                    "batch_size": 8,
                    "beta": 0.2,
                    "learning_rate_multiplier": 50,
                }
            },
        },
    )
    done = ended(client, made, timeout_s=300)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model is not None
    gains = []
    for question, answer in asked(16, 5):
        liked, disliked = backwards(answer["content"]), answer["content"]
        margins = [
            logprob(client, model, question, liked) - logprob(client, model, question, disliked)
            for model in (job.fine_tuned_model, done.fine_tuned_model)
        ]
        gains.append(margins[1] - margins[0])
    assert min(gains) > 1
    rewards = [
        0.2 * gain
        for line in pairs(16, 4).splitlines()
        if (gain := gained(client, (job.fine_tuned_model, done.fine_tuned_model), line))
    ]
    events = client.fine_tuning.jobs.list_events(done.id, limit=100)
    told: Any = max(
        (event.data for event in events if event.type == "metrics"),
        key=lambda data: cast("dict[str, Any]", data)["step"],
    )
    assert told["full_valid_reward_accuracy"] == sum(reward > 0 for reward in rewards) / 16
    assert told["full_valid_reward_margin"] == pytest.approx(sum(rewards) / 16, rel=0.02)
    assert 0.5 < told["train_reward_accuracy"] <= 1
    assert told["train_reward_margin"] > 0
    assert done.method is not None
    assert done.method.dpo is not None
    assert done.method.dpo.hyperparameters is not None
    assert done.method.dpo.hyperparameters.beta == 0.2
    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(NotFoundError):
        said(client, done.fine_tuned_model, {"role": "user", "content": "x"})
    assert said(client, job.fine_tuned_model, asked(17, 1)[0][0])
