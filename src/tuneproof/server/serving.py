"""What a gateway needs of the service behind it, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from tuneproof.server.event_lines import events_of

if TYPE_CHECKING:
    from tuneproof.app import (
        App,
        ChatEndpoint,
        Picker,
        ProviderEndpoint,
        ReceiptKey,
        RoutingSnapshot,
    )
    from tuneproof.experiments import Comment, Exposure, Ingested, Outcome, Variant
    from tuneproof.settings import RelayConfig, Shadow
    from tuneproof.telemetry import Metrics

__all__ = ["OwnServing", "Serving"]


class Serving(Protocol):
    """Who answers what, at which price; and where events go. Asked for every request."""

    @property
    def routing(self) -> RoutingSnapshot:
        """Which model serves each task. Raises `StoreUnavailableError` where nobody knows yet."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """The tasks of model names that mean one."""

    @property
    def metrics(self) -> Metrics:
        """Where requests are counted."""

    @property
    def receipts(self) -> ReceiptKey | None:
        """What signs receipts; None where the service is of a version that signs none."""

    def asks(self, task: str) -> bool:
        """Whether a gateway may ask this task's models."""

    def scores(self, task: str) -> bool:
        """Whether this task's answers are scored, so that their texts are to be kept."""

    def picker(self, task: str) -> Picker | None:
        """Who picks among several answers of this task; None where one is asked for."""

    def now(self) -> datetime:
        """The time that events carry."""

    async def endpoint(self, model: Variant) -> ChatEndpoint:
        """Who serves this model. Raises a `TuneProofError` where nobody does."""

    def cost_usd(
        self, model: Variant, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """What a request cost; None where its price is not known."""

    async def keep(
        self,
        *,
        exposures: Sequence[Exposure] = (),
        outcomes: Sequence[Outcome] = (),
        comments: Sequence[Comment] = (),
    ) -> Ingested:
        """Keep events, each once however often it is given. Raises a `TuneProofError`."""

    async def keep_lines(self, lines: Sequence[str]) -> Ingested:
        """Keep events that `event_lines` wrote, all or none. Raises as `keep` does."""

    async def had(self, subject: str | None, task: str) -> bool:
        """Whether there was ever such a subject of events; without one, whether the task is served.

        Raises a `TuneProofError` where nobody can tell.
        """

    @property
    def relay(self) -> RelayConfig:
        """What may be passed on that is for no task."""

    @property
    def shadows(self) -> Mapping[str, Shadow]:
        """Who gets copies of requests, by task."""

    @property
    def default_provider(self) -> str:
        """Who gets of that what names no provider."""

    def provider(self, name: str) -> ProviderEndpoint | None:
        """A provider of the settings; None where there is none of this name.

        Raises a `TuneProofError` where it cannot be called.
        """

    def cost_at_usd(
        self, provider: str, model: str, *, prompt_tokens: int, completion_tokens: int
    ) -> float | None:
        """What a request at a provider cost by its price there; None where that is not known."""

    def spent_usd(self, caller: str) -> float:
        """What this caller spent today by what was passed on."""

    def spend(self, caller: str, usd: float) -> None:
        """Count what a request of this caller cost."""


class OwnServing:
    """The App in this process."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.metrics = app.metrics
        self.aliases = app.settings.task_aliases
        self.now = app.clock.now
        self.scores = app.scoring.scores_task
        self.picker = app.best_of.of
        self.endpoint = app.routing.endpoints.of
        self.cost_usd = app.routing.endpoints.cost_usd
        self.keep = app.events.record
        self.had = app.events.had
        self.relay = app.settings.relay
        self.shadows = app.settings.shadows
        self.default_provider = app.settings.default_provider
        self.provider = app.routing.endpoints.at
        self.cost_at_usd = app.routing.endpoints.cost_at_usd
        self.spent_usd = app.spending.spent_usd
        self.spend = app.spending.spend

    @property
    def routing(self) -> RoutingSnapshot:
        """The board's."""
        return self._app.routing.board.snapshot

    @property
    def receipts(self) -> ReceiptKey:
        """The database's."""
        return self._app.receipts

    def asks(self, task: str) -> bool:
        """By the task's settings."""
        return self._app.managers.asks([task])

    async def keep_lines(self, lines: Sequence[str]) -> Ingested:
        """As `keep` does. Raises `DataError` for a line that is no event."""
        exposures, outcomes, comments = events_of(lines)
        return await self.keep(exposures=exposures, outcomes=outcomes, comments=comments)
