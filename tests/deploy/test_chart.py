"""The Helm chart: what it renders, what it refuses, and that each object is one of Kubernetes'."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml
from tests.deploy.rendering import (
    CHART,
    HAS_DOCUMENTS,
    NAME,
    OPERATORS,
    Object,
    documented,
    faults,
    kinds,
    leaves,
    one,
    pods,
    rendered,
)
from tools import chart

VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))

DOCUMENTED: dict[str, Any] = {
    "fineTuningPipeline": {
        "image": {
            "repository": "threads-agent/fine-tuning-pipeline",
            "tag": "v1.0.0",
            "pullPolicy": "IfNotPresent",
        },
        "config": {
            "trainingDataThreshold": 100,
            "engagementThreshold": 0.06,
            "weeklySchedule": "0 2 * * 0",
            "abTestDurationHours": 168,
        },
        "resources": {
            "requests": {"memory": "512Mi", "cpu": "500m"},
            "limits": {"memory": "2Gi", "cpu": "2000m"},
        },
        "autoscaling": {
            "enabled": True,
            "minReplicas": 1,
            "maxReplicas": 5,
            "targetCPUUtilization": 70,
            "targetMemoryUtilization": 80,
        },
        "kubernetesOptimizations": {
            "connectionPools": {
                "database": {
                    "minSize": 2,
                    "maxSize": 10,
                    "maxQueries": 50000,
                    "maxInactiveLifetime": 300,
                },
                "redis": {"maxConnections": 20, "healthCheckInterval": 30},
            },
            "circuitBreakers": {
                "openai": {"failureThreshold": 3, "timeout": 120},
                "mlflow": {"failureThreshold": 5, "timeout": 60},
            },
        },
    },
    "postgresql": {
        "enabled": True,
        "auth": {"database": "threads_agent", "username": "threads_agent"},
        "primary": {
            "persistence": {"size": "20Gi"},
            "resources": {"requests": {"memory": "1Gi", "cpu": "500m"}},
        },
    },
    "redis": {
        "enabled": True,
        "auth": {"enabled": False},
        "master": {
            "persistence": {"size": "5Gi"},
            "resources": {"requests": {"memory": "256Mi", "cpu": "250m"}},
        },
    },
    "mlflow": {"enabled": True, "trackingServer": {"persistence": {"size": "10Gi"}}},
    "prometheus": {"enabled": True, "serviceMonitor": {"enabled": True, "interval": "30s"}},
    "grafana": {"enabled": True, "dashboards": {"fineTuning": True}},
}
"""What the first users install with; `rendered(DOCUMENTED)` is their release."""


def values_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8")) or {}


@pytest.fixture(scope="module")
def documented_release() -> list[Object]:
    return rendered(DOCUMENTED)


if HAS_DOCUMENTS:

    def test_the_table_of_documented_values_is_the_documents_own_file() -> None:
        assert yaml.safe_load(documented("values.yaml")) == DOCUMENTED


def test_the_schemas_notice_a_key_that_is_misspelt(documented_release: list[Object]) -> None:
    deployment = copy.deepcopy(one(documented_release, "Deployment", NAME))
    deployment["spec"]["strateggy"] = {}
    found = faults([deployment])
    assert len(found) == 2
    assert all("strateggy" in fault for fault in found)


# --- what is rendered ------------------------------------------------------------------


@pytest.mark.parametrize("path", VALUES_FILES, ids=lambda path: path.stem)
def test_each_values_file_renders_objects_of_kubernetes(path: Path) -> None:
    values = values_of(path)
    objects = rendered(values)
    assert faults(objects) == []
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    report = helm.lint(str(CHART), values, strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    assert report["errors"] == []


def test_the_documented_values_install_as_they_are(documented_release: list[Object]) -> None:
    assert faults(documented_release) == []
    assert {
        "HorizontalPodAutoscaler",
        "StatefulSet",
        "ServiceMonitor",
        "PersistentVolumeClaim",
    } <= (kinds(documented_release))
    deployment = one(documented_release, "Deployment", NAME)
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "threads-agent/fine-tuning-pipeline:v1.0.0"
    assert "replicas" not in deployment["spec"], "the autoscaler's, which Helm would set back"
    assert one(documented_release, "Service", NAME)["spec"]["selector"] == {"app": NAME}


def test_everything_covers_each_kind_that_any_file_renders() -> None:
    everything = rendered(values_of(CHART / "ci" / "everything-values.yaml"))
    found = {kind for path in VALUES_FILES for kind in kinds(rendered(values_of(path)))}
    assert found == kinds(everything)
    assert found >= set(OPERATORS) - {"PrometheusRule"} | {"CronJob", "NetworkPolicy", "Role"}


def test_without_values_everything_is_outside() -> None:
    objects = rendered()
    assert kinds(objects) == {
        *("ConfigMap", "Deployment", "Service", "ServiceAccount", "PersistentVolumeClaim"),
        *("PodDisruptionBudget", "Pod"),
    }
    container = one(objects, "Deployment", NAME)["spec"]["template"]["spec"]["containers"][0]
    secrets = {
        e["name"]: e["valueFrom"]["secretKeyRef"]
        for e in container["env"]
        if "secretKeyRef" in e.get("valueFrom", {})
    }
    assert secrets == {
        "DATABASE_URL": {"name": "database-secret", "key": "url"},
        "OPENAI_API_KEY": {"name": "openai-secret", "key": "api-key"},
        "MLFLOW_TRACKING_URI": {"name": "mlflow-secret", "key": "tracking-uri", "optional": True},
    }


@pytest.mark.parametrize("path", VALUES_FILES, ids=lambda path: path.stem)
def test_every_pod_is_confined_and_limited(path: Path) -> None:
    for name, pod in pods(rendered(values_of(path))):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert isinstance(pod["securityContext"]["runAsUser"], int), name
        assert pod["enableServiceLinks"] is False, "a Service named tuneproof sets TUNEPROOF_PORT"
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            where = f"{name}/{container['name']}"
            confined = container["securityContext"]
            assert confined["readOnlyRootFilesystem"] is True, where
            assert confined["allowPrivilegeEscalation"] is False, where
            assert confined["capabilities"] == {"drop": ["ALL"]}, where
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where


@pytest.mark.parametrize("path", VALUES_FILES, ids=lambda path: path.stem)
def test_every_mount_has_its_volume_and_every_reference_its_object(path: Path) -> None:
    objects = rendered(values_of(path))
    for name, pod in pods(objects):
        known = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert {m["name"] for m in container.get("volumeMounts", [])} <= known, name
        for volume in pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "")
            if claim.startswith(NAME):
                one(objects, "PersistentVolumeClaim", claim)


def test_the_data_directory_is_made_by_its_user(documented_release: list[Object]) -> None:
    """A folder that a mount makes is root's: gateways found no socket in it, and did not start."""
    pod = one(documented_release, "Deployment", NAME)["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        env = {e["name"]: e.get("value") for e in container["env"]}
        mounts = {m["mountPath"] for m in container["volumeMounts"]}
        assert env["TUNEPROOF_DIR"] not in mounts
        assert "/data" in mounts
        below = {m for m in mounts if m.startswith(f"{env['TUNEPROOF_DIR']}/")}
        assert below == (set() if container["name"] == "migrate" else {"/data/tuneproof/datasets"})


def test_services_select_the_pods_that_they_are_for(documented_release: list[Object]) -> None:
    labels = {
        o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"]
        for o in documented_release
        if o["kind"] in ("Deployment", "StatefulSet")
    }
    for service in (o for o in documented_release if o["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        name = service["metadata"]["name"]
        assert [n for n, found in labels.items() if selector <= found.items()] == [name]


def test_prometheus_scrapes_the_documented_job(documented_release: list[Object]) -> None:
    monitor = one(documented_release, "ServiceMonitor", NAME)["spec"]
    service = one(documented_release, "Service", NAME)
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "fine-tuning-pipeline"
    assert monitor["endpoints"][0]["interval"] == "30s"
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


RULES = """groups:
- name: fine-tuning-pipeline.rules
  rules:
  - alert: FineTuningPipelineDown
    expr: up{job="fine-tuning-pipeline"} == 0
    annotations:
      description: "It is {{ $value }}"
      runbook_url: "https://docs.threads-agent.com/runbooks/pipeline-down"
"""
DASHBOARD = '{"title": "Fine-Tuning", "legend": "{{ arm }}"}'


def test_each_gateway_process_is_scraped_by_its_own_port() -> None:
    values = merged({"fineTuningPipeline/gateways": 2})
    objects = rendered(values)
    spec = one(objects, "Deployment", NAME)["spec"]["template"]["spec"]
    ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
    assert (ports["metrics"], ports["metrics-1"], ports["metrics-2"]) == (9090, 9091, 9092)
    service = one(objects, "Service", NAME)["spec"]["ports"]
    assert {p["targetPort"] for p in service} == set(ports)
    monitor = one(objects, "ServiceMonitor", NAME)["spec"]["endpoints"]
    assert [e["port"] for e in monitor] == ["metrics", "metrics-1", "metrics-2"]


def test_rules_and_dashboards_are_taken_as_they_lie_in_the_chart(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "tuneproof")
    files = tmp_path / "tuneproof" / "files"
    shutil.rmtree(files, ignore_errors=True)
    (files / "prometheus").mkdir(parents=True)
    (files / "grafana").mkdir()
    (files / "prometheus" / "fine-tuning-pipeline.rules.yaml").write_text(RULES)
    (files / "grafana" / "performance.json").write_text(DASHBOARD)
    values = merged({"prometheus/rules": {"runbookBaseUrl": "https://wiki/runbooks"}})
    objects = rendered(values, chart=tmp_path / "tuneproof")
    rules = one(objects, "PrometheusRule", f"{NAME}-fine-tuning-pipeline-rules")
    assert rules["spec"] == yaml.safe_load(
        RULES.replace("https://docs.threads-agent.com/runbooks", "https://wiki/runbooks")
    )
    dashboard = one(objects, "ConfigMap", f"{NAME}-dashboard-performance")
    assert json.loads(dashboard["data"]["performance.json"]) == json.loads(DASHBOARD)
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert faults(objects) == []


def test_a_second_release_of_a_namespace_shares_no_object() -> None:
    def names(**values: Any) -> set[tuple[str, str]]:
        return {(o["kind"], o["metadata"]["name"]) for o in rendered(merged(values), name="second")}

    assert not names() & names(fullnameOverride="second")


def test_a_changed_setting_replaces_the_pods() -> None:
    def mark(**config: Any) -> str:
        objects = rendered({"fineTuningPipeline": {"config": config}})
        template = one(objects, "Deployment", NAME)["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/config"]

    assert mark(trainingDataThreshold=100) == mark()
    assert mark(trainingDataThreshold=101) != mark()


def test_the_autoscaler_is_the_documented_one(documented_release: list[Object]) -> None:
    spec = one(documented_release, "HorizontalPodAutoscaler", NAME)["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 5)
    wanted = {m["resource"]["name"]: m["resource"]["target"] for m in spec["metrics"]}
    assert {name: target["averageUtilization"] for name, target in wanted.items()} == {
        "cpu": 70,
        "memory": 80,
    }
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 30
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_the_job_is_the_documented_one_and_only_where_it_starts_runs() -> None:
    assert "CronJob" not in kinds(rendered(DOCUMENTED)), "the service would start runs, too"
    objects = rendered({"fineTuningPipeline": {"schedule": {"driver": "external"}}})
    job = one(objects, "CronJob", "fine-tuning-pipeline")["spec"]
    assert (job["schedule"], job["timeZone"]) == ("0 2 * * 0", "Etc/UTC")
    assert (job["concurrencyPolicy"], job["startingDeadlineSeconds"]) == ("Forbid", 3600)
    container = job["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["name"] == "fine-tuning"
    assert container["resources"] == {
        "requests": {"memory": "1Gi", "cpu": "1000m"},
        "limits": {"memory": "4Gi", "cpu": "2000m"},
    }
    settings = json.loads(one(objects, "ConfigMap", "fine-tuning-config")["data"]["tuneproof.json"])
    assert settings["pipelines"]["default"]["schedule"]["driver"] == "external"


def test_claims_stay_within_the_documented_three_and_its_fifty_gigabytes(
    documented_release: list[Object],
) -> None:
    claims = [o["spec"] for o in documented_release if o["kind"] == "PersistentVolumeClaim"]
    claims += [
        template["spec"]
        for o in documented_release
        if o["kind"] == "StatefulSet"
        for template in o["spec"]["volumeClaimTemplates"]
    ]
    sizes = [claim["resources"]["requests"]["storage"] for claim in claims]
    assert sorted(sizes) == ["20Gi", "25600Mi", "5Gi"]
    shared = one(documented_release, "PersistentVolumeClaim", NAME)
    assert shared["spec"]["accessModes"] == ["ReadWriteMany"]


def test_one_pod_takes_a_simple_volume_and_turns() -> None:
    objects = rendered()
    claim = one(objects, "PersistentVolumeClaim", NAME)["spec"]
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert one(objects, "Deployment", NAME)["spec"]["strategy"] == {"type": "Recreate"}


def test_object_store_takes_the_volumes_place_for_several_pods() -> None:
    objects = rendered(values_of(CHART / "ci" / "object-store-values.yaml"))
    deployment = one(objects, "Deployment", NAME)["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (3, "RollingUpdate")
    assert "PersistentVolumeClaim" not in {found["kind"] for found in objects}
    pod = deployment["template"]["spec"]
    assert [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume] == []
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    told = one(objects, "ConfigMap", "fine-tuning-config")["data"]["tuneproof.json"]
    url = "s3://datasets/tuneproof"
    assert json.loads(told)["files"] == {"url": url, "cache_mb": 1024}


def test_the_embedded_database_takes_the_connections_of_all_pods(
    documented_release: list[Object],
) -> None:
    spec = one(documented_release, "StatefulSet", f"{NAME}-postgresql")["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert container["args"] == ["-c", "max_connections=128"], "6 pods x 18, and 20 for others"
    assert container["volumeMounts"][0]["mountPath"] == "/var/lib/postgresql"


def test_mlflow_is_told_by_which_names_it_is_called(documented_release: list[Object]) -> None:
    args = one(documented_release, "Deployment", f"{NAME}-mlflow")["spec"]["template"]["spec"][
        "containers"
    ][0]["args"]
    allowed = next(a for a in args if a.startswith("--allowed-hosts=")).partition("=")[2].split(",")
    container = one(documented_release, "Deployment", NAME)["spec"]["template"]["spec"][
        "containers"
    ]
    env = {e["name"]: e.get("value") for e in container[0]["env"]}
    assert env["MLFLOW_TRACKING_URI"].removeprefix("http://") in allowed


def test_the_trainer_takes_turns_on_its_gpu() -> None:
    objects = rendered(values_of(CHART / "ci" / "trainer-on-gpu-values.yaml"))
    spec = one(objects, "Deployment", f"{NAME}-trainer")["spec"]
    assert spec["strategy"] == {"type": "Recreate"}
    container = spec["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--model=/models/SmolLM2-1.7B-Instruct" in container["args"]
    settings = json.loads(one(objects, "ConfigMap", "fine-tuning-config")["data"]["tuneproof.json"])
    assert settings["providers"]["default"]["base_url"] == f"http://{NAME}-trainer:8700/v1"


# --- what others write -------------------------------------------------------------------

MESH = {
    "istio": {"enabled": True, "candidate": {"enabled": True}},
    "modelsConfigMap": {"enabled": True, "models": {"HOOK_MODEL": "a"}, "restart": ["app"]},
    "postgresql": {"enabled": True},
    "redis": {"enabled": True, "auth": {"enabled": True}},
}
WRITTEN = {
    ("VirtualService", NAME),
    ("ConfigMap", "fine-tuning-models"),
    ("Secret", f"{NAME}-postgresql"),
    ("Secret", f"{NAME}-redis"),
}


def once(objects: list[Object]) -> dict[tuple[str, str], dict[str, str]]:
    return {
        (o["kind"], o["metadata"]["name"]): o["metadata"].get("annotations", {})
        for o in objects
        if (o["kind"], o["metadata"]["name"]) in WRITTEN
    }


def test_what_a_target_writes_is_made_once_by_a_hook_and_kept() -> None:
    found = once(rendered(MESH))
    assert set(found) == WRITTEN
    for name, marks in found.items():
        assert marks["helm.sh/resource-policy"] == "keep", name
        assert marks["helm.sh/hook"] == "pre-install,pre-upgrade", name
        assert marks["helm.sh/hook-delete-policy"] == "hook-failed", name
    weights = {name: int(annotations["helm.sh/hook-weight"]) for name, annotations in found.items()}
    assert weights["Secret", f"{NAME}-postgresql"] < weights["VirtualService", NAME]


def test_what_a_target_writes_can_be_rendered_or_left_out() -> None:
    plain = once(rendered({**MESH, "createOnce": "object"}))
    assert set(plain) == WRITTEN
    assert all("helm.sh/hook" not in annotations for annotations in plain.values())
    assert once(rendered({**MESH, "createOnce": "none"})) == {}


def test_the_role_names_each_object_that_it_may_write() -> None:
    rules = one(rendered(MESH), "Role", NAME)["rules"]
    assert all(rule["resourceNames"] and rule["verbs"] == ["get", "patch"] for rule in rules)
    assert {rule["resources"][0]: rule["resourceNames"] for rule in rules} == {
        "configmaps": ["fine-tuning-models"],
        "deployments": ["app"],
        "virtualservices": [NAME],
    }
    pod = one(rendered(MESH), "Deployment", NAME)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    pod = one(rendered(), "Deployment", NAME)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False, "nothing of ours calls the API server then"


def test_the_mesh_is_the_documented_one_with_weights_that_sum_to_100() -> None:
    objects = rendered(MESH)
    routes = one(objects, "VirtualService", NAME)["spec"]["http"]
    first, *_, last = routes
    assert first["match"] == [{"headers": {"x-ab-test": {"exact": "candidate"}}}]
    assert first["route"][0]["destination"]["subset"] == "candidate"
    assert last["route"][0]["destination"]["subset"] == "baseline"
    for route in routes:
        weights = [to["weight"] for to in route["route"]]
        assert sum(weights) == 100
        assert all(0 <= weight <= 100 for weight in weights)
    assert {route["name"] for route in routes} >= {"hook", "body"}, "as the target looks for them"
    rule = one(objects, "DestinationRule", NAME)["spec"]
    assert rule["host"] == "fine-tuning-pipeline.fine-tuning.svc.cluster.local"
    pool = rule["trafficPolicy"]["connectionPool"]
    assert pool["tcp"] == {"maxConnections": 100}
    assert pool["http"] == {"http1MaxPendingRequests": 50, "maxRequestsPerConnection": 10}
    assert rule["trafficPolicy"]["loadBalancer"] == {"simple": "LEAST_REQUEST"}
    subsets = {subset["name"]: subset["labels"] for subset in rule["subsets"]}
    labels = [
        o["spec"]["template"]["metadata"]["labels"] for o in objects if o["kind"] == "Deployment"
    ]
    for name, wanted in subsets.items():
        assert any(wanted.items() <= found.items() for found in labels), name


# --- what is refused ---------------------------------------------------------------------


def merged(changes: dict[str, Any], base: dict[str, Any] = DOCUMENTED) -> dict[str, Any]:
    found = copy.deepcopy(base)
    for path, value in changes.items():
        *tables, key = path.split("/")
        at = found
        for table in tables:
            at = at.setdefault(table, {})
        at[key] = value
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fineTuningPipeline/autoscaling/minReplicas": 6}, "minReplicas (6) is above maxReplicas"),
        (
            {"fineTuningPipeline/kubernetesOptimizations/connectionPools/database/minSize": 11},
            "minSize (11) is above maxSize (10)",
        ),
        ({"persistence/enabled": False}, "5 pods would keep datasets where the others"),
        ({"persistence/accessMode": "ReadWriteOnce"}, "5 pods would keep datasets"),
        (
            {"files/url": "s3://bucket", "persistence/existingClaim": "mine"},
            "Take one of them",
        ),
        ({"openai/existingSecret": ""}, "5 pods would each start a trainer of their own"),
        (
            {"postgresql/enabled": False},
            "5 pods and 1 more during an update keep up to 18 connections each, 108 together; "
            "externalDatabase.maxConnections is 100",
        ),
        (
            {"postgresql/enabled": False, "externalDatabase/existingSecret": ""},
            "There is no database",
        ),
        ({"istio/enabled": True}, "would get 503"),
        (
            {"istio/enabled": True, "istio/host": "a.b", "istio/candidate/enabled": True},
            "Take one of them",
        ),
        ({"ingress/enabled": True}, "ingress.host is empty"),
        ({"httpRoute/enabled": True}, "httpRoute.parentRefs is empty"),
        (
            {
                "fineTuningPipeline/schedule/driver": "external",
                "serviceToken/existingSecret": "",
            },
            "no token to call the service with",
        ),
        (
            {
                "fineTuningPipeline/trainingConfig": {
                    "data_collection": {"engagement_threshold": 0.05}
                }
            },
            "Say it once, in config",
        ),
        (
            {"resourceQuota/enabled": True},
            "limits.cpu would be 14000m (service 6 x 2000m + postgresql 1 x 1000m + redis 1 x 500m "
            "+ mlflow 1 x 500m), and 10 is the quota",
        ),
        (
            {
                "resourceQuota/enabled": True,
                "fineTuningPipeline/autoscaling/maxReplicas": 2,
                "trainer/enabled": True,
                "trainer/resources": {
                    "requests": {"cpu": 1, "memory": "1Gi"},
                    "limits": {"cpu": 1, "memory": "1Gi"},
                },
            },
            "persistentvolumeclaims would be 4 (service, postgresql, redis, trainer)",
        ),
        (
            {
                "resourceQuota/enabled": True,
                "fineTuningPipeline/autoscaling/maxReplicas": 2,
                "fineTuningPipeline/resources/limits/memory": "8Gi",
            },
            "limits.memory would be",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(helm.HelmRenderError) as raised:
        rendered(merged(changes))
    assert said in str(raised.value)


def test_the_documented_quota_takes_two_pods() -> None:
    """With five the limits of CPU alone are past it, as the documents have them."""
    values = merged(
        {"resourceQuota/enabled": True, "fineTuningPipeline/autoscaling/maxReplicas": 3}
    )
    quota = one(rendered(values), "ResourceQuota", "fine-tuning-quota")["spec"]["hard"]
    assert quota == {
        "requests.cpu": "4",
        "requests.memory": "8Gi",
        "limits.cpu": "10",
        "limits.memory": "20Gi",
        "persistentvolumeclaims": "3",
    }
    with pytest.raises(helm.HelmRenderError, match=r"limits\.cpu would be 12000m"):
        rendered(merged({"fineTuningPipeline/autoscaling/maxReplicas": 4}, values))


@pytest.mark.parametrize(
    ("value", "quantity"),
    [("500m", 500), (2, 2000), ("1.5", 1500), (0.25, 250)],
)
def test_quantities_of_cpu_are_read_as_kubernetes_reads_them(value: Any, quantity: int) -> None:
    resources = {"requests": {"cpu": value, "memory": 1}, "limits": {"cpu": value, "memory": 1}}
    values = {
        "fineTuningPipeline": {"resources": resources},
        "resourceQuota": {"enabled": True, "hard": {"limits.cpu": f"{quantity}m"}},
    }
    rendered(values)
    values["resourceQuota"]["hard"]["limits.cpu"] = f"{quantity - 1}m"
    with pytest.raises(helm.HelmRenderError, match=f"would be {quantity}m"):
        rendered(values)


@pytest.mark.parametrize(
    ("value", "mebibytes"),
    [("1Gi", 1024), ("2048Ki", 2), ("1073741824", 1024), ("1G", 953), (1048576, 1)],
)
def test_quantities_of_memory_are_read_as_kubernetes_reads_them(value: Any, mebibytes: int) -> None:
    resources = {"requests": {"cpu": 1, "memory": value}, "limits": {"cpu": 1, "memory": value}}
    values = {
        "fineTuningPipeline": {"resources": resources},
        "resourceQuota": {"enabled": True, "hard": {"limits.memory": "1"}},
    }
    with pytest.raises(helm.HelmRenderError, match=f"would be {mebibytes}Mi"):
        rendered(values)


@pytest.mark.parametrize(
    "values",
    [
        {"fineTuningPipline": {}},
        {"fineTuningPipeline": {"config": {"trainingDataTreshold": 1}}},
        {"fineTuningPipeline": {"replicaCount": 0}},
        {"fineTuningPipeline": {"schedule": {"driver": "cron"}}},
        {"postgresql": {"auth": {"password": "x"}}},
        {"redis": {"enabled": "yes"}},
    ],
)
def test_unknown_keys_and_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError):
        rendered(values)


# --- what is made from what --------------------------------------------------------------


def test_schema_readme_and_copies_are_as_the_tool_writes_them() -> None:
    assert chart.drifted() == [], "run: python -m tools.chart"


def test_every_value_is_in_schema_and_readme() -> None:
    text = (CHART / "values.yaml").read_text("utf-8")
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    page = (CHART / "README.md").read_text("utf-8")
    for value in chart.values(text):
        at = schema
        for name in value.path:
            at = at["properties"][name]
        assert value.is_table or f"`{'.'.join(value.path)}`" in page, value.path
    read = {".".join(v.path) for v in chart.values(text)}
    closed = {path for path, _ in leaves(yaml.safe_load(text))}
    assert all(any(path == r or path.startswith(f"{r}.") for r in read) for path in closed)


def test_every_value_is_used() -> None:
    """A value that no template names would be promised and without effect."""
    templates = "".join(p.read_text("utf-8") for p in (CHART / "templates").rglob("*.*"))
    unused = []
    for value in chart.values((CHART / "values.yaml").read_text("utf-8")):
        name = value.path[-1]
        within = value.path[:2] == ("resourceQuota", "hard") or value.path[0] == "global"
        if not value.is_table and not within and not re.search(rf"\.{name}\b", templates):
            unused.append(".".join(value.path))
    assert unused == []


FUNCTIONS = """
add and append base concat deepCopy default dict dig div eq ext fail float64 fromJson
fromYaml get gt hasSuffix include index int int64 join kindIs last len list lookup max
merge mergeOverwrite mul mulf ne nindent not or print printf quote randAlphaNum replace
rest semverCompare set sha256sum splitList ternary toJson toPrettyJson toString toYaml tpl
trimSuffix until
"""
"""What templates call; all are in Helm 3.8 (Sprig 3.2.2, and Helm's own)."""

_WORDS = {"if", "else", "end", "range", "with", "define", "true", "false", "dict", "nil"}


def test_templates_call_only_what_helm_3_8_knows() -> None:
    called: set[str] = set()
    for path in (CHART / "templates").rglob("*.*"):
        for action in re.findall(r"{{-?(.*?)-?}}", path.read_text("utf-8"), re.DOTALL):
            if action.strip().startswith("/*"):
                continue
            plain = re.sub(r'"[^"]*"', '""', action)
            words = re.findall(r"(?<![.$\w/])([a-z][A-Za-z0-9]*)", plain)
            called |= set(words) - _WORDS
    assert called <= set(FUNCTIONS.split()), called - set(FUNCTIONS.split())
