"""Which model each unit gets, and who serves that model: what every request is answered from."""

from __future__ import annotations

from collections.abc import Sequence

from tuneproof.app.board import Board
from tuneproof.app.endpoints import RENEW_S, ChatEndpoint, ModelEndpoints
from tuneproof.experiments import ModelRef
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Routing

__all__ = ["RoutingService"]


class RoutingService:
    """What can be asked of the routing: `board` holds it in memory."""

    def __init__(self, *, board: Board, endpoints: ModelEndpoints, supervisor: Supervisor) -> None:
        self.board = board
        self._endpoints = endpoints
        self._supervisor = supervisor

    def watch(self) -> None:
        """Stay up to date from now on."""
        self.board.watch(self._supervisor)
        self._supervisor.every("endpoints", RENEW_S, self._renew)

    async def all(self) -> Sequence[Routing]:
        """Which model serves each task; as last known while the database is away."""
        return list((await self.board.refresh_if_possible()).routing)

    async def changed(self) -> None:
        """The routing was written: who asks next, or listens, sees it."""
        await self.board.refresh_if_possible()

    def endpoints_changed(self) -> None:
        """Other providers may serve the models of the routing now: find out soon."""
        self._supervisor.soon("endpoints-renewal", self._renew)

    async def _renew(self) -> None:
        await self._endpoints.renew(self.board.snapshot.models)

    async def endpoint(self, model: ModelRef) -> ChatEndpoint:
        """Which provider serves this model: the one that trained it or on it, else the default.

        Raises `ConfigError` where it left the settings: no other one is sent the request.
        """
        return await self._endpoints.of(model)

    def cost_usd(self, model: ModelRef, *, prompt_tokens: int, completion_tokens: int) -> float:
        """What a request cost: by the settings' prices, else by the dated table; 0 without one."""
        return self._endpoints.cost_usd(
            model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
