"""Reef before an external provider, as `reef serve` starts it without a file; each exchange kept.

python serve.py PROVIDER_URL      prints {"port", "pid", "model", "headers"}, serves until it is
                                  stopped

Its records (SQLite) and its repository lie in a folder that goes with it. Needs git-lfs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile

from reef.cli import main as reef


def main(url: str) -> None:
    """Serve until the process is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"port": port, "pid": os.getpid(), "model": "base"}
    headers = {"x-reef-scenario": "benchmark"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(json.dumps({**found, "headers": headers}), flush=True)
        provider = ["--inference.upstream-url", url.removesuffix("/v1")]
        reef(["serve", *provider, "--inference.upstream-model", "base", "--reef.port", str(port)])


if __name__ == "__main__":
    main(sys.argv[1])
