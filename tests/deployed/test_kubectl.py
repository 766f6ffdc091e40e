"""The lines for kubectl, ours and the documented ones, are run by kubectl on a live API server."""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml
from tests.deploy.rendering import HAS_DOCUMENTS, NAME, documented
from tests.deployed.charts import beta
from tests.deployed.control_plane import ControlPlane
from tests.documents import ROOT, Block, blocks, commands

pytestmark = pytest.mark.cluster

PAGE = ROOT / "docs/how-to/kubernetes.md"
CONFIG = "fine-tuning-config"

_NAMESPACE = re.compile(r"((?:-n |--namespace[= ]|namespace |namespace: ))fine-tuning(?![-\w])")


class Place:
    """A namespace that lines which say `fine-tuning` are run in, and a folder for their /tmp."""

    def __init__(self, cluster: ControlPlane, namespace: str, folder: Path) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder

    def here(self, text: str) -> str:
        """The same text, for this namespace and folder."""
        text = _NAMESPACE.sub(rf"\g<1>{self.namespace}", text)
        text = text.replace("create namespace", "get namespace")  # it is made already
        return text.replace("/tmp", str(self.folder))

    def run(self, text: str) -> str:
        """What the lines print; raises where one fails."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        home = str(self.folder)
        keys = {"OPENAI_API_KEY": "sk-test", "TOKEN": "secret"}
        return self.cluster.shell(self.here(text), PATH=path, HOME=home, **keys)

    def rewrite(self) -> None:
        """Give the manifests that lie in the folder the versions of this server."""
        for path in self.folder.glob("*.yaml"):
            path.write_text(beta(path.read_text("utf-8")), "utf-8")

    def secret(self, name: str) -> dict[str, str]:
        """What a Secret holds."""
        data = self.cluster.get(self.namespace, "secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


@pytest.fixture
def place(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Place:
    """The documented lines name the namespace in some places only, as the default in others."""
    cluster.kubectl("config", "set-context", "--current", f"--namespace={namespace}")
    return Place(cluster, namespace, tmp_path)


def lines(words: tuple[str, ...], page: Path = PAGE) -> list[str]:
    """The commands of a page that begin with one of these words, in order."""
    shown: list[Block] = [block for block in blocks(page) if block.language == "console"]
    told = [command for block in shown for command, _ in commands(block.text)]
    return [command for command in told if command.startswith(words)]


def test_the_pages_secrets_are_those_that_the_charts_pods_ask_for(
    place: Place, chart: Path
) -> None:
    told = lines(("kubectl create",))
    assert len(told) == 5
    for line in told:
        place.run(line)
    with place.cluster.helm(place.namespace) as release:
        release.install(chart, NAME, {"fineTuningPipeline": {"schedule": {"driver": "external"}}})
    for kind in ("deployment", "cronjob"):
        for name, key in _asked(place, kind):
            assert place.secret(name)[key], (kind, name, key)
    assert place.secret("openai-secret") == {"api-key": "sk-..."}
    assert place.secret("tuneproof-token") == {"token": "secret"}


def _asked(place: Place, kind: str) -> set[tuple[str, str]]:
    """The Secrets that must be there, by name and key."""
    text = yaml.safe_dump(place.cluster.get(place.namespace, kind, NAME))
    return set(_references(yaml.safe_load(text)))


def _references(found: Any) -> list[tuple[str, str]]:
    if isinstance(found, list):
        return [one for entry in found for one in _references(entry)]
    if not isinstance(found, dict):
        return []
    asked = found.get("secretKeyRef")
    own = [(asked["name"], asked["key"])] if asked and not asked.get("optional") else []
    return own + [one for entry in found.values() for one in _references(entry)]


def test_the_pages_manifests_are_taken_by_kubectl(place: Place) -> None:
    made, *applied = lines(("tuneproof manifests", "kubectl apply", "kubectl get"))
    place.run(made)
    place.rewrite()
    assert [line.split()[1] for line in applied] == ["apply"] * 3 + ["get"]
    shown = [place.run(line) for line in applied]
    assert shown[0] == f"configmap/{CONFIG} created\n"
    assert "0 2 * * 0" in shown[-1]
    assert place.cluster.objects(place.namespace) == {
        ("ConfigMap", CONFIG),
        *((kind, NAME) for kind in ("CronJob", "Deployment", "Service")),
    }


if HAS_DOCUMENTS:

    @pytest.mark.parametrize("name", ["secrets.sh", "namespace-quota.sh"])
    def test_the_documents_own_lines_are_run(place: Place, name: str) -> None:
        before = place.cluster.objects(place.namespace)
        place.run(documented(name))
        assert place.cluster.objects(place.namespace) > before

    def test_the_documents_own_deployment_is_run(place: Place) -> None:
        place.run(lines(("tuneproof manifests",))[0])
        place.rewrite()
        shown = place.run(documented("deploy.sh"))
        assert f"cronjob.batch/{NAME} created" in shown
        assert place.secret("openai-credentials") == {"api-key": "sk-test"}


def test_a_config_map_that_kubectl_made_is_not_taken_over_unasked(
    place: Place, chart: Path
) -> None:
    """The lines of the page hand it over; without them Helm says whose it is not."""
    place.run(lines(("tuneproof manifests",))[0])
    place.run("kubectl apply -f /tmp/fine_tuning_configmap.yaml")
    with place.cluster.helm(place.namespace) as release:
        with pytest.raises(helm.HelmError, match=f'(?s)"{CONFIG}".*ownership'):
            release.install(chart, NAME)
        assert place.cluster.objects(place.namespace) == {("ConfigMap", CONFIG)}
        [line] = lines((f"kubectl delete configmap {CONFIG}",))
        place.run(line)
        release.install(chart, NAME)
    found = place.cluster.get(place.namespace, "configmap", CONFIG)["data"]
    assert set(found) == {"training_config.json", "pipeline_config.yaml", "tuneproof.json"}
