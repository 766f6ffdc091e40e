"""Delivers the outbox to MLflow, in order, once, whenever MLflow answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from tuneproof.collection import TimeSource
from tuneproof.errors import (
    CircuitBreakerError,
    CredentialsError,
    DataError,
    TrackingUnavailableError,
)
from tuneproof.resilience import CircuitBreaker
from tuneproof.settings import Settings
from tuneproof.standalone import ensure_open, loaded, opened_store, opening
from tuneproof.tracking.outbox import Outbox, PendingItem
from tuneproof.tracking.registry import MLflowModelRegistry, TrackedVersion, find_version
from tuneproof.tracking.runs import KINDS, find_run
from tuneproof.tracking.server import MLflowServer
from tuneproof.workflow import SystemClock

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflowExperimentTracker", "TrackedRun"]

log = logging.getLogger(__name__)

EXPERIMENT = "fine_tuning_pipeline"
"""Where runs go if nobody says where."""

_LIMIT = 100
_NO_SERVICE = (TrackingUnavailableError, CredentialsError)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 3600.0
_LONGEST_OUTAGE_PAUSE_S = 240.0
_ARRIVED, _HELD, _DOWN = "arrived", "held", "down"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run as MLflow knows it."""

    run_id: str
    mlflow_run_id: str
    experiment_id: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    datasets: tuple[str, ...]
    """The hashes of its datasets, as far as MLflow keeps them (36 characters)."""
    version: TrackedVersion | None


class MLflowExperimentTracker:
    """Delivers an outbox to the MLflow server at `tracking_uri`; without one, keeps everything.

    With no outbox given it is that of the settings' database, opened for each call or for as long
    as `async with tracker.opened()`, and address and experiment are the settings' where left out.

    MLflow being down costs the pipeline nothing: items wait, in order. After five failures in a
    row the breaker leaves MLflow alone for 60 s and longer, up to four minutes. An item that
    MLflow refuses holds back its own run only, is tried again ever more seldom (up to an hour),
    and is never dropped. Run one deliverer at a time: two could make the same run twice.
    """

    def __init__(
        self,
        outbox: Outbox | None = None,
        tracking_uri: str | None = None,
        *,
        experiment: str | None = None,
        breaker: CircuitBreaker | None = None,
        clock: TimeSource | None = None,
        timeout_s: float = 30.0,
        on_delivered: Callable[[int], None] = lambda items: None,
        settings: Settings | None = None,
    ) -> None:
        self.breaker = breaker or CircuitBreaker.named(
            "mlflow", max_timeout=_LONGEST_OUTAGE_PAUSE_S, counts=_NO_SERVICE
        )
        self._given = outbox
        self._settings = settings
        self._uri = tracking_uri
        self._timeout_s = timeout_s
        self._told = experiment
        self._clock = clock or SystemClock()
        self._on_delivered = on_delivered
        self._server = MLflowServer(tracking_uri, timeout_s=timeout_s) if tracking_uri else None

    @property
    def _outbox(self) -> Outbox:
        return ensure_open(self._given, "tracker", "outbox")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """This tracker with its outbox open: its own, or the settings' until the block ends."""
        if self._given is not None:
            yield self
            return
        settings = await loaded(self._settings)
        tracking = settings.tracking
        uri = self._uri or (tracking.uri.reveal() if tracking.uri else None)
        async with opened_store(settings, SystemClock()) as store:
            at = type(self)(
                store.outbox,
                uri,
                experiment=self._told or tracking.experiment_name,
                breaker=self.breaker,
                clock=self._clock,
                timeout_s=self._timeout_s,
                on_delivered=self._on_delivered,
            )
            try:
                yield at
            finally:
                at.close()

    @property
    def registry(self) -> MLflowModelRegistry:
        """The model registry of the same server; raises `TrackingUnavailableError` without one."""
        server = self._configured()
        return MLflowModelRegistry(server.uri, server=server)

    @opening
    async def deliver_once(self) -> int:
        """Deliver what is due, until MLflow fails; says how many items arrived."""
        if self._server is None:
            return 0
        arrived = 0
        held: set[str] = set()
        for item in await self._outbox.due(self._clock.now(), _LIMIT):
            if _order(item) in held:
                continue
            outcome = await self._deliver(self._server, item)
            if outcome is _DOWN:
                break
            if outcome is _HELD:
                held.add(_order(item))
            else:
                arrived += 1
        if arrived:
            self._on_delivered(arrived)
        return arrived

    @opening
    async def find_run(self, run_id: str) -> TrackedRun | None:
        """Our run `run_id` as MLflow has it, with its latest metrics; None where it has none."""
        return await self._configured().call(lambda client: _tracked(client, run_id))

    @opening
    async def check(self) -> str:
        """Make a real call, for health; says how MLflow does and what waits for it.

        Raises `TrackingUnavailableError` or `CredentialsError`, each with the mend.
        """
        found = await self._configured().check()
        pending = await self._outbox.pending()
        return f"{found}; {pending} items wait in the outbox." if pending else f"{found}."

    def close(self) -> None:
        """Let the worker thread go once its call is done."""
        if self._server is not None:
            self._server.close()

    async def _deliver(self, server: MLflowServer, item: PendingItem) -> str:
        payload = {"experiment": self._told or EXPERIMENT, **item.payload}
        try:
            await self.breaker.call(server.call, lambda client: _act(client, item.kind, payload))
        except CircuitBreakerError:
            return _DOWN
        except _NO_SERVICE as error:
            # It stays due, so that nothing overtakes it; the breaker sets the pace.
            log.warning("MLflow does not take %s: %s", item.key, error)
            await self._outbox.failed(item.id, str(error), self._clock.now())
            return _DOWN
        except Exception as error:
            retry_at = self._clock.now() + timedelta(seconds=_pause_s(item.attempts))
            log.exception("MLflow refused %s; next try at %s", item.key, retry_at)
            await self._outbox.failed(item.id, f"{type(error).__name__}: {error}", retry_at)
            return _HELD
        await self._outbox.delivered(item.id)
        return _ARRIVED

    def _configured(self) -> MLflowServer:
        if self._server is None:
            raise TrackingUnavailableError(
                "No MLflow server is configured; the outbox keeps everything.",
                mend="Set MLFLOW_TRACKING_URI.",
            )
        return self._server


def _act(client: MlflowClient, kind: str, payload: Mapping[str, Any]) -> None:
    action = KINDS.get(kind)
    if action is None:
        raise DataError(
            f"The outbox holds an item of kind {kind!r}.", mend=f"Known: {', '.join(KINDS)}."
        )
    action(client, payload)


def _order(item: PendingItem) -> str:
    """Items with the same word keep their order."""
    return str(item.payload.get("run_id") or item.payload.get("name") or item.key)


def _pause_s(attempts: int) -> float:
    return float(min(_FIRST_PAUSE_S * 2 ** min(attempts, 20), _LONGEST_PAUSE_S))


def _tracked(client: MlflowClient, run_id: str) -> TrackedRun | None:
    run = find_run(client, run_id)
    if run is None:
        return None
    version_id = run.data.tags.get("tuneproof_version")
    return TrackedRun(
        run_id=run_id,
        mlflow_run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        datasets=tuple(d.dataset.digest for d in run.inputs.dataset_inputs) if run.inputs else (),
        version=find_version(client, version_id) if version_id else None,
    )
