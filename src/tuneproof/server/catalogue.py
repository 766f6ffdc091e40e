"""Versions and data over HTTP: what was trained, and from what."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from tuneproof.server.auth import Reader
from tuneproof.server.models import Answer, Instant
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp


class VersionOut(Answer):
    """What a run made, with its lineage; `prompt` is the hash of that which it is asked by."""

    id: str
    pipeline: str
    run_id: str | None
    version: str
    model_id: str | None
    base_model: str
    provider: str
    training_job_id: str | None
    dataset_hash: str | None
    tasks: list[str]
    status: str
    created_at: Instant
    trained_tokens: int | None
    heldout_loss: float | None
    base_heldout_loss: float | None
    parent_id: str | None
    prompt: str | None
    recipe: str | None


def router() -> APIRouter:
    """`/models` and `/data`."""
    routes = APIRouter(responses=RESPONSES)

    @routes.get("/models", tags=["models"], summary="All versions, newest first")
    async def models(app: TheApp, _: Reader, pipeline: str | None = None) -> list[VersionOut]:
        return [VersionOut.model_validate(v) for v in await app.store.versions.list(pipeline)]

    @routes.get("/data/manifest/{run_id}", tags=["data"], summary="What a run's dataset is made of")
    async def manifest(app: TheApp, _: Reader, run_id: str) -> dict[str, Any]:
        return dict(await app.runs.dataset_manifest(run_id))

    return routes
