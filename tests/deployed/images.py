"""Images are built from the Containerfiles by buildah, on a base made by debootstrap.

    with builder() as images:
        image = images.build(ROOT / "deploy/Containerfile", "service")
        image.bytes, image.config                  # its size, and what it says of itself
        image.run("id")                            # on a read-only root, as its user
        serving(image, folder, port=port, path="/ready").start()

No daemon and no registry: chroot isolation, storage as plain folders. pip inside reads the
configuration that pip has on this machine, mounted for the build and no part of the image.
"""

from __future__ import annotations

import configparser
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from tests.servers import Server, binary
from tools import kube_apiserver

__all__ = ["Builder", "Image", "builder"]

ROOT = Path(__file__).parents[2]
BASE = "localhost/tuneproof-base"
PIP_FILES = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")

CONFINED = """
root=$1; user=$2; data=$3; shift 3
mount --bind "$root" "$root"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o "mode=0700,uid=$user,gid=$user" data "$root$data"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups \\
    --inh-caps=-all --ambient-caps=-all --bounding-set=-all --no-new-privs env -i "$@"
"""
"""As the chart has it: its user, no capabilities, a root that nothing can be written to."""


def pip_configuration() -> str:
    """What pip is told on this machine, by its files and its environment, as one file."""
    found = configparser.ConfigParser(interpolation=None)
    found.read([Path(name).expanduser() for name in PIP_FILES])
    if not found.has_section("global"):
        found.add_section("global")
    for name, value in os.environ.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE":
            found["global"][name.removeprefix("PIP_").lower().replace("_", "-")] = value
    text = io.StringIO()
    found.write(text)
    return text.getvalue()


def named_paths(text: str) -> list[str]:
    """The files and folders of this machine that a configuration names.

    An index (a folder `simple`) names the files beside it.
    """
    words = [Path(word.removeprefix("file://")) for word in text.replace("=", " ").split()]
    there = [path for path in words if path.is_absolute() and path.exists()]
    return list(dict.fromkeys(str(p.parent if p.name == "simple" else p) for p in there))


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that was built: its name, its root as a folder, and its configuration."""

    name: str
    root: Path
    bytes: int
    config: Mapping[str, Any]

    @property
    def user(self) -> str:
        """Who its process is, as a number."""
        number: str = self.config["User"].partition(":")[0]
        return number

    @property
    def data(self) -> str:
        """The folder that it keeps what it writes in."""
        [volume] = self.config["Volumes"]
        return str(volume)

    def command(self, *command: str, **env: str) -> list[str]:
        """What runs a command in it, confined."""
        told = [*self.config["Env"], *(f"{name}={value}" for name, value in env.items())]
        shell = ["unshare", "--mount", "sh", "-euc", CONFINED, "sh"]
        return [*shell, str(self.root), self.user, self.data, *told, *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """The end of a command in it."""
        return subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def start(self) -> list[str]:
        """What it starts by itself."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]


@dataclass(kw_only=True)
class Builder:
    """Buildah with storage of its own."""

    folder: Path
    pip: Path = field(init=False)

    def __post_init__(self) -> None:
        self.pip = self.folder / "pip.conf"
        self.pip.write_text(pip_configuration(), "utf-8")

    def __call__(self, *args: str) -> str:
        """What a command of buildah prints; raises with its error."""
        storage = ["--root", f"{self.folder}/store", "--runroot", f"{self.folder}/run"]
        command = ["buildah", *storage, "--storage-driver", "vfs", *args]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(args)}\n{done.stdout[-3000:]}{done.stderr[-6000:]}")
        return done.stdout

    def make_base(self) -> None:
        """The image that the others stand on: Debian, Python and its venv module."""
        container = self("from", "scratch").strip()
        self("add", container, str(base_archive()), "/")
        self("commit", "--rm", "--quiet", container, BASE)

    def build(self, containerfile: Path, name: str, *, extra: Sequence[str] = ()) -> Image:
        """Build an image as its Containerfile says, and lay its root out as a folder."""
        mounts = [f"{self.pip}:/etc/pip.conf:ro"]
        mounts += [f"{path}:{path}:ro" for path in named_paths(self.pip.read_text("utf-8"))]
        volumes = [part for mount in mounts for part in ("--volume", mount)]
        told = ["--isolation", "chroot", "--build-arg", f"BASE={BASE}", "--format", "oci", *extra]
        self("build", *told, *volumes, "--file", str(containerfile), "--tag", name, str(ROOT))
        about = json.loads(self("inspect", "--type", "image", name))
        root = Path(self("mount", self("from", name).strip()).strip())
        config = about["OCIv1"]["config"]
        return Image(name=name, root=root, bytes=size_of(root), config=config)


def size_of(root: Path) -> int:
    """How much a folder takes, in bytes."""
    done = subprocess.run(
        ["du", "--summarize", "--bytes", root], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


def base_archive() -> Path:
    """The base as an archive, made once by debootstrap from where this machine installs."""
    kept = kube_apiserver.cache() / "base.tar"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    _, _, archive, release, *_ = kube_apiserver.source_lists()[0].split()
    with tempfile.TemporaryDirectory(prefix="tuneproof-base-") as folder:
        root = Path(folder) / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(
            [
                binary("debootstrap", "apt-get install -y debootstrap"),
                *("--variant=minbase", packages, release, str(root), archive),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for left in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / left, ignore_errors=True)
        subprocess.run(["tar", "-C", str(root), "-cf", f"{kept}.new", "."], check=True)
    Path(f"{kept}.new").rename(kept)
    return kept


@contextmanager
def builder() -> Iterator[Builder]:
    """A builder with the base in it; its storage goes at the end."""
    binary("buildah", "apt-get install -y buildah")
    with tempfile.TemporaryDirectory(prefix="tuneproof-images-") as folder:
        made = Builder(folder=Path(folder))
        try:
            made.make_base()
            yield made
        finally:
            made("umount", "--all")
            made("rm", "--all")


def serving(image: Image, folder: Path, *, port: int, path: str, **env: str) -> Server:
    """The image's own command as a server of this machine, ready once `path` is answered."""
    return Server(
        name=image.name,
        url=f"http://127.0.0.1:{port}",
        port=port,
        command=image.command(*image.start, **env),
        folder=folder,
        ready=lambda: answers(f"http://127.0.0.1:{port}{path}"),
        start_timeout_s=300,
    )


def answers(url: str) -> bool:
    """Whether it is answered with 200."""
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
