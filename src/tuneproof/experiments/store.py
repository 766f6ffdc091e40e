"""What the evaluator needs of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from tuneproof.experiments.ledger import Spent
from tuneproof.experiments.records import ABTest, Evidence, Look, ModelRef


class ExperimentStore(Protocol):
    """What the evaluator keeps: tests, looks, phases, evidence, routing."""

    def transaction(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        """`tx` itself, or a new transaction that may write where it is None."""

    async def new_ids(self, lanes: int, at: datetime, *, tx: Any = None) -> tuple[str, list[str]]:
        """The next ids of a family and of its tests, by lane. A test alone is its own family."""

    async def start_tests(self, tests: Sequence[ABTest], *, tx: Any = None) -> None:
        """Keep a family's tests, open their first phase together, route their tasks.

        Raises `ConflictError` where one of the tasks is being tested or rolled out.
        """

    async def family(self, family: str, *, tx: Any = None) -> Sequence[ABTest]:
        """The tests of a family by lane. Raises `NotFoundError`."""

    async def test(self, test_id: str, *, tx: Any = None) -> ABTest:
        """The test of this id. Raises `NotFoundError`."""

    async def looks(self, test_id: str, *, tx: Any = None) -> Sequence[Look]:
        """All looks, oldest first."""

    async def add_look(self, look: Look, *, tx: Any = None) -> None:
        """Keep a look for ever."""

    async def end_test(self, test: ABTest, *, tx: Any = None) -> None:
        """Keep the test's final status, verdict and reason."""

    async def evidence(
        self,
        subject: str,
        *,
        before: datetime,
        halfway: datetime | None = None,
        segments: Sequence[str] = (),
        tx: Any = None,
    ) -> Evidence:
        """What is known of units whose first exposure hour ended by `before`.

        `halfway` asks for those before it as well, `segments` for the cells by attribute.
        """

    async def spent(self, pipeline: str, *, tx: Any = None) -> Sequence[Spent]:
        """What each experiment of a pipeline has taken of the loop's error, oldest first."""

    async def final_lifts(self, pipeline: str, *, tx: Any = None) -> Sequence[tuple[float, float]]:
        """The lift of each finished experiment with its standard error on the log scale."""

    async def begin_phase(
        self,
        tests: Sequence[ABTest],
        shares: Mapping[str, float],
        at: datetime,
        cause: str,
        *,
        tx: Any = None,
    ) -> int:
        """Begin the next phase of all tests of a family: its number.

        `shares` are the new ones by test, the others stay; 0 gives a lane back to the baseline.
        """

    async def dataset_of(self, model: ModelRef, *, tx: Any = None) -> str | None:
        """The hash of the dataset that made this model, where it is one of ours."""
