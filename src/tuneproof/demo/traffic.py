"""The demo's application: it posts every hour, says what it served, and later what came of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tuneproof.demo.audience import Audience
from tuneproof.demo.drafts import Drafts, Written
from tuneproof.demo.draws import draws
from tuneproof.demo.posts import (
    PERSONAS,
    POSTS_PER_HOUR,
    PostsTable,
    ServedPost,
    post_id,
    slot_of,
    times,
)
from tuneproof.experiments import Arm, Exposure, Ingested, Outcome, Variant
from tuneproof.prompts import Prompt
from tuneproof.rollout import Routing
from tuneproof.training import Provider

Sink = Callable[[Sequence[Exposure], Sequence[Outcome]], Awaitable[Ingested]]
"""Where events go: `App.events.record` or a client of it."""

Routings = Callable[[], Awaitable[Mapping[str, Routing]]]
"""The present routing of each task."""

HOOK, BODY = "hook", "body"
PRICE_USD_PER_TOKEN = 5e-6
ERROR_SHARE = 0.004
MEDIAN_LATENCY_MS: Mapping[str, float] = {HOOK: 350.0, BODY: 700.0}
_LATENCY_SPREAD = 0.3
_BATCH = 5000


TURNING_SHARE = 0.5
"""From this share of a rollout on the audience dislikes a candidate that is to break."""


def broken_from_half(routing: Routing) -> bool:
    """Whether a rollout has reached half of the traffic: when `--break` turns the audience."""
    lane = routing.only
    return lane is not None and lane.subject.startswith("deploy") and lane.share >= TURNING_SHARE


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A post of the plan: when, by whom, and which models write it."""

    key: str
    slot: int
    at: datetime
    arm: Arm
    routing: Routing | None
    hook: Variant
    body: Variant


class DemoTraffic:
    """A participant of the virtual clock that plays the application and its audience.

    Each hour it makes about `per_hour` posts: it asks `assignment` for the arm by the present
    routing (hook and body share the unit, so the arm), has the models write, and keeps the post
    in the `posts` table. Exposures go to `sink` at once, outcomes when they are measured,
    6 to 24 hours later. Before anything was fine-tuned, `base_model` writes.
    """

    def __init__(
        self,
        *,
        seed: int,
        audience: Audience,
        provider: Provider,
        posts: PostsTable,
        routings: Routings,
        sink: Sink,
        base_model: str,
        broken_from: Callable[[Routing], bool] | None = None,
        per_hour: float = POSTS_PER_HOUR,
        prompts: Callable[[], Mapping[str, Prompt]] = dict,
    ) -> None:
        self._seed = seed
        self._audience = audience
        self._drafts = Drafts(provider, seed=seed)
        self._posts = posts
        self._routings = routings
        self._sink = sink
        self._base = Variant(model_id=base_model)
        self._broken_from = broken_from
        self._per_hour = per_hour
        self._prompts = prompts
        self.made = 0

    async def advance(self, since: datetime, until: datetime) -> None:
        """Post, tell and measure all that comes before `until`.

        Asked again for a stretch, it makes no second post: what was served stays as it was
        first, and the same events are sent again under their ids.
        """
        stored = await self._posts.served_between(since, until)
        new = await self._make(since, until, skip={served.post_id for served in stored})
        served = sorted([*stored, *new], key=lambda one: one.at)
        due = await self._posts.due_before(until)
        reactions = [self._measure(one, hook, body) for one, hook, body in due]
        exposures = [event for one in served if one.subject for event in self._exposures(one)]
        outcomes = [
            Outcome(
                id=f"{one.post_id}:outcome",
                subject=one.subject,
                unit=one.post_id,
                at=one.due,
                value=row["engagement_rate"],
            )
            for (one, _, _), row in zip(due, reactions, strict=True)
            if one.subject
        ]
        await self._send(exposures, outcomes)
        await self._posts.measured(reactions)

    async def _make(self, since: datetime, until: datetime, *, skip: set[str]) -> list[ServedPost]:
        routings = await self._routings()
        planned = [post for post in self._plan(since, until, routings) if post.key not in skip]
        written = await asyncio.gather(*(self._write(post) for post in planned))
        served = [self._served(p, w) for p, w in zip(planned, written, strict=True)]
        rows = [self._row(p, w) for p, w in zip(planned, written, strict=True)]
        self.made += await self._posts.add(rows, served)
        return served

    def _plan(
        self, since: datetime, until: datetime, routings: Mapping[str, Routing]
    ) -> list[_Planned]:
        last = slot_of(until - timedelta(microseconds=1))
        return [
            self._planned(slot, index, at, routings)
            for slot in range(slot_of(since), last + 1)
            for index, at in enumerate(times(self._seed, slot, self._per_hour))
            if since <= at < until
        ]

    def _planned(
        self, slot: int, index: int, at: datetime, routings: Mapping[str, Routing]
    ) -> _Planned:
        key = post_id(slot, index)
        routing = routings.get(HOOK)
        hook, arm = self._serve(routing, key)
        body, _ = self._serve(routings.get(BODY), key)
        return _Planned(key=key, slot=slot, at=at, arm=arm, routing=routing, hook=hook, body=body)

    def _serve(self, routing: Routing | None, unit: str) -> tuple[Variant, Arm]:
        if routing is None:
            return self._base, Arm.BASELINE
        served = routing.serve(unit)
        return served.model, served.arm

    async def _write(self, post: _Planned) -> Written:
        return await self._drafts.draft(
            post.key,
            slot=post.slot,
            hook_model=post.hook.model_id,
            body_model=post.body.model_id,
            hook_prompt=self._prompts().get(post.hook.prompt or ""),
        )

    def _served(self, post: _Planned, written: Written) -> ServedPost:
        delay = timedelta(hours=self._audience.outcome_delay_h(post.key))
        routing = post.routing
        disliked = (
            post.arm is Arm.CANDIDATE
            and routing is not None
            and self._broken_from is not None
            and self._broken_from(routing)
        )
        return ServedPost(
            post_id=post.key,
            at=post.at,
            due=post.at + delay,
            subject=routing.serve(post.key).subject if routing else None,
            phase=routing.phase if routing else 0,
            arm=post.arm.value,
            disliked=disliked,
            hook_tokens=written.hook_tokens,
            body_tokens=written.body_tokens,
        )

    def _row(self, post: _Planned, written: Written) -> dict[str, Any]:
        return {
            "id": post.key,
            "persona_id": draws(self._seed, "persona", post.key).choice(PERSONAS),
            "original_input": written.original_input,
            "hook": written.hook,
            "body": written.body,
            "engagement_rate": None,
            "ts": post.at,
            "tokens_used": written.hook_tokens + written.body_tokens,
            "impressions": None,
            "clicks": None,
            "version": post.hook.version,
        }

    def _measure(self, served: ServedPost, hook: str, body: str) -> dict[str, Any]:
        reaction = self._audience.react(served.post_id, hook, body, disliked=served.disliked)
        return {
            "id": served.post_id,
            "engagement_rate": reaction.rate,
            "impressions": reaction.impressions,
            "clicks": reaction.clicks,
        }

    def _exposures(self, served: ServedPost) -> list[Exposure]:
        found = []
        for task, tokens in ((HOOK, served.hook_tokens), (BODY, served.body_tokens)):
            random = draws(self._seed, "request", served.post_id, task)
            latency = random.lognormvariate(math.log(MEDIAN_LATENCY_MS[task]), _LATENCY_SPREAD)
            if random.random() < ERROR_SHARE:
                found.append(self._exposure(served, task, f"{task}:error", latency, 0, error=True))
            found.append(self._exposure(served, task, task, latency, tokens))
        return found

    def _exposure(
        self,
        served: ServedPost,
        task: str,
        name: str,
        latency_ms: float,
        tokens: int,
        *,
        error: bool = False,
    ) -> Exposure:
        return Exposure(
            id=f"{served.post_id}:{name}",
            subject=served.subject or "",
            phase=served.phase,
            arm=Arm(served.arm),
            unit=served.post_id,
            at=served.at,
            task=task,
            latency_ms=round(latency_ms, 1),
            error=error,
            tokens=tokens,
            cost_usd=tokens * PRICE_USD_PER_TOKEN,
        )

    async def _send(self, exposures: Sequence[Exposure], outcomes: Sequence[Outcome]) -> None:
        for start in range(0, max(len(exposures), len(outcomes)), _BATCH):
            end = start + _BATCH
            await self._sink(exposures[start:end], outcomes[start:end])
