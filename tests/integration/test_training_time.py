"""How long a job may take and will take: no constant ends one that moves on, and it is told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.providing import Provider, open_providers
from tests.waiting import eventually

from tuneproof.errors import ProviderUnavailableError
from tuneproof.store import RunStatus
from tuneproof.training import JobEvent

HOUR = timedelta(hours=1)


class Standing(Provider):
    """Tells of its second step and then nothing more."""

    async def newest_events(self, job_id: str) -> Sequence[JobEvent]:
        self._called("newest_events")
        return (await super().events(job_id))[:3]


async def test_a_job_that_moves_on_may_take_ten_hours(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p", polls=30)
    changes = {"poll_seconds": 1800}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        provider._clock = loop.app.clock
        run = await loop.turn(last_stage="gate")
        assert run.status is RunStatus.SUCCESS, run.error
        took = run.result["training_time"]
        assert 8 * 3600 < took["seconds"] < 11 * 3600
        assert (took["provider"], took["base_model"]) == ("p", "base")
        detail = run.stages["train"]["detail"]
        assert (detail["ends_at"], detail["gives_up_at"], detail["step"]) == (None, None, None)


async def test_a_job_that_stands_still_is_cancelled(tmp_path: Path, sqlite_store_url: str) -> None:
    provider = Standing(name="p", polls=10**9)
    changes = {"poll_seconds": 120}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert run.error["details"]["code"] == "stalled"
        assert "had told nothing new at step 2 of" in (run.reason or "")
        assert provider.calls["cancel_job"] == 1


async def test_events_that_cannot_be_read_do_not_end_a_job(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    class Silent(Provider):
        async def newest_events(self, job_id: str) -> Sequence[JobEvent]:
            raise ProviderUnavailableError("No answer.", mend="Wait.")

    provider = Silent(name="p", polls=30)
    changes = {"poll_seconds": 1800}
    async with open_providers(tmp_path, sqlite_store_url, provider, changes=changes) as loop:
        assert (await loop.turn(last_stage="gate")).status is RunStatus.SUCCESS


async def test_how_far_it_is_and_how_long_it_takes_are_told(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    provider = Provider(name="p", polls=30)
    async with open_providers(
        tmp_path, sqlite_store_url, provider, more={"training_prices": {"base": 10.0}}
    ) as loop:
        app = loop.app
        provider._clock = app.clock
        plan = await app.experiments.plan()
        assert (plan.training_s, plan.training_cost_usd) == (None, None)
        before = await loop.turn(last_stage="gate")
        took = before.result["training_time"]
        first = before.stages["train"]["detail"]["preflight"]
        assert (first["estimated_seconds"], first["estimated_by_trainings"]) == (None, 0)

        plan = await app.experiments.plan()
        assert plan.training_s == pytest.approx(took["seconds"], rel=0.01)
        assert plan.training_cost_usd == pytest.approx(took["tokens"] * 1e-5, rel=0.01)
        assert "Its training takes about" in plan.sentence()

        provider._polls = 10**9
        run = await app.runs.start()
        found: dict[str, Any] = {}

        async def trains() -> bool:
            found.update(
                (await app.store.runs.get(run.id)).stages.get("train", {}).get("detail", {})
            )
            return bool(found.get("step") and found.get("ends_at"))

        await eventually(trains)
        second = found["preflight"]
        per_token = took["seconds"] / took["tokens"]
        assert second["estimated_seconds"] == pytest.approx(
            second["tokens"] * 3 * per_token, rel=0.1
        )
        assert second["estimated_by_trainings"] == 1
        assert found["total_steps"] == 10**9
        assert datetime.fromisoformat(found["gives_up_at"]) > app.clock.now() - HOUR
        [pipeline] = (await app.overview.status())["pipelines"]
        assert pipeline["run"] is not None
        assert pipeline["run"]["progress"].startswith("step ")
        assert ", step " in pipeline["next_action"]
        await app.runs.abort(run.id, reason="seen enough", actor="test")
