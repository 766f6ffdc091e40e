"""Which model each unit gets, and who serves that model: what every request is answered from."""

from __future__ import annotations

from collections.abc import Sequence

from tuneproof.app.board import Board
from tuneproof.app.endpoints import RENEW_S, ModelEndpoints
from tuneproof.experiments import Variant
from tuneproof.pipeline.routing import ensure_one, in_use_of
from tuneproof.resilience import Supervisor
from tuneproof.rollout import Routing
from tuneproof.settings import PipelineConfig

__all__ = ["RoutingService"]


class RoutingService:
    """What can be asked of the routing: `board` holds it in memory."""

    def __init__(self, *, board: Board, endpoints: ModelEndpoints, supervisor: Supervisor) -> None:
        self.board = board
        self.endpoints = endpoints
        self._supervisor = supervisor

    def watch(self) -> None:
        """Stay up to date from now on."""
        self.board.watch(self._supervisor)
        self._supervisor.every("endpoints", RENEW_S, self._renew)

    async def all(self) -> Sequence[Routing]:
        """Which model serves each task; as last known while the database is away."""
        return list((await self.board.refresh_if_possible()).routing)

    async def ensure_one(self, config: PipelineConfig) -> None:
        """Refuse a run whose tasks have several models in use; raises `ConflictError`."""
        ensure_one(config.name, await self.in_use(config))

    async def in_use(self, config: PipelineConfig) -> dict[str, Variant]:
        """The model in use of each task of a pipeline: as it is routed, else as the settings name
        it, else the base, where they name that."""
        known = {one.task: one.baseline for one in await self.all()}
        base = None
        if config.base_model is not None:
            base = Variant(model_id=config.base_model, provider=config.provider)
        return in_use_of(config.tasks, known, base)

    def endpoints_changed(self) -> None:
        """Other providers may serve the models of the routing now: find out soon."""
        self._supervisor.soon("endpoints-renewal", self._renew)

    async def _renew(self) -> None:
        await self.endpoints.renew(self.board.snapshot.models)
