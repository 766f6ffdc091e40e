"""A loop with several providers in memory, opened by name from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.integration.loop import QUICK, STRIDE, T0, Loop, Traffic, posts, settings

from tuneproof.app import App
from tuneproof.collection import Post
from tuneproof.settings import ProviderConfig
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock
from tuneproof.training import ModelInfo, TrainingReadiness

OPENED: dict[str, Provider] = {}
"""The providers of the test under way, by name."""


class Provider(MemoryProvider):
    """A provider that says what a preflight asks, and when its models shut down."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.says: TrainingReadiness | None = None
        self.shutdowns: dict[str, datetime] = {}
        self.scores = True

    async def readiness(self, model: str, method: str) -> TrainingReadiness:
        self._called("readiness")
        return self.says or TrainingReadiness(model=model, shutdown_at=self.shutdowns.get(model))

    async def models(self) -> Sequence[ModelInfo]:
        found = await super().models()
        return [replace(m, shutdown_at=self.shutdowns.get(m.id)) for m in found]


def open_memory(config: ProviderConfig, **_: Any) -> Provider:
    """The provider of this name: what `adapters.provider` resolves to."""
    return OPENED[config.name]


@asynccontextmanager
async def open_providers(
    directory: Path,
    database: str,
    *providers: Provider,
    changes: Mapping[str, Any] | None = None,
    lift: float = 0.5,
    source: Sequence[Post] | None = None,
    more: Mapping[str, Any] | None = None,
    **records: Any,
) -> AsyncIterator[Loop]:
    """A loop over these providers; the first one is the pipeline's, unless `changes` says."""
    clock = VirtualClock(T0, stride=STRIDE)
    OPENED.clear()
    OPENED.update({p.name: p for p in providers})
    config = replace(QUICK, **{"provider": providers[0].name, **(changes or {})})
    known = {
        p.name: ProviderConfig(
            name=p.name,
            kind="compatible",
            base_url=f"http://127.0.0.1:9/{p.name}/v1",
            **(more or {}),
        )
        for p in providers
    }
    async with App.open(
        settings(
            directory,
            database,
            config,
            providers=known,
            adapters={"provider": "tests.integration.providing:open_memory"},
            **records,
        ),
        clock=clock,
        source=MemorySource(source if source is not None else posts()),
        poll_s=0.005,
        background=False,
    ) as app:
        traffic = Traffic(app, lift=lift)
        app.let_time_pass(traffic)
        yield Loop(app, providers[0], traffic)
