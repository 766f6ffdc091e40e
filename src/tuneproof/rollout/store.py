"""What the deployment manager needs of a store: each noun of it, as far as it is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from tuneproof.experiments import ABTest, Evidence, HourRequests, Requests
from tuneproof.experiments.store import Transactions
from tuneproof.prompts import Prompt
from tuneproof.rollout.machine import Deployment
from tuneproof.rollout.routing import Routing
from tuneproof.workflow import Tx


class IdCounters(Protocol):
    """Where ids come from."""

    async def next(self, kind: str, day: datetime, *, tx: Tx | None = None) -> str:
        """The next id of a kind on a day."""


class PromotedTests(Protocol):
    """The tests that rollouts stand on."""

    async def get(self, id: str, *, tx: Tx | None = None) -> ABTest:
        """The test of this id. Raises `NotFoundError`."""

    async def family(self, family: str, *, tx: Tx | None = None) -> Sequence[ABTest]:
        """The tests that were declared together. Raises `NotFoundError`."""


class RolloutRecords(Protocol):
    """The rollouts."""

    async def get(self, id: str, *, lock: bool = False, tx: Tx | None = None) -> Deployment:
        """The rollout of this id. Raises `NotFoundError`.

        `lock`: whoever else would move it waits until `tx` is over.
        """

    async def since(self, at: datetime, *, tx: Tx | None = None) -> list[Deployment]:
        """Rollouts that were made, or ended, at or after this instant, oldest first."""

    async def add(self, deployment: Deployment, *, tx: Tx | None = None) -> None:
        """Keep a new rollout."""


class MoveRecords(Protocol):
    """What a rollout and routing change together."""

    async def move(
        self,
        deployment: Deployment,
        kind: str,
        who: str,
        reason: str,
        at: datetime,
        tx: Tx | None = None,
    ) -> Deployment:
        """Keep a moved rollout, its history line, its phase and the routing of its tasks."""


class RolloutEvidence(Protocol):
    """What events add up to."""

    async def evidence(
        self, subject: str, *, before: datetime | None = None, tx: Tx | None = None
    ) -> Evidence:
        """What is known of units whose first exposure hour ended by `before`."""

    async def hours(self, subject: str, *, tx: Tx | None = None) -> tuple[HourRequests, ...]:
        """The requests of both arms in each hour of each phase, oldest first."""

    async def newest_requests(
        self, subject: str, *, tx: Tx | None = None
    ) -> Mapping[int, Requests]:
        """The candidate's requests in the newest phase, under that phase's number."""


class RoutingRecords(Protocol):
    """Which model serves a task."""

    async def get(self, task: str, *, lock: bool = False, tx: Tx | None = None) -> Routing | None:
        """Which model serves a task now.

        `lock`: whoever else would write it waits until `tx` is over.
        """

    async def all(self, *, tx: Tx | None = None) -> Sequence[Routing]:
        """Which model serves each task, by task."""


class Withdrawals(Protocol):
    """What ends before its time."""

    async def withdraw(
        self, subjects: Sequence[str], at: datetime, cause: str, tx: Tx | None = None
    ) -> list[str]:
        """End what still runs of these tests and rollouts; the tasks that served them."""


class PromptTexts(Protocol):
    """What prompts say."""

    async def of(self, hashes: Collection[str], *, tx: Tx | None = None) -> Mapping[str, Prompt]:
        """The prompts with these hashes, those that there are."""


class RolloutStore(Protocol):
    """What the manager keeps: rollouts with their history, phases, evidence, routing."""

    @property
    def database(self) -> Transactions:
        """Where transactions begin."""

    @property
    def ids(self) -> IdCounters:
        """Where ids come from."""

    @property
    def experiments(self) -> PromotedTests:
        """The tests that rollouts stand on."""

    @property
    def deployments(self) -> RolloutRecords:
        """The rollouts."""

    @property
    def moves(self) -> MoveRecords:
        """What a rollout and routing change together."""

    @property
    def events(self) -> RolloutEvidence:
        """What events add up to."""

    @property
    def prompts(self) -> PromptTexts:
        """What the prompts say that are routed."""

    @property
    def routing(self) -> RoutingRecords:
        """Which model serves a task."""

    @property
    def withdrawal(self) -> Withdrawals:
        """What ends before its time."""
