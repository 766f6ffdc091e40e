"""Two people or two workers at the same moment: what one does, the other does not undo."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.machine.acting import (
    CREATE,
    NUMBERS,
    TASK_SETS,
    Acting,
    declaration,
    family_of,
    rollout_of,
)
from tests.machine.world import MODELS

VERBS = ("advance", "pause", "resume")


class Together(Acting):
    """Rules in which two act at once."""

    def post_both(self, *requests: tuple[str, Any, dict[str, str]]) -> list[Any]:
        """Two writes at once."""

        async def both() -> list[Any]:
            return await asyncio.gather(*(self.world.post(*request) for request in requests))

        answers = self.run(both())
        note(f"    both: {[(a.status, a.body.get('detail', '')) for a in answers]}")
        self.run(self.world.settle())
        return answers

    @rule(tasks=TASK_SETS, same=st.booleans())
    def two_declare(self, tasks: tuple[str, ...], same: bool) -> None:
        """Of two tests of one task only one begins; one key is one test."""
        in_use = {self.watcher.in_use[t] for t in tasks if t in self.watcher.in_use}
        chosen = next(iter(in_use), "base")
        others = [m for m in MODELS if m != chosen]
        candidates = [others[0], others[0] if same else others[1]]
        bodies = [declaration(tasks, chosen, [candidate]) for candidate in candidates]
        key = self.key()
        keys = [key, key if same else self.key()]
        answers = self.post_both(*((CREATE, b, k) for b, k in zip(bodies, keys, strict=True)))
        began = [a.body["ab_test_id"] for a in answers if a.ok]
        free = len(in_use) < 2 and not any(t in self.served for t in tasks)
        assert len(set(began)) == free, answers
        assert len(began) == (free * 2 if same else free), answers
        if began:
            self.watcher.said_in_use(tasks, chosen)

    @precondition(lambda self: self.promoted)
    @rule(number=NUMBERS)
    def two_deploy(self, number: int) -> None:
        """Of two rollouts on one verdict at most one begins."""
        body = rollout_of(self.promoted[number % len(self.promoted)], "gradual_rollout", 0.0)
        path = "/deployment/deploy"
        answers = self.post_both((path, body, self.key()), (path, body, self.key()))
        assert sum(a.ok for a in answers) <= 1, answers
        assert all(a.ok or a.status == 409 for a in answers), answers

    @precondition(lambda self: self.running)
    @rule(number=NUMBERS)
    def two_end(self, number: int) -> None:
        test = self.running[number % len(self.running)]
        path, said = f"/evaluation/end/{test['ab_test_id']}", {"reason": "enough"}
        answers = self.post_both((path, said, {}), (path, said, {}))
        assert sorted(a.status for a in answers) == [200, 409], answers

    @precondition(lambda self: self.running)
    @rule(number=NUMBERS, ends=st.booleans())
    def two_workers_at_a_test(self, number: int, ends: bool) -> None:
        test = self.a_test(number)
        family = family_of(test)

        async def both() -> None:
            async with self.world.second_worker() as other:
                mine = (
                    self.world.post(f"/evaluation/end/{test['ab_test_id']}", {"reason": "enough"})
                    if ends
                    else self.world.look(family)
                )
                await asyncio.gather(mine, self.world.look(family, other))
            await self.world.settle()

        self.run(both())

    @precondition(lambda self: self.going)
    @rule(
        number=NUMBERS, first=st.sampled_from(VERBS), second=st.sampled_from([*VERBS, "rollback"])
    )
    def two_people_at_a_rollout(self, number: int, first: str, second: str) -> None:
        """One of two opposite wishes comes true, but for the way back, which always does."""
        id = self.a_rollout(number)["deployment_id"]
        said = {"reason": "now"}
        answers = self.post_both(
            *((f"/deployment/{verb}/{id}", said, {}) for verb in (first, second))
        )
        assert all(a.status in (200, 409) for a in answers), answers
        for verb, answer in zip((first, second), answers, strict=True):
            if answer.ok and verb == "advance":
                self.watcher.advanced(id)
            if verb == "rollback" and answer.ok:
                self.watcher.rolled_back(id, answer.body["restored_model"])
        if second != "rollback":
            assert sum(a.ok for a in answers) <= 1, answers

    @precondition(lambda self: self.going)
    @rule(number=NUMBERS, back=st.booleans())
    def two_workers_at_a_rollout(self, number: int, back: bool) -> None:
        rollout = self.a_rollout(number)
        id = rollout["deployment_id"]
        verb = "rollback" if back else "advance"

        async def both() -> Any:
            async with self.world.second_worker() as other:
                said = self.world.post(f"/deployment/{verb}/{id}", {"reason": "now"})
                answer, _ = await asyncio.gather(said, self.world.look_at_rollout(id, other))
            await self.world.settle()
            return answer

        answer = self.run(both())
        if answer.ok and back:
            self.watcher.rolled_back(id, answer.body["restored_model"])
        elif answer.ok:
            self.watcher.advanced(id)
