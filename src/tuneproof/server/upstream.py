"""One call to a provider on behalf of the gateway, through its breaker, streamed or whole.

`Refused` is the request's own fault and goes back to the caller as it is; every other failure
is the provider's and is one of our errors, so that the gateway can fall back.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from tuneproof.errors import (
    CredentialsError,
    NotFoundError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    RateLimitedError,
    TuneProofError,
)

if TYPE_CHECKING:
    from tuneproof.app import ChatEndpoint

T = TypeVar("T")

DONE = "[DONE]"


class Refused(Exception):
    """The provider says that the request is wrong; `status` and `body` are its answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the provider refused the request with {status}")
        self.status = status
        self.body = body


async def complete(
    client: httpx2.AsyncClient, endpoint: ChatEndpoint, body: dict[str, Any]
) -> dict[str, Any]:
    """The provider's whole answer to a chat request.

    Raises `Refused`, or the `TuneProofError` that says how the provider failed.
    """

    async def call() -> dict[str, Any]:
        try:
            response = await client.send(_request(client, endpoint, body))
        except httpx2.HTTPError as error:
            raise _no_answer(endpoint, error) from error
        _check(endpoint, response.status_code, response.content)
        return _object(endpoint, response.content)

    return await _guarded(endpoint, call)


async def stream(
    client: httpx2.AsyncClient, endpoint: ChatEndpoint, body: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    """The provider's streamed answer, chunk by chunk; returns once the first chunk is there.

    Raises as `complete` does. A failure behind the first chunk is raised by the iterator.
    """

    async def call() -> tuple[dict[str, Any] | None, AsyncIterator[dict[str, Any]]]:
        try:
            response = await client.send(_request(client, endpoint, body), stream=True)
            if response.status_code != 200:
                content = await response.aread()
                await response.aclose()
                _check(endpoint, response.status_code, content)
        except httpx2.HTTPError as error:
            raise _no_answer(endpoint, error) from error
        chunks = _chunks(endpoint, response)
        try:
            return await anext(chunks, None), chunks
        except BaseException:
            await response.aclose()
            raise

    first, rest = await _guarded(endpoint, call)
    return _joined(first, rest)


async def _joined(
    first: dict[str, Any] | None, rest: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[dict[str, Any]]:
    try:
        if first is not None:
            yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()  # type: ignore[attr-defined]


async def _guarded(endpoint: ChatEndpoint, call: Callable[[], Awaitable[T]]) -> T:
    """Call through the breaker; a refusal says nothing against the provider."""

    async def guarded() -> T | Refused:
        try:
            return await call()
        except Refused as refusal:
            return refusal

    answer = await endpoint.breaker.call(guarded)
    if isinstance(answer, Refused):
        raise answer
    return answer


def _request(
    client: httpx2.AsyncClient, endpoint: ChatEndpoint, body: dict[str, Any]
) -> httpx2.Request:
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key.reveal()}"
    if endpoint.organization:
        headers["OpenAI-Organization"] = endpoint.organization
    url = f"{endpoint.base_url.reveal().rstrip('/')}/chat/completions"
    content = json.dumps(body).encode()
    return client.build_request(
        "POST", url, content=content, headers=headers, timeout=endpoint.timeout_s
    )


async def _chunks(
    endpoint: ChatEndpoint, response: httpx2.Response
) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == DONE:
                return
            chunk = _object(endpoint, data.encode())
            if "error" in chunk and "choices" not in chunk:
                raise _failed(endpoint, f"broke its stream off: {_message(chunk)}")
            yield chunk
    except httpx2.HTTPError as error:
        raise _no_answer(endpoint, error) from error
    finally:
        await response.aclose()


def _object(endpoint: ChatEndpoint, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise _failed(endpoint, "answered what is not JSON") from error
    if not isinstance(found, dict):
        raise _failed(endpoint, "answered JSON that is no object")
    return found


def _check(endpoint: ChatEndpoint, status: int, content: bytes) -> None:
    if status < 400:
        return
    try:
        body = json.loads(content)
    except ValueError:
        body = {}
    what = f"answered {status}: {_message(body)}"
    name = endpoint.provider
    if status == 429 and _code(body) == "insufficient_quota":
        raise QuotaExhaustedError(f"Provider {name!r} {what}", mend="Raise the quota.")
    if status == 429:
        raise RateLimitedError(f"Provider {name!r} {what}", mend="Come back later.")
    if status in (401, 403):
        raise CredentialsError(f"Provider {name!r} {what}", mend="Check the provider's key.")
    if status == 404:
        mend = "Check which models the provider lists."
        raise NotFoundError(f"Provider {name!r} {what}", mend=mend)
    if status >= 500 or status == 408:
        raise _failed(endpoint, what)
    raise Refused(status, content)


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return str(error.get("message") or error)[:500]
    return str(error or body or "nothing")[:500]


def _code(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("code")) if isinstance(error, dict) else ""


def _failed(endpoint: ChatEndpoint, what: str) -> TuneProofError:
    return ProviderUnavailableError(
        f"Provider {endpoint.provider!r} {what}", mend="Try again; `tuneproof doctor` tells more."
    )


def _no_answer(endpoint: ChatEndpoint, error: Exception) -> TuneProofError:
    what = str(error) or type(error).__name__
    return _failed(endpoint, f"did not answer at {endpoint.base_url}: {what}")
