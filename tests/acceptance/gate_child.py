"""A check of a version that is killed: `python -m tests.acceptance.gate_child URL HELDOUT KEPT`.

Prints its report at the end.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path

from tests.unit.test_evaluation import VERSION

from tuneproof.evaluation import Gate, Kept
from tuneproof.providers import open_provider
from tuneproof.settings import ProviderConfig


async def check(url: str, heldout: str, kept: str) -> None:
    provider = open_provider(ProviderConfig(kind="compatible", base_url=url, api_key="k"))
    try:
        gate = Gate(Kept(Path(kept)).of(provider), samples=40)
        print(asdict(await gate.check(VERSION, {"hook": heldout})), flush=True)
    finally:
        await provider.close()


if __name__ == "__main__":
    asyncio.run(check(*sys.argv[1:]))
