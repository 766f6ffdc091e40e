"""One real MLflow server for all tests of tracking: it takes ten seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers import Server, mlflow_server


@pytest.fixture(scope="session")
def mlflow() -> Iterator[Server]:
    with mlflow_server() as server:
        yield server
