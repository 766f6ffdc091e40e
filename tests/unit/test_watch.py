"""The rollout's guardrails: which fires at which level, to the last unit, and what is due else."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuneproof.experiments import Arm, Cell, Evidence, HourRequests, Requests, Variant
from tuneproof.rollout import Advice, Deployment, DeploymentState, Watch, machine, plan, watch
from tuneproof.settings import Declaration, PipelineConfig
from tuneproof.stats import guardrails, sequential
from tuneproof.stats.aggregates import LATENCY_MS_EDGES, Aggregate, Histogram, Stratum

T0 = datetime(2025, 1, 20, tzinfo=UTC)
DUE = T0 + timedelta(hours=24)
MEAN = 0.068


def rollout(**config: Any) -> Deployment:
    """At its first step, due at DUE; ten steps, if not told otherwise."""
    pending = Deployment(
        id="deploy-20250120-001", run_id=None, pipeline="default", tasks=("hook",),
        ab_test_id=None, version_id="ver-1", candidate=Variant(model_id="new"),
        previous=Variant(model_id="old"), plan=plan(PipelineConfig(**config)),
        state=DeploymentState.PENDING, step=0, share=0.0, salt="s", created_at=T0,
    )  # fmt: skip
    return machine.begin(pending, T0)


def units(n: int, mean: float) -> Aggregate:
    """n units with this mean, and a standard deviation of 1.2 times that."""
    return Aggregate(n=n, sum_y=n * mean, sum_yy=n * mean**2 * (1 + 1.2**2))


def phases(*each: tuple[int, float]) -> Evidence:
    """Phases of so many units an arm, the candidate's engagement changed by so much."""
    cells = []
    for phase, (n, change) in enumerate(each, 1):
        means = {Arm.BASELINE: MEAN, Arm.CANDIDATE: MEAN * (1 + change)}
        cells += [Cell(phase=phase, arm=a, units=units(n, m), exposed=n) for a, m in means.items()]
    return Evidence(
        cells=tuple(cells),
        exposed={(c.phase, c.arm): c.exposed for c in cells},
        shares={i: 0.5 for i, _ in enumerate(each, 1)},
    )


def seen(
    evidence: Evidence,
    by_phase: Mapping[int, Requests] | None = None,
    *,
    at: datetime = T0,
    of: Deployment | None = None,
    **config: Any,
) -> Watch:
    return watch(of or rollout(**config), evidence, by_phase or {}, PipelineConfig(**config), at)


def bound(strata: list[Stratum], alpha: float) -> sequential.LiftEstimate:
    return sequential.lift(strata, alpha=alpha)


def fewest(holds: Callable[[int], bool], among: range) -> int:
    """The least of these numbers from which on it holds."""
    found = among[bisect_left(among, True, key=holds)]
    assert not holds(found - 1)
    return found


# --- errors and latency ---------------------------------------------------------------------


def failed(n: int, errors: int) -> Requests:
    return Requests(n=n, errors=errors)


def slow(n: int, late: int, ms: float = 2500.0) -> Requests:
    return Requests(n=n, latency=Histogram.of([300.0] * (n - late) + [ms] * late, LATENCY_MS_EDGES))


def least_errors(alpha: float, limit: float = 0.05) -> int:
    """Of 400 requests, how many must fail to be shown above the limit."""
    return fewest(
        lambda k: guardrails.error_rate(k, 400, limit=limit, alpha=alpha).fired, range(1, 400)
    )


def test_errors_of_all_phases_have_a_sixth_of_the_error_of_0_03() -> None:
    k = least_errors(0.005)
    assert least_errors(0.01) < k < least_errors(0.0025)

    def at(errors: int) -> Watch:
        return seen(replace(phases(), requests={Arm.CANDIDATE: failed(400, errors)}))

    assert at(k - 1).advice is Advice.STAY
    found = at(k)
    assert found.advice is Advice.ROLL_BACK
    assert found.reason == f"Error rate is above its limit of 5.0%: {k} of 400 ({k / 400:.1%})."
    assert found.evidence == {
        "trigger": "error_rate_or_latency", "requests": 400, "errors": k, "phase": "all",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "alpha"), [({}, 0.0005), ({"deployment_strategy": "immediate"}, 0.005)]
)
def test_errors_of_the_newest_phase_have_their_sixth_divided_by_the_steps(
    config: dict[str, Any], alpha: float
) -> None:
    k = least_errors(alpha)
    assert least_errors(alpha * 2) < k < least_errors(alpha / 2)

    def at(errors: int) -> Watch:
        return seen(phases(), {1: failed(9000, 0), 2: failed(400, errors)}, **config)

    assert at(k - 1).advice is Advice.STAY
    found = at(k)
    assert found.advice is Advice.ROLL_BACK
    assert found.evidence == {
        "trigger": "error_rate_or_latency", "requests": 400, "errors": k, "phase": 2,
    }  # fmt: skip


def test_errors_of_an_older_phase_alone_are_not_those_of_the_newest() -> None:
    assert seen(phases(), {1: failed(400, 200), 2: failed(400, 0)}).advice is Advice.STAY


def test_errors_are_judged_by_the_limit_that_is_set() -> None:
    k = least_errors(0.005, limit=0.2)
    assert k > 2 * least_errors(0.005)
    requests = {Arm.CANDIDATE: failed(400, k)}
    willing = replace(phases(), requests={Arm.CANDIDATE: failed(400, k - 1)})
    assert seen(willing, max_error_rate=0.2).advice is Advice.STAY
    found = seen(replace(phases(), requests=requests), max_error_rate=0.2)
    assert found.advice is Advice.ROLL_BACK
    assert "its limit of 20.0%" in found.reason


def test_a_limit_of_all_is_never_broken() -> None:
    """Before: `max_error_rate = 1` and `max_engagement_drop = 1`, which the settings allow, made
    every look of a rollout fail: "limit 1.0 is outside (0, 1)"."""
    requests = {Arm.CANDIDATE: failed(400, 400)}
    dead = replace(phases((600, -0.9)), requests=requests)
    lax = {"max_error_rate": 1, "max_engagement_drop": 1, "hold_on_harm": False}
    assert seen(dead, {1: failed(400, 400)}, at=DUE, **lax).advice is Advice.ADVANCE
    assert seen(dead, **{**lax, "max_error_rate": 0.9}).advice is Advice.ROLL_BACK


def least_slow(alpha: float, ms: float = 2500.0) -> int:
    def shown(late: int) -> bool:
        found = slow(400, late, ms).latency
        assert found is not None
        return guardrails.latency(found, alpha=alpha).fired

    return fewest(shown, range(1, 400))


def test_a_slow_candidate_is_rolled_back_at_the_level_of_its_guardrail() -> None:
    k = least_slow(0.005)
    newest = least_slow(0.0005)
    assert k < newest

    def at(late: int) -> Watch:
        return seen(replace(phases(), requests={Arm.CANDIDATE: slow(400, late)}))

    assert at(k - 1).advice is Advice.STAY
    found = at(k)
    assert found.advice is Advice.ROLL_BACK
    assert found.reason == (
        f"Share of requests slower than 2000 ms is above its limit of 5.0%: {k} of 400 "
        f"({k / 400:.1%})."
    )
    assert found.evidence["phase"] == "all"
    assert seen(phases(), {1: slow(400, newest - 1)}).advice is Advice.STAY
    assert seen(phases(), {1: slow(400, newest)}).evidence["phase"] == 1


def test_slowness_is_judged_by_the_limit_that_is_set() -> None:
    requests = {Arm.CANDIDATE: slow(400, 200, 1500.0)}
    assert seen(replace(phases(), requests=requests)).advice is Advice.STAY
    found = seen(replace(phases(), requests=requests), max_p95_latency_ms=1000)
    assert found.advice is Advice.ROLL_BACK
    assert "slower than 1000 ms" in found.reason


def test_slowness_of_both_arms_alike_is_waited_out() -> None:
    hours = (HourRequests(phase=1, baseline=slow(90, 60), candidate=slow(10, 7)),) * 8
    alike = replace(phases((600, 0.1)), requests={Arm.CANDIDATE: slow(80, 56)}, hours=hours)
    assert seen(alike).advice is Advice.STAY
    found = seen(alike, at=DUE)
    assert found.advice is Advice.WAIT
    assert found.reason == (
        "Both arms fail alike, which is waited out: share of requests slower than 2000 ms is above "
        "its limit of 5.0%: 56 of 80 (70.0%), the baseline's at the same time 66.7%."
    )


def test_an_outage_of_the_newest_phase_alone_is_waited_out_too() -> None:
    calm = HourRequests(phase=1, baseline=failed(90, 0), candidate=failed(10, 0))
    out = HourRequests(phase=2, baseline=failed(90, 60), candidate=failed(10, 7))
    hours = (*(calm,) * 400, *(out,) * 8)
    evidence = replace(
        phases((600, 0.1), (600, 0.1)), requests={Arm.CANDIDATE: failed(4080, 56)}, hours=hours
    )
    found = seen(evidence, {1: failed(4000, 0), 2: failed(80, 56)}, at=DUE)
    assert found.advice is Advice.WAIT
    assert "56 of 80 (70.0%), the baseline's at the same time 66.7%" in found.reason


# --- engagement -----------------------------------------------------------------------------


def test_a_drop_is_judged_at_a_sixth_of_the_error_of_0_03() -> None:
    """One side of a sequence at 0.01, which is twice 0.03 / 3 / 2."""

    def upper(n: int, alpha: float = 0.01) -> float:
        found = bound(phases((n, -0.3)).strata(), alpha).upper
        assert found is not None
        return found

    n = fewest(lambda n: upper(n) < 0, range(100, 10_000))
    assert upper(n - 1, 0.011) < 0 <= upper(n, 0.009)
    assert seen(phases((n - 1, -0.3))).advice is Advice.STAY
    found = seen(phases((n, -0.3)))
    estimate = bound(phases((n, -0.3)).strata(), 0.01)
    assert found.advice is Advice.ROLL_BACK
    assert found.evidence == {
        "trigger": "engagement_rate_drop",
        "lift": estimate.lift,
        "lower": estimate.lower,
        "upper": estimate.upper,
        "units": 2 * n,
        "phases": ["1"],
    }
    assert found.reason == (
        f"Engagement fell by more than 15%: -30.0%, at most {estimate.upper:+.1%}, newest phases."
    )


def test_harm_that_comes_in_the_newest_two_phases_is_not_diluted_by_those_before() -> None:
    late = phases(*[(9000, 0.05)] * 8, (500, -0.4), (500, -0.4))
    found = seen(late)
    assert found.advice is Advice.ROLL_BACK
    assert found.reason.endswith(", newest phases.")
    assert found.evidence["phases"] == ["9", "10"]
    assert found.evidence["units"] == 2000
    assert found.evidence["upper"] == bound(late.strata()[-2:], 0.01).upper
    whole = bound(late.strata(), 0.01)
    assert whole.lift is not None
    assert whole.lift > 0
    third = phases((500, -0.4), (9000, 0.05), (9000, 0.05))
    assert seen(third).advice is Advice.STAY


def test_harm_that_only_all_phases_together_show_is_found() -> None:
    early = phases((2000, -0.3), (10, 0.0), (10, 0.0))
    found = seen(early)
    assert found.advice is Advice.ROLL_BACK
    assert found.reason.endswith(", all phases.")
    assert found.evidence["phases"] == ["1"]
    assert found.evidence["upper"] == bound(early.strata(), 0.01).upper


def test_a_drop_is_judged_by_the_limit_that_is_set() -> None:
    down = phases((2000, -0.3))
    assert seen(down, max_engagement_drop=0.4).advice is Advice.STAY
    assert seen(down, max_engagement_drop=0.29).advice is Advice.ROLL_BACK
    slight = phases((20_000, -0.1))
    assert seen(slight).advice is Advice.STAY
    assert seen(slight, max_engagement_drop=0.09).advice is Advice.ROLL_BACK


def test_a_drop_is_judged_from_the_least_units_that_are_set() -> None:
    few = phases((90, -0.8))
    assert seen(few).advice is Advice.STAY
    assert seen(few, min_units=90).advice is Advice.ROLL_BACK
    apart = phases((45, -0.8), (45, -0.8), (45, -0.8))
    assert seen(apart, min_units=90).advice is Advice.STAY
    assert seen(apart, min_units=90, min_units_phase=45).advice is Advice.ROLL_BACK


def test_a_dead_candidate_is_rolled_back_from_its_units_and_no_request() -> None:
    dead = phases((400, -1.0))
    cells = [
        replace(c, units=Aggregate(n=400)) if c.arm is Arm.CANDIDATE else c for c in dead.cells
    ]
    assert seen(replace(dead, cells=tuple(cells))).advice is Advice.ROLL_BACK


# --- what a person or data are waited for ---------------------------------------------------


def paused(**config: Any) -> Deployment:
    return machine.pause(rollout(**config), "asked for")


def test_a_paused_rollout_is_taken_back_on_harm() -> None:
    harmed = seen(phases((2000, -0.4)), of=paused())
    assert (harmed.advice, harmed.evidence["trigger"]) == (
        Advice.ROLL_BACK,
        "engagement_rate_drop",
    )
    errors = seen(phases(), {1: failed(400, 200)}, of=paused())
    assert errors.advice is Advice.ROLL_BACK


def test_a_paused_rollout_without_harm_stays_however_long() -> None:
    found = seen(phases((2000, 0.1)), of=paused(), at=DUE + timedelta(days=300))
    assert found == Watch(advice=Advice.STAY, reason="Paused: waits for a person.", evidence={})
    broken = replace(phases((2000, 0.1)), shares={1: 0.1})
    assert seen(broken, of=paused(), at=DUE).advice is Advice.STAY


def test_a_step_is_due_at_its_time_and_not_before() -> None:
    good = phases((600, 0.1))
    before = seen(good, at=DUE - timedelta(seconds=1))
    assert (before.advice, before.reason) == (Advice.STAY, f"The next step is due at {DUE}.")
    found = seen(good, at=DUE)
    assert found == Watch(
        advice=Advice.ADVANCE,
        reason="All guardrails hold on 600 units of this step.",
        evidence={"units": 600},
    )


def test_a_step_needs_as_many_fresh_units_as_are_set() -> None:
    assert seen(phases((600, 0.1), (20, 0.1)), at=DUE).evidence == {"units": 20}
    short = seen(phases((600, 0.1), (19, 0.1)), at=DUE)
    assert short.advice is Advice.WAIT
    assert short.reason == "19 of 20 units with an outcome: no data is not good news."
    asked = seen(phases((600, 0.1), (20, 0.1)), at=DUE, min_step_units=21)
    assert asked.reason == "20 of 21 units with an outcome: no data is not good news."


def test_units_of_the_candidate_count_alone() -> None:
    cells = [c for c in phases((600, 0.1)).cells if c.arm is Arm.BASELINE]
    alone = Evidence(cells=tuple(cells), shares={1: 0.1})
    assert seen(alone, at=DUE).reason.startswith("0 of 20 units")


def test_a_step_without_data_pauses_after_the_hours_that_are_set() -> None:
    nothing = Evidence(shares={1: 0.1})
    last = timedelta(hours=72)
    assert seen(nothing, at=DUE + last - timedelta(seconds=1)).advice is Advice.WAIT
    found = seen(nothing, at=DUE + last)
    assert found.advice is Advice.PAUSE
    assert found.reason == (
        "Only 0 of 20 units with an outcome came in this step, 72 h after it should have ended."
    )
    soon = seen(nothing, at=DUE + timedelta(hours=2.5), pause_after_hours=2.5)
    assert soon.advice is Advice.PAUSE
    assert "2.5 h after" in soon.reason


def holding() -> Deployment:
    """Its only step before the holdback is over: 14 days of hold, due at their end."""
    held = rollout(deployment_strategy="immediate")
    assert (held.state, held.next_at) == (DeploymentState.HOLDING, T0 + timedelta(days=14))
    return held


END = T0 + timedelta(days=14)


def test_a_hold_without_data_does_not_end() -> None:
    nothing = Evidence(shares={1: 0.95})
    assert seen(nothing, of=holding(), at=END - timedelta(hours=1)).advice is Advice.STAY
    assert seen(nothing, of=holding(), at=END).advice is Advice.WAIT
    assert seen(phases((19, 0.1)), of=holding(), at=END).advice is Advice.WAIT
    late = seen(nothing, of=holding(), at=END + timedelta(hours=72))
    assert late.advice is Advice.PAUSE


def test_a_hold_ends_on_the_units_of_all_steps() -> None:
    older = replace(phases((20, 0.1)), shares={1: 0.5, 2: 0.95})
    found = seen(older, of=holding(), at=END)
    assert (found.advice, found.evidence) == (Advice.ADVANCE, {"units": 0})
    assert seen(older, at=DUE).advice is Advice.WAIT


def test_a_broken_split_pauses_a_step_and_no_hold() -> None:
    broken = replace(phases((600, 0.1)), shares={1: 0.1})
    assert seen(broken, at=T0).advice is Advice.PAUSE
    assert seen(broken, of=holding(), at=END).advice is Advice.ADVANCE


def test_absent_outcomes_that_count_as_0_are_no_data_in_a_hold_either() -> None:
    silent = [replace(c, units=Aggregate(n=600)) for c in phases((600, 0.0)).cells]
    evidence = replace(phases((600, 0.0)), cells=tuple(silent))
    declared = replace(holding(), declaration=Declaration(missing="zero"))
    found = seen(evidence, of=declared, at=END)
    assert found.reason == "0 of 20 units with an outcome: no data is not good news."
    some = replace(phases((600, 0.1)))
    assert seen(some, of=declared, at=END).advice is Advice.ADVANCE
    assert seen(evidence, of=holding(), at=END).advice is Advice.ADVANCE


def test_slight_harm_is_shown_at_0_03_and_waits_for_a_person() -> None:
    """One side of a sequence at 0.06."""

    def upper(n: int, alpha: float = 0.06) -> float:
        found = bound(phases((n, -0.1)).strata(), alpha).upper
        assert found is not None
        return found

    n = fewest(lambda n: upper(n) < 0, range(100, 10_000))
    assert upper(n - 1, 0.061) < 0 <= upper(n, 0.059)
    assert seen(phases((n - 1, -0.1)), at=DUE).advice is Advice.ADVANCE
    found = seen(phases((n, -0.1)), at=DUE)
    estimate = bound(phases((n, -0.1)).strata(), 0.06)
    assert estimate.lower is not None
    assert found.advice is Advice.PAUSE
    assert found.reason == (
        f"Engagement is worse by 0% to {-estimate.lower:.0%}, which is below the limit of 15% "
        "that takes back: a person decides."
    )
    assert seen(phases((n, -0.1)), at=DUE, hold_on_harm=False).advice is Advice.ADVANCE


def test_a_baseline_below_zero_waits_for_a_person() -> None:
    def at(mean: float, n: int = 600) -> Evidence:
        below = [
            replace(c, units=Aggregate(n=n, sum_y=n * mean, sum_yy=n * (mean**2 + 1)))
            if c.arm is Arm.BASELINE
            else c
            for c in phases((600, 0.0)).cells
        ]
        return replace(phases((600, 0.0)), cells=tuple(below))

    found = seen(at(-0.25), at=DUE)
    assert found.advice is Advice.PAUSE
    assert found.reason == (
        "The baseline's engagement is -0.25: by how much it falls cannot be told of a mean below "
        "0, so a person decides."
    )
    assert seen(at(0.0), at=DUE).advice is Advice.ADVANCE
    assert seen(at(-0.25), at=DUE, min_units=601).advice is Advice.ADVANCE
    assert seen(at(-0.25), at=DUE, min_units=600).advice is Advice.PAUSE


def test_slight_harm_before_fresh_data_waits_for_them_first() -> None:
    harmed = phases((20_000, -0.1), (19, -0.1))
    assert seen(harmed, at=DUE).advice is Advice.WAIT
