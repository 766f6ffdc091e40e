"""Kubernetes' own API server on etcd, on free ports of loopback: RBAC, a token for the admin.

    with control_plane() as cluster:
        cluster.kubectl("create", "namespace", "fine-tuning")
        cluster.helm("fine-tuning").install(chart, "fine-tuning-pipeline", values)
        cluster.objects("fine-tuning")              # {("ConfigMap", "fine-tuning-config"), ...}
        cluster.token_of("fine-tuning", "fine-tuning-pipeline")     # a ServiceAccount's own

It is what Debian has: 1.20 (`python -m tools.kube_apiserver` builds it). No controllers run: a
Deployment makes no pods, an autoscaler scales nothing, a quota counts nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import httpx2
import yaml
from tests.servers import Server, binary, free_port
from tests.waiting import until
from tools import kube_apiserver

__all__ = ["ControlPlane", "control_plane"]

ITS_OWN = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
OPERATORS = {
    "servicemonitors.monitoring.coreos.com": ("ServiceMonitor", ["v1"]),
    "prometheusrules.monitoring.coreos.com": ("PrometheusRule", ["v1"]),
    "virtualservices.networking.istio.io": ("VirtualService", ["v1", "v1beta1"]),
    "destinationrules.networking.istio.io": ("DestinationRule", ["v1", "v1beta1"]),
    "httproutes.gateway.networking.k8s.io": ("HTTPRoute", ["v1"]),
}
"""The kinds of operators that the chart makes objects of. Here they take any fields."""


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """The API server, and who calls it."""

    url: str
    ca: Path
    token: str
    kubeconfig: Path

    def client(self, token: str | None = None) -> httpx2.Client:
        """A client with the admin's token, or another."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        trusted = ssl.create_default_context(cafile=str(self.ca))
        return httpx2.Client(
            base_url=self.url, headers=headers, verify=trusted, timeout=30, trust_env=False
        )

    def kubectl(self, *args: str, stdin: str = "") -> str:
        """What kubectl prints; raises with its error where it fails."""
        return self.shell(shlex.join(["kubectl", *args]), stdin=stdin)

    def shell(self, text: str, *, stdin: str = "", **env: str) -> str:
        """What a shell prints in which kubectl is the admin's; raises with its error."""
        told = {**os.environ, "KUBECONFIG": str(self.kubeconfig), **env}
        done = subprocess.run(
            ["sh", "-euc", text],
            env={**told, "PATH": f"{kube_apiserver.cache()}:{told['PATH']}"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{text}\n{done.stdout}{done.stderr}")
        return done.stdout

    def helm(self, namespace: str) -> helm.Config:
        """Helm's actions in a namespace, by its own engine."""
        return helm.Config(kubeconfig_path=self.kubeconfig, namespace=namespace)

    def namespace(self) -> str:
        """A new namespace, empty."""
        name = f"fine-tuning-{secrets.token_hex(3)}"
        self.kubectl("create", "namespace", name)
        return name

    def get(self, namespace: str, kind: str, name: str) -> dict[str, Any]:
        """An object; raises where there is none."""
        found: dict[str, Any] = json.loads(
            self.kubectl("get", kind, name, "-n", namespace, "-o", "json")
        )
        return found

    def objects(self, namespace: str) -> set[tuple[str, str]]:
        """All that is in a namespace, but what the server and Helm keep there for themselves."""
        kinds = self.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
        asked = ",".join(kind for kind in kinds if not kind.startswith("events"))
        found = json.loads(self.kubectl("get", asked, "-n", namespace, "-o", "json"))["items"]
        return {
            (one["kind"], one["metadata"]["name"])
            for one in found
            if not str(one.get("type")).startswith("helm.sh/")
        } - ITS_OWN

    def token_of(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount, made as for its pods."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        with self.client() as client:
            answer = client.post(path, json=asked)
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["status"]["token"]
        return token


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Serve until the block ends."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuneproof-kube-")))
        etcd = _etcd(folder)
        etcd.start()
        stack.callback(etcd.stop)
        token = secrets.token_hex(16)
        server, cluster = _api_server(folder, etcd.url, token)
        server.start()
        stack.callback(server.stop)
        _make_kinds(cluster)
        yield cluster


def _etcd(folder: Path) -> Server:
    port, peers = free_port(), free_port()
    url, own = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    (folder / "etcd").mkdir()
    return Server(
        name="etcd",
        url=url,
        port=port,
        command=[
            binary("etcd", "apt-get install -y etcd-server"),
            *("--data-dir", str(folder / "etcd/data")),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", own, "--initial-advertise-peer-urls", own),
            *("--initial-cluster", f"default={own}"),
        ],
        folder=folder / "etcd",
        ready=lambda: _answers(httpx2.Client(base_url=url, trust_env=False), "/health"),
    )


def _api_server(folder: Path, etcd: str, token: str) -> tuple[Server, ControlPlane]:
    own, port = folder / "server", free_port()
    own.mkdir()
    (own / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(
        ["openssl", "genrsa", "-out", str(own / "accounts.key"), "2048"],
        check=True,
        capture_output=True,
    )
    certificates = own / "certificates"
    cluster = ControlPlane(
        url=f"https://127.0.0.1:{port}",
        ca=certificates / "apiserver.crt",
        token=token,
        kubeconfig=own / "kubeconfig",
    )
    options = {
        "etcd-servers": etcd,
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "endpoint-reconciler-type": "none",
        "secure-port": port,
        "insecure-port": 0,
        "cert-dir": certificates,
        "token-auth-file": own / "tokens.csv",
        "authorization-mode": "RBAC",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": own / "accounts.key",
        "service-account-signing-key-file": own / "accounts.key",
        "service-cluster-ip-range": "10.96.0.0/16",
    }
    program = kube_apiserver.binary()
    if not program.exists():
        raise RuntimeError(f"{program} is not there: `python -m tools.kube_apiserver` builds it.")
    cluster.kubeconfig.write_text(_kubeconfig(cluster), "utf-8")
    server = Server(
        name="kube-apiserver",
        url=cluster.url,
        port=port,
        command=[str(program), *(f"--{name}={value}" for name, value in options.items())],
        folder=own,
        ready=lambda: cluster.ca.exists() and _answers(cluster.client(), "/readyz"),
        start_timeout_s=180,
    )
    return server, cluster


def _kubeconfig(cluster: ControlPlane) -> str:
    server = {"server": cluster.url, "certificate-authority": str(cluster.ca)}
    context = {"cluster": "here", "user": "admin"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": server}],
            "users": [{"name": "admin", "user": {"token": cluster.token}}],
            "contexts": [{"name": "here", "context": context}],
            "current-context": "here",
        }
    )


def _answers(client: httpx2.Client, path: str) -> bool:
    with client:
        try:
            return client.get(path, timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False


def _make_kinds(cluster: ControlPlane) -> None:
    kinds = [_kind(name, kind, versions) for name, (kind, versions) in OPERATORS.items()]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(kinds))
    wanted = [f"crd/{name}" for name in OPERATORS]
    cluster.kubectl("wait", "--for=condition=established", "--timeout=60s", *wanted)
    until(lambda: _knows(cluster))


def _knows(cluster: ControlPlane) -> bool:
    names = cluster.kubectl("api-resources", "-o", "name").split()
    return set(OPERATORS) <= set(names)


def _kind(name: str, kind: str, versions: list[str]) -> dict[str, Any]:
    plural, _, group = name.partition(".")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": name,
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
            "versions": [
                {"name": v, "served": True, "storage": v == versions[0], "schema": schema}
                for v in versions
            ],
        },
    }
