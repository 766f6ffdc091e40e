"""What providers send of their own accord: the end of a job wakes the run that waits for it."""

from __future__ import annotations

from fastapi import APIRouter, Request

from tuneproof.server.models import Answer
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp


class Heard(Answer):
    """What became of an event: the run that was woken, if one waits for this job."""

    run_id: str | None


def router() -> APIRouter:
    """The routes under `/webhooks`."""
    routes = APIRouter(prefix="/webhooks", tags=["webhooks"], responses=RESPONSES)

    @routes.post(
        "/openai",
        summary="OpenAI says that a fine-tuning job ended (signed; needs no token)",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"type": "object"}}},
            }
        },
    )
    async def openai(request: Request, app: TheApp) -> Heard:
        headers = {name.lower(): value for name, value in request.headers.items()}
        return Heard(run_id=await app.runs.webhook(await request.body(), headers))

    return routes
