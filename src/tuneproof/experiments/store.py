"""What the evaluator needs of a store: each noun of it, as far as it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from tuneproof.experiments.ledger import Spent
from tuneproof.experiments.records import (
    ABTest,
    Evidence,
    ExperimentStatus,
    HourRequests,
    Look,
    Variant,
    Verdict,
)
from tuneproof.workflow import Tx


class Transactions(Protocol):
    """Where transactions begin."""

    def writing(self, tx: Tx | None) -> AbstractAsyncContextManager[Tx]:
        """`tx` itself, or a new transaction that may write where it is None."""


class ExperimentRecords(Protocol):
    """The tests and their looks."""

    async def get(self, id: str, *, tx: Tx | None = None) -> ABTest:
        """The test of this id. Raises `NotFoundError`."""

    async def family(
        self, family: str, *, lock: bool = False, tx: Tx | None = None
    ) -> Sequence[ABTest]:
        """The tests of a family by lane. Raises `NotFoundError`.

        `lock`: whoever else looks at them or ends them waits until `tx` is over.
        """

    async def looks(self, id: str, *, tx: Tx | None = None) -> Sequence[Look]:
        """All looks, oldest first."""

    async def add_look(self, look: Look, *, tx: Tx | None = None) -> None:
        """Keep a look at a running test for ever. Raises `ConflictError` for one that ended."""

    async def end(
        self,
        id: str,
        *,
        status: ExperimentStatus,
        verdict: Verdict,
        reason: str,
        tx: Tx | None = None,
    ) -> bool:
        """End a running test. Whether it did: one that has ended stays as it is."""

    async def spent(self, pipeline: str, *, tx: Tx | None = None) -> Sequence[Spent]:
        """What each experiment of a pipeline has taken of the loop's error, oldest first."""

    async def final_lifts(
        self, pipeline: str, *, tx: Tx | None = None
    ) -> Sequence[tuple[float, float]]:
        """The lift of each finished experiment with its standard error on the log scale."""


class LaneRecords(Protocol):
    """What tests and routing change together."""

    async def new_ids(
        self, lanes: int, at: datetime, *, tx: Tx | None = None
    ) -> tuple[str, list[str]]:
        """The next ids of a family and of its tests, by lane. A test alone is its own family."""

    async def start(
        self, tests: Sequence[ABTest], *, replace_baseline: bool = False, tx: Tx | None = None
    ) -> None:
        """Keep a family's tests, open their first phase together, route their tasks.

        Raises `ConflictError` where one of the tasks is being tested or rolled out, or where its
        model in use is not the tests' baseline, unless that may `replace_baseline`.
        """

    async def begin_phase(
        self,
        tests: Sequence[ABTest],
        shares: Mapping[str, float],
        at: datetime,
        cause: str,
        *,
        tx: Tx | None = None,
    ) -> int:
        """Begin the next phase of all tests of a family: its number.

        `shares` are the new ones by test, the others stay; 0 gives a lane back to the baseline.
        """


class LookEvidence(Protocol):
    """What events add up to."""

    async def evidence(
        self,
        subject: str,
        *,
        before: datetime | None = None,
        halfway: datetime | None = None,
        segments: Sequence[str] = (),
        tx: Tx | None = None,
    ) -> Evidence:
        """What is known of units whose first exposure hour ended by `before`.

        `halfway` asks for those before it as well, `segments` for the cells by attribute.
        """

    async def hours(self, subject: str, *, tx: Tx | None = None) -> tuple[HourRequests, ...]:
        """The requests of both arms in each hour of each phase, oldest first."""


class DatasetRecords(Protocol):
    """Which dataset made a model."""

    async def dataset_of(self, model: Variant, *, tx: Tx | None = None) -> str | None:
        """The hash of the dataset that made this model, where it is one of ours."""


class ExperimentStore(Protocol):
    """What the evaluator keeps: tests, looks, phases, evidence, routing."""

    @property
    def database(self) -> Transactions:
        """Where transactions begin."""

    @property
    def experiments(self) -> ExperimentRecords:
        """The tests and their looks."""

    @property
    def lanes(self) -> LaneRecords:
        """What tests and routing change together."""

    @property
    def events(self) -> LookEvidence:
        """What events add up to."""

    @property
    def versions(self) -> DatasetRecords:
        """Which dataset made a model."""
