"""Objects of operators, held against what npm's `@kubernetes-models` say of their kinds.

    refused = operators.refusals(objects)      # by schema
    wrong = operators.wrongly_typed(objects)   # by TypeScript: also a key that no kind has

The packages have Istio's `v1beta1`, whose schemas `v1` took over as they were.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.deploy.rendering import Object

__all__ = ["KINDS", "compiled", "installed", "of_operators", "refusals", "wrongly_typed"]

PROJECT = Path(__file__).parent / "npm"
MODULES = PROJECT / "node_modules"
PACKAGES = "@kubernetes-models"

KINDS = {
    "ServiceMonitor": ("prometheus-operator", "monitoring.coreos.com/v1"),
    "PrometheusRule": ("prometheus-operator", "monitoring.coreos.com/v1"),
    "VirtualService": ("istio", "networking.istio.io/v1beta1"),
    "DestinationRule": ("istio", "networking.istio.io/v1beta1"),
    "HTTPRoute": ("gateway-api", "gateway.networking.k8s.io/v1"),
}
"""In which package a kind is, and by which version."""

SAME = {"networking.istio.io/v1": "networking.istio.io/v1beta1"}


def installed() -> None:
    """Bring the packages of the lock. Fails where they cannot be had: nothing is skipped."""
    lock, done = PROJECT / "package-lock.json", MODULES / ".package-lock.json"
    if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
        return
    npm = shutil.which("npm")
    assert npm, "`npm` is missing; `make services` installs Node.js and npm"
    ran = _run([npm, "ci", "--no-audit", "--no-fund"])
    assert ran.returncode == 0, ran.stderr


def of_operators(objects: Sequence[Object]) -> list[Object]:
    """Those of the kinds that are checked here, by the versions that the packages have."""
    return [
        {**found, "apiVersion": SAME.get(found["apiVersion"], found["apiVersion"])}
        for found in objects
        if found["kind"] in KINDS
    ]


def refusals(objects: Sequence[Object]) -> list[str]:
    """What the schemas refuse, an object a line."""
    lines = [json.dumps({**_place(found), "object": found}) for found in of_operators(objects)]
    ran = _run(["node", "check.mjs"], "\n".join(lines))
    assert ran.returncode in (0, 1), ran.stderr
    assert ran.stderr == "", ran.stderr
    return ran.stdout.splitlines()


def _place(found: Object) -> dict[str, str]:
    package, version = KINDS[found["kind"]]
    assert found["apiVersion"] == version, found["apiVersion"]
    return {"place": f"{PACKAGES}/{package}/{version}/{found['kind']}", "kind": found["kind"]}


def wrongly_typed(objects: Sequence[Object], folder: Path) -> list[str]:
    """What the compiler refuses of them as literals of the packages' types."""
    chosen = of_operators(objects)
    imports = {f"import type {{I{o['kind']}}} from '{_place(o)['place']}';" for o in chosen}
    constants = [
        f"export const o{n}: I{found['kind']} = {json.dumps(found)};"
        for n, found in enumerate(chosen)
    ]
    return compiled([*sorted(imports), *constants], folder)


def compiled(lines: Sequence[str], folder: Path) -> list[str]:
    """What the compiler refuses of a program that may import the packages."""
    program = folder / "objects.ts"
    program.write_text("\n".join(lines))
    (folder / "node_modules").symlink_to(MODULES)
    shutil.copy(PROJECT / "tsconfig.json", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    ran = _run([str(MODULES / ".bin" / "tsc"), "--project", str(folder)])
    assert ran.stderr == "", ran.stderr
    return ran.stdout.splitlines()


def _run(command: list[str], said: str = "") -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        command, cwd=PROJECT, input=said, capture_output=True, text=True, timeout=300, check=False
    )
