"""What the gateway processes of this machine get of their service, by a local socket.

`GET /feed` is lines of JSON for as long as the gateway stays: the whole state at first and at each
change (`FeedState`), `{}` at least once a second. `POST /tokens` looks a token up, `POST /events`
keeps events, `POST /breakers` hears of a provider's, `POST /spending` of what the relay spent.
While processes are replaced by those of a new version, the two ends differ: fields that one does
not know it leaves out, and none is ever taken away.
Whoever may open the socket's file is let in: it is in the data directory, and nobody else's to
read, since the state names the providers' keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import orjson

from tuneproof.app import ReceiptKey
from tuneproof.errors import ConfigError, InputError, StoreUnavailableError, TuneProofError
from tuneproof.experiments import Variant
from tuneproof.prompts import PromptDocument
from tuneproof.resilience import BreakerEvent, State
from tuneproof.rollout import Lane, Routing
from tuneproof.server.auth import CHECK_S, MOST_TOKENS
from tuneproof.server.hot import KNOWS
from tuneproof.server.problems import problem, status_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tuneproof.app import App
    from tuneproof.server.serving import OwnServing

__all__ = [
    "BEAT_S",
    "Feed",
    "FeedState",
    "hashed",
    "is_served",
    "known_fields",
    "listen_locally",
    "receipts_of",
    "routing_of",
    "socket_path",
]

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""How often a gateway hears something at least."""

TOKENS_ANEW = timedelta(minutes=1)
"""How often is told that a token is still good."""

LONGEST_PATH = 100
"""Longer names of sockets are refused by the system."""

_JSON = [(b"content-type", b"application/json")]


class EndpointRow(TypedDict):
    """Who serves a model, at which price in USD per million tokens. Where nobody does, none is
    there."""

    model_id: str
    version: str | None
    model_provider: str | None  # whom the routing names for it
    provider: str
    base_url: str
    api_key: str | None
    organization: str | None
    timeout_s: float
    key_header: str
    takes_n: bool
    prompt: str | None  # of the variant that is served so
    length_field: str
    price: tuple[float | None, float | None] | None


class TokenRow(TypedDict):
    """A token that was good `at` that time (RFC 3339, to `TOKENS_ANEW`)."""

    name: str
    scopes: tuple[str, ...]
    created_at: str
    at: str


class ReceiptRow(TypedDict):
    """What signs receipts: the key in hexadecimal digits, and a time (RFC 3339) or None."""

    key: str
    unsigned_until: str | None


class FeedState(TypedDict):
    """All that a gateway needs to answer by itself. `at` is when it was true (RFC 3339)."""

    at: str
    routing: list[dict[str, Any]]
    trust_s: dict[str, float | None]
    endpoints: list[EndpointRow]
    scored: list[str]
    pickers: dict[str, tuple[int, str]]  # by task: of how many answers, and the model's hash
    trainer: str | None  # where the embedded one is
    tokens: dict[str, TokenRow]  # by their hash
    receipts: ReceiptRow
    prompts: dict[str, PromptDocument]  # by their hash


class Feed:
    """Serves the gateways of this machine; plain ASGI behind the socket's file."""

    def __init__(self, app: App, serving: OwnServing) -> None:
        self._app = app
        self._serving = serving
        self._tokens: dict[str, TokenRow] = {}
        self._doors: Mapping[str, Callable[[bytes], Awaitable[Any]]] = {
            "/tokens": self._token,
            "/events": self._events,
            "/breakers": self._breaker,
            "/subjects": self._subject,
            "/spending": self._spending,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["path"] == "/feed":
            await self._follow(receive, send, knows=scope["query_string"] == KNOWS)
            return
        try:
            door = self._doors.get(scope["path"])
            if door is None:
                raise InputError(f"There is no {scope['path']} here.", status=404)
            status, body = 200, orjson.dumps(await door(await _all(receive)))
        except _Left:
            return
        except TuneProofError as error:
            status, body = status_of(error), json.dumps(problem(error).model_dump()).encode()
        except Exception:
            log.exception("a gateway could not be answered")
            status, body = 500, b"{}"
        await send({"type": "http.response.start", "status": status, "headers": _JSON})
        await send({"type": "http.response.body", "body": body})

    async def _follow(self, receive: Receive, send: Send, *, knows: bool) -> None:
        """Tell of every change until the gateway leaves; one of before `knows` no prompts."""
        await send({"type": "http.response.start", "status": 200, "headers": _JSON})
        told: dict[str, Any] | None = None
        self._app.metrics.gateways.inc()
        leaving = asyncio.create_task(_left(receive))
        try:
            with (
                self._app.live.listen() as changes,
                contextlib.suppress(asyncio.CancelledError),  # the service stops: end it well
            ):
                while not leaving.done():
                    now = await self._state(knows)
                    line = b"{}\n"
                    if now is not None and now != told:
                        line, told = self._line(now), now
                    await send({"type": "http.response.body", "body": line, "more_body": True})
                    if await _changed(changes):
                        break
        finally:
            self._app.metrics.gateways.dec()
            leaving.cancel()
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    def _line(state: dict[str, Any]) -> bytes:
        return orjson.dumps({**state, "at": datetime.now(UTC)}) + b"\n"

    async def _state(self, knows: bool) -> dict[str, Any] | None:
        """The state but for its time; None where the routing was never read."""
        try:
            snapshot = self._serving.routing
        except StoreUnavailableError:
            return None
        return {
            "routing": [_row(one if knows else one.unprompted) for one in snapshot.routing],
            "prompts": {hash: one.document() for hash, one in snapshot.prompts.items()},
            "trust_s": {one.task: self._app.routing.board.trust_s(one) for one in snapshot.routing},
            "endpoints": [
                row
                for model in sorted(snapshot.models, key=repr)
                if (row := await self._endpoint(model)) is not None
            ],
            "scored": [one.task for one in snapshot.routing if self._serving.scores(one.task)],
            "pickers": {
                one.task: (picker.answers, picker.hash)
                for one in snapshot.routing
                if (picker := self._serving.picker(one.task)) is not None
            },
            "trainer": self._app.providers.trainer_url,
            "tokens": dict(self._tokens),
            "receipts": _receipts(self._app.receipts),
        }

    async def _endpoint(self, model: Variant) -> EndpointRow | None:
        """Who serves it; None where nobody does, or a database that hangs has to say."""
        try:
            async with asyncio.timeout(BEAT_S):
                found = await self._serving.endpoint(model)
        except (TuneProofError, TimeoutError):
            return None
        price = self._app.routing.endpoints.price(model)
        return {
            "model_id": model.model_id,
            "version": model.version,
            "model_provider": model.provider,
            "provider": found.provider,
            "base_url": found.base_url.reveal(),
            "api_key": found.api_key.reveal() if found.api_key else None,
            "organization": found.organization,
            "timeout_s": found.timeout_s,
            "key_header": found.key_header,
            "takes_n": found.takes_n,
            "prompt": model.prompt,
            "length_field": found.length_field,
            "price": None if price is None else (price.prompt, price.completion),
        }

    async def _token(self, body: bytes) -> Any:
        """Look a token up; all gateways learn of one that is good, for the time without us."""
        token = body.decode()
        try:
            async with asyncio.timeout(CHECK_S):
                found = await self._app.store.tokens.find(token)
        except TimeoutError as error:
            raise StoreUnavailableError("The database does not answer in time.") from error
        name, now = hashed(token), datetime.now(UTC)
        known = self._tokens.get(name)
        if found is None:
            self._tokens.pop(name, None)
            return None
        if known is None or now - datetime.fromisoformat(known["at"]) > TOKENS_ANEW:
            self._tokens.pop(name, None)  # so that those go first which are not asked for any more
            self._tokens[name] = {
                "name": found.name,
                "scopes": found.scopes,
                "created_at": found.created_at.isoformat(),
                "at": now.isoformat(),
            }
            if len(self._tokens) > MOST_TOKENS:
                del self._tokens[next(iter(self._tokens))]
        return self._tokens[name]

    async def _events(self, body: bytes) -> Any:
        lines = body.decode().split("\n") if body else []
        return asdict(await self._serving.keep_lines(lines))

    async def _subject(self, body: bytes) -> bool:
        subject, task = orjson.loads(body)
        return await self._serving.had(subject, task)

    async def _spending(self, body: bytes) -> Any:
        told = orjson.loads(body)
        return self._app.spending.told(told["process"], told["day"], told["spent"])

    async def _breaker(self, body: bytes) -> None:
        told = orjson.loads(body)
        told = {**known_fields(BreakerEvent, told), "state": State(told["state"])}
        self._app.breaker_changed(BreakerEvent(**told))


def hashed(token: str) -> str:
    """By what a token is known to gateways; tokens are random, so nothing is to be guessed."""
    return hashlib.sha256(token.encode()).hexdigest()


def _receipts(own: ReceiptKey) -> ReceiptRow:
    until = own.unsigned_until
    return {"key": own.key.hex(), "unsigned_until": None if until is None else until.isoformat()}


def receipts_of(row: ReceiptRow | None) -> ReceiptKey | None:
    """What signs receipts, as `FeedState` says it; a service of before says nothing."""
    if row is None:
        return None
    until = row["unsigned_until"]
    at = None if until is None else datetime.fromisoformat(until)
    return ReceiptKey(key=bytes.fromhex(row["key"]), unsigned_until=at)


def _row(routing: Routing) -> dict[str, Any]:
    row = asdict(routing)
    row["updated_at"] = routing.updated_at and routing.updated_at.isoformat()
    return row


def routing_of(row: Mapping[str, Any]) -> Routing:
    """A task's routing, as `FeedState` says it."""
    lanes = tuple(
        Lane(**{**known_fields(Lane, lane), "candidate": _model(lane["candidate"])})
        for lane in row["lanes"]
    )
    baseline = _model(row["baseline"])
    assert baseline is not None
    at = row["updated_at"]
    models = {"baseline": baseline, "previous": _model(row["previous"]), "lanes": lanes}
    told = {**known_fields(Routing, row), **models}
    return Routing(**{**told, "updated_at": datetime.fromisoformat(at) if at else None})


def _model(row: Mapping[str, Any] | None) -> Variant | None:
    return None if row is None else Variant(**known_fields(Variant, row))


def known_fields(kind: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of a dataclass, but for what another version says beyond this one."""
    return {field.name: row[field.name] for field in fields(kind) if field.name in row}


async def _changed(changes: asyncio.Queue[Any]) -> bool:
    """Wait for what may be a change, at most for `BEAT_S`; whether the App closes."""
    try:
        async with asyncio.timeout(BEAT_S):
            seen = [await changes.get()]
    except TimeoutError:
        return False
    while not changes.empty():
        seen.append(changes.get_nowait())
    return None in seen


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Left(Exception):
    """Whoever asked has gone."""


async def _all(receive: Receive) -> bytes:
    """The whole body. Raises `_Left` where its sender ended before: a part says nothing."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def socket_path(folder: Path) -> Path:
    """Where the gateways find the service of this data directory."""
    path = folder / "gateway.sock"
    if len(os.fsencode(path)) <= LONGEST_PATH:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tuneproof-{os.getuid()}" / f"{name}.sock"


def is_served(folder: Path) -> bool:
    """Whether somebody listens at the socket of this data directory, as far as can be seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(socket_path(folder)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # such as a queue that is full
            pass
        return True


def listen_locally(folder: Path) -> socket.socket:
    """The socket of this data directory, for its owner alone. Raises `ConfigError`."""
    path = socket_path(folder)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if path.parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{path.parent} is not ours")
        path.unlink(missing_ok=True)  # of a service that was killed: one has the folder at a time
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"Gateways cannot be fed at {path}: {error}.",
            mend="Choose a data directory (--dir) that is ours and takes sockets.",
            field="dir",
        ) from error
    made.listen(128)
    return made
