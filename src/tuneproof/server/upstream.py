"""One call to a provider on behalf of the gateway, streamed or whole.

`Refused` is what the provider answered to this request: it goes back to the caller as it came.
Every other failure is the provider's and is one of our errors, so that the gateway can fall back.
Bytes that a provider sent stay as they are, but for the id.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from yarl import URL

from tuneproof.errors import (
    CredentialsError,
    NotFoundError,
    ProviderUnavailableError,
    TuneProofError,
)
from tuneproof.outgoing import ANYWHERE, AddressRefused, Rules
from tuneproof.outgoing.clients import connector
from tuneproof.server.bodies import dumped, loaded
from tuneproof.server.chatting import ChatRequest
from tuneproof.server.sse import EventSplitter, data_of, ended, with_data
from tuneproof.server.wires import Wire, message_of
from tuneproof.server.written import Spent

if TYPE_CHECKING:
    from multidict import CIMultiDict

    from tuneproof.app import ProviderEndpoint

__all__ = [
    "Answer",
    "Event",
    "Recorded",
    "Refused",
    "Stream",
    "Upstream",
    "no_answer",
    "nothing_was_sent",
    "nothing_was_spent",
    "renamed",
]

log = logging.getLogger(__name__)

DONE = b"[DONE]"
CONNECT_S = 10.0
LINGER_S = 0.5
"""How long the end of a stream is waited for behind its `[DONE]`, to keep its connection."""

IDLE_S = 4.0
"""How long a connection that nobody uses is kept: less than uvicorn's and Node's 5 s, as vLLM has
them, which may close it just as it is asked; then nobody knows whether the request arrived."""

MAX_EVENT = 16 * 1024 * 1024
"""The longest event of a stream: what is longer is no answer."""

_PASSED_ON = ("x-ratelimit-", "openai-", "anthropic-")
_PASSED = frozenset(
    {"request-id", "retry-after", "retry-after-ms", "x-request-id", "x-should-retry"}
)

Headers = Sequence[tuple[bytes, bytes]]


class Refused(Exception):
    """The provider's answer to the request is no: `status`, `body` and `headers` are its own."""

    def __init__(self, status: int, body: bytes, headers: Headers) -> None:
        super().__init__(f"the provider refused the request with {status}")
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def limited(self) -> bool:
        """Whether it says that there were too many requests, not that this one is wrong."""
        return self.status == 429

    @property
    def retry_after_s(self) -> float:
        """For how long not to ask again; 0 where it does not say."""
        return _seconds(dict(self.headers).get(b"retry-after", b"").decode("latin-1"))


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: as it came, and read; what was spent, where others came beside it."""

    raw: bytes
    body: dict[str, Any]
    headers: Headers
    spent: Spent | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a stream: as it came, and what it carries; None for a heartbeat or the end."""

    raw: bytes
    chunk: dict[str, Any] | None


def renamed(raw: bytes, body: Mapping[str, Any], id: str, holder: str = "") -> bytes:
    """`raw`, which says `body`, under the id `id`: all other bytes stay where that is possible.

    The id stands in the field `holder`, where one is named; what has none stays as it is.
    """
    held = body.get(holder) if holder else body
    if not isinstance(held, Mapping):
        return raw
    theirs = held.get("id")
    if isinstance(theirs, str):
        quoted = orjson.dumps(theirs) if theirs.isascii() else b""
        for between in (b":", b": "):
            old = b'"id"' + between + quoted
            if quoted and raw.count(old) == 1 and raw.count(quoted) == 1:
                return raw.replace(old, b'"id"' + between + b'"' + id.encode() + b'"')
    named = {**held, "id": id}
    written = dumped({**body, holder: named} if holder else named)
    return written if raw.lstrip().startswith(b"{") else with_data(raw, written)


class Stream:
    """A streamed answer that has begun: `first` are its events up to the first real chunk."""

    spent: Spent | None = None

    def __init__(
        self, endpoint: ProviderEndpoint, wire: Wire, response: aiohttp.ClientResponse
    ) -> None:
        self._endpoint = endpoint
        self._wire = wire
        self._response = response
        self._splitter = EventSplitter()
        self._finished = self._done = False
        self.headers = _passed(response)
        self.first: list[Event] = []

    async def begin(self) -> None:
        """Read up to the first real chunk. Raises the provider's failure where none comes."""
        async for events in self._reads():
            self.first += events
            if any(event.chunk and self._wire.begins(event.chunk) for event in events):
                return
        raise _failed(self._endpoint, "answered no chunk of a stream")

    async def events(self) -> AsyncIterator[list[Event]]:
        """The events in the groups in which they arrive. Raises the provider's failure."""
        yield self.first
        try:
            async for events in self._reads():
                yield events
        except TuneProofError:
            if not self._finished:  # else the answer is whole, whatever became of the connection
                raise
        if not self._finished:
            raise _failed(self._endpoint, "ended its stream before the answer was whole")

    @property
    def id(self) -> object:
        """The provider's own id of the answer, as far as its first events name it."""
        for event in self.first:
            holder = (event.chunk or {}).get(self._wire.holder)
            if isinstance(holder, dict) and "id" in holder:
                return holder["id"]
        return None

    def close(self) -> None:
        """Leave; the provider hears of it at once."""
        self._response.close()

    async def _reads(self) -> AsyncIterator[list[Event]]:
        try:
            while data := await self._more():
                raws = self._splitter.feed(data)
                if self._splitter.waiting > MAX_EVENT:
                    raise _failed(self._endpoint, f"sent an event above {MAX_EVENT} bytes")
                if raws:
                    yield [self._read(raw) for raw in raws]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise no_answer(self._endpoint, error) from error
        if rest := self._splitter.end():
            yield [self._read(rest if self._finished else ended(rest))]

    async def _more(self) -> bytes:
        """What comes next; nothing at the end, or where none comes behind `[DONE]`."""
        if not self._done:
            return await self._response.content.readany()
        try:
            async with asyncio.timeout(LINGER_S):
                return await self._response.content.readany()
        except TimeoutError:
            return b""

    def _read(self, raw: bytes) -> Event:
        data = data_of(raw)
        if not data:
            return Event(raw, None)
        if data.strip() == DONE:
            self._done = True
            self._finished = self._finished or self._wire.done_ends
            return Event(raw, None)
        chunk = _object(self._endpoint, data)
        failure = self._wire.failure(chunk)
        if failure:
            raise _failed(self._endpoint, f"broke its stream off: {failure}")
        self._finished = self._finished or self._wire.finishes(chunk)
        self._done = self._done or self._wire.is_last(chunk)
        return Event(raw, chunk)


class Recorded:
    """A streamed answer that has been read to its end, to be passed on as it came."""

    def __init__(self, stream: Stream, groups: Sequence[list[Event]], spent: Spent) -> None:
        self._groups = groups
        self.headers = stream.headers
        self.id = stream.id
        self.spent = spent

    async def events(self) -> AsyncIterator[list[Event]]:
        """The events in the groups in which they arrived."""
        for group in self._groups:
            yield group

    def close(self) -> None:
        """Nothing is open any more."""


class Upstream:
    """Calls providers over one pool of connections. A breaker decides whether it may be called."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._uncounted: set[str] = set()  # providers that refuse `stream_options`

    @classmethod
    def open(cls, outgoing: Rules = ANYWHERE) -> Upstream:
        """With a pool of its own; `close` it. As many connections as there are requests, to where
        `outgoing` lets them."""
        session = aiohttp.ClientSession(
            connector=connector(outgoing, limit=0, keepalive_timeout=IDLE_S, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
        )
        return cls(session)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def complete(self, endpoint: ProviderEndpoint, asked: ChatRequest, model: str) -> Answer:
        """The provider's whole answer. Raises `Refused`, or what says how the provider failed."""
        response = await self._post(endpoint, asked, asked.for_model(model))
        try:
            raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise no_answer(endpoint, error) from error
        finally:
            response.release()
        _check(endpoint, response, raw)
        body = _object(endpoint, raw)
        wrong = asked.wire.wrong(body)
        if wrong:
            raise _failed(endpoint, f"answered 200 {wrong}")
        return Answer(raw, body, _passed(response))

    async def stream(self, endpoint: ProviderEndpoint, asked: ChatRequest, model: str) -> Stream:
        """The provider's streamed answer, once its first chunk is there; `close` it.

        Raises as `complete` does.
        """
        count = asked.wants_usage or endpoint.provider not in self._uncounted
        try:
            return await self._stream(endpoint, asked, asked.for_model(model, count=count))
        except Refused as refusal:
            if asked.wants_usage or not count or not _is_about_usage(refusal):
                raise
        begun = await self._stream(endpoint, asked, asked.for_model(model, count=False))
        self._uncounted.add(endpoint.provider)
        return begun

    async def _stream(
        self, endpoint: ProviderEndpoint, asked: ChatRequest, content: bytes
    ) -> Stream:
        response = await self._post(endpoint, asked, content)
        try:
            async with asyncio.timeout(endpoint.timeout_s):
                if response.status != 200:
                    _check(endpoint, response, await response.read())
                begun = Stream(endpoint, asked.wire, response)
                await begun.begin()
                return begun
        except TimeoutError as error:
            response.close()
            raise no_answer(endpoint, error) from error
        except BaseException:
            response.close()
            raise

    async def pass_on(
        self,
        endpoint: ProviderEndpoint,
        method: str,
        path: str,
        *,
        headers: CIMultiDict[str],
        content: bytes | AsyncIterator[bytes] | None,
        timeout_s: float,
    ) -> aiohttp.ClientResponse:
        """Any request, sent as it is: the answer once it has begun, its bytes as they are.

        Raises what the client raises.
        """

        async def send() -> aiohttp.ClientResponse:
            return await self._session.request(
                method,
                URL(endpoint.url(path), encoded=True),
                data=content,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=timeout_s
                ),
                allow_redirects=False,
                auto_decompress=False,
            )

        try:
            return await send()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not isinstance(content, bytes) or not nothing_was_sent(error):
                raise
        return await send()

    async def _post(
        self, endpoint: ProviderEndpoint, asked: ChatRequest, content: bytes
    ) -> aiohttp.ClientResponse:
        """Send it; once more where nothing was sent: no connection, or one that was closed."""
        try:
            return await self._send(endpoint, asked, content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not nothing_was_sent(error):
                raise no_answer(endpoint, error) from error
        try:
            return await self._send(endpoint, asked, content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise no_answer(endpoint, error) from error

    async def _send(
        self, endpoint: ProviderEndpoint, asked: ChatRequest, content: bytes
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=endpoint.timeout_s
        )
        headers = endpoint.headers(asked.wire.path)
        return await self._session.post(
            URL(endpoint.url(asked.wire.path), encoded=True),
            data=content,
            headers={**headers, **asked.headers} if asked.headers else headers,
            timeout=timeout,
            allow_redirects=False,
        )


def no_answer(endpoint: ProviderEndpoint, error: Exception) -> TuneProofError:
    """That a provider did not answer, or not to the end; where it is, the log alone says."""
    why = f"{type(error).__name__}: {error}".removesuffix(": ")
    log.warning("Provider %r did not answer at %s: %s", endpoint.provider, endpoint.base_url, why)
    return _failed(endpoint, _without_address(error))


def _without_address(error: Exception) -> str:
    causes = (error, getattr(error, "os_error", None), error.__cause__, error.__context__)
    refused = next((one for one in causes if isinstance(one, AddressRefused)), None)
    if refused is not None:
        return f"may not be called: its address {refused.why}"
    if isinstance(error, aiohttp.InvalidURL):
        return f"cannot be called: its address is none ({error.description or 'Invalid URL'})"
    return f"did not answer ({type(error).__name__})"


def nothing_was_sent(error: Exception) -> bool:
    """Whether a call failed before the provider got any of it."""
    kinds = (aiohttp.ClientConnectorError, aiohttp.ClientConnectionResetError)
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)


def nothing_was_spent(failure: Exception) -> bool:
    """Whether a call that failed was answered with a failure's status, or was not even sent."""
    if isinstance(failure, Refused | CredentialsError | NotFoundError):
        return True
    answered = isinstance(failure, TuneProofError) and _ANSWERED in failure.details
    return answered or nothing_was_sent(failure)


def _check(endpoint: ProviderEndpoint, response: aiohttp.ClientResponse, content: bytes) -> None:
    """Return for 200; raises for every other status."""
    status = response.status
    if status == 200:
        return
    try:
        body = loaded(content)
    except ValueError:
        body = content[:200].decode(errors="replace")
    what, name = f"answered {status}: {message_of(body)}", endpoint.provider
    if status in (401, 403):
        mend = "Check the provider's key."
        raise CredentialsError(f"Provider {name!r} {what}", mend=mend, status=502)
    if status == 404:
        mend = "Check which models the provider lists, and which wires it speaks."
        raise NotFoundError(f"Provider {name!r} {what}", mend=mend)
    if status < 400 or status >= 500 or status == 408:
        raise _failed(endpoint, what, **{_ANSWERED: status})
    raise Refused(status, content, _passed(response))


def _passed(response: aiohttp.ClientResponse) -> Headers:
    """The headers of an answer that its reader can use."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in response.headers.items()
        if name.lower() in _PASSED or name.lower().startswith(_PASSED_ON)
    ]


def _object(endpoint: ProviderEndpoint, content: bytes) -> dict[str, Any]:
    try:
        found = loaded(content)
    except ValueError as error:
        raise _failed(endpoint, "answered what is not JSON") from error
    if not isinstance(found, dict):
        raise _failed(endpoint, "answered JSON that is no object")
    return found


def _is_about_usage(refusal: Refused) -> bool:
    named = b"stream_options" in refusal.body or b"include_usage" in refusal.body
    return refusal.status in (400, 422) and named


def _seconds(after: str) -> float:
    """The header `Retry-After`, which is seconds or a date."""
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


_ANSWERED = "answered"
"""The detail of a failure that is the provider's own answer: the status of that."""


def _failed(endpoint: ProviderEndpoint, what: str, **details: int) -> TuneProofError:
    mend = "Try again; `tuneproof doctor` tells more."
    return ProviderUnavailableError(f"Provider {endpoint.provider!r} {what}", mend=mend, **details)
