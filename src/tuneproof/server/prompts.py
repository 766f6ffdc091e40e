"""Prompts over HTTP: kept, listed, and read by who knows but their hash."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import ConfigDict, Field

from tuneproof.server.auth import Reader, Writer
from tuneproof.server.models import HASH, Answer, Instant, Strict
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp
from tuneproof.store import KeptPrompt

__all__ = ["PromptMessage", "PromptText", "router"]

FOR_EVER = "private, max-age=31536000, immutable"


class PromptMessage(Answer):
    """A message of a prompt."""

    role: str
    content: str


class PromptText(Answer):
    """What a prompt says; `{name}` in a content stands for a variable of that name."""

    messages: list[PromptMessage]
    parameters: dict[str, Any]
    variables: list[str]
    empty_prompt: str = Field(
        description="The last message where all variables are blank; empty: the template."
    )


class PromptOut(PromptText):
    """A prompt as it was kept: `origin` is `settings`, `person` or `proposal`."""

    hash: str
    origin: str
    parent: str | None
    created_at: Instant

    @classmethod
    def of(cls, kept: KeptPrompt) -> PromptOut:
        """Of a record."""
        return cls.model_validate(
            {
                **kept.prompt.document(),
                "hash": kept.prompt.hash,
                "origin": kept.origin,
                "parent": kept.parent,
                "created_at": kept.created_at,
            }
        )


class PromptsOut(Answer):
    """All prompts, newest first."""

    prompts: list[PromptOut]


class MessageRequest(Strict):
    """A message of a prompt that is to be kept."""

    role: str = Field(max_length=20)
    content: str = Field(max_length=1_000_000)


class PromptRequest(Strict):
    """A prompt for a task; its variables are the task's."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "task": "hook",
                "messages": [
                    {"role": "system", "content": "You write hooks that ask."},
                    {"role": "user", "content": "A hook about {original_input}."},
                ],
                "parameters": {"temperature": 0.4},
            }
        }
    )

    task: str = Field(min_length=1, max_length=200)
    messages: list[MessageRequest] = Field(max_length=100)
    parameters: dict[str, Any] = Field(default_factory=dict)
    variables: list[str] | None = Field(
        default=None, max_length=100, description="The task's, and no others; may be left out."
    )
    empty_prompt: str | None = Field(
        default=None,
        max_length=100_000,
        description="The last message where all variables are blank; left out: the task's; "
        "empty: the template.",
    )


def router() -> APIRouter:
    """The routes under `/prompts`."""
    routes = APIRouter(prefix="/prompts", tags=["prompts"], responses=RESPONSES)

    @routes.post("", status_code=201, summary="Keep a prompt under the hash of its content")
    async def add(app: TheApp, caller: Writer, asked: PromptRequest) -> PromptOut:
        prompt = app.prompts.named(asked.task, asked.model_dump(exclude={"task"}))
        return PromptOut.of(await app.prompts.add(prompt, task=asked.task, actor=caller.actor))

    @routes.get("", summary="All prompts, newest first")
    async def prompts(app: TheApp, _: Reader) -> PromptsOut:
        return PromptsOut(prompts=[PromptOut.of(one) for one in await app.prompts.all()])

    @routes.get("/{hash}", summary="A prompt, which never changes")
    async def prompt(
        app: TheApp, _: Reader, response: Response, hash: Annotated[str, Path(pattern=HASH)]
    ) -> PromptOut:
        found = PromptOut.of(await app.prompts.get(hash))
        response.headers["Cache-Control"] = FOR_EVER
        return found

    return routes
