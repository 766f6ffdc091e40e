"""A gateway process's knowledge: fed by its service, kept on disk for the time without one.

The routing stands on the same board as in the service, so a gateway that hears nothing for too
long serves baselines alone, as the service would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from tuneproof.app import (
    Board,
    ChatEndpoint,
    Live,
    ProviderEndpoint,
    ReceiptKey,
    answer_cost_usd,
    breaker_of,
    endpoint_at,
)
from tuneproof.errors import (
    NotFoundError,
    StoreUnavailableError,
    TuneProofError,
    by_name,
)
from tuneproof.experiments import Comment, Exposure, Ingested, Outcome, RejectedEvent, Variant
from tuneproof.prompts import Prompt
from tuneproof.resilience import BreakerEvent, CircuitBreaker, Supervisor
from tuneproof.rollout import Routing
from tuneproof.server.auth import CHECK_S
from tuneproof.server.event_lines import Event, line_of
from tuneproof.server.fed_pickers import FedPickers
from tuneproof.server.fed_spending import TELL_EVERY_S, FedSpending
from tuneproof.server.feed import (
    BEAT_S,
    EndpointRow,
    FeedState,
    TokenRow,
    hashed,
    known_fields,
    receipts_of,
    routing_of,
    socket_path,
)
from tuneproof.server.problems import status_of
from tuneproof.settings import Secret, Settings, Url
from tuneproof.store import TokenInfo
from tuneproof.telemetry import Metrics
from tuneproof.training import Price

if TYPE_CHECKING:
    from tuneproof.app import RoutingSnapshot

__all__ = ["FedServing"]

log = logging.getLogger(__name__)

FEED = "/feed?knows=prompts"
TASK = "feed"
"""The name of the background task."""

SILENT_S = 5 * BEAT_S
"""After how long without a word the service counts as away."""

CALL_S = 30.0
"""How long the service may take for a batch of events."""

AWAY_S = 0.25
"""How long is waited for a service that has been silent, where somebody waits for us."""

SAVE_EVERY_S = 60.0
"""How often is kept that what the service told is still true."""

KEPT_S = 600.0
"""How long who served a model is known after its last use: for requests that are under way."""

SKEW_S = 300.0
"""How far a clock may have been set back since something was kept."""

FIRST_S = 10.0
"""How long a gateway that knows nothing waits for the service before it takes connections."""

LONGEST_PAUSE_S = 1.0
FILE = "gateway.json"


class FedServing:
    """What the service told last. `start` it, `close` it."""

    def __init__(self, settings: Settings, supervisor: Supervisor, metrics: Metrics) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self.metrics = metrics
        self.aliases = settings.task_aliases
        self.relay = settings.relay
        self.shadows = settings.shadows
        self.default_provider = settings.default_provider
        self._spending = FedSpending(self._tell_spent, now=self.now)
        self.spend, self.spent_usd = self._spending.spend, self._spending.spent_usd
        self._pickers = FedPickers(settings.dir, supervisor)
        self.picker = self._pickers.of
        self._file = settings.dir / FILE
        self._state: FeedState | None = None
        self.receipts: ReceiptKey | None = None
        self._routing: tuple[Routing, ...] = ()
        self._prompts: Mapping[str, Prompt] = {}
        self._trust_s: Mapping[str, float] = {}
        self._endpoints: dict[Variant, ChatEndpoint] = {}
        self._prices: dict[Variant, Price] = {}
        self._unnamed: dict[Variant, float] = {}  # since when no routing names it
        self._scored: frozenset[str] = frozenset()
        self._breakers: dict[str, CircuitBreaker] = {}
        self.spoken = asyncio.Event()  # set once the service itself has told its state
        self._heard = asyncio.Event()
        self._heard_at: float | None = None
        self._saved_at = -math.inf
        self._starting = True
        self._kept_s = 0.0  # the age of what was kept on disk, until the service speaks
        self._session = aiohttp.ClientSession(
            "http://service",
            connector=aiohttp.UnixConnector(str(socket_path(settings.dir)), limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self.board = Board(
            _FedRouting(self),
            Live(),
            prepare=_nothing,
            trust_s=lambda routing: self._limit_s(routing) - self._kept_s,
            prompts=_FedPrompts(self),
        )

    async def start(self) -> None:
        """Listen to the service from now on; until it speaks, what was kept on disk holds."""
        self._load()
        await self._pickers.read()
        if self._routing:
            await self.board.refresh()
        self._starting = False
        self.board.watch(self._supervisor)
        self._supervisor.keep(TASK, self._follow, longest_pause_s=LONGEST_PAUSE_S)
        if not self._routing:  # else nobody could be answered yet
            with contextlib.suppress(TimeoutError, StoreUnavailableError):
                async with asyncio.timeout(FIRST_S):
                    await self.spoken.wait()
                    await self.board.refresh()
        if self._settings.counts_spending:
            with contextlib.suppress(TuneProofError):
                await self._spending.told()  # before anybody spends more
            self._supervisor.every("spending", TELL_EVERY_S, self._spending.told)

    async def close(self) -> None:
        """Say the last, and close the connections to the service."""
        with contextlib.suppress(TuneProofError):
            if self._settings.counts_spending:
                await self._spending.told()
        await self._session.close()

    # What the gateway asks.

    @property
    def routing(self) -> RoutingSnapshot:
        """The board's."""
        return self.board.snapshot

    def asks(self, task: str) -> bool:
        """By the task's settings."""
        known = self._settings.tasks.get(task)
        return known is None or known.asked_here

    def scores(self, task: str) -> bool:
        """As the service said."""
        return task in self._scored

    def now(self) -> datetime:
        """This machine's time."""
        return datetime.now(UTC)

    async def endpoint(self, model: Variant) -> ChatEndpoint:
        """As the service said. Raises `NotFoundError`."""
        found = self._endpoints.get(model)
        if found is None:
            raise NotFoundError(
                f"No provider is known to serve {model.model_id!r}.",
                mend="`tuneproof doctor` on the service's machine says what is wrong.",
            )
        return found

    def cost_usd(
        self, model: Variant, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """By the price that the service named."""
        price = self._prices.get(model)
        if price is None:
            return None
        return price.request_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def provider(self, name: str) -> ProviderEndpoint | None:
        """By the settings; where the embedded trainer is the service said. Raises `ConfigError`."""
        config = self._settings.providers.get(name)
        if config is not None and config.embedded:
            address = self._state and self._state.get("trainer")
            key = config.api_key or Secret("embedded")
            config = replace(config, base_url=Url(address) if address else None, api_key=key)
        return None if config is None else endpoint_at(config)

    def cost_at_usd(
        self, provider: str, model: str, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """By the settings."""
        return answer_cost_usd(
            self._settings.providers[provider],
            model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    async def _tell_spent(self, told: Mapping[str, Any]) -> Mapping[str, float]:
        found: Mapping[str, float] = await self._ask("/spending", orjson.dumps(told), SILENT_S)
        return found

    async def find_token(self, token: str) -> TokenInfo | None:
        """What the service's store says of it. Raises `StoreUnavailableError`."""
        try:
            found: TokenRow | None = await self._ask("/tokens", token.encode(), CHECK_S)
        except StoreUnavailableError:
            raise
        except TuneProofError as error:
            raise _away(error) from error
        if found is None and self._state is not None:
            self._state["tokens"].pop(hashed(token), None)  # and no outage brings it back
        return None if found is None else _info(found)

    def held_token(self, token: str) -> tuple[TokenInfo, float] | None:
        """A token that was good as the service said last, and so many seconds ago."""
        found = None if self._state is None else self._state["tokens"].get(hashed(token))
        return None if found is None else (_info(found), self._seconds_since(found["at"]))

    def _seconds_since(self, at: str) -> float:
        """How long ago that was; for ever, where the clock was set back behind it."""
        found = (self.now() - datetime.fromisoformat(at)).total_seconds()
        return math.inf if found < -SKEW_S else max(0.0, found)

    async def keep(
        self,
        *,
        exposures: Sequence[Exposure] = (),
        outcomes: Sequence[Outcome] = (),
        comments: Sequence[Comment] = (),
    ) -> Ingested:
        """Have the service keep them. Raises what it answers, `StoreUnavailableError` above all."""
        events: list[Event] = [*exposures, *outcomes, *comments]
        return _ingested(await self._ask("/events", _lines([line_of(event) for event in events])))

    async def had(self, subject: str | None, task: str) -> bool:
        """What the service says. Raises as `keep` does."""
        return bool(await self._ask("/subjects", orjson.dumps([subject, task])))

    async def keep_lines(self, lines: Sequence[str]) -> Ingested:
        """As `keep` does, and may wait for longer: nobody waits for it."""
        return _ingested(await self._call("/events", _lines(lines), CALL_S))

    async def _ask(self, path: str, body: bytes, within_s: float = SILENT_S) -> Any:
        """What the service answers soon, since somebody waits: one that fails counts as away."""
        silent = self._heard_at is not None and not self.connected
        try:
            return await self._call(path, body, AWAY_S if silent else within_s)
        except TuneProofError as error:
            if status_of(error) >= 500 and not isinstance(error, StoreUnavailableError):
                raise _away(error) from error
            raise

    async def _call(self, path: str, body: bytes, within_s: float) -> Any:
        try:
            async with self._session.post(
                path, data=body, timeout=aiohttp.ClientTimeout(total=within_s)
            ) as answer:
                content = await answer.read()
            if answer.status == 200:
                return orjson.loads(content)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _away(error) from error
        raise _error(answer.status, content)

    # What the service says.

    async def _follow(self) -> None:
        """Take what the service tells until it stops. Raises `StoreUnavailableError`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENT_S, sock_read=SILENT_S)
        try:
            async with self._session.get(FEED, timeout=timeout, read_bufsize=2**26) as answer:
                said = False
                async for line in answer.content:
                    if not line.endswith(b"\n"):
                        break
                    said = self._hear(line) or said
                    if said:  # a sign of life alone says nothing of what was kept on disk
                        self._heard_now()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _away(error) from error
        raise _away(EOFError("it ended the stream"))

    def _hear(self, line: bytes) -> bool:
        """Take a line; whether it said how things stand, not only that the service lives."""
        if len(line) <= 3:
            return False
        self._take(orjson.loads(line))
        self._save()
        self.spoken.set()
        return True

    def _heard_now(self) -> None:
        """What was told last is true now."""
        self._heard_at, self._kept_s = time.monotonic(), 0.0
        if self._state is not None and self._heard_at - self._saved_at >= SAVE_EVERY_S:
            self._state["at"] = self.now().isoformat()
            self._save()
        self._heard.set()
        self._supervisor.succeeded(TASK)

    @property
    def connected(self) -> bool:
        """Whether the service spoke a moment ago."""
        return self._heard_at is not None and time.monotonic() - self._heard_at < SILENT_S

    @property
    def told(self) -> Sequence[Routing]:
        """The routing as told last. Raises `StoreUnavailableError` where the service is away."""
        if self._state is None or not (self._starting or self.connected):
            raise _away(None)
        return self._routing

    def prompts(self, hashes: Collection[str]) -> Mapping[str, Prompt]:
        """These prompts as told last. Raises `NotFoundError` for one that was not."""
        absent = [hash for hash in hashes if hash not in self._prompts]
        if absent:
            raise NotFoundError(
                f"The service did not tell the prompt {absent[0]}.", mend="tuneproof prompt list"
            )
        return {hash: self._prompts[hash] for hash in hashes}

    def _limit_s(self, routing: Routing) -> float:
        """For how long its candidates may be served without a word of the service."""
        return self._trust_s.get(routing.task, math.inf)

    async def changes(self) -> AsyncIterator[str]:
        """Something for each word of the service."""
        while True:
            await self._heard.wait()
            self._heard.clear()
            yield ""

    def _take(self, state: FeedState) -> None:
        """Know what was told, all of it or, where it cannot be read, none."""
        routing = tuple(routing_of(row) for row in state["routing"])
        prompts = {hash: Prompt.of(row) for hash, row in state.get("prompts", {}).items()}
        scored, _tokens = frozenset(state["scored"]), state["tokens"]
        trust_s = {
            task: math.inf if limit is None else limit for task, limit in state["trust_s"].items()
        }
        endpoints, prices = {}, {}
        for row in state["endpoints"]:
            model = Variant(
                model_id=row["model_id"],
                version=row["version"],
                provider=row.get("model_provider"),
                prompt=row.get("prompt"),
            )
            endpoints[model] = ChatEndpoint(
                provider=row["provider"],
                base_url=Url(row["base_url"]),
                api_key=Secret(row["api_key"]) if row["api_key"] else None,
                organization=row["organization"],
                breaker=self._breaker(breaker_of(row["provider"], model)),
                timeout_s=row["timeout_s"],
                key_header=row.get("key_header", ""),
                takes_n=row.get("takes_n", False),
                length_field=row.get("length_field", "max_tokens"),
            )
            if row["price"] is not None:
                prompt, completion = row["price"]
                prices[model] = Price(prompt=prompt, completion=completion)
        named = {model for one in routing for model in (one.baseline, *one.candidates)}
        self._keep_unnamed(named | endpoints.keys())
        self._endpoints = {**{m: self._endpoints[m] for m in self._unnamed}, **endpoints}
        self._prices = {
            **{m: self._prices[m] for m in self._unnamed if m in self._prices},
            **prices,
        }
        self._scored, self._trust_s = scored, trust_s
        self.receipts = receipts_of(state.get("receipts"))
        self._routing, self._prompts, self._state = routing, prompts, state
        self._pickers.told(state.get("pickers", {}))
        served = {endpoint.breaker.name for endpoint in self._endpoints.values()}
        for name in self._breakers.keys() - served:
            del self._breakers[name]

    def _keep_unnamed(self, named: Collection[Variant]) -> None:
        """Requests that were decided on before a change still ask for the models of then."""
        now = time.monotonic()
        since = {m: self._unnamed.get(m, now) for m in self._endpoints.keys() - named}
        self._unnamed = {model: at for model, at in since.items() if now - at < KEPT_S}

    def _breaker(self, name: str) -> CircuitBreaker:
        if name not in self._breakers:
            limits = self._settings.breakers.of("openai")
            self._breakers[name] = CircuitBreaker.named(
                name, on_event=self._breaker_changed, **limits
            )
        return self._breakers[name]

    def _breaker_changed(self, event: BreakerEvent) -> None:
        self.metrics.on_breaker_event(event)
        body = orjson.dumps(asdict(event))

        async def tell() -> None:
            try:
                await self._call("/breakers", body, SILENT_S)
            except TuneProofError as error:
                log.info("The service did not hear of the breaker %s: %s", event.breaker, error)

        self._supervisor.soon(f"breaker:{event.breaker}:{event.kind}", tell)

    # What is kept for a start without the service.

    def _save(self) -> None:
        """Keep what was told, but for the providers' keys: those are in our settings as well."""
        assert self._state is not None
        kept = {**self._state, "endpoints": list(map(_without_secrets, self._state["endpoints"]))}
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            temporary.touch(mode=0o600)  # what signs receipts stands in it
            temporary.write_bytes(orjson.dumps(kept))
            temporary.replace(self._file)
        except OSError as error:
            log.warning("What the service told could not be kept in %s: %s", self._file, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        try:
            state: FeedState = orjson.loads(self._file.read_bytes())
            age_s = self._seconds_since(state["at"])
            for row in state["endpoints"]:
                self._add_secrets(row)
            self._take(state)
        except FileNotFoundError:
            return
        except Exception as error:  # whatever is in it, applications are answered
            log.warning("What %s says cannot be read and is ignored: %r", self._file, error)
            return
        self._routing = tuple(
            one if age_s <= self._limit_s(one) else _without_candidates(one)
            for one in self._routing
        )
        self._kept_s = age_s
        log.info("Serving what the service told %.0f s ago, until it speaks.", age_s)

    def _add_secrets(self, row: EndpointRow) -> None:
        """The provider's key, and what is secret in its address, by our own settings."""
        known = self._settings.providers.get(row["provider"])
        if known is None:
            return
        row["api_key"] = known.api_key.reveal() if known.api_key else None
        with contextlib.suppress(TuneProofError):  # such as a trainer that is not there
            own = endpoint_at(known).base_url
            if own.masked == row["base_url"]:
                row["base_url"] = own.reveal()


class _FedRouting:
    """What the board reads."""

    notifies = True

    def __init__(self, fed: FedServing) -> None:
        self._fed = fed

    async def all(self) -> Sequence[Routing]:
        """As told last. Raises `StoreUnavailableError` where the service is away."""
        return self._fed.told

    async def renew(self, task: str, above: int) -> None:
        """The service gives versions."""

    def notices(self) -> AsyncIterator[str]:
        """Something for each word of the service."""
        return self._fed.changes()


class _FedPrompts:
    """The prompts that the service told with the routing."""

    def __init__(self, fed: FedServing) -> None:
        self._fed = fed

    async def of(self, hashes: Collection[str]) -> Mapping[str, Prompt]:
        """As told last. Raises `NotFoundError` for one that was not."""
        return self._fed.prompts(hashes)

    def asked(self, routing: Routing) -> Routing:
        """As the service said."""
        return routing


async def _nothing(_models: Iterable[Variant]) -> None:
    """Endpoints come with the routing."""


def _without_secrets(row: EndpointRow) -> EndpointRow:
    return {**row, "api_key": None, "base_url": Url(row["base_url"]).masked}


def _lines(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode()


def _ingested(found: Mapping[str, Any]) -> Ingested:
    rejected = [RejectedEvent(**known_fields(RejectedEvent, row)) for row in found["rejected"]]
    return Ingested(**{**known_fields(Ingested, found), "rejected": rejected})


def _info(row: TokenRow) -> TokenInfo:
    return TokenInfo(
        name=row["name"],
        scopes=tuple(row["scopes"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )


def _without_candidates(routing: Routing) -> Routing:
    return Routing(
        task=routing.task,
        baseline=routing.baseline,
        version=routing.version,
        updated_at=routing.updated_at,
        cause="The service is away: nobody can look at the candidate.",
    )


def _away(error: BaseException | None) -> StoreUnavailableError:
    why = f": {error or type(error).__name__}" if error is not None else ""
    return StoreUnavailableError(
        f"The service of this gateway does not answer{why}.",
        mend="Start `tuneproof serve` on this data directory.",
    )


def _error(status: int, content: bytes) -> TuneProofError:
    """What the service answered, as its own class."""
    try:
        body = json.loads(content)
        kinds = {kind("").slug: kind for kind in by_name().values()}
        kind = kinds[body["type"].rpartition("/")[2]]
        return kind(body["detail"], mend=body.get("mend", ""), **body.get("details", {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        return TuneProofError(f"The service answered {status} to its gateway.")
