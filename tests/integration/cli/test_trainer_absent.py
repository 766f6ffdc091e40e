"""Without a service the trainer is absent, and nobody else is asked; without a database, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.servers import free_port

from tuneproof import App, Settings
from tuneproof.cli.options import CommonOptions
from tuneproof.cli.system import doctor
from tuneproof.errors import ProviderUnavailableError, StoreUnavailableError
from tuneproof.experiments import Variant
from tuneproof.settings import StoreConfig
from tuneproof.testing import MemoryProvider


async def test_doctor_says_that_the_trainer_starts_with_the_service(tmp_path: Path) -> None:
    async with App.open(Settings(dir=tmp_path), engine=False) as app:
        found = {f.name: f for f in await app.doctor.examine()}
        assert found["provider"].status == "ok"
        assert found["provider"].mend.endswith("tuneproof serve")
        assert found["default: base model"].status == "ok"


async def test_absent_trainer_is_not_replaced_by_a_hosted_provider(tmp_path: Path) -> None:
    async with App.open(Settings(dir=tmp_path), engine=False) as app:
        with pytest.raises(ProviderUnavailableError, match="starts with the service"):
            await app.providers.get("default").models()


async def test_status_shows_the_share_of_a_test_that_no_run_drives(tmp_path: Path) -> None:
    provider = MemoryProvider(base_models=("old", "new"))
    async with App.open(Settings(dir=tmp_path), background=False, provider=provider) as app:
        await app.experiments.create(
            baseline=Variant(model_id="old"),
            candidates=[Variant(model_id="new")],
            traffic_split=0.3,
        )
        [pipeline] = (await app.overview.status())["pipelines"]
        assert pipeline["traffic"] == 0.3
        assert pipeline["model_in_use"] == {"hook": "old", "body": "old"}


async def test_doctor_finds_the_rest_where_the_database_is_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tuneproof.toml"
    file.write_text(
        f"""
        [store]
        url = "postgresql://nobody@127.0.0.1:{free_port()}/none"
        [providers.default]
        base_url = "http://127.0.0.1:{free_port()}/v1"
        [sources.posts]
        url = "{tmp_path / "absent.csv"}"
        """
    )
    options = CommonOptions(dir=tmp_path / "data", config=file, json=True)
    assert await doctor(options=options) == 1
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    failed = {name for name, f in found.items() if f["status"] == "failed"}
    assert {"database", "default: base model", "default: models in use", "default: posts"} <= failed
    assert "cannot be reached" in found["default: base model"]["detail"]
    assert "absent.csv" in found["default: posts"]["detail"]
    assert all(found[name]["mend"] for name in failed)


async def test_other_commands_still_need_the_database(tmp_path: Path) -> None:
    settings = Settings(
        dir=tmp_path, store=StoreConfig(url=f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    )
    with pytest.raises(StoreUnavailableError):
        async with App.open(settings, engine=False):
            pass
