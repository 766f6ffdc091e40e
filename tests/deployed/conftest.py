"""What needs a machine of one's own: `make cluster` runs it, as root on Debian 12.

An API server that is compiled first, images that are built, servers that are killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.deployed.charts import for_1_20
from tests.deployed.control_plane import ControlPlane, control_plane

MEASURED: list[str] = []


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane]:
    """One API server for all tests; each has a namespace of its own in it."""
    with control_plane() as running:
        yield running


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart as that server's version takes it."""
    return for_1_20(tmp_path_factory.mktemp("chart") / "tuneproof")


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    """A new, empty namespace."""
    return cluster.namespace()


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Takes a line of what was measured; all stand below the results."""
    return MEASURED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in MEASURED:
        terminalreporter.write_line(line)
