"""Every error code of the server, proven over the wire by the official SDK.

The page of the docs lists them; the sources may use no other, and each has its proof here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from tests.trainer.integration.conftest import BASE, Start, client_of, ended, lines, upload
from tests.trainer.integration.test_access import made_key

import tuneproof_trainer
from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.parsing import CODES
from tuneproof_trainer.settings import TrainerSettings

SOURCES = Path(tuneproof_trainer.__file__).parent
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "trainer.md"
ELSEWHERE = {
    "disk_full": "test_scarcity",
    "out_of_memory": "test_scarcity",
    "engine_overloaded": "test_turns",
    "server_error": "test_engines",
    "internal_error": "test_engines",
    "bad_framing": "test_framing",
    "request_timeout": "test_framing",
    "headers_too_large": "test_framing",
    "too_many_connections": "test_framing",
    "host_not_allowed": "test_origins",
    "origin_not_allowed": "test_origins",
}
"""Codes that need a machine or an engine of their own, and the tests that prove them."""

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def trained_on(client: OpenAI, content: bytes, **how: Any) -> str | None:
    """The code with which a job on this file fails."""
    asked = {"model": BASE, "training_file": upload(client, content)} | how
    job = ended(client, client.fine_tuning.jobs.create(**asked))
    return job.error.code if job.error else None


def examples(odd: dict[str, Any], count: int = 12) -> bytes:
    return "\n".join([json.dumps(odd), *[json.dumps(GOOD)] * (count - 1)]).encode()


def refused(call: Callable[[], Any]) -> tuple[int, str | None]:
    """Status and code with which the SDK sees a call refused."""
    with pytest.raises(APIStatusError) as told:
        call()
    assert told.value.request_id is not None
    return told.value.status_code, told.value.code


UNSAFE = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a bad word"}]}
ROLE = {"messages": [{"role": "boss", "content": "x"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
FAILED: list[tuple[str, bytes]] = [
    ("invalid_n_examples", examples(GOOD, 9)),
    ("invalid_file_format", b"{"),
    ("invalid_training_file", examples(ROLE)),
    ("tools_not_supported", examples({**GOOD, "tools": [TOOL]})),
    ("unsafe_file", examples(UNSAFE)),
    ("exceeded_quota", examples({"messages": [*GOOD["messages"]] * 500})),
]


@pytest.mark.parametrize(("code", "content"), FAILED, ids=[code for code, _ in FAILED])
def test_a_job_fails_with_the_code(start: Start, code: str, content: bytes) -> None:
    client = client_of(start(blocklist=("BAD word",), token_quota=500))
    assert trained_on(client, content) == code


def part_of(client: OpenAI, size: int, sent: bytes) -> tuple[str, str]:
    made = client.uploads.create(
        bytes=size, filename="f", mime_type="text/plain", purpose="fine-tune"
    )
    return made.id, client.uploads.parts.create(made.id, data=sent).id


def cancelled_upload(client: OpenAI) -> str:
    upload_id, _ = part_of(client, 1, b"a")
    return client.uploads.cancel(upload_id).id


def job(client: OpenAI, **how: Any) -> Any:
    asked = {"model": BASE, "training_file": upload(client, lines(count=10))} | how
    return client.fine_tuning.jobs.create(**asked)


def keyed(client: OpenAI, **how: Any) -> Any:
    return job(client, extra_headers={"Idempotency-Key": "one"}, **how)


def chat(client: OpenAI, **how: Any) -> Any:
    asked = {"model": BASE, "messages": [{"role": "user", "content": "x"}]} | how
    return client.chat.completions.create(**asked)


def raw(client: OpenAI, path: str, content: bytes, kind: str = "application/json") -> Any:
    options: Any = {"headers": {"content-type": kind}}
    return client.post(path, cast_to=object, content=content, options=options)


def completed(client: OpenAI, size: int, **how: Any) -> Any:
    upload_id, part = part_of(client, size, b"a")
    return client.uploads.complete(upload_id, **({"part_ids": [part]} | how))


def ended_job(client: OpenAI) -> str:
    return ended(client, job(client)).id


FORM = "Multipart/form-data; boundary=b"  # the SDK makes a form of its own from the usual word
OTHER = b'--b\r\ncontent-disposition: form-data; name="other"; filename="x"\r\n\r\nx\r\n--b--'
REFUSED: dict[str, tuple[int, Callable[[OpenAI], Any]]] = {
    "array_above_max_length": (400, lambda c: chat(c, stop=["a"] * 5)),
    "completion_not_found": (404, lambda c: c.chat.completions.retrieve("chatcmpl-none")),
    "decimal_above_max_value": (400, lambda c: chat(c, temperature=3)),
    "decimal_below_min_value": (400, lambda c: chat(c, temperature=-1)),
    "integer_above_max_value": (400, lambda c: chat(c, n=129)),
    "integer_below_min_value": (400, lambda c: job(c, seed=-1)),
    "object_above_max_properties": (
        400,
        lambda c: job(c, metadata={f"{n}": "x" for n in range(17)}),
    ),
    "idempotency_key_in_use": (400, lambda c: [keyed(c, seed=n) for n in (1, 2)]),
    "bytes_mismatch": (400, lambda c: completed(c, 2)),
    "empty_file": (400, lambda c: upload(c, b"")),
    "empty_array": (400, lambda c: chat(c, messages=[])),
    "empty_string": (400, lambda c: job(c, suffix="")),
    "file_not_found": (400, lambda c: job(c, training_file="file-none")),
    "file_too_large": (413, lambda c: upload(c, bytes(100_001))),
    "fine_tune_not_found": (404, lambda c: c.fine_tuning.jobs.retrieve("ftjob-none")),
    "invalid_content_type": (400, lambda c: raw(c, "/files", b"x")),
    "invalid_file_purpose": (
        400,
        lambda c: job(c, training_file=c.files.create(file=("f", b"x"), purpose="user_data").id),
    ),
    "invalid_form": (400, lambda c: raw(c, "/files", b"nonsense", FORM)),
    "invalid_job_state": (400, lambda c: c.fine_tuning.jobs.cancel(ended_job(c))),
    "invalid_json": (400, lambda c: raw(c, "/fine_tuning/jobs", b"{")),
    "invalid_part": (400, lambda c: completed(c, 1, part_ids=["part_none"])),
    "invalid_type": (400, lambda c: chat(c, n="x")),
    "invalid_upload_state": (400, lambda c: c.uploads.cancel(cancelled_upload(c))),
    "invalid_value": (400, lambda c: chat(c, top_logprobs=2)),
    "md5_mismatch": (400, lambda c: completed(c, 1, md5="0" * 32)),
    "method_not_supported": (405, lambda c: c.put("/files", cast_to=object)),
    "missing_required_parameter": (400, lambda c: raw(c, "/fine_tuning/jobs", b"{}")),
    "model_not_deletable": (403, lambda c: c.models.delete(BASE)),
    "model_not_available": (400, lambda c: job(c, model="gpt-none")),
    "model_not_found": (404, lambda c: c.models.retrieve("ft:none")),
    "request_too_large": (413, lambda c: raw(c, "/uploads", bytes(33 * 2**20))),
    "string_above_max_length": (400, lambda c: job(c, suffix="x" * 65)),
    "unexpected_file": (400, lambda c: raw(c, "/files", OTHER, FORM)),
    "unknown_parameter": (400, lambda c: chat(c, extra_body={"odd": 1})),
    "unknown_url": (404, lambda c: c.get("/nothing", cast_to=object)),
    "unsupported_content_type": (415, lambda c: raw(c, "/fine_tuning/jobs", b"{}", "text/plain")),
    "unsupported_endpoint": (400, lambda c: c.embeddings.create(model=BASE, input="x")),
    "unsupported_method": (400, lambda c: job(c, method={"type": "reinforcement"})),
    "unsupported_parameter": (400, lambda c: chat(c, presence_penalty=1)),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = TrainerSettings(dir=tmp_path_factory.mktemp("codes"), max_file_bytes=100_000)
    with EmbeddedTrainer(settings) as running:
        yield client_of(running)


@pytest.mark.parametrize("code", REFUSED)
def test_a_request_is_refused_with_the_code(small: OpenAI, code: str) -> None:
    status, call = REFUSED[code]
    assert refused(lambda: call(small)) == (status, code)


ANONYMOUS: Any = {"headers": {"Authorization": ""}}
GUARDED = {
    "missing_api_key": 401,
    "invalid_api_key": 401,
    "mismatched_organization": 401,
    "training_not_available": 403,
    "rate_limit_exceeded": 429,
}


def test_keys_organisations_and_limits_have_codes(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "trainer"
    key = made_key(folder, "--no-training")
    trainer = start(dir=folder, requests_per_minute=2)
    mine = client_of(trainer, key)
    found = [
        refused(lambda: mine.get("/models", cast_to=object, options=ANONYMOUS)),
        refused(client_of(trainer, "sk-nonsense").models.list),
        refused(mine.with_options(organization="other").models.list),
        refused(lambda: mine.fine_tuning.jobs.create(model=BASE, training_file="file-x")),
    ]
    mine.models.list()
    with pytest.raises(APIStatusError) as limited:
        mine.models.list()
    assert {"retry-after", "retry-after-ms"} <= limited.value.response.headers.keys()
    found.append((limited.value.status_code, limited.value.code))
    assert {code: status for status, code in found} == GUARDED


def listed() -> set[str]:
    """The codes of the docs' table."""
    section = PAGE.read_text("utf-8").partition("## Error codes")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}


def in_sources() -> set[str]:
    """The codes that the sources give to errors."""
    found = set(CODES)
    for path in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            found |= _given(node)
    return found


PLACE = {"bad_request": 2, "not_found": 2, "JobFailure": 0}


def _given(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        nodes = node.value.elts[:1] if len(node.value.elts) == 3 else []  # a job's failure
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        place = PLACE.get(node.func.id)
        nodes = node.args[place : place + 1] if place is not None else []
        nodes = nodes + [word.value for word in node.keywords if word.arg == "code"]
    else:
        return set()
    values = [n.value for n in nodes if isinstance(n, ast.Constant)]
    return {value for value in values if isinstance(value, str)}


def test_every_code_is_listed_and_every_one_that_is_listed_has_a_proof() -> None:
    proven = {code for code, _ in FAILED} | set(REFUSED) | set(GUARDED) | set(ELSEWHERE)
    assert in_sources() - listed() == set()
    assert listed() == proven
    for code, module in ELSEWHERE.items():
        assert f'"{code}"' in Path(__file__).with_name(f"{module}.py").read_text("utf-8")
