"""Helm installs, upgrades, rolls back and uninstalls on a live API server; targets write it.

The actions are Helm's own, by its engine. What targets write they write with the token of the
chart's ServiceAccount, against the server's own RBAC.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.rendering import NAME, rendered
from tests.deploy.test_chart import DOCUMENTED, VALUES_FILES, values_of
from tests.deployed.control_plane import ControlPlane

from tuneproof.errors import ConflictError, DeniedError
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.targets.cluster import Cluster
from tuneproof.targets.config_map import ConfigMapTarget
from tuneproof.targets.istio import IstioTarget

pytestmark = pytest.mark.cluster

RELEASES = {path.stem.removesuffix("-values"): values_of(path) for path in VALUES_FILES}
RELEASES["documented"] = DOCUMENTED

MODELS = "fine-tuning-models"
KEPT = {
    "ConfigMap": {MODELS},
    "VirtualService": {NAME},
    "Secret": None,
    "PersistentVolumeClaim": None,
}
"""What `helm uninstall` leaves, by kind; None: all of that kind."""

WATCHED: dict[str, Any] = {
    **DOCUMENTED,
    "istio": {"enabled": True, "candidate": {"enabled": True}},
    "modelsConfigMap": {"enabled": True, "models": {"HOOK_MODEL": "base"}, "restart": ["app"]},
}
"""The documented release, with two targets."""


def image(tag: str) -> dict[str, Any]:
    """The same release with another image."""
    service = WATCHED["fineTuningPipeline"]
    return {
        **WATCHED,
        "fineTuningPipeline": {**service, "image": {**service["image"], "tag": tag}},
    }


def routing(share: float, version: int) -> Routing:
    lane = Lane(subject="deploy-1", candidate=Variant(model_id="ft:new"), share=share)
    base = Variant(model_id="base")
    return Routing(task="hook", baseline=base, lanes=(lane,), salt="s", version=version)


def app(namespace: str) -> dict[str, Any]:
    """A deployment of somebody's application, which reads its models from the ConfigMap."""
    labels = {"app": "app"}
    container = {"name": "app", "image": "app:1"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


class Account:
    """The chart's ServiceAccount: what it may write, and how targets are opened with it."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.token = cluster.token_of(namespace, NAME)
        self.reach = Cluster(server=cluster.url, token=self.token, ca_file=str(cluster.ca))
        self.models = ConfigMapTarget(
            MODELS, namespace=namespace, restart=["app"], cluster=self.reach
        )
        self.mesh = IstioTarget(NAME, namespace=namespace, cluster=self.reach)

    def write(self, share: float, version: int) -> None:
        """Both targets take a routing."""
        asyncio.run(self._write(routing(share, version)))

    async def _write(self, wanted: Routing) -> None:
        await self.models.apply(wanted)
        await self.mesh.apply(wanted)


def written(cluster: ControlPlane, namespace: str) -> dict[str, Any]:
    """What targets and the autoscaler have written, as it is now."""
    models = cluster.get(namespace, "configmap", MODELS)["data"]
    routes = cluster.get(namespace, "virtualservice", NAME)["spec"]["http"]
    hook = next(route for route in routes if route.get("name") == "hook")
    return {
        "model": models["HOOK_MODEL"],
        "share": models.get("HOOK_CANDIDATE_SHARE"),
        "weights": [destination["weight"] for destination in hook["route"]],
    }


def deployment(cluster: ControlPlane, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = cluster.get(namespace, "deployment", NAME)["spec"]
    return spec


def runs(cluster: ControlPlane, namespace: str) -> str:
    """The image that the service's pods would have."""
    found: str = deployment(cluster, namespace)["template"]["spec"]["containers"][0]["image"]
    return found


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_every_object_of_a_release_is_taken_and_goes_with_it(
    cluster: ControlPlane, chart: Path, namespace: str, name: str
) -> None:
    values = RELEASES[name]
    made = {
        (o["kind"], o["metadata"]["name"])
        for o in rendered(values, chart=chart, namespace=namespace)
        if o["metadata"].get("annotations", {}).get("helm.sh/hook") != "test"
    }
    assert len(made) >= 5
    with cluster.helm(namespace) as release:
        assert release.install(chart, NAME, values)["status"] == "deployed"
        assert cluster.objects(namespace) == made
        release.uninstall(NAME)
    kept = {(kind, name) for kind, name in made if name in (KEPT.get(kind, ()) or {name})}
    kept -= {(kind, name) for kind, name in made if kind not in KEPT}
    assert cluster.objects(namespace) == kept


@pytest.fixture
def installed(cluster: ControlPlane, chart: Path, namespace: str) -> str:
    """The namespace of a release with two targets, beside an application."""
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(app(namespace)))
    with cluster.helm(namespace) as release:
        release.install(chart, NAME, WATCHED)
    return namespace


def test_what_targets_and_the_autoscaler_write_outlives_upgrade_rollback_and_uninstall(
    cluster: ControlPlane, chart: Path, installed: str
) -> None:
    account = Account(cluster, installed)
    assert written(cluster, installed) == {"model": "base", "share": None, "weights": [100, 0]}
    account.write(0.3, 1)
    cluster.kubectl("scale", "deployment", NAME, "--replicas=3", "-n", installed)
    first = {"model": "base", "share": "0.3000", "weights": [70, 30]}
    assert written(cluster, installed) == first

    with cluster.helm(installed) as release:
        assert release.upgrade(chart, NAME, image("v1.1.0"))["status"] == "deployed"
        assert runs(cluster, installed).endswith(":v1.1.0")
        assert written(cluster, installed) == first
        assert deployment(cluster, installed)["replicas"] == 3

        account.write(1.0, 2)
        second = {"model": "ft:new", "share": "1.0000", "weights": [0, 100]}
        release.rollback(NAME)
        assert runs(cluster, installed).endswith(":v1.0.0")
        assert written(cluster, installed) == second
        assert deployment(cluster, installed)["replicas"] == 3
        assert [one["revision"] for one in release.history(NAME)] == [1, 2, 3]

        secret = cluster.get(installed, "secret", f"{NAME}-postgresql")["data"]
        release.uninstall(NAME)
        assert written(cluster, installed) == second
        with pytest.raises(RuntimeError, match="NotFound"):
            deployment(cluster, installed)

        # What was kept is taken up by a release of the same name, as it is.
        release.install(chart, NAME, WATCHED)
        assert written(cluster, installed) == second
        assert cluster.get(installed, "secret", f"{NAME}-postgresql")["data"] == secret
    Account(cluster, installed).write(0.5, 3)
    assert written(cluster, installed)["weights"] == [50, 50]


def test_an_application_is_restarted_once_for_a_model(
    cluster: ControlPlane, installed: str
) -> None:
    account = Account(cluster, installed)

    def generation() -> int:
        found: int = cluster.get(installed, "deployment", "app")["metadata"]["generation"]
        return found

    before = generation()
    account.write(1.0, 1)
    assert generation() == before + 1
    account.write(1.0, 2)
    assert generation() == before + 1


PATHS = {
    "models": "/api/v1/namespaces/{ns}/configmaps/fine-tuning-models",
    "mesh": "/apis/networking.istio.io/v1/namespaces/{ns}/virtualservices/fine-tuning-pipeline",
    "app": "/apis/apps/v1/namespaces/{ns}/deployments/app",
    "settings": "/api/v1/namespaces/{ns}/configmaps/fine-tuning-config",
    "secret": "/api/v1/namespaces/{ns}/secrets/fine-tuning-pipeline-postgresql",
    "self": "/apis/apps/v1/namespaces/{ns}/deployments/fine-tuning-pipeline",
    "other mesh": "/apis/networking.istio.io/v1/namespaces/{ns}/virtualservices/other",
    "own role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles/fine-tuning-pipeline",
    "elsewhere": "/api/v1/namespaces/default/configmaps/fine-tuning-models",
}
MAY = ("models", "mesh", "app")


@pytest.mark.parametrize("what", sorted(PATHS))
def test_the_account_may_read_and_patch_the_named_objects_and_nothing_else(
    cluster: ControlPlane, installed: str, what: str
) -> None:
    path = PATHS[what].format(ns=installed)
    patch = {"metadata": {"annotations": {"example.com/note": "here"}}}
    with cluster.client(cluster.token_of(installed, NAME)) as client:
        merge = {"Content-Type": "application/merge-patch+json"}
        read = client.get(path).status_code
        wrote = client.patch(path, json=patch, headers=merge).status_code
        assert (read, wrote) == ((200, 200) if what in MAY else (403, 403))
        assert client.delete(path).status_code == 403
        folder = path.rpartition("/")[0]
        assert client.get(folder).status_code == 403, "lists nothing"
        assert client.post(folder, json={"metadata": {"name": "more"}}).status_code == 403


def test_a_target_says_that_it_is_denied_and_what_would_help(
    cluster: ControlPlane, installed: str
) -> None:
    reach = Account(cluster, installed).reach
    target = ConfigMapTarget("fine-tuning-config", namespace=installed, cluster=reach)
    with pytest.raises(DeniedError, match="resourceNames") as caught:
        asyncio.run(target.apply(routing(0.1, 1)))
    assert caught.value.details["status"] == 403
    wrong = Cluster(server=cluster.url, token="nobody's", ca_file=str(cluster.ca))
    with pytest.raises(DeniedError) as caught:
        asyncio.run(wrong.get(PATHS["models"].format(ns=installed)))
    assert caught.value.details["status"] == 401


@pytest.mark.parametrize("what", ["models", "mesh"])
def test_a_stale_version_is_refused_and_a_target_reads_again(
    cluster: ControlPlane, installed: str, what: str
) -> None:
    account, path = Account(cluster, installed), PATHS[what].format(ns=installed)
    kind, name = ("configmap", MODELS) if what == "models" else ("virtualservice", NAME)
    stale = cluster.get(installed, kind, name)["metadata"]["resourceVersion"]
    note = {"metadata": {"resourceVersion": stale, "annotations": {"example.com/note": "late"}}}

    def somebody(mark: str) -> None:
        cluster.kubectl("annotate", kind, name, f"example.com/by={mark}", "-n", installed)

    somebody("first")
    with pytest.raises(ConflictError) as caught:
        asyncio.run(account.reach.patch(path, note))
    assert caught.value.details["status"] == 409

    tries = []

    def make(found: dict[str, Any]) -> dict[str, Any]:
        tries.append(found["metadata"]["resourceVersion"])
        if len(tries) == 1:  # between what it reads and what it writes
            cluster.kubectl("annotate", kind, name, "example.com/too=yes", "-n", installed)
        return {"metadata": {"annotations": {"example.com/note": "ours"}}}

    asyncio.run(account.reach.change(path, make))
    assert len(set(tries)) == 2
    marks = cluster.get(installed, kind, name)["metadata"]["annotations"]
    told = {key: value for key, value in marks.items() if key.startswith("example.com/")}
    assert told == {"example.com/by": "first", "example.com/too": "yes", "example.com/note": "ours"}
