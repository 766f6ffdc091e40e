"""A whole loop in one test: virtual time, a provider in memory, an audience with a known taste."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tuneproof.app import App
from tuneproof.collection import Post
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.settings import (
    AlertsConfig,
    FilesConfig,
    PipelineConfig,
    Settings,
    StoreConfig,
    TaskConfig,
)
from tuneproof.store import Run
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock

SECRET = "whsec_" + base64.b64encode(b"thirty-two bytes of a secret....").decode()
"""What webhooks of alerts are signed with."""

T0 = datetime(2025, 1, 6, 2, 0, tzinfo=UTC)

STRIDE = timedelta(hours=4)
"""How much time passes at once: what comes between two looks, in one piece."""

QUICK = PipelineConfig(
    base_model="base",
    training_data_threshold=50,
    a_b_test_duration_hours=72,
    traffic_split=0.5,
    maturation_hours=1,
    steps=(0.25, 1.0),
    increment_interval_hours=6,
    holdback_days=1,
    gate_samples=3,
    look_interval_hours=4,
    schedule_driver="external",
)


def posts(count: int = 200) -> list[Post]:
    """Posts of the week before T0, with rates from 0 to about 0.2."""
    return [
        Post(
            id=f"post-{i:05d}",
            persona_id="alex" if i % 2 else "sam",
            original_input=f"topic number {i}",
            hook=f"Hook {i} about topic {i}: a thing worth knowing",
            body=f"Body {i} tells more about topic {i}, at some length, in two parts. Part {i}.",
            engagement_rate=round(i / count * 0.2, 6),
            ts=T0 - timedelta(hours=1 + i * 160 / count),
        )
        for i in range(count)
    ]


class Traffic:
    """A participant: units by assignment, outcomes by Beta draws around a mean for each arm."""

    def __init__(self, app: App, *, lift: float, per_hour: int = 30) -> None:
        self.app = app
        self.lift = lift
        self.per_hour = per_hour
        self.error_share = 0.0
        self.lifts: dict[str, float] = {}
        """What a candidate is worth where it is not `lift`, by its model or by its prompt."""
        self.costs: dict[str, float] = {}
        """What an answer of a model costs where it is not 0.0005 USD."""
        self.lost: dict[str, float] = {}
        """The share of a candidate model's units that are never heard of."""

    async def advance(self, since: datetime, until: datetime) -> None:
        routing = {r.task: r for r in await self.app.routing.all()}.get("hook")
        if routing is None or not routing.subjects:
            return
        exposures, outcomes = [], []
        start = since.replace(minute=0, second=0, microsecond=0)
        for index in range(int((until - start).total_seconds() // 3600) * self.per_hour + 90):
            at = start + timedelta(hours=index / self.per_hour)
            if not since <= at < until:
                continue
            unit = f"unit-{at.isoformat()}"
            draw = np.random.default_rng(abs(hash((int(at.timestamp()),))) % 2**32)
            served = routing.serve(unit)
            assert served.subject is not None
            arm, model = served.arm, served.model
            lift = self.lifts.get(model.prompt or "", self.lifts.get(model.model_id, self.lift))
            if arm is Arm.CANDIDATE and draw.random() < self.lost.get(served.model.model_id, 0):
                continue
            mean = 0.068 * (1 + (lift if arm is Arm.CANDIDATE else 0.0))
            failed = arm is Arm.CANDIDATE and draw.random() < self.error_share
            exposures.append(
                Exposure(
                    id=f"{unit}:e",
                    subject=served.subject,
                    phase=routing.phase,
                    arm=arm,
                    unit=unit,
                    at=at,
                    task="hook",
                    latency_ms=200.0,
                    error=bool(failed),
                    tokens=100,
                    cost_usd=self.costs.get(model.model_id, 0.0005),
                )
            )
            outcomes.append(
                Outcome(
                    id=f"{unit}:o",
                    subject=served.subject,
                    unit=unit,
                    at=at,
                    value=float(draw.beta(mean * 20, (1 - mean) * 20)),
                )
            )
        await self.app.events.record(exposures=exposures, outcomes=outcomes)


class Loop:
    """An open App with everything that surrounds it."""

    def __init__(self, app: App, provider: MemoryProvider, traffic: Traffic) -> None:
        self.app = app
        self.provider = provider
        self.traffic = traffic

    async def turn(self, **arguments: Any) -> Run:
        """Start a run and wait for its end."""
        run = await self.app.runs.start(**arguments)
        return await self.end(run.id)

    async def end(self, run_id: str) -> Run:
        run = await self.app.runs.wait(run_id, seconds=180)
        assert run.status.final, f"{run.status} at {run.current_stage}: {run.stages}"
        return run


def settings(directory: Path, database: str, config: PipelineConfig, **more: Any) -> Settings:
    return Settings(
        dir=directory, pipelines={"default": config}, store=StoreConfig(url=database), **more
    )


@asynccontextmanager
async def open_loop(
    directory: Path,
    database: str,
    *,
    config: PipelineConfig = QUICK,
    lift: float = 0.5,
    changes: Mapping[str, Any] | None = None,
    provider: MemoryProvider | None = None,
    source: MemorySource | None = None,
    alerts: AlertsConfig | None = None,
    files: FilesConfig | None = None,
    tasks: Mapping[str, TaskConfig] | None = None,
    **adapters: Any,
) -> AsyncIterator[Loop]:
    clock = VirtualClock(T0, stride=STRIDE)
    made = provider or MemoryProvider(clock=clock)
    chosen = replace(config, **(changes or {}))
    told: dict[str, Any] = {} if files is None else {"files": files}
    if tasks is not None:
        told |= {"tasks": tasks}
    if alerts is not None:
        told |= {"alerts": alerts, "env": {alerts.webhook_secret_env: SECRET}}
    async with App.open(
        settings(directory, database, chosen, **told),
        clock=clock,
        provider=made,
        source=source or MemorySource(posts()),
        poll_s=0.005,
        background=False,
        **adapters,
    ) as app:
        traffic = Traffic(app, lift=lift)
        app.let_time_pass(traffic)
        yield Loop(app, made, traffic)
