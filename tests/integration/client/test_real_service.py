"""The client against the service itself: what is chosen is served, what is recorded is kept."""

from __future__ import annotations

from pathlib import Path

from tests.waiting import eventually

from tuneproof.app import App
from tuneproof.cli.serve import serving
from tuneproof.client import AsyncClient
from tuneproof.experiments import Arm, Variant
from tuneproof.settings import Settings
from tuneproof.testing import MemoryProvider, MemorySource


async def test_choices_events_and_the_end_of_a_test_reach_both_sides(tmp_path: Path) -> None:
    settings = Settings.load(
        dir=tmp_path / "data",
        env={},
        port=0,
        base_url="http://127.0.0.1:9/v1",
        base_model="base",
        **{"server.metrics_enabled": False},
    )
    provider = MemoryProvider(base_models=("base", "tuned"))
    async with (
        App.open(settings, source=MemorySource([]), provider=provider, poll_s=0.02) as app,
        serving(app, settings) as (address, _),
    ):
        [test] = await app.experiments.create(
            baseline=Variant(model_id="base"),
            candidates=[Variant(model_id="tuned")],
            traffic_split=0.5,
            duration_hours=24,
            actor="test",
        )
        async with AsyncClient(address, state_dir=tmp_path / "client", poll_s=60.0) as client:
            units = [f"post-{i}" for i in range(200)]
            choices = [await client.choose("hook", unit) for unit in units]
            assert {choice.subject for choice in choices} == {test.id}
            for choice in choices:
                client.record(choice, latency_ms=400, tokens=90, cost_usd=0.0001)
                client.outcome(subject=choice.subject, unit=choice.unit, value=0.07)
            assert await client.flush()
            exposed = await app.store.events.exposed(test.id)
            for arm in Arm:
                chosen = sum(choice.arm == arm for choice in choices)
                assert sum(n for (_, a), n in exposed.items() if a is arm) == chosen > 0
            assert (client.status().sent, client.status().refused) == (400, 0)

            candidate = next(choice for choice in choices if choice.arm == "candidate")
            await app.experiments.end(test.id, reason="enough seen", actor="test")

            async def served_by_base() -> bool:
                return (await client.choose("hook", candidate.unit)).model == "base"

            # By the stream: the client asks by itself only after a minute.
            await eventually(served_by_base, 30.0)
