"""A cluster of two nodes for all tests of the ray engine; without Ray nothing is collected."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.trainer.lora.tiny import make_model
from tests.trainer.ray_cluster.nodes import Cluster, cluster_of_two

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Its token is in this process's environment, as it must be in a server's."""
    with cluster_of_two() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.secrets.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")
