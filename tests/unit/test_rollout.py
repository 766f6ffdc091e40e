"""The rollout's state machine and its guardrails."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tuneproof.assignment import arm, bucket
from tuneproof.errors import StateError
from tuneproof.experiments import Arm, Cell, Evidence, HourRequests, Requests, Variant
from tuneproof.rollout import (
    Advice,
    Deployment,
    DeploymentState,
    Lane,
    Plan,
    Routing,
    machine,
    plan,
    routing_of,
    watch,
)
from tuneproof.settings import Declaration, PipelineConfig
from tuneproof.stats.aggregates import Aggregate

T0 = datetime(2025, 1, 20, tzinfo=UTC)
OLD, NEW = Variant(model_id="old"), Variant(model_id="new", version="ver-1")


def deployment(config: PipelineConfig | None = None) -> Deployment:
    return Deployment(
        id="deploy-20250120-001",
        run_id="ft-pipeline-20250120-001",
        pipeline="default",
        tasks=("hook", "body"),
        ab_test_id="ab-test-20250120-001",
        version_id="ver-1",
        candidate=NEW,
        previous=OLD,
        plan=plan(config or PipelineConfig()),
        state=DeploymentState.PENDING,
        step=0,
        share=0.0,
        salt="s",
        created_at=T0,
    )


def test_default_plan_rises_by_ten_percent_and_leaves_the_holdback() -> None:
    assert plan(PipelineConfig()).steps == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        (
            {"initial_traffic": 0.3, "increment_percentage": 0.3, "max_traffic": 0.95},
            Plan(
                strategy="gradual_rollout", steps=(0.3, 0.6, 0.9), interval_hours=24, holdback=0.05,
                holdback_days=14,
            ),
        ),
        (
            {"steps": (0.2, 1.0), "holdback": 0, "increment_interval_hours": 2},
            Plan(
                strategy="steps", steps=(0.2, 1.0), interval_hours=2, holdback=0, holdback_days=0
            ),
        ),
        (
            {"deployment_strategy": "canary", "holdback": 0.1, "holdback_days": 2},
            Plan(
                strategy="canary", steps=(0.01, 0.05, 0.2, 0.5, 0.9), interval_hours=24,
                holdback=0.1, holdback_days=2,
            ),
        ),
    ],
)  # fmt: skip
def test_plan_is_made_of_the_settings_and_of_nothing_else(changes: dict, made: Plan) -> None:
    assert plan(PipelineConfig(**changes)) == made


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.2, 1), st.sampled_from([0.0, 0.01, 0.1]))
def test_a_plan_rises_by_its_increment_to_max_traffic_less_the_holdback(
    initial: float, increment: float, most: float, holdback: float
) -> None:
    made = plan(
        PipelineConfig(
            initial_traffic=min(initial, most),
            increment_percentage=increment,
            max_traffic=most,
            holdback=holdback,
        )
    )
    assert made.steps[-1] == pytest.approx(most - holdback, abs=1e-6)
    for i, share in enumerate(made.steps[:-1]):
        assert share == pytest.approx(min(initial, most) + i * increment, abs=1e-6)
        assert share < made.steps[i + 1] + 1e-6
    below = min(initial, most) + (len(made.steps) - 1) * increment
    assert below > made.steps[-1] - 1e-5


def test_plan_without_holdback_ends_at_all_traffic() -> None:
    made = plan(PipelineConfig(holdback=0))
    assert made.steps[-1] == 1.0
    assert made.holdback_days == 0


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"deployment_strategy": "canary"}, (0.01, 0.05, 0.2, 0.5, 0.95)),
        ({"deployment_strategy": "immediate"}, (0.95,)),
        ({"steps": (0.02, 0.5, 1.0)}, (0.02, 0.5, 0.95)),
        ({"max_traffic": 0.5, "holdback": 0.05}, (0.1, 0.2, 0.3, 0.4, 0.45)),
        ({"increment_percentage": 0.4}, (0.1, 0.5, 0.9, 0.95)),
    ],
)
def test_plan_follows_the_settings(changes: dict, steps: tuple[float, ...]) -> None:
    assert plan(PipelineConfig(**changes)).steps == steps


def test_last_step_holds_then_completes() -> None:
    moved, now = machine.begin(deployment(), T0), T0
    while moved.state is DeploymentState.STEPPING:
        now += timedelta(days=1)
        moved = machine.advance(moved, now)
    assert (moved.state, moved.share) == (DeploymentState.HOLDING, 0.95)
    assert moved.next_at == now + timedelta(days=14)
    done = machine.advance(moved, moved.next_at)
    assert (done.state, done.share) == (DeploymentState.COMPLETE, 1.0)
    assert routing_of(done, "hook", 10).baseline == NEW


def test_a_hold_that_is_paused_holds_anew_or_is_completed_without_its_cause() -> None:
    """Before: a hold could not be paused, so one with slight harm held on, untold."""
    moved = machine.begin(deployment(), T0)
    while moved.state is DeploymentState.STEPPING:
        moved = machine.advance(moved, T0)
    paused = machine.pause(moved, "worse")
    assert (paused.state, paused.share, paused.next_at) == (DeploymentState.PAUSED, 0.95, None)
    later = T0 + timedelta(days=20)
    again = machine.resume(paused, later)
    assert (again.state, again.cause) == (DeploymentState.HOLDING, None)
    assert again.next_at == later + timedelta(days=14)
    done = machine.advance(paused, later)
    assert (done.state, done.share, done.cause) == (DeploymentState.COMPLETE, 1.0, None)


def test_a_pause_that_a_person_ends_by_a_step_leaves_no_cause() -> None:
    paused = machine.pause(machine.begin(deployment(), T0), "worse")
    stepped = machine.advance(paused, T0)
    assert (stepped.state, stepped.cause) == (DeploymentState.STEPPING, None)


def test_rollback_is_idempotent_and_keeps_its_first_cause() -> None:
    once = machine.roll_back(machine.begin(deployment(), T0), T0, "harm", {"errors": 9})
    again = machine.roll_back(once, T0 + timedelta(hours=1), "other", {})
    assert again is once
    assert routing_of(once, "hook", 1).baseline == OLD
    assert routing_of(once, "hook", 1).lanes == ()


LATER = T0 + timedelta(days=3)


def in_state(state: DeploymentState, **config: object) -> Deployment:
    """A rollout at its second step that came to this state."""
    first = machine.begin(deployment(PipelineConfig(**config)), T0)  # type: ignore[arg-type]
    second = machine.advance(first, T0 + timedelta(days=1))
    return replace(second, state=state)


MOVES = {
    "begin": lambda d: machine.begin(d, LATER),
    "advance": lambda d: machine.advance(d, LATER),
    "pause": lambda d: machine.pause(d, "asked for"),
    "resume": lambda d: machine.resume(d, LATER),
    "roll back": lambda d: machine.roll_back(d, LATER, "harm", {"errors": 9}),
}
ALLOWED = {
    "begin": {"pending"},
    "advance": {"stepping", "paused", "holding"},
    "pause": {"stepping", "holding"},
    "resume": {"paused"},
    "roll back": {"pending", "stepping", "paused", "holding", "complete", "rolled_back"},
}


@pytest.mark.parametrize("state", DeploymentState)
@pytest.mark.parametrize("verb", MOVES)
def test_a_move_is_made_from_these_states_only(verb: str, state: DeploymentState) -> None:
    if state.value in ALLOWED[verb]:
        MOVES[verb](in_state(state))
        return
    said = f"Rollout deploy-20250120-001 is {state}: it cannot {verb}\\."
    with pytest.raises(StateError, match=said):
        MOVES[verb](in_state(state))


def test_what_is_final_moves_no_more() -> None:
    assert [state.value for state in DeploymentState if state.final] == [
        "complete",
        "rolled_back",
        "failed",
    ]


def test_a_rollout_that_has_not_begun_has_no_times_and_no_cause() -> None:
    made = deployment()
    assert (made.step_started_at, made.next_at, made.ended_at, made.cause) == (None,) * 4
    assert (made.evidence, made.version, made.declaration) == ({}, 0, Declaration())


def test_begin_takes_the_first_step_for_its_hours() -> None:
    pending = deployment(PipelineConfig(increment_interval_hours=6))
    assert machine.begin(pending, LATER) == replace(
        pending,
        state=DeploymentState.STEPPING,
        step=0,
        share=0.1,
        step_started_at=LATER,
        next_at=LATER + timedelta(hours=6),
    )


def test_a_resumed_step_has_its_whole_time_again_and_forgets_why_it_paused() -> None:
    stepping = in_state(DeploymentState.STEPPING)
    paused = machine.pause(stepping, "asked for")
    assert paused == replace(
        stepping, state=DeploymentState.PAUSED, next_at=None, cause="asked for"
    )
    assert machine.resume(paused, LATER) == replace(
        stepping,
        step=1,
        share=0.2,
        step_started_at=LATER,
        next_at=LATER + timedelta(hours=24),
        cause=None,
    )


def test_what_is_rolled_back_has_no_share_and_keeps_cause_and_evidence() -> None:
    for state in ("pending", "stepping", "paused", "holding", "complete"):
        before = in_state(DeploymentState(state))
        assert machine.roll_back(before, LATER, "harm", {"errors": 9}) == replace(
            before,
            state=DeploymentState.ROLLED_BACK,
            share=0.0,
            cause="harm",
            evidence={"errors": 9},
            ended_at=LATER,
            next_at=None,
        )


def to_its_end(config: PipelineConfig) -> list[Deployment]:
    """Each state of a rollout that nothing stops."""
    found = [machine.begin(deployment(config), T0)]
    while not found[-1].state.final:
        at = found[-1].next_at
        assert at is not None
        found.append(machine.advance(found[-1], at))
    return found


def test_without_a_holdback_the_last_step_is_a_step_and_ends_at_all_traffic() -> None:
    *_, last, done = to_its_end(PipelineConfig(holdback=0))
    assert (last.state, last.share) == (DeploymentState.STEPPING, 1.0)
    assert last.step_started_at is not None
    assert last.next_at == last.step_started_at + timedelta(hours=24)
    assert done == replace(
        last, state=DeploymentState.COMPLETE, ended_at=last.next_at, next_at=None
    )


def test_a_hold_lasts_the_days_that_are_set_and_its_end_moves_the_holdback() -> None:
    *_, last, held, done = to_its_end(PipelineConfig(holdback=0.1, holdback_days=3))
    assert (last.state, last.share) == (DeploymentState.STEPPING, 0.8)
    assert held == replace(
        last,
        state=DeploymentState.HOLDING,
        step=last.step + 1,
        share=0.9,
        step_started_at=last.next_at,
        next_at=last.next_at + timedelta(days=3),  # type: ignore[operator]
    )
    assert done == replace(
        held, state=DeploymentState.COMPLETE, share=1.0, ended_at=held.next_at, next_at=None
    )


def test_a_rollout_to_half_of_the_traffic_ends_at_half() -> None:
    """Before: it was "complete at 50 %" and served everybody."""
    *before, held, done = to_its_end(PipelineConfig(max_traffic=0.5))
    assert (held.state, held.share) == (DeploymentState.HOLDING, 0.45)
    assert machine.waits_at_most(held)
    assert not any(map(machine.waits_at_most, before))
    assert (done.state, done.share) == (DeploymentState.COMPLETE, 1.0)  # a person said so
    *before, last, done = to_its_end(PipelineConfig(max_traffic=0.5, holdback=0))
    assert (last.state, last.share, done.share) == (DeploymentState.STEPPING, 0.5, 1.0)
    assert machine.waits_at_most(last)
    assert not any(map(machine.waits_at_most, before))
    for plan_ in (PipelineConfig(), PipelineConfig(holdback=0)):
        assert not any(map(machine.waits_at_most, to_its_end(plan_)))


def test_what_a_rollout_means_for_a_task_is_its_lane_until_it_ends() -> None:
    at = in_state(DeploymentState.STEPPING)
    lane = Lane(subject="deploy-20250120-001", candidate=NEW, share=0.2)
    served = Routing(
        task="hook",
        baseline=OLD,
        lanes=(lane,),
        salt="s",
        phase=7,
        cause="deploy-20250120-001 step 2: 20%",
    )
    for state in ("pending", "stepping", "paused", "holding"):
        assert routing_of(replace(at, state=DeploymentState(state)), "hook", 7) == served
    complete = replace(at, state=DeploymentState.COMPLETE)
    assert routing_of(complete, "hook", 7) == Routing(
        task="hook", baseline=NEW, cause="deploy-20250120-001 complete"
    )
    for state in ("rolled_back", "failed"):
        back = replace(at, state=DeploymentState(state), cause="harm")
        assert routing_of(back, "body", 7) == Routing(task="body", baseline=OLD, cause="harm")
        assert routing_of(replace(back, cause=None), "body", 7).cause == ""


class RolloutMachine(RuleBasedStateMachine):
    """Any order of moves: shares only rise while it steps, and no unit ever moves back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.before = deployment()
        self.at = deployment()

    def _move(self, moved: Deployment) -> None:
        self.before, self.at = self.at, moved
        self.now += timedelta(hours=1)

    @precondition(lambda self: self.at.state is DeploymentState.PENDING)
    @rule()
    def begin(self) -> None:
        self._move(machine.begin(self.at, self.now))

    @precondition(
        lambda self: (
            self.at.state
            in (DeploymentState.STEPPING, DeploymentState.PAUSED, DeploymentState.HOLDING)
        )
    )
    @rule()
    def advance(self) -> None:
        self._move(machine.advance(self.at, self.now))

    @precondition(lambda self: self.at.state in (DeploymentState.STEPPING, DeploymentState.HOLDING))
    @rule()
    def pause(self) -> None:
        self._move(machine.pause(self.at, "why"))

    @precondition(lambda self: self.at.state is DeploymentState.PAUSED)
    @rule()
    def resume(self) -> None:
        self._move(machine.resume(self.at, self.now))

    @precondition(lambda self: self.at.state is not DeploymentState.PENDING)
    @rule()
    def roll_back(self) -> None:
        self._move(machine.roll_back(self.at, self.now, "harm", {}))

    @rule(unit=st.text(max_size=8))
    def no_unit_moves_back(self, unit: str) -> None:
        if self.at.share < self.before.share:
            return
        place = bucket("s", unit)
        if arm(place, self.before.share) == "candidate":
            assert arm(place, self.at.share) == "candidate"

    @invariant()
    def shares_fit_the_state(self) -> None:
        state, share = self.at.state, self.at.share
        if state in (DeploymentState.ROLLED_BACK, DeploymentState.PENDING):
            assert share == 0
        elif state is DeploymentState.COMPLETE:
            assert share == pytest.approx(1.0)
        else:
            assert share == self.at.plan.steps[self.at.step]
        if not state.final and state is not DeploymentState.ROLLED_BACK:
            assert share >= self.before.share

    @invariant()
    def traffic_serves_a_model_that_exists(self) -> None:
        routing = routing_of(self.at, "hook", 1)
        assert routing.baseline in (OLD, NEW)
        assert (not routing.lanes) == self.at.state.final


TestRolloutMachine = RolloutMachine.TestCase
TestRolloutMachine.settings = hypothesis_settings(max_examples=60, deadline=None)


# --- guardrails ---------------------------------------------------------------------------


def rates(mean: float, n: int, seed: int) -> Aggregate:
    draws = np.random.default_rng(seed).beta(mean * 20, (1 - mean) * 20, n)
    return Aggregate.of(draws.tolist())


def evidence(mean: float, *, n: int = 600, phases: int = 2) -> Evidence:
    cells = []
    for phase in range(1, phases + 1):
        cells.append(Cell(phase=phase, arm=Arm.BASELINE, units=rates(0.068, n, phase), exposed=n))
        cells.append(
            Cell(phase=phase, arm=Arm.CANDIDATE, units=rates(mean, n, 100 + phase), exposed=n)
        )
    shares = dict.fromkeys(range(1, phases + 1), 0.5)
    exposed = {(c.phase, c.arm): c.exposed for c in cells}
    return Evidence(cells=tuple(cells), exposed=exposed, shares=shares)


def stepping() -> Deployment:
    return machine.begin(deployment(), T0)


def test_due_step_with_good_data_advances() -> None:
    seen = watch(stepping(), evidence(0.08), {2: Requests(n=900, errors=20)}, PipelineConfig(), DUE)
    assert seen.advice is Advice.ADVANCE


def test_step_before_its_time_stays() -> None:
    seen = watch(stepping(), evidence(0.08), {}, PipelineConfig(), T0 + timedelta(hours=3))
    assert seen.advice is Advice.STAY


def test_no_data_is_not_good_news() -> None:
    empty = Evidence(shares={1: 0.1})
    assert watch(stepping(), empty, {}, PipelineConfig(), DUE).advice is Advice.WAIT
    later = DUE + timedelta(hours=72)
    assert watch(stepping(), empty, {}, PipelineConfig(), later).advice is Advice.PAUSE


def test_data_of_the_step_before_do_not_carry_the_next_step() -> None:
    before = evidence(0.08, phases=1)
    fresh_phase = replace(before, shares={1: 0.5, 2: 0.6})
    seen = watch(stepping(), fresh_phase, {}, PipelineConfig(), DUE)
    assert seen.advice is Advice.WAIT
    assert seen.reason.startswith("0 of 20 units with an outcome")


def test_engagement_drop_rolls_back_with_its_evidence() -> None:
    seen = watch(stepping(), evidence(0.045), {}, PipelineConfig(), T0 + timedelta(hours=3))
    assert seen.advice is Advice.ROLL_BACK
    assert seen.evidence["trigger"] == "engagement_rate_drop"
    assert seen.evidence["lift"] < -0.15
    assert "fell by more than 15%" in seen.reason


def test_errors_roll_back_at_once() -> None:
    requests = {1: Requests(n=100, errors=25)}
    seen = watch(stepping(), Evidence(), requests, PipelineConfig(), T0 + timedelta(hours=1))
    assert seen.advice is Advice.ROLL_BACK
    assert "25 of 100" in seen.reason


def test_healthy_error_rate_never_rolls_back() -> None:
    requests = {1: Requests(n=5000, errors=150)}
    seen = watch(stepping(), Evidence(), requests, PipelineConfig(), T0 + timedelta(hours=1))
    assert seen.advice is Advice.STAY


def hourly(phase: int, hours: int, candidate: int, baseline: int) -> list[HourRequests]:
    """Hours of 10 requests of the candidate and 90 of the baseline, with these errors each."""
    return [
        HourRequests(
            phase=phase,
            baseline=Requests(n=90, errors=baseline),
            candidate=Requests(n=10, errors=candidate),
        )
    ] * hours


def failing(hours: list[HourRequests]) -> tuple[Evidence, dict[int, Requests]]:
    def total(part: list[HourRequests]) -> Requests:
        return Requests(
            n=sum(h.candidate.n for h in part), errors=sum(h.candidate.errors for h in part)
        )

    newest = max(h.phase for h in hours)
    seen = evidence(0.08, phases=newest)
    found = replace(seen, requests={Arm.CANDIDATE: total(hours)}, hours=tuple(hours))
    return found, {newest: total([h for h in hours if h.phase == newest])}


def test_what_fails_in_both_arms_alike_is_waited_out() -> None:
    """Before: a provider that answered 500 to both arms rolled the candidate back."""
    seen = watch(stepping(), *failing(hourly(1, 8, 6, 54)), PipelineConfig(), DUE)
    assert seen.advice is Advice.WAIT
    assert seen.reason.startswith("Both arms fail alike, which is waited out: error rate")
    assert "48 of 80 (60.0%), the baseline's at the same time 60.0%" in seen.reason


def test_what_fails_in_the_candidate_alone_rolls_back() -> None:
    seen = watch(stepping(), *failing(hourly(1, 8, 3, 1)), PipelineConfig(), DUE)
    assert (seen.advice, seen.evidence["phase"]) == (Advice.ROLL_BACK, "all")


def test_errors_are_carried_over_the_phases() -> None:
    """Before: each step began anew, so 10 % of errors at 20 requests an hour lived 143 h."""
    hours = [hour for phase in range(1, 6) for hour in hourly(phase, 8, 1, 1)]
    seen = watch(stepping(), *failing(hours), PipelineConfig(), DUE)
    assert seen.advice is Advice.ROLL_BACK
    assert "40 of 400" in seen.reason
    alone = watch(stepping(), *failing(hourly(5, 8, 1, 1)), PipelineConfig(), DUE)
    assert alone.advice is not Advice.ROLL_BACK


def test_harm_that_comes_in_the_newest_phase_only_is_found() -> None:
    hours = [*hourly(1, 300, 0, 0), *hourly(2, 8, 4, 0)]
    seen = watch(stepping(), *failing(hours), PipelineConfig(), DUE)
    assert (seen.advice, seen.evidence["phase"]) == (Advice.ROLL_BACK, 2)


def test_a_burst_of_an_hour_is_not_yet_harm_where_bursts_are_usual() -> None:
    calm = [h for i in range(6) for h in hourly(1, 1, 0, (0, 0, 30)[i % 3])]
    burst = [*calm, *hourly(1, 1, 6, 0)]
    seen = watch(stepping(), *failing(burst), PipelineConfig(), DUE)
    assert seen.advice is not Advice.ROLL_BACK


def test_broken_split_pauses_and_says_which_phase() -> None:
    broken = replace(evidence(0.08), shares={1: 0.1, 2: 0.1})
    seen = watch(stepping(), broken, {}, PipelineConfig(), DUE)
    assert seen.advice is Advice.PAUSE
    assert seen.reason.startswith("Phase 1: the split is broken")


def test_slight_harm_at_the_end_of_a_step_waits_for_a_person() -> None:
    """Before: a harm of -10 % went through in 83 % of rollouts at 200 units an hour."""
    seen = watch(stepping(), evidence(0.0612, n=9000), {}, PipelineConfig(), DUE)
    assert seen.advice is Advice.PAUSE
    assert seen.reason.startswith("Engagement is worse by ")
    assert "below the limit of 15%" in seen.reason
    before = watch(stepping(), evidence(0.0612, n=9000), {}, PipelineConfig(), T0)
    assert before.advice is Advice.STAY
    willing = PipelineConfig(hold_on_harm=False)
    seen = watch(stepping(), evidence(0.0612, n=9000), {}, willing, DUE)
    assert seen.advice is Advice.ADVANCE


def test_engagement_below_0_cannot_be_guarded_and_waits_for_a_person() -> None:
    """Before: "All guardrails hold", whatever engagement did."""
    seen = evidence(0.08)
    negative = replace(
        seen,
        cells=tuple(
            replace(c, units=replace(c.units, sum_y=c.units.sum_y - 0.2 * c.units.n))
            for c in seen.cells
        ),
    )
    found = watch(stepping(), negative, {}, PipelineConfig(), DUE)
    assert found.advice is Advice.PAUSE
    assert "cannot be told of a mean below 0" in found.reason


def lacking(found: Evidence, n: int) -> Evidence:
    """The same, where the candidate's phases lack n outcomes more."""
    cells = [replace(c, exposed=c.exposed + n * (c.arm is Arm.CANDIDATE)) for c in found.cells]
    return replace(found, cells=tuple(cells))


def test_arms_that_lack_outcomes_unlike_pause_and_say_which_lacks_how_many() -> None:
    seen = watch(stepping(), lacking(evidence(0.08), 150), {}, PipelineConfig(), DUE)
    assert seen.advice is Advice.PAUSE
    assert "candidate 20.0% (150 of 750)" in seen.reason


def test_absent_outcomes_that_count_as_0_are_no_data() -> None:
    declared = replace(stepping(), declaration=Declaration(missing="zero"))
    silent = evidence(0.08)
    cells = [replace(c, units=replace(c.units, sum_y=0.0, sum_yy=0.0)) for c in silent.cells]
    seen = watch(declared, replace(silent, cells=tuple(cells)), {}, PipelineConfig(), DUE)
    assert seen.advice is Advice.WAIT


DUE = T0 + timedelta(hours=25)
