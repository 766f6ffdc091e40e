"""The images are built as their Containerfiles say, and serve as nobody on a read-only root.

The trainer's with torch and its companions takes gigabytes: TUNEPROOF_ENGINES=lora builds it, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.deploy.test_images import SERVICE, TRAINER, of, stages
from tests.deployed.images import Builder, Image, builder, serving
from tests.servers import free_port

from tuneproof.cli.manifests import USER

pytestmark = pytest.mark.cluster

ENGINES = os.environ.get("TUNEPROOF_ENGINES", "").split()
"""Engines whose images are built beside the default one's."""


@pytest.fixture(scope="module")
def images() -> Iterator[Builder]:
    with builder() as made:
        yield made


@pytest.fixture(scope="module")
def service(images: Builder) -> Image:
    return images.build(SERVICE, "tuneproof-service", extra=["--build-arg", "REVISION=abc"])


@pytest.fixture(scope="module")
def trainer(images: Builder) -> Image:
    return images.build(TRAINER, "tuneproof-trainer")


def size(image: Image) -> str:
    return f"{image.name}: {image.bytes / 1e6:.0f} MB unpacked"


def check_confined(image: Image) -> None:
    """Its process is nobody, can become nobody else, and writes only where it may."""
    assert image.user == str(USER)
    who = image.run(
        "sh", "-c", "id -u; id -g; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status"
    )
    assert who.stdout.split() == [
        *(image.user, image.user),
        *("CapEff:", "0000000000000000", "CapBnd:", "0000000000000000", "NoNewPrivs:", "1"),
    ]
    for place in ("/", "/venv", "/etc"):
        refused = image.run("touch", f"{place}/file")
        assert "Read-only file system" in refused.stderr
    assert image.run("touch", f"{image.data}/file", "/tmp/file").returncode == 0
    compilers = image.run("sh", "-c", "command -v cc gcc g++ make as ld go rustc")
    assert compilers.stdout == ""


def check_says_what_it_is(image: Image, containerfile: Path) -> None:
    labels = image.config["Labels"]
    version = of(stages(containerfile)[-1], "ARG")[0].removeprefix("VERSION=")
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.config["StopSignal"] == "SIGTERM"
    exposed = {port.partition("/")[0] for port in image.config["ExposedPorts"]}
    assert exposed == set(of(stages(containerfile)[-1], "EXPOSE")[0].split())


def test_the_services_image_serves_as_nobody_on_a_read_only_root(
    service: Image, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    check_says_what_it_is(service, SERVICE)
    assert service.config["Labels"]["org.opencontainers.image.revision"] == "abc"
    check_confined(service)
    assert service.run("sh", "-c", "command -v pip").stdout == ""
    port = free_port()
    env = {"TUNEPROOF_PORT": str(port), "PROMETHEUS_METRICS_PORT": str(free_port())}
    server = serving(service, tmp_path, port=port, path="/ready", **env)
    began = time.monotonic()
    server.start()
    try:
        took = time.monotonic() - began
        assert httpx2.get(f"{server.url}/live", trust_env=False).status_code == 200
        ready = httpx2.get(f"{server.url}/ready", trust_env=False)
        assert ready.json() == {"ready": True, "reasons": []}
    finally:
        server.stop()
    measured(f"{size(service)}, ready after {took:.1f} s")


def test_the_trainers_image_serves_as_nobody_on_a_read_only_root(
    trainer: Image, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    check_says_what_it_is(trainer, TRAINER)
    check_confined(trainer)
    made = trainer.run("tuneproof-trainer", "keys", "create", "--dir", "/state", "--name", "loop")
    assert made.returncode == 0, made.stderr
    port = free_port()
    server = serving(trainer, tmp_path, port=port, path="/health")
    at = server.command.index("0.0.0.0")
    server.command[at : at + 1] = ["127.0.0.1", "--port", str(port)]
    began = time.monotonic()
    server.start()
    try:
        took = time.monotonic() - began
        assert httpx2.get(f"{server.url}/health", trust_env=False).status_code == 200
    finally:
        server.stop()
    measured(f"{size(trainer)}, healthy after {took:.1f} s")


if ENGINES:

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_trainers_image_with_its_engine_has_what_the_engine_needs(
        images: Builder, engine: str, measured: Callable[[str], None]
    ) -> None:
        told = ["--build-arg", f"ENGINE={engine}"]
        image = images.build(TRAINER, f"tuneproof-trainer-{engine}", extra=told)
        check_confined(image)
        asked = "import peft, torch, transformers, trl; print(torch.__version__)"
        done = image.run("python", "-c", asked)
        assert done.returncode == 0, done.stderr
        measured(f"{size(image)}, torch {done.stdout.strip()}")
