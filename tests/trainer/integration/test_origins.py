"""Web pages obey nobody here: no page may ask the trainer by way of its reader's browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.trainer.integration.conftest import BASE, Start, client_of
from tests.trainer.integration.test_access import made_key

from tuneproof_trainer.embedded import EmbeddedTrainer

JOB = json.dumps({"model": BASE, "training_file": "file-x"}).encode()
ROUTES = [
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/files"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-x/cancel"),
    ("POST", "/v1/chat/completions"),
    ("DELETE", "/v1/models/ft:x"),
    ("GET", "/nothing"),
]


def asked(
    trainer: EmbeddedTrainer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, Any]:
    url = trainer.base_url.removesuffix("/v1") + path
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = httpx2.request(method, url, content=body, headers=named)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://["]
)
def test_a_foreign_origin_is_refused_on_every_route(
    trainer: EmbeddedTrainer, method: str, path: str, origin: str
) -> None:
    status, told = asked(trainer, method, path, origin=origin)
    assert (status, told["error"]["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", ""]
)
def test_a_foreign_host_is_refused_on_loopback(
    trainer: EmbeddedTrainer, method: str, path: str, host: str
) -> None:
    status, told = asked(trainer, method, path, host=host)
    assert (status, told["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8700", "10.0.0.7"]
)
def test_addresses_and_localhost_are_ours(trainer: EmbeddedTrainer, host: str) -> None:
    assert asked(trainer, "GET", "/v1/models", host=host)[0] == 200
    assert asked(trainer, "GET", "/v1/models", host=host, origin=f"http://{host}")[0] == 200


def test_an_allowed_host_is_ours(start: Start) -> None:
    trainer = start(allowed_hosts=("trainer.internal",))
    assert asked(trainer, "GET", "/v1/models", host="Trainer.Internal:8700")[0] == 200
    assert asked(trainer, "GET", "/v1/models", host="other.internal")[0] == 403


def test_beyond_loopback_any_name_is_taken_until_some_are_named(
    start: Start, tmp_path: Path
) -> None:
    key = made_key(tmp_path / "one")
    open_to_all = start(dir=tmp_path / "one", local_only=False)
    bearer = {"authorization": f"Bearer {key}"}
    assert asked(open_to_all, "GET", "/v1/models", host="trainer.svc", **bearer)[0] == 200
    named = start(dir=tmp_path / "two", local_only=False, allowed_hosts=("trainer.svc",))
    assert asked(named, "GET", "/v1/models", host="trainer.svc")[0] == 200
    assert asked(named, "GET", "/v1/models", host="evil.example")[0] == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize(
    "path", ["/v1/fine_tuning/jobs", "/v1/uploads", "/v1/chat/completions", "/v1/embeddings"]
)
def test_json_is_taken_as_json_only(trainer: EmbeddedTrainer, path: str, kind: str) -> None:
    """Seen: a job made by `text/plain`, which any page may send."""
    status, told = asked(trainer, "POST", path, JOB, content_type=kind)
    assert (status, told["error"]["code"]) == (415, "unsupported_content_type")
    charset = asked(trainer, "POST", path, JOB, content_type="Application/JSON; charset=utf-8")
    assert charset[0] in (400, 404)


def test_clients_are_none_the_wiser(trainer: EmbeddedTrainer) -> None:
    assert client_of(trainer).models.list().data
