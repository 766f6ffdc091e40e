"""The chart, rendered by Helm's engine, and what its objects must be.

objects = rendered(values)                 # all that an install would create
one(objects, "Deployment", "fine-tuning-pipeline")
faults(objects)                            # by the schemas of two versions of Kubernetes
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource
from tests.first_users import PLACE, ROOT

CHART = ROOT / "deploy" / "helm" / "tuneproof"
KUBERNETES = ("1.25", "1.37")
NAME, NAMESPACE = "fine-tuning-pipeline", "fine-tuning"

Object = dict[str, Any]

OPERATORS = {
    "ServiceMonitor": ("monitoring.coreos.com/v1", ("selector", "endpoints")),
    "PrometheusRule": ("monitoring.coreos.com/v1", ("groups",)),
    "VirtualService": ("networking.istio.io/v1", ("hosts", "http")),
    "DestinationRule": ("networking.istio.io/v1", ("host", "subsets")),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", ("parentRefs", "rules")),
}
"""Kinds that are not Kubernetes' own: their version, and what their `spec` must have."""

HAS_DOCUMENTS = PLACE.is_dir()


def documented(name: str) -> str:
    """A file of the first users' documents about Kubernetes."""
    return (PLACE / "kubernetes" / name).read_text("utf-8")


def rendered(
    values: Mapping[str, Any] | None = None, *, chart: Path = CHART, **given: Any
) -> list[Object]:
    """All objects of a release. Raises `helm.HelmError` where Helm refuses."""
    with helm.Chart.load(chart) as loaded:
        found = loaded.render(dict(values or {}), **{"name": NAME, "namespace": NAMESPACE, **given})
    return list(_objects(found))


def _objects(files: Mapping[str, str]) -> Iterator[Object]:
    for name, text in sorted(files.items()):
        if not name.endswith("NOTES.txt"):
            yield from (document for document in yaml.safe_load_all(text) if document)


def one(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The object of this kind and name."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, [(o["kind"], o["metadata"]["name"]) for o in objects]
    return found[0]


def kinds(objects: Sequence[Object]) -> set[str]:
    """The kinds that are there."""
    return {o["kind"] for o in objects}


def faults(objects: Sequence[Object]) -> list[str]:
    """What the schemas refuse, or do not know."""
    return [fault for o in objects for fault in _faults(o)]


def _faults(found: Object) -> Iterator[str]:
    name = f"{found['kind']} {found['metadata']['name']}"
    if found["kind"] in OPERATORS:
        version, needed = OPERATORS[found["kind"]]
        if found["apiVersion"].partition("/")[0] != version.partition("/")[0]:
            yield f"{name} has {found['apiVersion']}"
        yield from (f"{name} lacks {key}" for key in needed if not found["spec"].get(key))
        return
    for version in KUBERNETES:
        check = _validator(version, found["kind"], found["apiVersion"])
        for error in check.iter_errors(found):
            yield f"{name} by {version}: {'.'.join(map(str, error.path))} {error.message}"


@cache
def _validator(version: str, kind: str, api: str) -> Any:
    """What `kubernetes-validate --strict` holds an object against. Raises for an unknown kind."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    return Draft202012Validator(
        schema, registry=_definitions(version).with_resource("", Resource.from_contents(schema))
    )


@cache
def _definitions(version: str) -> Any:
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    definitions = Resource.from_contents(schema_contents(f"{folder}/_definitions.json", version))
    return definitions @ Registry()


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Each pod's specification, with the object that has it."""
    for found in objects:
        spec = found.get("spec", {})
        if found["kind"] == "Pod":
            yield found["metadata"]["name"], spec
        elif found["kind"] == "CronJob":
            yield found["metadata"]["name"], spec["jobTemplate"]["spec"]["template"]["spec"]
        elif found["kind"] in ("Deployment", "StatefulSet"):
            yield found["metadata"]["name"], spec["template"]["spec"]


def leaves(table: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no table, with its path."""
    if isinstance(table, dict) and table:
        for key, value in table.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, table
