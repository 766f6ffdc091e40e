"""Families over HTTP: several candidates of one declaration, side by side, and their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from pydantic import Field

from tuneproof.experiments import Verdict
from tuneproof.server.auth import Reader, Writer
from tuneproof.server.models import Answer, Instant, Model, Reason
from tuneproof.server.problems import RESPONSES
from tuneproof.server.state import TheApp

if TYPE_CHECKING:
    from tuneproof.app import App, Sibling

EXAMPLE_FAMILY = "family-20261120-001"


class FamilyAllocation(Answer):
    """The share of all units that the baseline and each candidate began with."""

    baseline: float
    candidates: list[float]


class Member(Answer):
    """One candidate of a family, as its last look sees it; null where there is none yet."""

    ab_test_id: str
    candidate_model: Model
    status: str
    verdict: str | None
    reason: str | None
    sample_size: int
    engagement_lift: float | None
    lower: float | None
    upper: float | None
    expected_lift: float | None = Field(description="by which the winner is chosen")
    looks: int


class FamilyState(Answer):
    """Several candidates against one baseline at once. At most one is promoted."""

    family: str = Field(examples=[EXAMPLE_FAMILY])
    baseline_model: Model
    start_time: Instant
    estimated_end_time: Instant
    last_look_at: Instant
    traffic_allocation: FamilyAllocation
    promotion_alpha: float = Field(
        description="the two-sided level at which each may be promoted: the family's, divided"
    )
    winner: str | None = Field(description="the test that was promoted")
    tests: list[Member]


def router() -> APIRouter:
    """The routes under `/evaluation/family`."""
    routes = APIRouter(prefix="/evaluation/family", tags=["evaluation"], responses=RESPONSES)

    @routes.get("/{family}", summary="Several candidates side by side")
    async def state(app: TheApp, _: Reader, family: str) -> FamilyState:
        return await family_of(app, family)

    @routes.post("/{family}/end", summary="End all tests of a family before their time")
    async def end(app: TheApp, caller: Writer, family: str, asked: Reason) -> FamilyState:
        await app.experiments.siblings(family)
        await app.experiments.end(family, reason=asked.reason, actor=caller.actor)
        return await family_of(app, family)

    return routes


async def family_of(app: App, family: str) -> FamilyState:
    """A family as it stands. Raises `NotFoundError`."""
    siblings = await app.experiments.siblings(family)
    first = siblings[0].test
    won = [s.test.id for s in siblings if s.test.verdict is Verdict.PROMOTE]
    shares = [s.test.declaration.traffic_split for s in siblings]
    return FamilyState(
        family=family,
        baseline_model=Model.of(first.baseline),
        start_time=first.start_at,
        estimated_end_time=first.end_at,
        last_look_at=first.last_look_at,
        traffic_allocation=FamilyAllocation(baseline=round(1 - sum(shares), 10), candidates=shares),
        promotion_alpha=first.promotion_alpha,
        winner=won[0] if won else None,
        tests=[_member(sibling) for sibling in siblings],
    )


def _member(sibling: Sibling) -> Member:
    test, look = sibling.test, sibling.look
    return Member(
        ab_test_id=test.id,
        candidate_model=Model.of(test.candidate),
        status=str(test.status),
        verdict=None if test.verdict is None else str(test.verdict),
        reason=test.reason or (look.reason if look else None),
        sample_size=look.candidate.sample_size if look else 0,
        engagement_lift=look.lift if look else None,
        lower=look.lower if look else None,
        upper=look.upper if look else None,
        expected_lift=look.expected.lift if look and look.expected else None,
        looks=look.number if look else 0,
    )
