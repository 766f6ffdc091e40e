"""One or several candidates against one baseline: what their evidence shares, and who wins.

A family is one or more ordinary tests that begin together, each in a lane of the units. Every
lane serves the same baseline to some of its units, so each candidate is compared with the
baseline of all lanes. What makes that valid: lanes are drawn by the same hash as arms, and the
phases of all lanes begin together, so that within a phase all rates stand still.

The chance to promote a useless candidate is split evenly (`ABTest.promotion_alpha`; Bonferroni),
so that the best of several is promoted no more often than one alone would be. Knows no database.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from tuneproof.assignment import in_lane
from tuneproof.errors import InputError
from tuneproof.experiments.judge import broken_split
from tuneproof.experiments.records import (
    ABTest,
    Arm,
    Cell,
    Evidence,
    Look,
    Variant,
    Verdict,
)
from tuneproof.stats.aggregates import merge

__all__ = ["check_lanes", "controls", "largest_split", "settled", "shared_control", "winner"]


def largest_split(candidates: int) -> float:
    """The largest share of the units that each of several candidates may have.

    The baseline has at least as many units as any candidate: 0.5 for one, 1/3 for two.

    >>> largest_split(1), largest_split(4)
    (0.5, 0.2)
    """
    return 1 / (candidates + 1)


def check_lanes(
    baseline: Variant, candidates: Sequence[Variant], split: float, allocation: str
) -> None:
    """Raises `InputError` for candidates that cannot be tested against this baseline at once."""
    count = len(candidates)
    if not count:
        raise InputError(
            "There is no candidate to test.", mend="Name at least one.", field="candidate_models"
        )
    if count == 1 and baseline.same_as(candidates[0]):
        raise InputError(
            f"Baseline and candidate are the same, {baseline}.",
            mend="Test a version against the model in use.",
        )
    twice = next((b for a, b in combinations([baseline, *candidates], 2) if a.same_as(b)), None)
    if twice is not None:
        raise InputError(
            f"{twice} is named twice: baseline and candidates must be different models.",
            mend="Name each candidate once, and not the baseline.",
            field="candidate_models",
        )
    if not 0 < split <= largest_split(count) + 1e-9:
        among = "." if count == 1 else f", which {count} candidates at once may have each."
        raise InputError(
            f"traffic_split {split!r} is outside (0, {largest_split(count):.4g}]{among}",
            mend="Give each candidate's share of all units: 10 % is 0.1. Of several, lower it or "
            "test fewer.",
            field="traffic_split",
        )
    if count > 1 and allocation != "fixed":
        raise InputError(
            f"allocation is {allocation!r}, but a family's shares stay as they are.",
            mend='Set allocation = "fixed", or test one candidate.',
            field="allocation",
        )


def lane_of(test: ABTest, own: Evidence) -> Evidence:
    """A lane's own evidence, with the shares that are expected within the lane."""
    shares = {p: in_lane(share, test.lane, test.lanes) for p, share in own.shares.items()}
    return replace(own, shares=shares)


def controls(tests: Sequence[ABTest], evidence: Mapping[str, Evidence]) -> tuple[str, ...]:
    """The tests whose lanes' baselines may be used: those whose split is as it was set.

    A test that ended as invalid, or is found so now, is left out from then on.
    """
    return tuple(
        t.id
        for t in tests
        if t.verdict is not Verdict.INVALID
        and not (t.verdict is None and broken_split(lane_of(t, evidence[t.id])))
    )


def shared_control(test: ABTest, evidence: Mapping[str, Evidence], of: Sequence[str]) -> Evidence:
    """A test's evidence with the baseline of the lanes `of` these tests as its own.

    Candidate cells, exposures, shares and requests stay those of its lane: the split is judged
    within the lane, and requests are not kept by phase, so only the lane's own are comparable.
    """
    own = evidence[test.id]
    lanes = [evidence[id] for id in of] or [own]
    keys = {key for e in lanes for key in e.segments} | set(own.segments)
    return replace(
        lane_of(test, own),
        cells=_beside(own.cells, [e.cells for e in lanes]),
        first_half=_beside(own.first_half, [e.first_half for e in lanes]),
        segments={
            key: _beside(own.segments.get(key, ()), [e.segments.get(key, ()) for e in lanes])
            for key in keys
        },
    )


def _beside(own: Iterable[Cell], lanes: Iterable[Iterable[Cell]]) -> tuple[Cell, ...]:
    """A lane's candidate cells beside the baseline cells of several lanes, phase by phase."""
    found: dict[int, list[Cell]] = {}
    for cells in lanes:
        for cell in cells:
            if cell.arm is Arm.BASELINE:
                found.setdefault(cell.phase, []).append(cell)
    merged = [_merged(phase, cells) for phase, cells in found.items()]
    both = [*merged, *(c for c in own if c.arm is Arm.CANDIDATE)]
    return tuple(sorted(both, key=lambda c: (c.phase, c.arm)))


def _merged(phase: int, cells: Sequence[Cell]) -> Cell:
    qualities = merge(c.qualities for c in cells)
    return Cell(
        phase=phase,
        arm=Arm.BASELINE,
        units=merge(c.units for c in cells),
        exposed=sum(c.exposed for c in cells),
        quality=qualities.sum_y / qualities.n if qualities.n else None,
        qualities=qualities,
        uncosted=merge(c.uncosted for c in cells),
        unmetered=merge(c.unmetered for c in cells),
    )


def winner(looks: Iterable[Look]) -> Look | None:
    """Of the looks that promote, the one with the highest expected lift; None where none does."""
    promoted = [look for look in looks if look.verdict is Verdict.PROMOTE]
    return max(promoted, key=_expected, default=None)


def _expected(look: Look) -> float:
    if look.expected is not None:
        return look.expected.lift
    return -math.inf if look.lift is None else look.lift


def settled(looks: Sequence[Look], tests: Sequence[ABTest]) -> tuple[Look, ...]:
    """The looks of one instant, after the family's own rule.

    The first look at which any test promotes ends the family: the highest expected lift wins,
    and those that would promote or go on are rejected for it.
    """
    best = winner(looks)
    if best is None:
        return tuple(looks)
    won = next(t for t in tests if t.id == best.experiment_id)
    return tuple(look if look is best else _lost(look, best, won) for look in looks)


def _lost(look: Look, best: Look, won: ABTest) -> Look:
    if look.verdict not in (Verdict.PROMOTE, Verdict.CONTINUE):
        return look
    named = f"{won.candidate.model_id} ({won.id})"
    if look.verdict is Verdict.PROMOTE:
        reason = (
            f"All criteria hold, but {named} of the same family is to be expected to do better "
            f"({_expected(best):+.1%} against {_expected(look):+.1%}) and is promoted."
        )
    else:
        reason = f"{named} of the same family is promoted. {look.reason}"
    return replace(look, verdict=Verdict.REJECT, reason=reason)
