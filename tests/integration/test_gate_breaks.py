"""A run whose gate breaks off goes on where it was, and says how far it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.integration.loop import T0, open_loop
from tests.waiting import eventually

from tuneproof.errors import ProviderUnavailableError
from tuneproof.pipeline import gating
from tuneproof.testing import MemoryProvider, VirtualClock
from tuneproof.training import Score
from tuneproof.workflow import RunStatus

WAITS = 15


class Slow(MemoryProvider):
    """One call for a score waits until it is let go, a later one fails."""

    def __init__(self) -> None:
        super().__init__(clock=VirtualClock(T0))
        self.let_go = asyncio.Event()
        self.asked = 0
        self.broken = False
        self.scored: Counter[str] = Counter()

    async def score(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        timeout_s: float | None = None,
    ) -> Score | None:
        self.asked += 1
        if self.asked == WAITS:
            await self.let_go.wait()
        elif self.let_go.is_set() and not self.broken:
            self.broken = True
            raise ProviderUnavailableError("It is away.", mend="Wait.")
        await asyncio.sleep(0)
        self.scored[f"{model} {messages}"] += 1
        return await super().score(model, messages)


async def test_a_gate_that_breaks_off_says_how_far_it_is_and_goes_on(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating, "TELL_S", 0.01)
    provider = Slow()
    async with open_loop(tmp_path, database_url, provider=provider) as loop:
        run = await loop.app.runs.start()

        async def waits() -> bool:
            stages = (await loop.app.store.runs.get(run.id)).stages
            detail = stages.get("gate", {}).get("detail", {})
            return 0 < detail.get("step", 0) < detail["total_steps"] if "step" in detail else False

        await eventually(waits, 60)
        assert list(tmp_path.rglob(f"answers-{run.id}.jsonl"))
        provider.let_go.set()
        ended = await loop.end(run.id)
    assert ended.status is RunStatus.SUCCESS
    assert provider.broken
    assert set(provider.scored.values()) == {1}
    gate = ended.stages["gate"]
    assert gate["status"] == "completed"
    assert not list(tmp_path.rglob("answers-*.jsonl"))
