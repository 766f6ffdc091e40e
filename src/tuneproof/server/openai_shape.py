"""Errors in the shape that OpenAI's clients read: what is asked under `/v1` is answered so.

Everything else answers problem details; see `problems`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RESPONSES", "WireError", "error_object", "speaks_openai"]


def speaks_openai(path: str) -> bool:
    """Whether who asks for this path reads errors as OpenAI writes them."""
    return path == "/v1" or path.startswith("/v1/")


def error_object(
    message: str, *, status: int, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """An error: who is to mend it is told by its `type`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class WireErrorDetail(BaseModel):
    """What is wrong. A provider that refuses a request may say more, or less."""

    model_config = ConfigDict(extra="allow")

    message: str = Field(examples=["The model 'tuneproof/poem' does not exist here."])
    type: str | None = Field(default=None, examples=["invalid_request_error"])
    param: str | None = None
    code: str | int | None = Field(default=None, examples=["model_not_found"])


class WireError(BaseModel):
    """An error as OpenAI's wire has it."""

    model_config = ConfigDict(extra="allow")

    error: WireErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": WireError, "description": "The request is at fault, or was refused"},
    "5XX": {"model": WireError, "description": "Nobody answers now; `Retry-After` may say when"},
}
"""What each operation under `/v1` may answer beside its success, for the OpenAPI document."""
