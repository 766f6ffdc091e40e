"""One authenticated JSON call to a provider, with our errors: what the natives stand on.

Every call is made once, as in the OpenAI wire; what a status means is in `wire_errors`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import httpx2

from tuneproof.errors import ProviderUnavailableError
from tuneproof.outgoing import ANYWHERE, Rules
from tuneproof.outgoing.clients import http_client
from tuneproof.providers.wire_errors import Refusal, from_refusal
from tuneproof.settings import Secret, Url

T = TypeVar("T")


class Breaker(Protocol):
    """What wraps each call; `resilience.CircuitBreaker` is one."""

    async def call(self, function: Callable[[], Awaitable[T]]) -> T: ...


class Http:
    """A client of one provider. `base_url` has no slash at its end; `timeout_s` bounds silence."""

    def __init__(
        self,
        *,
        name: str,
        base_url: Url,
        key: Secret,
        breaker: Breaker | None = None,
        timeout_s: float = 30.0,
        outgoing: Rules = ANYWHERE,
    ) -> None:
        self.name = name
        self.base_url = Url(base_url.reveal().rstrip("/"))
        self._breaker = breaker
        headers = {"authorization": f"Bearer {key.reveal()}"}
        self._client = http_client(outgoing, headers=headers, timeout=timeout_s)
        self._bare = http_client(outgoing, timeout=timeout_s)

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """Make a call and return what was answered, {} for an empty answer.

        Raises the error of our tree that says what a status at or above 400 means.
        """
        answer = await self.send(method, self.base_url.reveal() + path, **options)
        if not answer.content:
            return {}
        try:
            return answer.json()
        except ValueError as e:
            raise ProviderUnavailableError(
                f"Provider {self.name!r} answered {method} {path} with something that is no JSON.",
                mend=f"Check `base_url` of providers.{self.name}: {self.base_url}.",
            ) from e

    async def send(
        self, method: str, url: str, *, redirects: bool = False, own: bool = True, **options: Any
    ) -> httpx2.Response:
        """Make a call to any address. `redirects` lets a 3xx through; `own` False: no key is sent.

        An upload goes to an address that the provider made for it, which must not see the key.
        """
        client = self._client if own else self._bare

        async def once() -> httpx2.Response:
            try:
                answer = await client.request(method, url, **options)
            except httpx2.TimeoutException as e:
                raise ProviderUnavailableError(
                    f"Provider {self.name!r} at {self.base_url} did not answer in time.",
                    mend="The call is made again later; check the server and the network.",
                ) from e
            except (httpx2.HTTPError, httpx2.InvalidURL) as e:
                raise ProviderUnavailableError(
                    f"Provider {self.name!r} at {self.base_url} cannot be reached: {e}.",
                    mend=f"Check `base_url` of providers.{self.name}.",
                ) from e
            if answer.status_code >= 400 or (answer.status_code >= 300 and not redirects):
                raise from_refusal(
                    _refusal(answer), provider=self.name, address=self.base_url.masked
                )
            return answer

        return await (once() if self._breaker is None else self._breaker.call(once))

    async def close(self) -> None:
        """Give connections back."""
        await self._client.aclose()
        await self._bare.aclose()


def _refusal(answer: httpx2.Response) -> Refusal:
    """What the answer says: OpenAI's `{"error": {...}}`, or Google's `{"code", "message"}`."""
    try:
        body: Any = answer.json()
    except ValueError:
        body = {}
    content: Mapping[str, Any] = body if isinstance(body, dict) else {}
    error = content.get("error", content)
    if not isinstance(error, dict):
        error = {"message": str(error)}
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("status")
    return Refusal(
        status=answer.status_code,
        code=code if isinstance(code, str) else None,
        type=error.get("type"),
        message=str(error.get("message") or answer.text[:300] or answer.reason_phrase),
        param=error.get("param"),
        request_id=answer.headers.get("x-request-id"),
        headers=dict(answer.headers),
    )
