"""The OpenAPI document against the server: no 5xx, nothing that it does not say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from starlette.routing import Route
from tests.trainer.integration.conftest import Start

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.openapi import document

UNDOCUMENTED = {
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/openapi.json"),
}


def test_every_route_is_documented_and_nothing_else(trainer: EmbeddedTrainer) -> None:
    assert trainer.app is not None
    served = {
        (method, route.path.replace(":path", ""))
        for route in trainer.app._router.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    served.add(("POST", "/v1/chat/completions"))
    said = {
        (method.upper(), path)
        for path, operations in document()["paths"].items()
        for method in operations
    }
    assert served - UNDOCUMENTED == said


def test_the_document_is_served_without_a_key(start: Start) -> None:
    trainer = start(open_without_keys=False)
    answer = httpx2.get(trainer.base_url.replace("/v1", "/openapi.json"))
    assert answer.json() == document()


def fuzz(trainer: EmbeddedTrainer, examples: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Requests by schemathesis, good and bad.

    Two checks are left out: on loopback any key is accepted until one is made, and a request of
    the right shape may still name a file, part or state that is refused.
    """
    url = trainer.base_url.replace("/v1", "/openapi.json")
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            url,
            "--checks=all",
            "--exclude-checks=ignored_auth,positive_data_acceptance",
            f"--max-examples={examples}",
            "--seed=1",
            "--phases=examples,coverage,fuzzing",
            "--continue-on-failure",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=1800,
    )


def test_generated_requests_find_nothing_undocumented(start: Start, tmp_path: Path) -> None:
    done = fuzz(start(), 15, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.slow
def test_twenty_thousand_generated_requests_find_nothing(start: Start, tmp_path: Path) -> None:
    done = fuzz(start(), 1000, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
