"""Errors as RFC 9457 problem details: one `type` for each class of `errors.py`.

What is asked under `/v1` is answered in the shape that OpenAI's clients read; see `openai_shape`.
"""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from tuneproof.errors import NotFoundError, TuneProofError, by_name
from tuneproof.server.auth import Reader
from tuneproof.server.openai_shape import error_object, speaks_openai
from tuneproof.server.wires import wire_like

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PREFIX = "/problems/"

_GENERAL = {
    "invalid-request": ("The request is malformed", "A field of the request breaks its rule."),
    "http": ("The request cannot be served", "The path, method or form of the request is wrong."),
    "internal": ("The service failed", "A defect of the service; its log says more."),
}


class Problem(BaseModel):
    """An error: `type` names its class, `detail` what is wrong, `mend` what to do about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "/problems/not-found",
                "title": "No object has this id",
                "status": 404,
                "detail": "There is no run ft-pipeline-20261120-001.",
                "mend": "`tuneproof run list` shows all.",
                "instance": "/fine-tuning/status/ft-pipeline-20261120-001",
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    mend: str = ""
    instance: str = ""
    details: dict[str, Any] = Field(default_factory=dict, description="Values for programs.")
    errors: list[dict[str, Any]] = Field(
        default_factory=list, description="For a malformed request: each field with its rule."
    )


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, text in {
        "4XX": "The request is at fault",
        "503": "The database, or what the request needs, does not answer now",
    }.items()
}
"""What each operation may answer beside its success, for the OpenAPI document."""


def problem(error: TuneProofError, instance: str = "") -> Problem:
    """The problem details of one of our errors."""
    return Problem(
        type=f"{PREFIX}{error.slug}",
        title=_title(type(error)),
        status=status_of(error),
        detail=error.message,
        mend=error.mend,
        instance=instance,
        details=_finite(error.details),
    )


def status_of(error: TuneProofError) -> int:
    """The HTTP status of an error: its class's, or the one that its details carry."""
    status = error.details.get("status")
    return status if isinstance(status, int) and 400 <= status < 600 else error.status


def headers_of(error: TuneProofError) -> dict[str, str]:
    """Headers that go with an error: when to come back, how to authenticate."""
    headers = {}
    after = error.details.get("retry_after_s")
    if isinstance(after, int | float) and math.isfinite(after):
        headers["Retry-After"] = str(max(1, math.ceil(after)))
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="tuneproof"'
    return headers


def respond(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as a response to who asked for its `instance`."""
    if speaks_openai(problem.instance):
        return JSONResponse(as_openai(problem), problem.status, headers=headers)
    return JSONResponse(as_body(problem), problem.status, headers=headers, media_type=MEDIA_TYPE)


def as_body(problem: Problem) -> dict[str, Any]:
    """A problem as JSON: what says nothing is left out."""
    return {k: v for k, v in problem.model_dump().items() if v not in ({}, [], "")}


_CODES = {404: "unknown_url", 405: "method_not_supported"}
"""How OpenAI calls what no route serves."""


def as_openai(problem: Problem) -> dict[str, Any]:
    """A problem in the shape that OpenAI's clients read, or under `/v1/messages` Anthropic's."""
    slug = problem.type.removeprefix(PREFIX)
    code = _CODES.get(problem.status, "invalid_request") if slug == "http" else slug
    found = error_object(
        f"{problem.detail} {problem.mend}".strip(),
        status=problem.status,
        code=code.replace("-", "_"),
        param=problem.errors[0]["field"] if problem.errors else None,
    )
    wire = wire_like(problem.instance)
    return wire.shaped(found, problem.status)


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem."""
    app.add_exception_handler(TuneProofError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TuneProofError)
    if status_of(error) >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    return respond(problem(error, request.url.path), headers_of(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [
        {"field": ".".join(str(part) for part in e["loc"]), "rule": e["msg"]}
        for e in error.errors()
    ]
    named = ", ".join(f"{f['field']}: {f['rule']}" for f in fields[:3])
    return respond(
        Problem(
            type=f"{PREFIX}invalid-request",
            title=_GENERAL["invalid-request"][0],
            status=422,
            detail=f"The request breaks {len(fields)} rule(s): {named}.",
            mend="Mend these fields; /openapi.json says what is expected.",
            instance=request.url.path,
            errors=fields,
        )
    )


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and (methods := _allowed(request)):
        headers["Allow"] = ", ".join(sorted(methods))
    return respond(
        Problem(
            type=f"{PREFIX}http",
            title=_GENERAL["http"][0],
            status=error.status_code,
            detail=f"{request.method} {request.url.path}: {error.detail}.",
            mend="/openapi.json lists all operations.",
            instance=request.url.path,
        ),
        headers,
    )


async def _left(_request: Request, _error: Exception) -> Response:
    """Whoever asked went away before the request was whole: nobody reads this, no fault is ours."""
    return Response(status_code=499)


def _allowed(request: Request) -> set[str]:
    """What may be asked of this path: the router names the methods of its first route only."""
    return {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, so the server logs it with its traceback.
    return respond(
        Problem(
            type=f"{PREFIX}internal",
            title=_GENERAL["internal"][0],
            status=500,
            detail=f"{type(error).__name__} while serving {request.method} {request.url.path}.",
            mend="The service's log has the traceback; please report it.",
            instance=request.url.path,
        )
    )


class ProblemType(BaseModel):
    """What a problem `type` means."""

    type: str
    title: str
    description: str
    status: int | None = None


def router() -> APIRouter:
    """`/problems/{slug}`: what each problem type means, so that `type` can be opened."""
    routes = APIRouter(tags=["problems"])

    # The other routes refer to the model in their documents; this one puts it there.
    documented = {**RESPONSES, "4XX": {**RESPONSES["4XX"], "model": Problem}}

    @routes.get("/problems", summary="All problem types", responses=documented)
    async def problem_types(_: Reader) -> list[ProblemType]:
        return list(_types().values())

    @routes.get("/problems/{slug}", summary="What a problem type means", responses=RESPONSES)
    async def problem_type(_: Reader, slug: str) -> ProblemType:
        types = _types()
        if slug not in types:
            raise NotFoundError(f"There is no problem type {slug[:80]!r}.", mend="See /problems.")
        return types[slug]

    return routes


def _types() -> dict[str, ProblemType]:
    found = {
        slug: ProblemType(type=f"{PREFIX}{slug}", title=title, description=text)
        for slug, (title, text) in _GENERAL.items()
    }
    for cls in by_name().values():
        slug = cls("").slug
        found[slug] = ProblemType(
            type=f"{PREFIX}{slug}",
            title=_title(cls),
            description=inspect.cleandoc(cls.__doc__ or ""),
            status=cls.status,
        )
    return dict(sorted(found.items()))


def _title(cls: type[TuneProofError]) -> str:
    first = inspect.cleandoc(cls.__doc__ or cls.__name__).splitlines()[0]
    return first.split(":")[0].split(";")[0].rstrip(".").replace("`", "")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
