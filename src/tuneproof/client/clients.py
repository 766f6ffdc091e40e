"""`Client` and `AsyncClient`: the same choices and records, for threads and for event loops."""

from __future__ import annotations

import atexit
import logging
import os
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypedDict, TypeVar, Unpack

from tuneproof.client.http import ServiceAddress
from tuneproof.client.journal import Journal
from tuneproof.client.refresher import POLL_S, Refresher
from tuneproof.client.sender import FLUSH_S, Sender
from tuneproof.client.state import Choice, HeldRouting
from tuneproof.prompts import Prompt

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("tuneproof.client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a client stands with its service.

    `refused` counts the events that the service will never take, `last_refused` is the last of
    them with the reason; where there is a `state_dir` they lie in `events/refused`.
    """

    connected: bool
    routing_version: int
    heard_s_ago: float | None
    waiting: bool
    sent: int
    duplicates: int
    refused: int
    lost: int
    last_error: str | None
    last_refused: str | None


class ClientOptions(TypedDict, total=False):
    """What a client may be given beside its service's address; see `Client`."""

    token: str | None
    state_dir: str | os.PathLike[str] | None
    defaults: Mapping[str, str] | None
    prompts: Mapping[str, Prompt] | None
    push: bool
    poll_s: float
    flush_s: float
    timeout_s: float
    first_wait_s: float


class ExposureFields(TypedDict, total=False):
    """What may be said of an exposure beside its choice; see `Client.record`."""

    latency_ms: float | None
    error: bool
    tokens: int | None
    cost_usd: float | None
    at: datetime | None
    id: str | None
    attributes: Mapping[str, str] | None
    covariate: float | None
    text: str | None
    prompt: str | Sequence[Mapping[str, str]] | None


class OutcomeFields(TypedDict, total=False):
    """What may be said of an outcome beside its value; see `Client.outcome`."""

    quality: float | None
    at: datetime | None
    id: str | None
    item: str | None


class Client:
    """Chooses models and records what came of them.

    `state_dir` keeps the last routing and events on their way across restarts; without it both
    live in memory only. `defaults` (task -> model) answer before the service was ever heard, by
    `prompts` (task -> prompt) where the service owns those;
    without one, `choose` waits for that at most until `first_wait_s` after the start, then
    raises `NotFoundError`. `push=False` polls every `poll_s` instead of listening.

    Safe to share between threads, and after a fork: background threads start at the first use.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        defaults: Mapping[str, str] | None = None,
        prompts: Mapping[str, Prompt] | None = None,
        push: bool = True,
        poll_s: float = POLL_S,
        flush_s: float = FLUSH_S,
        timeout_s: float = 10.0,
        first_wait_s: float = 2.0,
    ) -> None:
        self._service = ServiceAddress(base_url, token, timeout_s)
        self._folder = None if state_dir is None else Path(state_dir)
        self._push, self._poll_s, self._flush_s = push, poll_s, flush_s
        self._first_wait_s = first_wait_s
        path = None if self._folder is None else self._folder / "routing.json"
        self._state = HeldRouting(path=path, defaults=defaults or {}, prompts=prompts or {})
        self._state.load()
        self._closed = False
        self._begin()
        _living.add(self)

    def _begin(self) -> None:
        """Make the background parts, whose threads start at the first use."""
        spool = None if self._folder is None else self._folder / "events"
        self._sender = Sender(self._service, Journal(spool), flush_s=self._flush_s)
        self._refresher = Refresher(
            self._service, self._state, push=self._push, poll_s=self._poll_s
        )
        self._started = False
        self._first_deadline = 0.0

    def start(self) -> Client:
        """Start the background threads now; `choose` and `record` do so by themselves."""
        if not self._started and not self._closed:
            self._started = True
            self._first_deadline = time.monotonic() + self._first_wait_s
            self._refresher.start()
            self._sender.start()
        return self

    def choose(self, task: str, unit: str) -> Choice:
        """Which model serves this unit: a pure function of the held routing, no network.

        Raises `NotFoundError` for a task that neither the service nor `defaults` know.
        """
        if not self._started:
            self.start()
        state = self._state
        if not state.heard and not state.knows(task):
            state.filled.wait(max(0.0, self._first_deadline - time.monotonic()))
        return state.choose(task, unit)

    def record(
        self,
        choice: Choice,
        *,
        latency_ms: float | None = None,
        error: bool = False,
        tokens: int | None = None,
        cost_usd: float | None = None,
        at: datetime | None = None,
        id: str | None = None,
        attributes: Mapping[str, str] | None = None,
        covariate: float | None = None,
        text: str | None = None,
        prompt: str | Sequence[Mapping[str, str]] | None = None,
    ) -> str | None:
        """Queue an exposure: this choice was served. Never blocks, never raises.

        Returns the event's id, or None where the choice belongs to no test or rollout: then
        there is nothing to tell. An `id` of your own makes repeated calls one event. Leave out
        `tokens` and `cost_usd` where they are not known: means leave the unit out then, while 0
        says that it was free. `covariate` is something of the unit known before the test began,
        such as its author's engagement until then; a test that adjusts by it (CUPED) needs less
        traffic by it.

        Where the pipeline scores its answers (`quality_scorer`), give the `text` that was
        answered and the `prompt`: a text, or the chat's messages with `role` and `content`. Like
        the rest of the event they wait on this machine's disk until the service took them.
        """
        return self._put(
            id,
            at,
            {
                "subject": choice.subject,
                "phase": choice.phase,
                "arm": choice.arm,
                "unit": choice.unit,
                "task": choice.task,
                "latency_ms": latency_ms,
                "error": error,
                "attributes": attributes or {},
                **_known(tokens=tokens, cost_usd=cost_usd, covariate=covariate),
                **_asked(text, prompt),
            },
        )

    def outcome(
        self,
        *,
        subject: str | None,
        unit: str,
        value: float,
        quality: float | None = None,
        at: datetime | None = None,
        id: str | None = None,
        item: str | None = None,
    ) -> str | None:
        """Queue an outcome: something measured of a unit, maybe days after its exposure.

        `subject` is the choice's; None (no test was running) records nothing. The newest `at`
        of a unit counts; where the test declares `analysis_unit` "item", that of each `item` of
        the unit (the author's post). Never blocks, never raises.
        """
        fields: dict[str, object] = {
            "subject": subject,
            "unit": unit,
            "value": value,
            "quality": quality,
            **({} if item is None else {"item": item}),
        }
        return self._put(id, at, fields)

    def _put(self, id: str | None, at: datetime | None, fields: dict[str, object]) -> str | None:
        if fields["subject"] is None or self._closed:
            return None
        try:
            event = {"id": id or uuid.uuid4().hex, "at": _instant(at), **fields}
        except Exception:
            # What an application measures must never break what it does.
            log.exception("An event could not be made and is not sent: %r", fields)
            return None
        self._sender.put(event)
        if not self._started:
            self.start()
        return str(event["id"])

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the service took all events; False when time ran out before."""
        return self._sender.flush(timeout_s)

    def status(self) -> Status:
        """How this client stands with its service."""
        heard, sender = self._refresher.heard_at, self._sender
        return Status(
            connected=self._refresher.connected,
            routing_version=self._state.version,
            heard_s_ago=None if heard is None else time.monotonic() - heard,
            waiting=sender.waiting,
            sent=sender.sent,
            duplicates=sender.duplicates,
            refused=sender.refused,
            lost=sender.lost,
            last_error=self._refresher.last_error or sender.last_error,
            last_refused=sender.last_refused,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what can be sent in time and end the threads; the rest stays on disk."""
        if self._closed:
            return
        self._closed = True
        self._refresher.close()
        self._sender.close(timeout_s)

    def __enter__(self) -> Client:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for event loops: what may wait is awaited, the loop is never blocked."""

    def __init__(self, base_url: str, **options: Unpack[ClientOptions]) -> None:
        self._client = Client(base_url, **options)

    async def choose(self, task: str, unit: str) -> Choice:
        """Which model serves this unit; see `Client.choose`."""
        client = self._client
        if client._state.heard or client._state.knows(task):
            return client.choose(task, unit)
        return await _in_thread(client.choose, task, unit)

    def record(self, choice: Choice, **fields: Unpack[ExposureFields]) -> str | None:
        """Queue an exposure; see `Client.record`. Nothing to await."""
        return self._client.record(choice, **fields)

    def outcome(
        self, *, subject: str | None, unit: str, value: float, **fields: Unpack[OutcomeFields]
    ) -> str | None:
        """Queue an outcome; see `Client.outcome`. Nothing to await."""
        return self._client.outcome(subject=subject, unit=unit, value=value, **fields)

    async def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the service took all events; False when time ran out before."""
        return await _in_thread(self._client.flush, timeout_s)

    def status(self) -> Status:
        """How this client stands with its service."""
        return self._client.status()

    async def close(self, timeout_s: float = 5.0) -> None:
        """Send what can be sent in time and end the threads; the rest stays on disk."""
        await _in_thread(self._client.close, timeout_s)

    async def __aenter__(self) -> AsyncClient:
        self._client.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def _in_thread(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run what may wait beside the loop; asyncio is imported by those who have one."""
    import asyncio

    return await asyncio.to_thread(function, *args, **options)


def _known(**fields: float | None) -> dict[str, object]:
    """What is not known is not sent."""
    return {name: value for name, value in fields.items() if value is not None}


def _asked(text: str | None, prompt: str | Sequence[Mapping[str, str]] | None) -> dict[str, object]:
    """What an exposure tells of an answer that is to be scored."""
    if text is None:
        return {}
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or ()
    return {"text": text, "messages": [dict(message) for message in chat]}


def _instant(at: datetime | None) -> str:
    """RFC 3339; a naive time is read as UTC."""
    if at is None:
        at = datetime.now(UTC)
    elif at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return at.isoformat()


_living: weakref.WeakSet[Client] = weakref.WeakSet()


def _at_exit() -> None:
    for client in list(_living):
        client.close(timeout_s=2.0)


def _after_fork() -> None:
    """Threads do not survive a fork: the child begins with new ones and an empty queue."""
    for client in list(_living):
        if not client._closed:
            client._state.renew_locks()
            client._begin()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
