"""A loop whose providers are real servers of the wire on loopback, opened from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.integration.loop import QUICK, STRIDE, T0, Loop, Traffic, posts

from tuneproof.app import App
from tuneproof.settings import ProviderConfig, Settings, StoreConfig
from tuneproof.testing import MemorySource, VirtualClock


def provider(name: str, url: str, **more: Any) -> ProviderConfig:
    """A provider's settings, as `tuneproof.toml` would make them."""
    return ProviderConfig(name=name, base_url=url, **more)


@asynccontextmanager
async def open_wires(
    directory: Path,
    database: str,
    *providers: ProviderConfig,
    env: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
    clock: VirtualClock | None = None,
    **records: Any,
) -> AsyncIterator[Loop]:
    """A loop over these servers; the first one is the pipeline's, unless `changes` says."""
    config = replace(
        QUICK, **{"provider": providers[0].name, "base_model": "base-model", **(changes or {})}
    )
    settings = Settings(
        dir=directory,
        pipelines={"default": config},
        providers={p.name: p for p in providers},
        store=StoreConfig(url=database),
        env=env or {},
        **records,
    )
    async with App.open(
        settings,
        clock=clock or VirtualClock(T0, stride=STRIDE),
        source=MemorySource(posts()),
        poll_s=0.005,
        background=False,
    ) as app:
        traffic = Traffic(app, lift=0.5)
        app.let_time_pass(traffic)
        yield Loop(app, None, traffic)  # type: ignore[arg-type]
