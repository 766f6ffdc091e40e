"""What the evaluator needs of a store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from tuneproof.experiments.ledger import Spent
from tuneproof.experiments.records import ABTest, Evidence, Look, ModelRef


class ExperimentStore(Protocol):
    """What the evaluator keeps: tests, looks, phases, evidence, routing."""

    async def next_test_id(self, at: datetime, tx: Any = None) -> str:
        """The next `ab-test-YYYYMMDD-NNN`."""

    async def start_test(self, test: ABTest, *, tx: Any = None) -> None:
        """Keep a new test, open its first phase, and route its tasks; refuses busy tasks."""

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

    async def reallocate(self, test: ABTest, share: float, at: datetime, *, tx: Any = None) -> int:
        """Give the candidate another share from now on: the number of the phase that begins."""

    async def dataset_of(self, model: ModelRef, *, tx: Any = None) -> str | None:
        """The hash of the dataset that made this model, where it is one of ours."""

    async def next_family_id(self, at: datetime, tx: Any = None) -> str:
        """The next `family-YYYYMMDD-NNN`."""

    async def start_family(self, tests: Sequence[ABTest], *, tx: Any = None) -> None:
        """Keep a family's tests, open their first phase together, route their tasks."""

    async def family(self, family: str, *, tx: Any = None) -> Sequence[ABTest]:
        """The tests of a family by lane. Raises `NotFoundError`."""

    async def stop_lanes(
        self, stopped: Sequence[str], at: datetime, cause: str, *, tx: Any = None
    ) -> None:
        """Give these tests' traffic back in their own lanes; all lanes begin the next phase."""
