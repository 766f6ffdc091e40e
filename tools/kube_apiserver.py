"""Builds Kubernetes' API server for `make cluster`: Debian has its source, and no binary of it.

    python -m tools.kube_apiserver        # prints where it is; builds it where it is not yet

Beside it lies Debian's kubectl, of the same version: newer ones ask an older server for what it
has not.

The sources come from the archives that this machine installs from; a list of its own asks these
for them, so that the machine's lists stay as they are. One library of it, as old as Go 1.12, has
the server crash on custom resources when a newer Go compiles it: Debian's own, newer one is put
in its place. The binary is kept in the user's cache, outside of the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PACKAGE, CLIENT = "kubernetes", "kubernetes-client"
GO_LIBRARY = Path("github.com/modern-go/reflect2")
DEBIAN_GO = Path("/usr/share/gocode/src")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ASKED = f"deb-src [signed-by={KEYS}] $(REPO_URI) $(RELEASE) $(COMPONENT)"
VERSION = """\
KUBE_GIT_COMMIT='debian'
KUBE_GIT_TREE_STATE='archive'
KUBE_GIT_VERSION='v{version}'
KUBE_GIT_MAJOR='{major}'
KUBE_GIT_MINOR='{minor}'
"""
"""What it says of itself: the archive has no git to take it from, and Helm reads it."""


def cache() -> Path:
    """Where the user's caches are, ours among them."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tuneproof"


def binary() -> Path:
    """Where the server is, or will be."""
    return cache() / "kube-apiserver"


def output(*command: str) -> str:
    """What a command prints; raises where it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def source_lists() -> list[str]:
    """The archives of Debian that this machine installs from, as lines that ask for sources."""
    asked = ("apt-get", "indextargets", "--format", ASKED, "Created-By: Packages")
    lines = output(*asked, "Origin: Debian").splitlines()
    if not lines:
        raise SystemExit("apt knows no archive of Debian. Run: apt-get update")
    return list(dict.fromkeys(lines))


def apt_options(folder: Path) -> list[str]:
    """What makes apt read a list of ours, and keep what it finds in a folder of ours."""
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "ours.list").write_text("\n".join(source_lists()) + "\n", "utf-8")
    settings = {
        "Dir::Etc::SourceList": folder / "ours.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def fetch(folder: Path) -> Path:
    """The unpacked source package."""
    options = apt_options(folder / "apt")
    run(["apt-get", *options, "update", "-qq"], folder)
    run(["apt-get", *options, "source", "-qq", PACKAGE], folder)
    [unpacked] = [path for path in folder.glob(f"{PACKAGE}-*") if path.is_dir()]
    return unpacked


def run(command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a command in a folder; what it prints goes to stderr."""
    subprocess.run(command, check=True, cwd=folder, env=env, stdout=sys.stderr)


def replace_library(source: Path) -> None:
    """Put Debian's library in the place of the one that came with the source."""
    vendored = source / "vendor" / GO_LIBRARY
    shutil.rmtree(vendored)
    shutil.copytree((DEBIAN_GO / GO_LIBRARY).resolve(), vendored)


def say_version(source: Path) -> Path:
    """The file from which the build takes its version, by the name of the source's folder."""
    said = source.name.removeprefix(f"{PACKAGE}-").partition("really")[2] or source.name
    version = said.removeprefix(f"{PACKAGE}-").partition("+")[0]
    major, minor, _ = version.split(".", 2)
    path = source.parent / "version"
    path.write_text(VERSION.format(version=version, major=major, minor=minor), "utf-8")
    return path


def build(folder: Path) -> Path:
    """Fetch and compile; five minutes of two processors."""
    source = fetch(folder)
    replace_library(source)
    env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(folder / "go-cache"),
        "GOPROXY": "off",
        "KUBE_GIT_VERSION_FILE": str(say_version(source)),
    }
    run(["make", "WHAT=cmd/kube-apiserver"], source, env)
    return source / "_output/bin/kube-apiserver"


def fetch_client(folder: Path) -> Path:
    """Debian's kubectl, without installing it."""
    run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", CLIENT], folder)
    [package] = folder.glob(f"{CLIENT}_*.deb")
    run(["dpkg-deb", "--extract", package.name, "."], folder)
    return folder / "usr/bin/kubectl"


def keep(kept: Path, make: Callable[[Path], Path]) -> None:
    """Have a program in the cache: make it in a folder of its own where it is not there yet."""
    if kept.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tuneproof-kubernetes-") as folder:
        shutil.copy(make(Path(folder)), kept.with_suffix(".new"))
    kept.with_suffix(".new").rename(kept)


def main() -> None:
    keep(cache() / "kubectl", fetch_client)
    keep(binary(), build)
    print(binary())


if __name__ == "__main__":
    main()
