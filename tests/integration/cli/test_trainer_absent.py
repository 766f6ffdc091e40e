"""Without a service the embedded trainer is absent, and nobody else is asked in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneproof import App, Settings
from tuneproof.errors import ProviderUnavailableError
from tuneproof.experiments import ModelRef


async def test_doctor_says_that_the_trainer_starts_with_the_service(tmp_path: Path) -> None:
    async with App.open(Settings(dir=tmp_path), engine=False) as app:
        found = {f.name: f for f in await app.doctor()}
        assert found["provider"].status == "ok"
        assert found["provider"].mend.endswith("tuneproof serve")
        assert found["default: base model"].status == "ok"


async def test_absent_trainer_is_not_replaced_by_a_hosted_provider(tmp_path: Path) -> None:
    async with App.open(Settings(dir=tmp_path), engine=False) as app:
        with pytest.raises(ProviderUnavailableError, match="starts with the service"):
            await app.provider("default").models()


async def test_status_shows_the_share_of_a_test_that_no_run_drives(tmp_path: Path) -> None:
    async with App.open(Settings(dir=tmp_path), background=False) as app:
        await app.create_ab_test(
            baseline=ModelRef(model_id="old"), candidate=ModelRef(model_id="new"), traffic_split=0.3
        )
        [pipeline] = (await app.status())["pipelines"]
        assert pipeline["traffic"] == 0.3
        assert pipeline["model_in_use"] == {"hook": "old", "body": "old"}
