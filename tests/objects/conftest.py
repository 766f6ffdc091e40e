"""An object server that speaks S3, in an environment of its own; `make objects` says where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.servers import Server, free_port, listens

TOLD = os.environ.get("TUNEPROOF_OBJECTS", "")
PYTHON = str(Path(TOLD).absolute())

collect_ignore_glob = [] if TOLD else ["test_*.py"]


@contextmanager
def object_server(folder: Path) -> Iterator[Server]:
    """A server that is not started yet. What it holds is gone once it is stopped."""
    port = free_port()
    server = Server(
        name="moto",
        url=f"http://127.0.0.1:{port}",
        port=port,
        command=[PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        folder=folder,
        ready=lambda: listens(port),
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, which is not started; the environment says where it is, as with any tool."""
    from s3fs import S3FileSystem

    folder = tmp_path / "server"
    folder.mkdir()
    with object_server(folder) as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        S3FileSystem.clear_instance_cache()  # it knows servers by the address of the bucket alone
        yield server
        S3FileSystem.clear_instance_cache()
