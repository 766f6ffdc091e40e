"""A Ray cluster of two nodes on this machine, each a `ray start` of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from tests.servers import die_with_parent, free_port
from tests.waiting import until

__all__ = ["Cluster", "Node", "cluster_of_two"]

_RAY = Path(sys.executable).with_name("ray")
_TRIES = 3


class Node:
    """One node: a raylet, and what it started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def members(self) -> list[psutil.Process]:
        """The training workers on this node."""
        return [one for one in self._all() if "RayTrainWorker" in _title(one)]

    def titles(self) -> list[str]:
        """What runs on the node, as ps shows it."""
        return [_title(one) for one in self._all()]

    def _all(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """The node is gone from one moment to the next, with all that runs on it."""
        every = self._all()
        self._process.kill()
        for one in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(every, timeout=20)


class Cluster:
    """A head and the nodes that joined it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.secrets = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Ray gives its workers the lowest priority, which on a busy machine stops them.
        self._environment = os.environ | self.secrets | {"RAY_worker_niceness": "0"}
        self.address = f"127.0.0.1:{self.port}"
        self._nodes: list[Node] = []
        self.head = self._start("--head", f"--port={self.port}", "--include-dashboard=false")

    def join(self) -> Node:
        """Another node, with room for one worker, as has the head."""
        return self._start(f"--address={self.address}")

    @property
    def other(self) -> Node:
        """The node that joined last."""
        return self._nodes[-1]

    def titles(self, *beginnings: str) -> list[str]:
        """What runs on all nodes and begins so."""
        every = [title for node in self._nodes for title in node.titles()]
        return [title for title in every if title.startswith(beginnings)]

    def end(self) -> None:
        """Kill all nodes."""
        for node in reversed(self._nodes):
            node.kill()

    def _start(self, *arguments: str) -> Node:
        """Start a node. Ray gives up after 30 s, which a busy machine may take, so try again."""
        command = [str(_RAY), "start", *arguments, "--num-cpus=1", "--object-store-memory=80000000"]
        command += ["--block", "--disable-usage-stats"]
        for _ in range(_TRIES):
            said = self._folder / f"node-{len(self._nodes)}.log"
            with said.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    preexec_fn=die_with_parent(signal.SIGTERM),
                )
            node = Node(process)
            self._nodes.append(node)

            if _started(process, said):
                return node
            node.kill()
        raise RuntimeError(said.read_text())


def _started(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until the node runs or has given up; whether it runs."""

    def runs() -> bool:
        return "Ray runtime started" in log.read_text()

    until(lambda: runs() or process.poll() is not None, 300, every_s=0.1, otherwise=log.read_text)
    return runs()


def _title(process: psutil.Process) -> str:
    """What ps shows: Ray's workers change it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def cluster_of_two() -> Iterator[Cluster]:
    """Two nodes with room for one worker each."""
    with tempfile.TemporaryDirectory(prefix="tuneproof-ray-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.join()
            yield cluster
        finally:
            cluster.end()
