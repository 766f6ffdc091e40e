"""`tuneproof manifests`: what the first users apply by kubectl, without Helm.

A ConfigMap with the settings of the pipeline `default`, a CronJob that starts its runs, and the
Deployment and Service that they need. The chart has all else: databases, autoscaling, monitoring.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK
from tuneproof.settings import PipelineConfig, options

NAME = "fine-tuning-pipeline"
CONFIG = "fine-tuning-config"
IMAGE = "threads-agent/fine-tuning-pipeline:v1.0.0"
USER = 10001
"""Who the images run as; `deploy/Containerfile` makes them."""

DOCUMENTED = (
    *("engagement_threshold", "days_back", "chunk_size", "max_records"),
    *("base_model", "n_epochs", "batch_size", "timeout_seconds"),
    *("traffic_split", "a_b_test_duration_hours", "significance_threshold"),
    *("min_engagement_lift", "min_cost_efficiency_gain", "deployment_strategy"),
    *("initial_traffic", "increment_interval_hours", "increment_percentage"),
)
"""The fields of `training_config.json` that the first users know; others stand there where set."""

_BESIDE = ("training_data_threshold", "engagement_threshold", "a_b_test_duration_hours")
"""The fields of `pipeline_config.yaml`."""

_WHERE = {
    "n_epochs": "training.hyperparameters.n_epochs",
    "batch_size": "training.hyperparameters.batch_size",
    "min_engagement_lift": "evaluation.success_criteria.min_engagement_lift",
    "min_cost_efficiency_gain": "evaluation.success_criteria.min_cost_efficiency_gain",
    "initial_traffic": "deployment.rollout_config.initial_traffic",
    "increment_interval_hours": "deployment.rollout_config.increment_interval_hours",
    "increment_percentage": "deployment.rollout_config.increment_percentage",
}
"""Fields whose place in the documented file is not their usual one, but also read."""

Manifest = dict[str, Any]


def manifests(
    *,
    namespace: Annotated[str | None, Parameter(help="The namespace [that of kubectl].")] = None,
    image: Annotated[str, Parameter(help=f"The service's image [{IMAGE}].")] = IMAGE,
    to: Annotated[
        Path | None, Parameter(help="A folder for the files, instead of printing them.")
    ] = None,
    options: CommonOptions = NONE,
) -> int:
    """Print a ConfigMap, a CronJob, and a Deployment with its Service, for kubectl.

    The ConfigMap has this machine's settings of the pipeline `default`. Needed are the Secrets
    `openai-credentials` (`api-key`), `database-secret` (`url`) and `tuneproof-token` (`token`).
    """
    settings = options.settings()
    made = {
        "configmap": [config_map(settings.pipeline(), settings.origins)],
        "cronjob": [cron_job(settings.pipeline(), image)],
        "deployment": [deployment(image), service()],
    }
    for one in (one for several in made.values() for one in several if namespace):
        one["metadata"] = {**one["metadata"], "namespace": namespace}
    if to is None:
        sys.stdout.write(as_yaml([one for several in made.values() for one in several]))
        return OK
    to.mkdir(parents=True, exist_ok=True)
    for name, several in made.items():
        path = to / f"fine_tuning_{name}.yaml"
        path.write_text(as_yaml(several), "utf-8")
        output.say(f"kubectl apply -f {path}")
    return OK


def config_map(config: PipelineConfig, origins: Mapping[str, str]) -> Manifest:
    """The settings as the service reads them from a folder."""
    pipeline = "".join(f"{name}: {json.dumps(getattr(config, name))}\n" for name in _BESIDE)
    driver = {"pipelines": {config.name: {"schedule": {"driver": "external"}}}}
    return {
        **_head("v1", "ConfigMap", CONFIG),
        "data": {
            "training_config.json": _json(training_config(config, origins)),
            "pipeline_config.yaml": pipeline,
            "tuneproof.json": _json(driver),
        },
    }


def training_config(config: PipelineConfig, origins: Mapping[str, str]) -> dict[str, Any]:
    """The sections of a pipeline: what is documented, and what else was set."""
    found: dict[str, Any] = {}
    for option in options(PipelineConfig):
        value = getattr(config, option.name)
        was_set = f"pipelines.{config.name}.{option.name}" in origins
        wanted = option.name in DOCUMENTED or was_set
        if not wanted or value is None or option.name in ("name", "schedule_driver"):
            continue
        *sections, key = _WHERE.get(option.name, option.paths[0]).split(".")
        table = found
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    return found


def cron_job(config: PipelineConfig, image: str) -> Manifest:
    """Starts a run; it ends once the run is accepted."""
    container = {
        "name": "fine-tuning",
        "image": image,
        "args": ["run", "start", "--no-wait"],
        "env": [
            {"name": "TUNEPROOF_URL", "value": f"http://{NAME}:8686"},
            _secret("TUNEPROOF_TOKEN", "tuneproof-token", "token"),
            *_places(),
        ],
        "resources": _resources(("1Gi", "1000m"), ("4Gi", "2000m")),
        **_confined(),
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _as_nobody(),
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}],
    }
    template = {
        "metadata": {"labels": {"app": f"{NAME}-job", "sidecar.istio.io/inject": "false"}},
        "spec": pod,
    }
    spec = {
        "schedule": config.weekly_schedule,
        "timeZone": "Etc/UTC" if config.time_zone == "UTC" else config.time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "jobTemplate": {
            "spec": {"backoffLimit": 3, "activeDeadlineSeconds": 600, "template": template}
        },
    }
    return {**_head("batch/v1", "CronJob", NAME), "spec": spec}


def deployment(image: str) -> Manifest:
    """One pod of the service."""
    container = {
        "name": NAME,
        "image": image,
        "args": ["serve"],
        "env": [
            {"name": "TUNEPROOF_CONFIG", "value": "/etc/tuneproof"},
            {"name": "TUNEPROOF_HOST", "value": "0.0.0.0"},
            *_places(),
            _secret("DATABASE_URL", "database-secret", "url"),
            _secret("OPENAI_API_KEY", "openai-credentials", "api-key"),
            _secret("MLFLOW_TRACKING_URI", "mlflow-secret", "tracking-uri", optional=True),
        ],
        "ports": [
            {"name": "http", "containerPort": 8686},
            {"name": "metrics", "containerPort": 9090},
        ],
        "startupProbe": {**_probe("/ready"), "periodSeconds": 2, "failureThreshold": 60},
        "livenessProbe": {**_probe("/live"), "failureThreshold": 6},
        "readinessProbe": _probe("/ready"),
        "resources": _resources(("512Mi", "500m"), ("2Gi", "2000m")),
        **_confined(),
        "volumeMounts": [
            {"name": "settings", "mountPath": "/etc/tuneproof", "readOnly": True},
            {"name": "data", "mountPath": "/data"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 75,
        "securityContext": _as_nobody(),
        "containers": [container],
        "volumes": [
            {"name": "settings", "configMap": {"name": CONFIG}},
            {"name": "data", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return {
        **_head("apps/v1", "Deployment", NAME),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": NAME}},
            "template": {"metadata": {"labels": {"app": NAME}}, "spec": pod},
        },
    }


def service() -> Manifest:
    """Where the CronJob, applications and Prometheus find the pod."""
    ports = [{"name": name, "port": at, "targetPort": name} for name, at in _PORTS.items()]
    spec = {"selector": {"app": NAME}, "ports": ports}
    return {**_head("v1", "Service", NAME), "spec": spec}


_PORTS = {"http": 8686, "metrics": 9090}


def as_yaml(objects: Sequence[Manifest]) -> str:
    """Objects as the documents of one file."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Keeps the lines of a text that has several."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return str(yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, explicit_start=True))


def _head(version: str, kind: str, name: str) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": _LABELS}}


_LABELS = {"app": NAME}


def _json(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=2) + "\n"


def _secret(variable: str, name: str, key: str, *, optional: bool = False) -> Manifest:
    reference: Manifest = {"name": name, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _places() -> list[Manifest]:
    return [
        {"name": "TUNEPROOF_DIR", "value": "/data/tuneproof"},  # made by its user, so its own
        {"name": "HOME", "value": "/data"},
    ]


def _resources(least: tuple[str, str], most: tuple[str, str]) -> Manifest:
    return {
        "requests": dict(zip(("memory", "cpu"), least, strict=True)),
        "limits": dict(zip(("memory", "cpu"), most, strict=True)),
    }


def _probe(path: str) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 5}


def _as_nobody() -> Manifest:
    ids = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def _confined() -> Manifest:
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    }
