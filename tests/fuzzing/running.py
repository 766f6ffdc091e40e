"""Schemathesis against a server: requests made from its own document, good ones and bad ones.

    found = await schemathesis(url, folder=tmp_path, ids=ids)
    found.requests, found.failed, found.told    # how many were sent; whether it failed, and why

`TUNEPROOF_FUZZ` says how many requests are sent, `TUNEPROOF_FUZZ_SEED` which.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REQUESTS", "SEED", "Found", "schemathesis"]

REQUESTS = int(os.environ.get("TUNEPROOF_FUZZ", "3000"))
SEED = int(os.environ.get("TUNEPROOF_FUZZ_SEED", "1"))

SUGGESTED, OPERATIONS, LEAST_EXAMPLES = 2_700, 62, 10
"""About how many requests both documents suggest, and how many operations there are of which any
number of different requests can be made."""

LENIENT = (
    "/events",
    "/v1/feedback",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
)
"""What takes more than its document says: numbers as texts, and all that a provider judges."""

HOOKS = Path(__file__).with_name("hooks.py")
LONGEST_S = 4 * 3600


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of it."""

    requests: int
    failed: bool
    told: str


async def schemathesis(
    url: str,
    *,
    folder: Path,
    examples: int | None = None,
    seed: int = SEED,
    without_checks: Sequence[str] = (),
    without_paths: Sequence[str] = (),
    ids: Path | None = None,
    token: str = "",
) -> Found:
    """Send made-up requests to each operation of the document at `url`.

    Each gets those that its document suggests, and up to `examples` of chance, by default as many
    as make `REQUESTS` of both services.
    """
    examples = examples or max(LEAST_EXAMPLES, (REQUESTS - SUGGESTED) // OPERATIONS)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", url]
    command += [f"--exclude-path={path}" for path in without_paths]
    command += [f"--max-examples={examples}", f"--seed={seed}", "--request-timeout=60"]
    command += ["--phases=examples,coverage,fuzzing", "--continue-on-failure", "--no-color"]
    command += ["--suppress-health-check=all", "--generation-database=none"]
    command += [f"--header=Authorization: {token}"] if token else []
    (folder / "schemathesis.toml").write_text(_settings(without_checks))
    hooks = {} if ids is None else {"SCHEMATHESIS_HOOKS": str(HOOKS), "FUZZ_IDS": str(ids)}
    running = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **hooks},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LONGEST_S):
            said, _ = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
    told = said.decode(errors="replace")
    (folder / "told.txt").write_text(told)
    sent = re.search(r"(\d+) generated", told)
    return Found(
        requests=int(sent[1]) if sent else 0,
        failed=running.returncode != 0,
        told=f"seed {seed}\n{told}",
    )


def _settings(without_checks: Sequence[str]) -> str:
    """What is not checked: named on the command line, it would be said of all operations."""
    off = "".join(f"[checks.{name}]\nenabled = false\n" for name in without_checks)
    return off + "".join(
        f'[[operations]]\ninclude-path = "{path}"\n'
        "[operations.checks.negative_data_rejection]\nenabled = false\n"
        for path in LENIENT
    )
