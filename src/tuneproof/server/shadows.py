"""Shadow traffic: copies of requests for a model that serves nobody yet, unseen by users.

A copy is made once its user has the answer, and nobody waits for it: where there is no room for it
(the concurrency, the budget, a provider that fails or limits, a process that ends) it is dropped
and counted. Both answers to a request, the user's and the copy's, are recorded beside each other
under a subject of their own, which nothing that judges reads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuneproof import assignment
from tuneproof.errors import CircuitBreakerError, ProviderUnavailableError, TuneProofError
from tuneproof.experiments import Arm, Exposure
from tuneproof.experiments.histories import HISTORY_PHASE, shadow_of
from tuneproof.resilience import CircuitBreaker, end_tasks
from tuneproof.server.meter import BYTES_PER_TOKEN, expected_tokens
from tuneproof.server.upstream import Refused, nothing_was_sent
from tuneproof.server.written import Written

if TYPE_CHECKING:
    from tuneproof.app import ProviderEndpoint
    from tuneproof.server.chatting import ChatRequest
    from tuneproof.server.serving import Serving
    from tuneproof.server.spool import Spool
    from tuneproof.server.upstream import Upstream
    from tuneproof.settings import Shadow

__all__ = ["Shadows"]

log = logging.getLogger(__name__)

LONGEST_S = 600.0
"""How long a copy may be under way: one whose answer never ends would keep its place."""

SPARED_S, LONGEST_SPARED_S = 10.0, 300.0
"""How long no copies are made once their provider says that it is asked too often; at most, where
it says how long."""

_THERE = ("previous_response_id", "conversation", "container", "mcp_servers")
"""What a request goes on from, or acts on, at the provider that it is for."""


class Shadows:
    """Copies the requests of all tasks that have a shadow. One per gateway."""

    def __init__(self, serving: Serving, upstream: Upstream, spool: Spool) -> None:
        self._copiers = {
            task: _Copier(shadow, serving, upstream, spool)
            for task, shadow in serving.shadows.items()
        }

    def copy(self, asked: ChatRequest, seen: Exposure) -> None:
        """Have a request copied that was answered as `seen` says, if its unit is of the share.

        The copy begins when this process waits next: behind what was written to the user.
        """
        copier = self._copiers.get(asked.task)
        if copier is not None:
            copier.copy(asked, seen)

    def drain(self) -> None:
        """Make no more copies: this process ends soon."""
        for copier in self._copiers.values():
            copier.draining = True

    async def close(self) -> None:
        """End the copies that are under way."""
        self.drain()
        await end_tasks(task for copier in self._copiers.values() for task in copier.under_way)


class _Bill:
    """What a copy is to be paid: what it may cost, until more is known."""

    def __init__(self, usd: float) -> None:
        self.usd = usd


class _Copier:
    """Copies the requests of one task, within its bounds."""

    def __init__(self, shadow: Shadow, serving: Serving, upstream: Upstream, spool: Spool) -> None:
        self._shadow = shadow
        self._serving = serving
        self._upstream = upstream
        self._spool = spool
        self._buckets = assignment.candidate_buckets(shadow.share)
        self._breaker = CircuitBreaker.named(
            shadow.name,
            like="openai",
            on_event=serving.metrics.on_breaker_event,
            counts=TuneProofError,
        )
        self._spared_until = 0.0
        self._reserved_usd = 0.0
        self._told_unpriced = False
        self.draining = False
        self.under_way: set[asyncio.Task[None]] = set()

    def copy(self, asked: ChatRequest, seen: Exposure) -> None:
        """Copy this request if it is one of the share, and if there is room."""
        if assignment.bucket(self._shadow.name, asked.unit) >= self._buckets:
            return
        if self.draining or len(self.under_way) >= self._shadow.concurrency:
            self._count("draining" if self.draining else "busy")
            return
        task = asyncio.create_task(self._run(asked, seen))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    def _count(self, result: str) -> None:
        self._serving.metrics.shadow_requests.labels(self._shadow.task, result).inc()

    async def _run(self, asked: ChatRequest, seen: Exposure) -> None:
        """Make a copy; whatever becomes of it is its own."""
        result = "draining"
        try:
            result = await self._within_budget(asked, seen)
        except TuneProofError as error:
            log.info("No copies for %s: %s", self._shadow.model, error)
            result = "unavailable"
        except Exception:
            log.exception("a copy of a request for %s failed", self._shadow.task)
            result = "failed"
        finally:
            self._count(result)

    # --- the budget ------------------------------------------------------------------------

    async def _within_budget(self, asked: ChatRequest, seen: Exposure) -> str:
        """Make the copy where it may be made, and the budget has room; what became of it."""
        if not _stands_alone(asked.body):
            return "not_copyable"
        if time.monotonic() < self._spared_until:
            return "limited"
        endpoint = self._serving.provider(self._shadow.provider)
        if endpoint is None:
            return "unavailable"
        expected = self._expected_usd(asked)
        if expected is None:
            self._tell_unpriced()
            return "unpriced"
        if not self._has_room(expected):
            return "budget"
        with self._paying(expected) as bill:
            return await self._ask(endpoint, asked, seen, bill)

    def _expected_usd(self, asked: ChatRequest) -> float | None:
        """What a copy may cost; None where nobody knows, and a budget is to hold."""
        if self._shadow.budget_usd is None:
            return 0.0
        read = -(-len(asked.for_model(self._shadow.model)) // BYTES_PER_TOKEN)
        return self._cost_usd(read, expected_tokens(asked.body))

    def _cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        return self._serving.cost_at_usd(
            self._shadow.provider,
            self._shadow.model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    def _has_room(self, usd: float) -> bool:
        budget = self._shadow.budget_usd
        if budget is None:
            return True
        return self._serving.spent_usd(self._shadow.name) + self._reserved_usd + usd <= budget

    @contextmanager
    def _paying(self, expected: float) -> Iterator[_Bill]:
        """Pay for what the block does; until it is done it counts as what it may cost."""
        bill = _Bill(expected)
        self._reserved_usd += expected
        try:
            yield bill
        finally:
            self._reserved_usd -= expected
            if bill.usd:
                self._serving.spend(self._shadow.name, bill.usd)
                self._serving.metrics.shadow_spent.labels(self._shadow.task).inc(bill.usd)

    def _tell_unpriced(self) -> None:
        if not self._told_unpriced:
            self._told_unpriced = True
            log.warning(
                "No request of %s is copied: the price of %s is not known, and copies have a "
                "budget. Set it in [providers.%s.prices].",
                self._shadow.task,
                self._shadow.model,
                self._shadow.provider,
            )

    # --- the answer ------------------------------------------------------------------------

    async def _ask(
        self, endpoint: ProviderEndpoint, asked: ChatRequest, seen: Exposure, bill: _Bill
    ) -> str:
        """Ask for an answer and record it beside the user's; what became of it."""
        began, written = time.perf_counter(), Written()
        try:
            refusal = await self._breaker.call(self._read, endpoint, asked, written)
        except CircuitBreakerError:
            bill.usd = 0.0
            return "unavailable"
        except TuneProofError as error:
            log.info("A copy of a request for %s failed: %s", self._shadow.task, error)
            if nothing_was_sent(error):
                bill.usd = 0.0
            self._record(seen, began, None, None)
            return "failed"
        if refusal is None:
            usage = written.tokens(asked)
            cost = self._cost_usd(**usage)
            bill.usd = cost or 0.0
            self._record(seen, began, sum(usage.values()), cost)
            return "answered"
        bill.usd = 0.0
        if refusal.limited:
            wait_s = refusal.retry_after_s or SPARED_S
            self._spared_until = time.monotonic() + min(wait_s, LONGEST_SPARED_S)
            return "limited"
        self._record(seen, began, None, None)
        return "failed"

    async def _read(
        self, endpoint: ProviderEndpoint, asked: ChatRequest, written: Written
    ) -> Refused | None:
        """Read an answer to its end; a refusal says nothing against the provider."""
        try:
            async with asyncio.timeout(LONGEST_S):
                if asked.stream:
                    await self._read_stream(endpoint, asked, written)
                else:
                    answer = await self._upstream.complete(endpoint, asked, self._shadow.model)
                    written.note(asked.wire.usage(answer.body), asked.wire.text(answer.body))
        except Refused as refusal:
            return refusal
        except TimeoutError as error:
            raise ProviderUnavailableError(
                f"{self._shadow.model} did not end its answer within {LONGEST_S:g} s.",
                mend="Ask for shorter ones.",
            ) from error
        return None

    async def _read_stream(
        self, endpoint: ProviderEndpoint, asked: ChatRequest, written: Written
    ) -> None:
        wire = asked.wire
        stream = await self._upstream.stream(endpoint, asked, self._shadow.model)
        try:
            async for events in stream.events():
                for event in events:
                    if event.chunk is not None:
                        written.note(wire.usage(event.chunk), wire.delta(event.chunk))
        finally:
            stream.close()

    def _record(
        self, seen: Exposure, began: float, tokens: int | None, cost_usd: float | None
    ) -> None:
        """Keep both answers to a request, a unit of its own in each arm; no tokens: it failed."""
        users = replace(
            seen,
            subject=shadow_of(seen.task, self._shadow.model, seen.at),
            phase=HISTORY_PHASE,
            unit=seen.id,
            covariate=None,
            text=None,
            messages=(),
        )
        copys = replace(
            users,
            arm=Arm.CANDIDATE,
            unit=f"{seen.id}-copy",
            at=self._serving.now(),
            latency_ms=(time.perf_counter() - began) * 1000,
            error=tokens is None,
            tokens=tokens,
            cost_usd=cost_usd,
            attributes={},
        )
        self._spool.add(users)
        self._spool.add(copys)


def _stands_alone(body: Mapping[str, Any]) -> bool:
    """Whether a copy has no effect but its answer, and needs nothing of another provider's.

    Tools that the provider runs itself might act twice.
    """
    tools = body.get("tools")
    runs = isinstance(tools, list) and any(
        isinstance(tool, Mapping) and tool.get("type", "custom") not in ("function", "custom")
        for tool in tools
    )
    return not runs and not any(body.get(name) for name in _THERE)
