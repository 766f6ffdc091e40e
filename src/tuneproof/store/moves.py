"""A rollout moves: its row, history, phase, versions and routing, in one transaction."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from tuneproof.rollout import Deployment, DeploymentState, Routing, routing_of
from tuneproof.rollout.machine import advance, waits_at_most
from tuneproof.store.activity import ActivityLog
from tuneproof.store.database import Database
from tuneproof.store.deployments import Deployments
from tuneproof.store.experiments import Experiments
from tuneproof.store.routing import Routings
from tuneproof.store.versions import Versions
from tuneproof.training import VersionStatus
from tuneproof.workflow import Tx

__all__ = ["RolloutMoves"]


class RolloutMoves:
    """What changes together when a rollout goes a step, holds, ends or is taken back."""

    def __init__(
        self,
        database: Database,
        *,
        activity: ActivityLog,
        deployments: Deployments,
        experiments: Experiments,
        routing: Routings,
        versions: Versions,
    ) -> None:
        self._database = database
        self._activity = activity
        self._deployments = deployments
        self._experiments = experiments
        self._routing = routing
        self._versions = versions

    async def move(
        self,
        deployment: Deployment,
        kind: str,
        who: str,
        reason: str,
        at: datetime,
        tx: Tx | None = None,
    ) -> Deployment:
        """Keep a moved rollout, its history line, its phase and the routing of its tasks.

        Raises `ConflictError` where somebody else moved it since it was read.
        """
        async with self._database.writing(tx) as own:
            moved = await self._deployments.update(
                deployment.id,
                expected_version=deployment.version,
                tx=own,
                state=deployment.state,
                step=deployment.step,
                share=deployment.share,
                step_started_at=deployment.step_started_at,
                next_at=deployment.next_at,
                ended_at=deployment.ended_at,
                cause=deployment.cause,
                evidence=deployment.evidence,
            )
            detail = {"state": str(moved.state), "share": moved.share, "step": moved.step}
            await self._deployments.add_history(
                moved.id, at, kind, who, reason, {**detail, "evidence": moved.evidence}, tx=own
            )
            await self._activity.add(at, who, f"rollout {kind}", moved.id, reason, tx=own)
            if moved.state is DeploymentState.ROLLED_BACK:
                await self._return_to_previous(moved, own)
            phase = await self._phase(moved, at, own)
            for task in sorted(moved.tasks):  # everybody locks them in this order
                routing = replace(routing_of(moved, task, phase), updated_at=at)
                if await self._mine(routing, moved, own):
                    back = moved.state is DeploymentState.ROLLED_BACK
                    await self._routing.set(routing, taken_back=back, tx=own)
        return moved

    async def _return_to_previous(self, deployment: Deployment, tx: Tx) -> None:
        """A version that did harm is marked, so that it is not tried again by itself."""
        marks = (
            (deployment.version_id, VersionStatus.ROLLED_BACK),
            (deployment.previous.version, VersionStatus.LIVE),
        )
        for version_id, status in marks:
            # A rollout declared by hand may name a version that is not one of ours.
            if version_id is not None and await self._versions.find(version_id, tx=tx):
                await self._versions.update(version_id, tx=tx, status=status)

    async def _phase(self, deployment: Deployment, at: datetime, tx: Tx) -> int:
        phases = await self._experiments.phases(deployment.id, tx=tx)
        number = phases[-1].number if phases else 0
        if deployment.state.final or (phases and phases[-1].share == deployment.share):
            return number
        await self._experiments.open_phase(deployment.id, number + 1, deployment.share, at, tx=tx)
        return number + 1

    async def _mine(self, wanted: Routing, deployment: Deployment, tx: Tx) -> bool:
        """Whether this rollout still speaks for the task: a later one may have taken over."""
        now = await self._routing.get(wanted.task, lock=True, tx=tx)
        if now is None or not deployment.state.final or deployment.id in now.subjects:
            return True
        # One that was complete is taken back where its candidate is still the model in use.
        return not now.subjects and now.baseline.same_as(deployment.candidate)

    async def supersede_holds(self, pipeline: str, at: datetime, tx: Tx | None = None) -> list[str]:
        """Complete the rollouts that only hold; the ids of the runs that drive them.

        Not those that may never serve all by themselves: a person decides on them.
        """
        woken = []
        async with self._database.writing(tx) as own:
            for deployment in await self._deployments.active(pipeline, tx=own):
                if deployment.state is not DeploymentState.HOLDING or waits_at_most(deployment):
                    continue
                await self.move(
                    advance(deployment, at), "complete", "system", "superseded", at, own
                )
                woken.append(deployment.run_id or deployment.id)
        return woken
