"""What a rollout's guardrails say: stay, step on, wait for data, or go back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from tuneproof.experiments import (
    Arm,
    Evidence,
    RequestHarm,
    Requests,
    broken_split,
    harmful_requests,
    unlike_absence,
)
from tuneproof.rollout.machine import Deployment, DeploymentState
from tuneproof.settings import PipelineConfig
from tuneproof.stats import guardrails, sequential
from tuneproof.stats.aggregates import Stratum, merge
from tuneproof.stats.effects import Metric

ENGAGEMENT_DROP = "engagement_rate_drop"
ERROR_OR_LATENCY = "error_rate_or_latency"
ALPHA = 0.03
"""The chance that a healthy version is ever rolled back by its guardrails, all together."""

HOLD_ALPHA = 0.03
"""The chance that a healthy version ever waits for a person because of its engagement."""

RECENT_PHASES = 2
"""Harm that begins late is looked for in the newest phases too: all of them would dilute it."""


class Advice(StrEnum):
    """What should become of a rollout now."""

    STAY = "stay"  # nothing is due
    ADVANCE = "advance"  # time is up, data are there, all guardrails hold
    WAIT = "wait"  # time is up, but there is too little data: no data is not good news
    PAUSE = "pause"  # waited too long for data
    ROLL_BACK = "roll_back"  # a guardrail fired


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One look at a rollout: advice, reason in words, and what it was made from."""

    advice: Advice
    reason: str
    evidence: Mapping[str, object] = field(default_factory=dict)


def watch(
    deployment: Deployment,
    evidence: Evidence,
    by_phase: Mapping[int, Requests],
    config: PipelineConfig,
    now: datetime,
) -> Watch:
    """Judge a rollout, pure. `by_phase` counts the candidate's requests phase by phase.

    Errors and latency are judged on all phases and on the newest alone, engagement on all phases
    and on the newest two, stratified; the error `ALPHA` is split over all of them, since any one
    rolls back. A broken split pauses: it is our fault, not harm; so do
    arms that lack unlike shares of their outcomes, since no bound holds then.
    """
    harm = _harm(deployment, evidence, by_phase, config)
    if harm is not None:
        return harm
    if deployment.state is DeploymentState.PAUSED or deployment.next_at is None:
        return Watch(advice=Advice.STAY, reason="Paused: waits for a person.")
    broken = broken_split(evidence) or unlike_absence(evidence, deployment.declaration)
    if broken and deployment.state is DeploymentState.STEPPING:
        return Watch(advice=Advice.PAUSE, reason=broken)
    if now < deployment.next_at:
        return Watch(advice=Advice.STAY, reason=f"The next step is due at {deployment.next_at}.")
    shared = request_harm(deployment, evidence, by_phase, config)[0].shared
    if shared:
        reason = f"Both arms fail alike, which is waited out: {shared}."
        return Watch(advice=Advice.WAIT, reason=reason)
    return _due(deployment, evidence, config, now)


def request_harm(
    deployment: Deployment,
    evidence: Evidence,
    by_phase: Mapping[int, Requests],
    config: PipelineConfig,
) -> tuple[RequestHarm, int | None]:
    """What the candidate's requests say: of all phases, and of the newest alone (its number), since
    harm that begins late is diluted by the others."""
    phases = max(1, len(deployment.plan.steps))
    current = max(by_phase, default=0)
    parts: list[tuple[int | None, Requests, int]] = [
        (None, evidence.requests.get(Arm.CANDIDATE, Requests()), 2),
        (current, by_phase.get(current, Requests()), 2 * phases),
    ]
    shared = ""
    for phase, requests, among in parts:
        found = harmful_requests(
            requests,
            max_error_rate=config.max_error_rate,
            max_p95_latency_ms=config.max_p95_latency_ms,
            alpha=guardrails.split_alpha(ALPHA / 3, among),
            hours=[h for h in evidence.hours if phase is None or h.phase == phase],
        )
        if found.harm:
            return found, phase
        shared = shared or found.shared
    return RequestHarm(shared=shared), None


def _harm(
    deployment: Deployment,
    evidence: Evidence,
    by_phase: Mapping[int, Requests],
    config: PipelineConfig,
) -> Watch | None:
    found, phase = request_harm(deployment, evidence, by_phase, config)
    if found.harm:
        newest = evidence.requests.get(Arm.CANDIDATE, Requests())
        requests = newest if phase is None else by_phase[phase]
        detail = {"trigger": ERROR_OR_LATENCY, "requests": requests.n, "errors": requests.errors}
        return Watch(
            advice=Advice.ROLL_BACK,
            reason=_sentence(found.harm),
            evidence={**detail, "phase": phase or "all"},
        )
    strata = evidence.strata()
    alpha = guardrails.split_alpha(ALPHA / 3, 2)
    for name, part in (("newest phases", strata[-RECENT_PHASES:]), ("all phases", strata)):
        estimate = _lift(part, deployment.metric, alpha, config)
        drop = guardrails.engagement_drop(estimate, drop=config.max_engagement_drop)
        if drop.fired:
            return Watch(
                advice=Advice.ROLL_BACK,
                reason=f"{_sentence(drop.reason)[:-1]}, {name}.",
                evidence={
                    "trigger": ENGAGEMENT_DROP,
                    "lift": estimate.lift,
                    "lower": estimate.lower,
                    "upper": estimate.upper,
                    "units": estimate.n_baseline + estimate.n_candidate,
                    "phases": list(estimate.phases),
                },
            )
    return None


def _lift(
    strata: list[Stratum], metric: Metric, alpha: float, config: PipelineConfig
) -> sequential.LiftEstimate:
    # The drop needs one side only, so a two-sided sequence at 2·alpha spends alpha on it.
    return sequential.lift(
        strata,
        metric=metric,
        alpha=2 * alpha,
        min_units=config.min_units,
        min_units_phase=config.min_units_phase,
    )


def _due(
    deployment: Deployment, evidence: Evidence, config: PipelineConfig, now: datetime
) -> Watch:
    assert deployment.next_at is not None
    candidate = [c for c in evidence.cells if c.arm is Arm.CANDIDATE]
    current = max(evidence.shares, default=0)
    seen = sum(c.units.n for c in candidate)
    fresh = sum(c.units.n for c in candidate if c.phase == current)
    needed = config.min_step_units
    if deployment.declaration.missing != "exclude" and not any(c.units.sum_y for c in candidate):
        fresh = seen = 0  # all that count are absent ones, counted as 0
    if fresh >= needed and (held := _held(deployment, evidence, config)):
        return Watch(advice=Advice.PAUSE, reason=held)
    if fresh >= needed or (deployment.state is DeploymentState.HOLDING and seen >= needed):
        return Watch(
            advice=Advice.ADVANCE,
            reason=f"All guardrails hold on {fresh} units of this step.",
            evidence={"units": fresh},
        )
    waited = now - deployment.next_at
    if waited >= timedelta(hours=config.pause_after_hours):
        return Watch(
            advice=Advice.PAUSE,
            reason=(
                f"Only {fresh} of {needed} units with an outcome came in this step, "
                f"{config.pause_after_hours:g} h after it should have ended."
            ),
        )
    return Watch(
        advice=Advice.WAIT,
        reason=f"{fresh} of {needed} units with an outcome: no data is not good news.",
    )


def _held(deployment: Deployment, evidence: Evidence, config: PipelineConfig) -> str:
    """Why a step or a hold waits for a person although its data are there; empty if it does not."""
    return _unguarded(evidence, config) or _slight_harm(deployment, evidence, config)


def _unguarded(evidence: Evidence, config: PipelineConfig) -> str:
    """In words, that nobody can tell whether engagement falls; empty where that can be told."""
    units = merge(c.units for c in evidence.cells if c.arm is Arm.BASELINE)
    if units.n < config.min_units or units.sum_y >= 0:
        return ""
    return (
        f"The baseline's engagement is {units.sum_y / units.n:.3g}: by how much it falls cannot be "
        "told of a mean below 0, so a person decides."
    )


def _slight_harm(deployment: Deployment, evidence: Evidence, config: PipelineConfig) -> str:
    """In words, that engagement is worse by however little; empty where that is not shown."""
    if not config.hold_on_harm:
        return ""
    found = _lift(evidence.strata(), deployment.metric, HOLD_ALPHA, config)
    if found.upper is None or found.lower is None or found.upper >= 0:
        return ""
    return (
        f"Engagement is worse by {-found.upper:.0%} to {-found.lower:.0%}, which is below the "
        f"limit of {config.max_engagement_drop:.0%} that takes back: a person decides."
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
