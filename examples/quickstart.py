"""A whole turn of the loop in seconds: virtual time, a model in memory, readers made up.

What lies between is the real thing: the database, the durable run, the statistics, the steps of
the rollout. Replace `MemorySource` by your table and `MemoryProvider` by a provider, and leave
the virtual clock out.

    python examples/quickstart.py
"""

import asyncio
import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuneproof import App, FineTuningPipeline, PipelineConfig, Settings
from tuneproof.collection import Post
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock

MONDAY = datetime(2025, 1, 6, 2, 0, tzinfo=UTC)
CONFIG = PipelineConfig(
    base_model="base",
    traffic_split=0.5,
    a_b_test_duration_hours=72,
    look_interval_hours=4,
    maturation_hours=1,
    steps=(0.25, 0.5, 1.0),
    increment_interval_hours=12,
    holdback_days=1,
    schedule_driver="external",
)


def posts() -> list[Post]:
    """A week of posts; the later ones of the list did better."""
    return [
        Post(
            id=f"post-{i:03d}",
            persona_id=f"author-{i % 7}",
            original_input=f"Something about topic {i}",
            hook=f"What nobody told you about topic {i}",
            body=f"Topic {i} in {2 + i % 5} steps, and why the {i % 3 + 1}. one matters most.",
            engagement_rate=i / 2000,
            ts=MONDAY - timedelta(hours=1 + i / 2),
        )
        for i in range(300)
    ]


class Readers:
    """They like what the tuned model writes: 8 % of them react, instead of 5 %."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def advance(self, since: datetime, until: datetime) -> None:
        """Read what is published between the two instants, and react."""
        routing = {r.task: r for r in await self.app.routing.all()}.get("hook")
        if routing is None or not routing.subjects:
            return
        exposures, outcomes = [], []
        at = since
        while (at := at + timedelta(minutes=1)) <= until:
            unit = f"published {at.isoformat()}"
            served = routing.serve(unit)
            liking = random.Random(unit).gauss(0.08 if served.arm is Arm.CANDIDATE else 0.05, 0.02)
            event = {"subject": served.subject, "unit": unit, "at": at}
            exposures.append(
                Exposure(id=f"e {unit}", phase=routing.phase, arm=served.arm, tokens=90, **event)
            )
            outcomes.append(Outcome(id=f"o {unit}", value=max(0.0, liking), **event))
        await self.app.events.record(exposures=exposures, outcomes=outcomes)


async def main() -> None:
    """Start a run, let time pass, say what became of it."""
    clock = VirtualClock(MONDAY)
    with tempfile.TemporaryDirectory() as directory:
        async with App.open(
            Settings(dir=Path(directory)),
            clock=clock,
            source=MemorySource(posts()),
            provider=MemoryProvider(clock=clock),
            poll_s=0.005,
        ) as app:
            app.let_time_pass(Readers(app))
            result = await FineTuningPipeline(CONFIG, app=app).run()
    print(f"{result.run_id}: {result.status}. {result.reason}")
    print(f"dataset     {dict(result.training_data.examples)}")
    print(f"gate        {result.gate.reason}")
    print(f"experiment  {result.experiment.verdict}. {result.experiment.reason}")
    print(f"rollout     {result.deployment.state} at {result.deployment.share:.0%}")
    print(f"it took     {(clock.now() - MONDAY).days} days of virtual time")


if __name__ == "__main__":
    asyncio.run(main())
