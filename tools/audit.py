"""Whether the lock has packages with known vulnerabilities, as osv.dev says.

    python tools/audit.py requirements.lock [URL]

Ends with 0 where it was asked and knows none, with 1 where it knows some, and with 2, having said
"not run", where nobody answered: an audit that did not happen is never green.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.sbom import Locked, locked

__all__ = ["audit"]

URL = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 30.0
CLEAN, VULNERABLE, NOT_RUN = 0, 1, 2


def audit(packages: Sequence[Locked], url: str = URL) -> tuple[int, Sequence[str]]:
    """The exit code, and what to say. One page of answers counts; a cut one is no answer."""
    if not packages:
        return NOT_RUN, ["not run: the lock has no packages"]
    queries = [
        {"package": {"ecosystem": "PyPI", "name": name}, "version": version}
        for name, version, _, _ in packages
    ]
    try:
        found = _asked(url, {"queries": queries})["results"]
        if len(found) != len(packages):
            raise ValueError(f"{len(found)} answers to {len(packages)} questions")
        lines = [
            f"{name} {version}: {', '.join(one['id'] for one in answer['vulns'])}"
            for (name, version, _, _), answer in zip(packages, found, strict=True)
            if answer.get("vulns")
        ]
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        return NOT_RUN, [f"not run: {url} did not answer: {error}"]
    if lines:
        return VULNERABLE, lines
    return CLEAN, [f"{len(packages)} packages, none with a vulnerability known to {url}"]


def _asked(
    url: str, body: Mapping[str, object]
) -> Mapping[str, list[Mapping[str, list[Mapping[str, str]]]]]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        answer: Mapping[str, list[Mapping[str, list[Mapping[str, str]]]]] = json.load(response)
    return answer


def main(lock: str, url: str = URL) -> int:
    """Audit a lock; the exit code."""
    code, lines = audit(locked(Path(lock).read_text("utf-8")), url)
    print(*lines, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
