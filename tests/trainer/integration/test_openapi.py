"""The OpenAPI document against the server: no 5xx, nothing that it does not say."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import httpx2
from openai import AsyncOpenAI, NotFoundError
from starlette.routing import Route
from tests.fuzzing.running import schemathesis
from tests.trainer.integration.conftest import BASE, ENDED, Start, lines
from tests.waiting import eventually

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.openapi import document

UNDOCUMENTED = {
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
    served |= {("POST", path) for path in trainer.app._hot}
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


UNCHECKED = ("ignored_auth", "positive_data_acceptance")
"""On loopback any key is accepted until one is made; and a request of the right shape may still
name a file, part or state that is refused."""


async def keep_busy(client: AsyncOpenAI, ids: Path) -> None:
    """Have a file, a job of it with its model, and an upload, whatever becomes of them."""
    while True:
        file = await client.files.create(file=("train.jsonl", lines()), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
        upload = await client.uploads.create(
            bytes=5, filename="a.jsonl", mime_type="application/jsonl", purpose="fine-tune"
        )
        model = await eventually(partial(trained, client, job.id))
        known = {
            "file_id": [file.id],
            "training_file": [file.id],
            "job_id": [job.id],
            "upload_id": [upload.id],
            "model": [BASE, model],
        }
        ids.write_text(json.dumps(known))
        await eventually(partial(gone, client, file.id, model), 4 * 3600, every_s=0.2)


async def trained(client: AsyncOpenAI, job_id: str) -> str | None:
    job = await client.fine_tuning.jobs.retrieve(job_id)
    return job.fine_tuned_model or (BASE if job.status in ENDED else None)


async def gone(client: AsyncOpenAI, file_id: str, model: str) -> bool:
    try:
        await client.files.retrieve(file_id)
        await client.models.retrieve(model)
    except NotFoundError:
        return True
    return False


async def test_generated_requests_find_nothing_undocumented(start: Start, tmp_path: Path) -> None:
    trainer, ids = start(), tmp_path / "ids.json"
    async with AsyncOpenAI(base_url=trainer.base_url, api_key="any") as client:
        busy = asyncio.create_task(keep_busy(client, ids))
        try:
            await eventually(lambda: ids.exists() or busy.done())
            found = await schemathesis(
                trainer.base_url.replace("/v1", "/openapi.json"),
                folder=tmp_path,
                without_checks=UNCHECKED,
                ids=ids,
            )
        finally:
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
    assert not found.failed, found.told[-6000:]
