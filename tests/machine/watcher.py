"""Looks at everything that the service shows, and remembers what it saw: what must never change,
and what may change only for a reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from hypothesis import note
from tests.machine.events import Sent
from tests.machine.world import World

from tuneproof.rollout import Routing

Shown = dict[str, Any]


class Watcher:
    """What was seen of tests, rollouts and routings, newest state first by id."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.tests: dict[str, Shown] = {}
        self.rollouts: dict[str, Shown] = {}
        self.runs: dict[str, Shown] = {}
        self.routing: dict[str, Shown] = {}
        self.in_use: dict[str, str] = {}
        """The model in use of each task, as the story so far has it."""
        self._were: dict[str, set[str]] = defaultdict(set)
        self._before: dict[str, str | None] = {}
        self._units: Counter[tuple[str, str]] = Counter()
        self._advanced: Counter[str] = Counter()
        self._taken_back: set[str] = set()
        self._at = world.clock.now()

    # --- what the rules did -------------------------------------------------------------

    def said_in_use(self, tasks: Iterable[str], model: str) -> None:
        """This model came into production."""
        for task in tasks:
            old = self.in_use.get(task)
            if old != model:
                self.in_use[task] = model
                self._before[task] = old
            self._were[task].add(model)

    def was_sent(self, sent: Sent) -> None:
        self._units += sent.by_arm

    def advanced(self, id: str) -> None:
        """A person took a rollout's next step."""
        self._advanced[id] += 1

    def rolled_back(self, id: str, model: str) -> None:
        """A person took a rollout back: where it was complete, and its model is in use yet."""
        rollout = self.rollouts.get(id)
        if rollout is None or rollout["state"] != "complete":
            return
        self._taken_back.add(id)
        for task in rollout["tasks"]:
            if self.in_use[task] == rollout["candidate"]["model_id"]:
                self._returned(task, model)

    def _returned(self, task: str, model: str) -> None:
        assert model in self._were[task], f"{task} never had {model} in use"
        self.in_use[task] = model
        self._before[task] = None

    def replacement_taken_back(self, task: str, model: str) -> None:
        """A person took a baseline back that a test had replaced: that of all its tasks."""
        subjects = self._subjects(self.routing[task])
        same = {t for s in subjects & self.tests.keys() for t in self.tests[s]["tasks"]}
        for one in {task} | {t for t in same if self.in_use[t] == self.in_use[task]}:
            before = self._before[one]
            assert one != task or before == model, (task, before, model)
            if before is not None:
                self._returned(one, before)

    @staticmethod
    def _subjects(routing: Shown) -> set[str]:
        lanes = routing.get("lanes") or ([routing] if routing["subject"] else [])
        return {lane["subject"] for lane in lanes}

    def snapshot(self, task: str) -> Routing:
        """A task's routing, as this process serves it."""
        found: Routing = self._world.app.routing.board.snapshot.by_task[task]
        return found

    async def roll_back(self, task: str) -> bool:
        """Take a task back: a model that was in use before, or why there is none."""
        answer = await self._world.post(f"/routing/{task}/rollback", {"reason": "complaints"})
        note(f"    rollback {task} -> {answer.status} {answer.body}")
        if not answer.ok:
            assert answer.status == 404, answer
            assert "nothing to take back" in answer.body["detail"], answer
            return False
        id, model = answer.body["deployment_id"], answer.body["restored_model"]
        if id == task:
            self.replacement_taken_back(task, model)
        else:
            self.rolled_back(id, model)
        now = (await self._world.routing())[task]
        assert now["baseline"]["model_id"] == model, (now, answer.body)
        assert not now["candidate"], now
        assert not now.get("lanes"), now
        return True

    # --- what must hold -----------------------------------------------------------------

    async def look(self) -> None:
        tests = {t["ab_test_id"]: t for t in await self._world.all("/evaluation/tests")}
        rollouts = {r["deployment_id"]: r for r in await self._world.all("/deployment/rollouts")}
        runs = {r["pipeline_id"]: r for r in await self._world.all("/fine-tuning/runs")}
        routing = await self._world.routing()
        self._ends_stay(tests)
        self._runs_stay(runs)
        for test in tests.values():
            if test["ab_test_id"] not in self.tests and test["run_id"]:
                new = [task for task in test["tasks"] if task not in self.in_use]
                self.said_in_use(new, test["baseline_model"]["model_id"])
        self._rollouts_stay(rollouts)
        new = {
            t
            for test in tests.values()
            if test["ab_test_id"] not in self.tests
            for t in test["tasks"]
        }
        for id, rollout in rollouts.items():
            self._keeps_its_pace(self.rollouts.get(id), rollout, new)
        self._completed(rollouts, tests)
        for task, now in routing.items():
            self._serves_what_it_may(task, now, tests, rollouts)
        await self._watched(tests, rollouts)
        changed = [
            id for id, t in tests.items() if t["status"] == "running" or self.tests.get(id) != t
        ]
        self.tests, self.rollouts, self.routing = tests, rollouts, routing
        self.runs = runs
        self._advanced.clear()
        self._at = self._world.clock.now()
        for id in changed:
            await self._counts_no_more_than_was_sent(id)

    def _ends_stay(self, tests: dict[str, Shown]) -> None:
        assert set(self.tests) <= set(tests)
        for id, before in self.tests.items():
            if before["status"] != "running":
                assert tests[id] == before, f"{id} had ended"
        for test in tests.values():
            assert (test["verdict"] is None) == (test["status"] == "running"), test

    def _runs_stay(self, runs: dict[str, Shown]) -> None:
        for id, before in self.runs.items():
            if before["ended_at"]:
                assert runs[id]["state"] == before["state"], f"{id} had ended"

    def _rollouts_stay(self, rollouts: dict[str, Shown]) -> None:
        assert set(self.rollouts) <= set(rollouts)
        for id, before in self.rollouts.items():
            taken_back = before["state"] == "complete" and id in self._taken_back
            if before["ended_at"] and not taken_back:
                assert rollouts[id] == before, f"{id} had ended"

    def _keeps_its_pace(self, before: Shown | None, rollout: Shown, tested: set[str]) -> None:
        """A step at a time, each for as long as the strategy says, but for a person's word.

        One that only holds gives way to the next test of its tasks, `tested` now.
        """
        steps, step, id = rollout["steps"], rollout["step"], rollout["deployment_id"]
        if rollout["state"] in ("stepping", "paused", "holding"):
            assert rollout["current_traffic"] == steps[step], rollout
        if before is None:
            assert step == 0, rollout
            return
        done = rollout["state"] == "complete" and before["state"] != "complete"
        gave_way = done and rollout["holdback"] > 0 and bool(tested & set(rollout["tasks"]))
        taken = step - before["step"] + done - gave_way - self._advanced[id]
        if taken <= 0:
            return
        assert taken == 1, f"{id} took {taken} steps at once"
        assert before["next_at"], f"{id} stepped on while it was {before['state']}"
        if not self._advanced[id]:
            now = self._world.clock.now()
            assert now >= _instant(before["next_at"]), f"{id} stepped before {before['next_at']}"

    def _completed(self, rollouts: dict[str, Shown], tests: dict[str, Shown]) -> None:
        """A rollout that completes changes the model in use: its test must have promoted it."""
        for id, rollout in rollouts.items():
            test = tests[rollout["ab_test_id"]]
            said = (test["status"], test["verdict"], test["candidate_model"])
            assert said == ("completed", "promote", rollout["candidate"]), (rollout, test)
            before = self.rollouts.get(id, {"state": "pending"})
            if rollout["state"] == "complete" and before["state"] != "complete":
                self.said_in_use(rollout["tasks"], rollout["candidate"]["model_id"])

    def _serves_what_it_may(
        self, task: str, now: Shown, tests: dict[str, Shown], rollouts: dict[str, Shown]
    ) -> None:
        model = now["baseline"]["model_id"]
        assert model == self.in_use.get(task), f"{task} serves {model}: {now}; {self.in_use}"
        lanes = now.get("lanes") or ([now] if now["subject"] else [])
        assert sum(lane["share"] for lane in lanes) <= 1
        for lane in lanes:
            subject = lane["subject"]
            if subject in rollouts:
                rollout = rollouts[subject]
                assert not rollout["ended_at"], f"{task} serves {subject}, which has ended"
                assert lane["share"] == rollout["current_traffic"], (lane, rollout)
            elif lane["share"]:
                split = tests[subject]["traffic_allocation"]["candidate"]
                assert lane["share"] == split, (lane, tests[subject])

    async def _watched(self, tests: dict[str, Shown], rollouts: dict[str, Shown]) -> None:
        """Whatever is under way has a watch; one that lives has looked by now."""
        health = (await self._world.get("/health")).body
        watches = {watch["subject"]: watch for watch in health["watches"]}
        going = {id for id, test in tests.items() if test["status"] == "running"}
        going |= {id for id, rollout in rollouts.items() if not rollout["ended_at"]}
        assert set(watches) == going, (watches, going)
        for watch in watches.values():
            assert not watch["stalled"], watch
            assert not watch["last_error"], watch

    async def _counts_no_more_than_was_sent(self, id: str) -> None:
        answer = await self._world.get(f"/evaluation/metrics/{id}")
        test = self.tests[id]
        family = test["family"] or id
        lanes = [i for i, t in self.tests.items() if (t["family"] or i) == family]
        arms = (answer.body or {}).get("metrics") or {}
        seen = {
            arm: (arms.get(arm) or {}).get("sample_size") or 0 for arm in ("baseline", "candidate")
        }
        assert seen["candidate"] <= self._units[(id, "candidate")], (seen, self._units)
        assert seen["baseline"] <= sum(self._units[(i, "baseline")] for i in lanes)

    # --- the end ------------------------------------------------------------------------

    async def way_back(self) -> None:
        """Whatever serves a task: it can be taken back until there is nothing before it."""
        for task in self.routing:
            was = self._were[task]
            for _ in range(10):
                if not await self.roll_back(task):
                    break
            else:
                raise AssertionError(f"{task} goes back for ever among {was}")


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
