"""What every rule needs: the service, what is known of it, and how to ask it for something."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from tests.machine.events import Sent
from tests.machine.watcher import Watcher
from tests.machine.world import World

T = TypeVar("T")

TASK_SETS = st.sampled_from([("hook", "body"), ("hook",), ("body",)])
NUMBERS = st.integers(min_value=0, max_value=1000)
"""Which of those that there are: the number modulo their count."""

CREATE = "/evaluation/create-ab-test"


def declaration(tasks: Sequence[str], baseline: str, candidates: Sequence[str]) -> dict[str, Any]:
    """A request for a test."""
    models = [{"model_id": candidate} for candidate in candidates]
    several = len(models) > 1
    return {
        "baseline_model": {"model_id": baseline},
        "tasks": list(tasks),
        "traffic_split": 0.3 if several else 0.5,
        **({"candidate_models": models} if several else {"candidate_model": models[0]}),
    }


def rollout_of(test: dict[str, Any], strategy: str, holdback: float) -> dict[str, Any]:
    """A request for the rollout of a test's candidate."""
    return {
        "model_version": test["candidate_model"],
        "evaluation_result": {"ab_test_id": test["ab_test_id"]},
        "deployment_strategy": strategy,
        "rollout_config": {"holdback": holdback},
    }


def family_of(test: dict[str, Any]) -> str:
    """The tests that are looked at with this one; a test alone is its own family."""
    return str(test["family"] or test["ab_test_id"])


class Acting(RuleBasedStateMachine):
    """One service and its surroundings. `world` is made, and taken away, by who runs it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.watcher = Watcher(world)
        self.runner = asyncio.Runner()
        self.sent: list[Sent] = []
        self.requests: list[tuple[str, Any, dict[str, str], Any]] = []
        self.ran = 0
        self.since_restart = 0
        self.run(world.open())

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(doing)

    def teardown(self) -> None:
        try:
            self.run(self.watcher.way_back())
        finally:
            self.run(self.world.close())
            self.runner.close()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        """A write; the service settles, and what it said is noted in a failure's story."""
        answer = self.run(self.world.post(path, body, headers))
        note(
            f"    POST {path} {body if path != '/events' else ''} -> {answer.status} "
            f"{answer.body.get('detail', '')}"
        )
        self.run(self.world.settle())
        return answer

    def key(self) -> dict[str, str]:
        self.ran += 1
        return {"Idempotency-Key": f"key-{self.ran}"}

    @property
    def tests(self) -> list[dict[str, Any]]:
        return list(self.watcher.tests.values())

    @property
    def running(self) -> list[dict[str, Any]]:
        return [test for test in self.tests if test["status"] == "running"]

    @property
    def promoted(self) -> list[dict[str, Any]]:
        return [test for test in self.tests if test["verdict"] == "promote"]

    @property
    def going(self) -> list[dict[str, Any]]:
        """The rollouts under way."""
        return [rollout for rollout in self.rollouts if not rollout["ended_at"]]

    @property
    def rollouts(self) -> list[dict[str, Any]]:
        return list(self.watcher.rollouts.values())

    @property
    def served(self) -> list[str]:
        """The tasks of which events can be sent."""
        return [t for t, r in self.watcher.routing.items() if r["subject"] or r.get("lanes")]

    def a_test(self, number: int) -> dict[str, Any]:
        """One that runs, mostly."""
        among = self.running if number % 5 else self.tests
        return among[number % len(among)]

    def a_rollout(self, number: int) -> dict[str, Any]:
        """One under way, mostly."""
        among = self.going if self.going and number % 5 else self.rollouts
        return among[number % len(among)]
