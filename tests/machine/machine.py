"""What people, workers, senders of events and time do to the service in any order, and what must
hold after each of it.

Rules act over the wire of a `World` and say what must come of it; `Watcher` looks at everything
after each rule, and knows what it saw before.
"""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from tests.machine.acting import CREATE, NUMBERS, TASK_SETS, declaration, family_of, rollout_of
from tests.machine.events import EFFECTS, STRAYS, batch_of, stray
from tests.machine.together import Together
from tests.machine.world import MODELS, SILENT, TASKS

PAGES = (
    "/",
    "/status",
    "/doctor",
    "/metrics",
    "/activity",
    "/health/model-performance",
    "/evaluation/looks/{test}",
    "/evaluation/report/{test}",
    "/dashboard/deployment/{rollout}",
    "/deployment/status/{rollout}",
    "/fine-tuning/runs",
    "/events",
)


class Machine(Together):
    """All rules, and what must hold after each."""

    # --- tests ------------------------------------------------------------------------

    @initialize(chapters=st.integers(min_value=0, max_value=4), tasks=TASK_SETS)
    def story_so_far(self, chapters: int, tasks: tuple[str, ...]) -> None:
        """A test, which promotes, its rollout, which completes: as many of these as there are."""
        told = (
            lambda: self.declare(tasks, None, 1, 0, None, False),
            lambda: self.live_on(0, 1.0, 26),
            lambda: self.deploy(0, True, "immediate", 0.0),
            lambda: self.live_on(0, 1.0, 7),
        )
        self.everything_holds()
        for chapter in told[:chapters]:
            chapter()
            self.everything_holds()

    @rule(
        tasks=TASK_SETS,
        baseline=st.sampled_from([None] * 5 + [*MODELS]),
        several=st.sampled_from([1, 1, 1, 2]),
        first=NUMBERS,
        odd=st.sampled_from([None] * 8 + [SILENT, "its baseline"]),
        replaces=st.sampled_from([False, False, True]),
    )
    def declare(
        self,
        tasks: tuple[str, ...],
        baseline: str | None,
        several: int,
        first: int,
        odd: str | None,
        replaces: bool,
    ) -> None:
        in_use = [self.watcher.in_use[t] for t in tasks if t in self.watcher.in_use]
        chosen = baseline or next(iter(in_use), "base")
        others = [m for m in MODELS if m != chosen]
        candidates = [others[(first + i) % len(others)] for i in range(several)]
        if odd is not None:
            candidates[-1] = SILENT if odd == SILENT else chosen
        body = {**declaration(tasks, chosen, candidates), "replace_baseline": replaces}
        headers = self.key()
        answer = self.post(CREATE, body, headers)
        busy = any(t in self.served for t in tasks)
        other = any(model != chosen for model in in_use)
        wrong = SILENT in candidates or chosen in candidates
        if wrong or busy or (other and not replaces):
            assert answer.status in (409, 422), answer
            return
        assert answer.ok, answer
        self.watcher.said_in_use(tasks, chosen)
        self.requests.append((CREATE, body, headers, answer.body))

    @precondition(lambda self: self.requests)
    @rule(number=NUMBERS)
    def send_again_with_its_key(self, number: int) -> None:
        path, body, headers, said = self.requests[number % len(self.requests)]
        again = self.post(path, body, headers)
        assert again.ok, again
        assert again.body == said
        assert again.headers["idempotency-replayed"] == "true"

    @precondition(lambda self: self.running)
    @rule(number=NUMBERS, whole=st.booleans())
    def end(self, number: int, whole: bool) -> None:
        test = self.a_test(number)
        path = f"/evaluation/end/{test['ab_test_id']}"
        if whole and test["family"]:
            path = f"/evaluation/family/{test['family']}/end"
        answer = self.post(path, {"reason": "enough"})
        if test["status"] == "running":
            assert answer.ok, answer

    # --- events -----------------------------------------------------------------------

    @precondition(lambda self: self.served)
    @rule(
        number=NUMBERS,
        units=st.sampled_from([60, 200]),
        effect=st.sampled_from(EFFECTS),
        failing=st.sampled_from([0.0, 0.0, 0.0, 0.7]),
    )
    def send(self, number: int, units: int, effect: float, failing: float) -> None:
        self._send(self.served[number % len(self.served)], units, effect, failing)

    @precondition(lambda self: self.served)
    @rule(number=NUMBERS, effect=st.sampled_from(EFFECTS), hours=st.sampled_from([7, 12, 26]))
    def live_on(self, number: int, effect: float, hours: int) -> None:
        """What ends tests and moves rollouts: events, and time in which they ripen."""
        self._send(self.served[number % len(self.served)], 200, effect, 0.0)
        self.run(self.world.move(timedelta(hours=hours)))

    def _send(self, task: str, units: int, effect: float, failing: float) -> None:
        routing = self.watcher.snapshot(task)
        now = self.world.clock.now()
        self.ran += 1
        sent = batch_of(routing, f"{self.ran}", units, effect, failing, now)
        taken = self.post("/events", sent.body).body
        assert (taken["accepted"], taken["duplicates"], taken["rejected"]) == (2 * units, 0, [])
        self.sent.append(sent)
        self.watcher.was_sent(sent)

    @precondition(lambda self: self.sent)
    @rule(number=NUMBERS)
    def send_doubled(self, number: int) -> None:
        sent = self.sent[number % len(self.sent)]
        taken = self.post("/events", sent.body).body
        assert (taken["accepted"], taken["rejected"]) == (0, [])
        assert taken["duplicates"] == 2 * sent.units

    @precondition(lambda self: self.tests)
    @rule(number=NUMBERS, kind=st.sampled_from(sorted(STRAYS)))
    def send_stray(self, number: int, kind: str) -> None:
        subjects = [t["ab_test_id"] for t in self.tests]
        subjects += [r["deployment_id"] for r in self.rollouts]
        self.ran += 1
        subject = subjects[number % len(subjects)]
        event = stray(kind, subject, f"stray-{self.ran}", self.world.clock.now())
        answer = self.post("/events", {"exposures": [event]})
        if answer.status == 200:
            assert answer.body["accepted"] == 0, answer
            assert [e["id"] for e in answer.body["rejected"]] == [event["id"]]
        else:
            assert answer.status == 422, answer

    # --- time -------------------------------------------------------------------------

    @rule(hours=st.sampled_from([1, 6, 7, 11, 25, 49]))
    def time_passes(self, hours: int) -> None:
        self.run(self.world.move(timedelta(hours=hours)))

    @precondition(lambda self: self.since_restart > 8)
    @rule()
    def restart(self) -> None:
        self.since_restart = 0
        self.run(self.world.restart())

    @precondition(lambda self: self.running)
    @rule(number=NUMBERS)
    def look_at_test(self, number: int) -> None:
        self.run(self.world.look(family_of(self.a_test(number))))

    # --- rollouts ---------------------------------------------------------------------

    @precondition(lambda self: any(t["status"] != "running" for t in self.tests))
    @rule(
        number=NUMBERS,
        promoted=st.sampled_from([True, True, True, False]),
        strategy=st.sampled_from(["gradual_rollout", "canary", "immediate"]),
        holdback=st.sampled_from([0.0, 0.05]),
    )
    def deploy(self, number: int, promoted: bool, strategy: str, holdback: float) -> None:
        among = self.promoted if promoted else []
        among = among or [t for t in self.tests if t["status"] != "running"]
        test = among[number % len(among)]
        body = rollout_of(test, strategy, holdback)
        headers = self.key()
        answer = self.post("/deployment/deploy", body, headers)
        if test["verdict"] != "promote":
            assert answer.status == 409, answer
        if answer.ok:
            self.requests.append(("/deployment/deploy", body, headers, answer.body))

    @precondition(lambda self: self.going)
    @rule(
        number=NUMBERS,
        verb=st.sampled_from(["advance", "advance", "pause", "resume"]),
        stale=st.sampled_from([False, False, True]),
    )
    def act(self, number: int, verb: str, stale: bool) -> None:
        rollout = self.a_rollout(number)
        version = rollout["version"] - stale
        headers = {"If-Match": f'"{version}"'}
        id = rollout["deployment_id"]
        answer = self.post(f"/deployment/{verb}/{id}", {"reason": "so"}, headers)
        if stale:
            assert answer.status == 409, answer
        if answer.ok and verb == "advance":
            self.watcher.advanced(id)

    @precondition(lambda self: self.going)
    @rule(number=NUMBERS)
    def look_at_rollout(self, number: int) -> None:
        self.run(self.world.look_at_rollout(self.a_rollout(number)["deployment_id"]))

    @precondition(lambda self: self.rollouts)
    @rule(number=NUMBERS)
    def roll_back(self, number: int) -> None:
        rollout = self.a_rollout(number)
        id = rollout["deployment_id"]
        answer = self.post(f"/deployment/rollback/{id}", {"reason": "complaints"})
        assert answer.status in (200, 409), answer
        if answer.ok:
            self.watcher.rolled_back(id, answer.body["restored_model"])

    @precondition(lambda self: self.watcher.routing)
    @rule(task=st.sampled_from(TASKS))
    def roll_back_task(self, task: str) -> None:
        self.run(self.watcher.roll_back(task))
        self.run(self.world.settle())

    # --- runs -------------------------------------------------------------------------

    @rule(keyed=st.booleans())
    def start_run(self, keyed: bool) -> None:
        """A turn of the whole loop; one at a time."""
        headers, body = self.key() if keyed else {}, {"force_run": True}
        answer = self.post("/fine-tuning/start", body, headers)
        assert answer.status in (202, 409), answer
        going = [id for id, run in self.watcher.runs.items() if not run["ended_at"]]
        assert answer.ok or going, answer
        if answer.ok and keyed:
            self.requests.append(("/fine-tuning/start", body, headers, answer.body))

    @precondition(lambda self: self.watcher.runs)
    @rule(number=NUMBERS, verb=st.sampled_from(["abort", "retry"]))
    def abort_or_retry_run(self, number: int, verb: str) -> None:
        runs = list(self.watcher.runs)
        run = runs[number % len(runs)]
        answer = self.post(
            f"/fine-tuning/{verb}/{run}", {"reason": "no more"} if verb == "abort" else {}
        )
        assert answer.status in (200, 202, 409), answer
        if answer.ok and verb == "retry":
            self.watcher.runs.pop(run)

    @rule(path=st.sampled_from(PAGES), number=NUMBERS)
    def read(self, path: str, number: int) -> None:
        """Whatever a person looks at, there is an answer."""
        known = {"test": list(self.watcher.tests), "rollout": list(self.watcher.rollouts)}
        for name, ids in known.items():
            if "{" + name in path and not ids:
                return
            path = path.replace("{" + name + "}", ids[number % len(ids)] if ids else "")
        assert self.run(self.world.get(path)).ok

    # --- what must hold ---------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        self.since_restart += 1
        if not self.world.touched:
            return
        self.world.touched = False
        self.run(self.watcher.look())
