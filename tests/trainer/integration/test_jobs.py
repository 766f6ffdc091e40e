"""Jobs: refusals, failures with their codes, cancel, pause, resume, order, paging."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from tests.trainer.integration.conftest import (
    BASE,
    ENDED,
    Start,
    client_of,
    ended,
    lines,
    reached,
    upload,
)
from tests.waiting import until


def say(*messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"messages": list(messages)} | extra


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
GOOD = say(USER, ANSWER)


def training_file(odd: Any = GOOD, copies: int = 11) -> bytes:
    """Good examples with an odd one in the third place."""
    rows = [json.dumps(GOOD)] * copies
    rows[2] = odd if isinstance(odd, str) else json.dumps(odd)
    return "\n".join(rows).encode()


LONG = ("invalid_file_format", "Line 3 of the training file is longer than 8 MiB")
FAILURES: list[tuple[str, bytes, str, str]] = [
    ("nine examples", training_file(copies=9), "invalid_n_examples", "has 9 example(s)"),
    ("empty", b"\n", "invalid_n_examples", "has 0 example(s)"),
    ("not JSON", training_file("{nope"), "invalid_file_format", "Line 3"),
    ("not an object", training_file("[1]"), "invalid_file_format", "not a JSON object"),
    ("bad UTF-8", training_file() + b'\n"\xff\xfe"', "invalid_file_format", "Line 12"),
    ("no messages", training_file({"prompt": "x"}), "invalid_training_file", "`messages`"),
    ("extra key", training_file(say(USER, ANSWER, x=1)), "invalid_training_file", "`x`"),
    ("tools", training_file(say(USER, ANSWER, tools=[{}])), "invalid_training_file", "`tools`"),
    ("messages empty", training_file(say()), "invalid_training_file", "at least one message"),
    ("message no object", training_file(say(1)), "invalid_training_file", "not an object"),  # type: ignore[arg-type]
    ("user last", training_file(say(USER)), "invalid_training_file", "message 1"),
    (
        "strange role",
        training_file(say({"role": "boss", "content": "x"}, ANSWER)),
        "invalid_training_file",
        "'boss'",
    ),
    (
        "no content",
        training_file(say(USER, {"role": "assistant", "content": ""})),
        "invalid_training_file",
        "message 2",
    ),
    (
        "strange key",
        training_file(say(USER, ANSWER | {"mood": "x"})),
        "invalid_training_file",
        "`mood`",
    ),
    (
        "user weight",
        training_file(say(USER | {"weight": 1}, ANSWER)),
        "invalid_training_file",
        "only assistant",
    ),
    (
        "weight 2",
        training_file(say(USER, ANSWER | {"weight": 2})),
        "invalid_training_file",
        "0 or 1",
    ),
    (
        "all weights 0",
        training_file(say(USER, ANSWER | {"weight": 0})),
        "invalid_training_file",
        "nothing to learn",
    ),
    (
        "special token",
        training_file(say(USER, {"role": "assistant", "content": "a<|fim_suffix|>"})),
        "invalid_training_file",
        "<|fim_suffix|>",
    ),
    (
        "bad name",
        training_file(say(USER | {"name": 1}, ANSWER)),
        "invalid_training_file",
        "`name`",
    ),
    (
        "name with a space",
        training_file(say(USER | {"name": "a b"}, ANSWER)),
        "invalid_training_file",
        "message 1 of `messages`: `name`",
    ),
    (
        "prompt and completion",
        training_file({"prompt": "x", "completion": "y"}),
        "invalid_file_format",
        "Line 3 of the training file is in the prompt-completion format",
    ),
    ("a pair", training_file({"preferred_output": []}), "invalid_training_file", "method 'dpo'"),
    (
        "tool role",
        training_file(say(USER, {"role": "tool", "content": "x", "tool_call_id": "1"}, ANSWER)),
        "invalid_training_file",
        "message 2 of `messages`: `tool_call_id` '1' answers no open call",
    ),
    (
        "function role",
        training_file(say(USER, {"role": "function", "name": "f", "content": "x"}, ANSWER)),
        "invalid_training_file",
        "message 2 of `messages`: is of the old form",
    ),
    (
        "tool calls",
        training_file(say(USER, {"role": "assistant", "content": None, "tool_calls": [{}]})),
        "invalid_training_file",
        "message 2 of `messages`: a call of `tool_calls` needs `id`",
    ),
    (
        "tools of an engine without",
        training_file(say(USER, ANSWER, tools=[{"type": "function", "function": {"name": "f"}}])),
        "tools_not_supported",
        "Example 3 of the training file has tools",
    ),
    (
        "functions",
        training_file(say(USER, ANSWER, functions=[{"name": "f"}])),
        "invalid_training_file",
        "`functions`",
    ),
    (
        "parallel tool calls",
        training_file(say(USER, ANSWER, parallel_tool_calls="yes")),
        "invalid_training_file",
        "`parallel_tool_calls`",
    ),
    (
        "an image",
        training_file(say(USER | {"content": [{"type": "image_url", "image_url": {}}]}, ANSWER)),
        "invalid_training_file",
        "'image_url' cannot be trained",
    ),
    (
        "a strange text part",
        training_file(say(USER | {"content": [{"type": "text", "text": 1}]}, ANSWER)),
        "invalid_training_file",
        "message 1 of `messages`: a text part",
    ),
    (
        "empty parts",
        training_file(say(USER | {"content": []}, ANSWER)),
        "invalid_training_file",
        "message 1 of `messages`: `content`",
    ),
    ("a long line", training_file(say(USER, ANSWER | {"content": "x" * 2**24})), *LONG),
]


@pytest.mark.parametrize(
    ("content", "code", "told"), [case[1:] for case in FAILURES], ids=[c[0] for c in FAILURES]
)
def test_bad_training_files_fail_the_job_with_code_example_and_message(
    client: OpenAI, content: bytes, code: str, told: str
) -> None:
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, content))
    job = ended(client, job)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == code
    assert job.error.param == "training_file"
    assert told in job.error.message
    if code == "invalid_training_file":
        assert "Example 3" in job.error.message
    last = client.fine_tuning.jobs.list_events(job.id).data[0]
    assert last.level == "error"


PAIR = {
    "input": {"messages": [USER]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [{"role": "assistant", "content": "No"}],
}


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ({**PAIR, "input": {}}, "`input`"),
        ({**PAIR, "input": {"messages": []}}, "at least one message"),
        ({**PAIR, "preferred_output": [USER]}, "`preferred_output`"),
        ({**PAIR, "non_preferred_output": [ANSWER, ANSWER]}, "`non_preferred_output`"),
        ({k: v for k, v in PAIR.items() if k != "preferred_output"}, "`preferred_output`"),
        ({"prompt": "x"}, "`input`"),
        (GOOD, "the job's method is 'dpo'"),
        ({**PAIR, "input": {"messages": [USER, ANSWER]}}, "message 2 of `input.messages`"),
        ({**PAIR, "preferred_output": [ANSWER | {"content": ""}]}, "1 of `preferred_output`"),
        ({**PAIR, "input": {"messages": [USER], "tools": [{}]}}, "`tools`"),
    ],
)
def test_bad_preference_files_fail_the_job(client: OpenAI, pair: dict[str, Any], told: str) -> None:
    rows = [json.dumps(PAIR)] * 11
    rows[2] = json.dumps(pair)
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, "\n".join(rows).encode()),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
    )
    job = ended(client, job)
    assert job.error is not None
    assert job.error.code == "invalid_training_file"
    assert told in job.error.message


def test_text_parts_names_and_a_byte_order_mark_are_read(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    rows = [
        json.dumps(say(USER | {"name": "ann-1"}, ANSWER | {"content": parts, "weight": 1}))
    ] * 10
    content = b"\xef\xbb\xbf" + "\r\n\n".join(rows).encode()
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload(client, content), hyperparameters={"n_epochs": 4}
    )
    job = ended(client, job)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    answer = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "Hi"}],
        temperature=0,
    )
    assert (answer.choices[0].message.content or "").startswith("Hello")


def test_preference_files_train(client: OpenAI) -> None:
    content = "\n".join([json.dumps(PAIR)] * 12).encode()
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, content),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}},
    )
    job = ended(client, job)
    assert job.status == "succeeded"
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2


def test_a_bad_validation_file_is_named(client: OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, lines()),
        validation_file=upload(client, b"{nope"),
    )
    job = ended(client, job)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_file_format", "validation_file")


def test_quota_and_blocklist_have_codes_of_their_own(start: Start) -> None:
    client = client_of(start(token_quota=2500, blocklist=("forbidden phrase",)))
    good = upload(client, lines(count=40))
    job = client.fine_tuning.jobs.create(model=BASE, training_file=good)
    assert ended(client, job).status == "succeeded"
    again = ended(client, client.fine_tuning.jobs.create(model=BASE, training_file=good))
    assert again.error is not None
    assert again.error.code == "exceeded_quota"
    unsafe = training_file(say(USER, {"role": "assistant", "content": "A Forbidden PHRASE"}))
    job = ended(
        client, client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, unsafe))
    )
    assert job.error is not None
    assert job.error.code == "unsafe_file"


MANY = {str(n): "x" for n in range(17)}
FEW, MOST = "integer_below_min_value", "integer_above_max_value"
REFUSALS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "gpt-4o"}, 400, "model_not_available", "model"),
    ({"training_file": "file-nope"}, 400, "file_not_found", "training_file"),
    ({"validation_file": "file-nope"}, 400, "file_not_found", "validation_file"),
    ({"suffix": "x" * 65}, 400, "string_above_max_length", "suffix"),
    ({"suffix": "a:b"}, 400, "invalid_value", "suffix"),
    ({"seed": -1}, 400, "integer_below_min_value", "seed"),
    ({"seed": 2**31}, 400, "integer_above_max_value", "seed"),
    ({"seed": "x"}, 400, "invalid_type", "seed"),
    (
        {"metadata": {str(n): "x" for n in range(17)}},
        400,
        "object_above_max_properties",
        "metadata",
    ),
    ({"metadata": {"k": "x" * 513}}, 400, "string_above_max_length", "metadata.k"),
    (
        {"hyperparameters": {"n_epochs": 51}},
        400,
        "integer_above_max_value",
        "hyperparameters.n_epochs",
    ),
    (
        {"hyperparameters": {"batch_size": 0}},
        400,
        "integer_below_min_value",
        "hyperparameters.batch_size",
    ),
    (
        {"hyperparameters": {"learning_rate_multiplier": 0}},
        400,
        "decimal_below_min_value",
        "hyperparameters.learning_rate_multiplier",
    ),
    (
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.1}}}},
        400,
        "decimal_above_max_value",
        "method.dpo.hyperparameters.beta",
    ),
    ({"method": {"type": "reinforcement"}}, 400, "unsupported_method", "method"),
    ({"method": {"type": "supervised", "dpo": {}}}, 400, "invalid_value", "method.dpo"),
    ({"integrations": [{"type": "wandb"}]}, 400, "unsupported_parameter", "integrations"),
    ({"extra_body": {"trainingType": 1}}, 400, "unknown_parameter", "trainingType"),
]


DUMPED = {
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "name": None,
    "weight": None,
}


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_rows_are_read_as_libraries_dump_them(client: OpenAI, method: Any) -> None:
    """Seen: `tool_calls` cannot be trained, unknown key `refusal`."""
    user, answer = USER | {"name": None}, ANSWER | DUMPED
    if method == "supervised":
        row: Any = say(user, answer, tools=None, parallel_tool_calls=None)
    else:
        given = {"messages": [user], "tools": [], "parallel_tool_calls": None}
        row = {"input": given, "preferred_output": [answer], "non_preferred_output": [answer]}
    content = "\n".join([json.dumps(row)] * 10).encode()
    how: Any = {"method": {"type": method}} if method == "supervised" else {}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, content), **how)
    job = ended(client, job)
    if method == "dpo":  # this engine has no such method: the row is what is looked at
        assert job.error is not None
        assert "'supervised'" in job.error.message
        return
    assert job.status == "succeeded"


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    REFUSALS,
    ids=[f"{next(iter(c[0]))}-{c[2]}" for c in REFUSALS],
)
def test_bad_requests_are_refused_with_code_and_parameter(
    client: OpenAI, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    asked = {"model": BASE, "training_file": upload(client, lines(count=10))} | changes
    with pytest.raises(APIStatusError) as refused:
        client.fine_tuning.jobs.create(**asked)
    error = refused.value
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert error.request_id is not None


def test_a_file_for_another_purpose_cannot_be_trained_on(client: OpenAI) -> None:
    file = client.files.create(file=("a", lines()), purpose="user_data")
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
    assert refused.value.code == "invalid_file_purpose"


def test_jobs_of_no_one_are_not_found(client: OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    calls: list[Callable[[str], Any]] = [
        jobs.retrieve,
        jobs.cancel,
        jobs.pause,
        jobs.resume,
        jobs.list_events,
        jobs.checkpoints.list,
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as gone:
            call("ftjob-nope")
        assert gone.value.code == "fine_tune_not_found"


def test_jobs_train_one_after_another_in_the_order_they_came(start: Start) -> None:
    client = client_of(start())
    file_id = upload(client, lines(count=300))
    made = []
    for _ in range(4):  # files are read beside each other: who is ready first trains first
        made.append(client.fine_tuning.jobs.create(model=BASE, training_file=file_id))
        until(lambda: client.fine_tuning.jobs.retrieve(made[-1].id).status != "validating_files")
    most = 0
    while True:
        states = [job.status for job in client.fine_tuning.jobs.list()]
        most = max(most, states.count("running"))
        if all(state in ENDED for state in states):
            break
    assert most == 1
    assert set(states) == {"succeeded"}
    began = [_began(client, job.id) for job in made]
    assert began == sorted(began)


def _began(client: OpenAI, job_id: str) -> int:
    events = list(client.fine_tuning.jobs.list_events(job_id))
    assert sum(event.message == "Fine-tuning job started" for event in events) == 1
    return next(e.created_at for e in events if e.message == "Fine-tuning job started")


def test_lists_are_paged_and_filtered_by_metadata(start: Start) -> None:
    client = client_of(start())
    file_id = upload(client, b"\n")
    sent = []
    for n in range(5):
        metadata = {"even": str(n % 2 == 0), "number": str(n)} if n else None
        job = client.fine_tuning.jobs.create(model=BASE, training_file=file_id, metadata=metadata)
        sent.append(job.id)
    jobs = client.fine_tuning.jobs
    assert [j.id for j in jobs.list(limit=2)] == sent[::-1]
    assert jobs.list(limit=2).has_more
    assert [j.id for j in jobs.list(metadata={"even": "True"})] == [sent[4], sent[2]]
    both = jobs.list(metadata={"even": "True", "number": "2"})
    assert [j.id for j in both] == [sent[2]]
    assert list(jobs.list(metadata={"even": "maybe"})) == []
    none = jobs.list(extra_query={"metadata": "null"})
    assert [j.id for j in none] == [sent[0]]
    with pytest.raises(BadRequestError):
        jobs.list(limit=0)
    with pytest.raises(BadRequestError):
        jobs.list(after="ftjob-nope")


def test_events_are_paged_without_gap_or_repeat(client: OpenAI) -> None:
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines()))
    ended(client, job)
    whole = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    paged = list(client.fine_tuning.jobs.list_events(job.id, limit=7))
    assert [event.id for event in paged] == [event.id for event in whole]


def test_cancel_ends_a_job_wherever_it_stands(start: Start) -> None:
    client = client_of(start())
    large = upload(client, lines(None, count=20_000))
    running = client.fine_tuning.jobs.create(model=BASE, training_file=large)
    reached(client, running, ("running",))
    waiting = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload(client, lines(count=20))
    )
    reached(client, waiting, ("queued",))
    for job in (waiting, running):
        cancelled = client.fine_tuning.jobs.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert cancelled.finished_at is not None
        assert cancelled.fine_tuned_model is None
        with pytest.raises(BadRequestError) as refused:
            client.fine_tuning.jobs.cancel(job.id)
        assert refused.value.code == "invalid_job_state"
    after = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines()))
    assert ended(client, after).status == "succeeded"
    assert client.fine_tuning.jobs.retrieve(running.id).status == "cancelled"
    assert [m.id for m in client.models.list()] == [
        BASE,
        client.fine_tuning.jobs.retrieve(after.id).fine_tuned_model,
    ]


def test_a_paused_job_frees_its_place_and_goes_on_when_resumed(start: Start) -> None:
    client = client_of(start())
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload(client, lines(None, count=10_000)), seed=1
    )
    reached(client, job, ("running",))
    assert client.fine_tuning.jobs.pause(job.id).status in ("pausing", "paused")
    reached(client, job, ("paused",))
    other = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines()))
    assert ended(client, other).status == "succeeded"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert ended(client, job).status == "succeeded"
    with pytest.raises(BadRequestError):
        client.fine_tuning.jobs.resume(job.id)
    with pytest.raises(BadRequestError):
        client.fine_tuning.jobs.pause(job.id)
    steps = [
        event.data["step"]  # type: ignore[index]
        for event in client.fine_tuning.jobs.list_events(job.id)
        if event.type == "metrics"
    ]
    assert steps == sorted(set(steps), reverse=True)


def test_a_queued_job_pauses_at_once(start: Start) -> None:
    client = client_of(start())
    file_id = upload(client, lines(None, count=10_000))
    first = client.fine_tuning.jobs.create(model=BASE, training_file=file_id)
    reached(client, first, ("running",))
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines(count=20)))
    reached(client, job, ("queued",))
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert ended(client, job).status == "succeeded"


def test_a_fine_tune_can_be_trained_further(client: OpenAI) -> None:
    first = ended(
        client,
        client.fine_tuning.jobs.create(model=BASE, training_file=upload(client, lines())),
    )
    assert first.fine_tuned_model is not None
    second = client.fine_tuning.jobs.create(
        model=first.fine_tuned_model, training_file=upload(client, lines("list")), suffix="two"
    )
    client.models.delete(first.fine_tuned_model)
    second = ended(client, second)
    if second.status == "succeeded":
        assert second.fine_tuned_model is not None
        assert second.fine_tuned_model.startswith(f"ft:{BASE}:local:two:")
    else:
        assert second.error is not None
        assert second.error.code == "model_not_found"
