"""What is in the lock, as a software bill of materials: CycloneDX 1.6 JSON.

    python tools/sbom.py requirements.lock dist/sbom.cdx.json

Each package with its version, its package URL, the hashes of its files and the marker under which
it is installed. The same lock gives the same bytes: no time and no random number is in it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Locked", "bill", "locked"]

ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)(?: *; *([^\\]+?))? *\\?$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")

Locked = tuple[str, str, str, tuple[str, ...]]
"""A package's name, version, marker ("" where it is always installed), and its files' SHA-256."""


def locked(text: str) -> Sequence[Locked]:
    """The packages of a lock. Raises `ValueError` for a line that is none of what a lock has."""
    found: list[list[Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if hashed := _HASH.search(line):
            found[-1][3].append(hashed[1])
        elif package := _PACKAGE.match(line):
            found.append([package[1].lower(), package[2], package[3] or "", []])
        else:
            raise ValueError(f"line {number} of the lock is not understood: {line!r}")
    return [(name, version, marker, tuple(hashes)) for name, version, marker, hashes in found]


def bill(packages: Sequence[Locked], project: Mapping[str, Any]) -> dict[str, Any]:
    """The bill of materials of a project with these packages."""
    name, version = project["name"], project["version"]
    own = f"pkg:pypi/{name}@{version}"
    components = [_component(*package) for package in packages]
    content = json.dumps([own, components], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": name,
                "version": version,
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": components,
    }


def _component(name: str, version: str, marker: str, hashes: Sequence[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    properties = [{"name": "python:marker", "value": marker}] if marker else []
    properties += [{"name": "python:sha256", "value": one} for one in hashes]
    ref = f"{purl}?marker={uuid.uuid5(uuid.NAMESPACE_URL, marker)}" if marker else purl
    return {
        "type": "library",
        "bom-ref": ref,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": properties,
    }


def main(lock: str, to: str) -> None:
    """Write the bill of a lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    made = bill(locked(Path(lock).read_text("utf-8")), project)
    target = Path(to)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    print(f"Wrote {target}: {len(made['components'])} packages.")


if __name__ == "__main__":
    main(*sys.argv[1:])
