"""The images' Containerfiles: clean, pinned by hashes, and what the chart says of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tests.deploy.rendering import CHART, NAME, ROOT, one, rendered

from tuneproof.cli.manifests import USER
from tuneproof.settings import Settings

SERVICE = ROOT / "deploy" / "Containerfile"
TRAINER = ROOT / "deploy" / "trainer" / "Containerfile"
BOTH = pytest.mark.parametrize("path", [SERVICE, TRAINER], ids=["service", "trainer"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

Stage = list[tuple[str, str]]


def stages(path: Path) -> list[Stage]:
    """The instructions of a Containerfile by stage; those before the first are apart."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    found: list[Stage] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, " ".join(rest.split())))
    return found


def of(stage: Stage, word: str) -> list[str]:
    return [rest for found, rest in stage if found == word]


@BOTH
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@BOTH
def test_both_stages_stand_on_the_base_that_is_named(path: Path) -> None:
    before, *rest = stages(path)
    assert len(of(before, "ARG")) == 1
    assert of(before, "ARG")[0].startswith("BASE=")
    assert [of(stage, "FROM") for stage in rest] == [["${BASE} AS build"], ["${BASE}"]]


@BOTH
def test_the_last_stage_installs_nothing_and_is_nobody(path: Path) -> None:
    last = stages(path)[-1]
    assert not [run for run in of(last, "RUN") if re.search(r"\b(apt|apt-get|pip|gcc|make)\b", run)]
    assert of(last, "USER") == [f"{USER}:{USER}"]
    assert of(last, "COPY") == ["--from=build /venv /venv"]
    labels = " ".join(of(last, "LABEL"))
    assert {"title", "licenses", "version", "revision"} <= set(re.findall(r"image\.(\w+)=", labels))
    folder = of(last, "VOLUME")[0]
    made = of(last, "RUN")
    assert made == [f"install -d -m 0700 -o {USER} -g {USER} {folder}"]


@BOTH
def test_what_is_copied_is_there_and_what_is_started_is_a_command(path: Path) -> None:
    build, last = stages(path)[1:]
    for copied in of(build, "COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
    command = yaml.safe_load(of(last, "ENTRYPOINT")[0])[0]
    assert command in PROJECT["scripts"]


@BOTH
def test_everything_is_installed_by_its_hash(path: Path) -> None:
    build = stages(path)[1]
    pinned = [run for run in of(build, "RUN") if "--requirement" in run]
    assert len(pinned) == 2
    assert all("--require-hashes --only-binary :all:" in run for run in pinned)


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", path.read_text("utf-8"), re.M))


def test_the_images_install_what_the_lock_has() -> None:
    lock, image = pins(ROOT / "requirements.lock"), pins(ROOT / "deploy" / "requirements.txt")
    assert {name: lock.get(name) for name in image} == image, "run: make lock"
    wanted = {re.split(r"[\[><=,]", one)[0] for one in PROJECT["dependencies"]}
    for extra in ("postgres", "kubernetes", "otel", "parquet", "tokens"):
        wanted |= {re.split(r"[\[><=,]", one)[0] for one in PROJECT["optional-dependencies"][extra]}
    assert wanted <= set(image)
    for name in ("requirements.txt", "requirements-build.txt"):
        text = (ROOT / "deploy" / name).read_text("utf-8")
        entries = re.split(r"\n(?=[\w.-]+==)", text)[1:]
        assert all("--hash=sha256:" in entry for entry in entries)
    assert not {"pytest", "mypy", "ruff", "mlflow", "torch"} & set(image)


def test_the_pins_of_an_engine_do_not_contradict_each_other() -> None:
    """Seen: the pins of what builds the wheel were among them, and contradicted the lock's."""
    [made] = [run for run in of(stages(TRAINER)[1], "RUN") if "pins.txt" in run]
    read = re.findall(r"requirements\S*", made.partition("> pins.txt")[0])
    assert not [name for name in read if "*" in name]
    named = {name: {pins(ROOT / path).get(name) for path in read} for name in pins(ROOT / read[1])}
    assert len(named) > 10
    assert [name for name, found in named.items() if len(found - {None}) > 1] == []


def test_the_chart_runs_the_images_as_they_are_made() -> None:
    last = stages(SERVICE)[-1]
    spec = one(rendered(), "Deployment", NAME)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsUser"] == USER
    server = Settings(env={}).server
    ports = {port["containerPort"] for port in spec["containers"][0]["ports"]}
    assert ports == {server.port, server.metrics_port}
    exposed = set(map(int, of(last, "EXPOSE")[0].split()))
    assert exposed == ports | {server.gateway_port}
    mounts = {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert set(of(last, "VOLUME")) <= mounts


def test_chart_and_images_have_the_version_that_is_next() -> None:
    """All three say which CHANGELOG section they belong to."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest is not None
    assert chart["appVersion"] == newest[1]
    for path in (SERVICE, TRAINER):
        assert of(stages(path)[-1], "ARG")[0] == f"VERSION={newest[1]}"
