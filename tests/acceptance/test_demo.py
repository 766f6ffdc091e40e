"""The demo as its users run it, and over five audiences (twenty by `make acceptance-long`).

The candidate that wins and is rolled out is what the README shows: `test_examples` runs it and
holds it to every line.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tuneproof.app.demonstration import demonstration

pytestmark = pytest.mark.slow

AUDIENCES = int(os.environ.get("TUNEPROOF_AUDIENCES", "5"))
SEEDS = range(1, AUDIENCES + 1)


def demo(directory: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tuneproof", "demo", "--dir", str(directory)]
    done = subprocess.run(
        [*command, "--json", "--exit", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_candidate_that_turns_harmful_is_rolled_back_with_its_cause(tmp_path: Path) -> None:
    found = demo(tmp_path, "--seed", "7", "--break")
    assert found["run"]["status"] == "rolled_back"
    assert found["rollout"]["state"] == "rolled_back"
    assert found["rollout"]["share"] == 0
    assert "fell by more than 15%" in found["rollout"]["cause"].replace(" %", "%")
    back = found["rollback"]
    lasted = datetime.fromisoformat(back["rolled_back_at"]) - datetime.fromisoformat(
        back["turned_at"]
    )
    assert 6 < back["hours"] == pytest.approx(lasted / timedelta(hours=1), abs=0.01)
    assert back["hours"] < 24 * 7
    assert 0 < back["reach_s"] < 60


def experiment_of(seed: int, directory: str) -> dict[str, Any]:
    async def one() -> dict[str, Any]:
        async with demonstration(
            Path(directory) / str(seed), seed=seed, last_stage="experiment"
        ) as shown:
            await shown.wait()
            return await shown.outcome()

    return asyncio.run(one())


def prompts_of(seed: int, directory: str) -> dict[str, Any]:
    async def one() -> dict[str, Any]:
        folder = Path(directory) / str(seed)
        async with demonstration(folder, seed=seed, prompts=True, last_stage="experiment") as shown:
            await shown.wait()
            return await shown.outcome()

    return asyncio.run(one())


def test_of_two_prompts_of_one_model_the_better_is_promoted_and_never_the_worse(
    tmp_path: Path,
) -> None:
    """Two audiences; twenty by `make acceptance-long`."""
    seeds = SEEDS if AUDIENCES > 5 else range(1, 3)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(prompts_of, seeds, [str(tmp_path)] * len(seeds)))
    promoted = []
    for outcome in found:
        better, worse = outcome["candidates"]
        print(outcome["run"]["status"], better, worse)
        assert worse["verdict"] != "promote", outcome
        assert worse["true_effect"] < 0 < better["true_effect"]
        promoted.append(better["verdict"] == "promote")
    assert sum(promoted) >= int(0.9 * len(seeds)), found


def test_of_all_audiences_nine_in_ten_promote_and_never_a_candidate_that_is_no_better(
    tmp_path: Path,
) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(experiment_of, SEEDS, [str(tmp_path)] * len(SEEDS)))
    verdicts = [f["experiment"]["verdict"] if f["experiment"] else None for f in found]
    promoted = [f for f in found if f["experiment"] and f["experiment"]["verdict"] == "promote"]
    assert len(promoted) >= int(0.9 * AUDIENCES), verdicts
    effects = [f["experiment"]["true_effect"] for f in promoted]
    assert min(effects) > 0, effects
