"""`tuneproof manifests`: what the first users apply by kubectl, with this machine's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.rendering import CHART, HAS_DOCUMENTS, Object, documented, faults, one, pods
from tests.first_users import TRAINING_CONFIG, differences

from tuneproof import cli
from tuneproof.cli import manifests
from tuneproof.settings import Settings


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> list[Object]:
    """What the command prints without any settings."""
    monkeypatch.chdir(tmp_path)
    assert cli.run(["manifests", "--namespace", "fine-tuning", "--dir", str(tmp_path)]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_they_are_objects_of_kubernetes(printed: list[Object]) -> None:
    assert faults(printed) == []
    assert [o["kind"] for o in printed] == ["ConfigMap", "CronJob", "Deployment", "Service"]
    assert {o["metadata"]["namespace"] for o in printed} == {"fine-tuning"}


def covers(whole: Any, part: Any, where: str = "") -> list[str]:
    """What of a documented object is not in ours."""
    if isinstance(part, dict):
        return [
            missed
            for key, value in part.items()
            for missed in covers((whole or {}).get(key), value, f"{where}.{key}")
        ]
    if isinstance(part, list):
        pairs = zip(whole or [None] * len(part), part, strict=True)
        return [missed for ours, theirs in pairs for missed in covers(ours, theirs, f"{where}[]")]
    return [] if whole == part else [f"{where} is {whole!r}, and is documented as {part!r}"]


CRON_JOB = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": "fine-tuning-pipeline"},
    "spec": {
        "schedule": "0 2 * * 0",
        "jobTemplate": {
            "spec": {
                "template": {
                    "spec": {
                        "containers": [
                            {
                                "name": "fine-tuning",
                                "resources": {
                                    "requests": {"memory": "1Gi", "cpu": "1000m"},
                                    "limits": {"memory": "4Gi", "cpu": "2000m"},
                                },
                            }
                        ]
                    }
                }
            }
        },
    },
}

CONFIG_SHORT = {
    "training_data_threshold": 100,
    "engagement_threshold": 0.06,
    "a_b_test_duration_hours": 168,
}


def test_the_job_is_the_documented_one(printed: list[Object]) -> None:
    job = one(printed, "CronJob", "fine-tuning-pipeline")
    assert covers(job, CRON_JOB) == []
    spec = job["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"]) == ("Forbid", "Etc/UTC")
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_config_map_is_the_documented_one(printed: list[Object]) -> None:
    data = one(printed, "ConfigMap", "fine-tuning-config")["data"]
    training = json.loads(data["training_config.json"])
    assert training["training"]["timeout_seconds"] == "auto", (
        "the documented half hour cancels an honest job"
    )
    numbers = {"base_model": "a", "timeout_seconds": 1800}
    ours = {**training, "training": {**training["training"], **numbers}}
    assert differences(_shape(TRAINING_CONFIG), ours, whole=True) == []
    assert yaml.safe_load(data["pipeline_config.yaml"]) == CONFIG_SHORT


def _shape(table: Any) -> Any:
    if isinstance(table, dict):
        return {key: _shape(value) for key, value in table.items()}
    return float if isinstance(table, int | float) else str


def test_the_secrets_are_the_documented_ones(printed: list[Object]) -> None:
    container = dict(pods(printed))["fine-tuning-pipeline"]["containers"][0]
    deployment = one(printed, "Deployment", "fine-tuning-pipeline")
    found = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]
        for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        if "valueFrom" in entry
    }
    assert found["OPENAI_API_KEY"] == {"name": "openai-credentials", "key": "api-key"}
    assert found["DATABASE_URL"] == {"name": "database-secret", "key": "url"}
    assert found["MLFLOW_TRACKING_URI"]["name"] == "mlflow-secret"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["fineTuningPipeline"]
    assert f"{values['image']['repository']}:{values['image']['tag']}" == manifests.IMAGE


if HAS_DOCUMENTS:

    def test_the_tables_are_the_documents_own_files(tmp_path: Path) -> None:
        assert covers(yaml.safe_load(documented("cronjob.yaml")), CRON_JOB) == []
        assert covers(CRON_JOB, yaml.safe_load(documented("cronjob.yaml"))) == []
        short = yaml.safe_load(documented("configmap-short.yaml"))["data"]["pipeline_config.yaml"]
        assert yaml.safe_load(short) == CONFIG_SHORT

    @pytest.mark.parametrize("name", ["configmap.yaml", "configmap-short.yaml"])
    def test_the_documented_config_maps_are_read_as_they_are(tmp_path: Path, name: str) -> None:
        for key, text in yaml.safe_load(documented(name))["data"].items():
            (tmp_path / key).write_text(text, "utf-8")
        settings = Settings.load(file=tmp_path, env={})
        assert settings.pipeline().a_b_test_duration_hours == 168
        assert settings.pipeline().engagement_threshold == 0.06


def test_what_was_set_here_is_what_the_pod_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuneproof.toml").write_text(
        """
        [pipelines.default.data_collection]
        training_data_threshold = 120
        days_back = 14
        [pipelines.default.deployment]
        holdback = 0.1
        [pipelines.default.schedule]
        weekly_schedule = "30 4 * * 1"
        time_zone = "Europe/Berlin"
        [pipelines.default.training]
        base_model = "gpt-4.1-mini"
        """
    )
    config = ["--config", str(tmp_path / "tuneproof.toml"), "--dir", str(tmp_path / "data")]
    assert cli.run(["manifests", "--to", str(tmp_path / "out"), *config]) == 0
    said = capsys.readouterr().err
    assert f"kubectl apply -f {tmp_path / 'out' / 'fine_tuning_configmap.yaml'}" in said
    objects = [
        found
        for path in sorted((tmp_path / "out").iterdir())
        for found in yaml.safe_load_all(path.read_text("utf-8"))
    ]
    job = one(objects, "CronJob", "fine-tuning-pipeline")["spec"]
    assert (job["schedule"], job["timeZone"]) == ("30 4 * * 1", "Europe/Berlin")
    folder = tmp_path / "mounted"
    folder.mkdir()
    for name, text in one(objects, "ConfigMap", "fine-tuning-config")["data"].items():
        (folder / name).write_text(text, "utf-8")
    here = Settings.load(file=tmp_path / "tuneproof.toml", env={}).pipeline()
    there = Settings.load(file=folder, env={}).pipeline()
    changed = {
        name for name in here.__dataclass_fields__ if getattr(here, name) != getattr(there, name)
    }
    assert changed == {"schedule_driver"}, "the job starts runs, so the service does not"


@pytest.mark.parametrize("command", ["manifests", "migrate"])
def test_wrong_settings_are_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuneproof.toml").write_text("[store]\npool_sise = 3\n")
    assert cli.run([command, "--config", str(tmp_path / "tuneproof.toml")]) == 2
    assert "pool_size" in capsys.readouterr().err
