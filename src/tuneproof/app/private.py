"""The data directory is for its owner alone: posts, models, tokens and addresses lie in it."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["keep_private", "readable_by_others"]

FOLDERS = ("datasets", "trainer")
FILES = ("*.db", "*.db-wal", "*.db-shm", "lock", "service.json")
"""What is ours in a directory that may have been there before, and have other things in it."""


def keep_private(directory: Path) -> None:
    """Make the data directory where it is absent, and close what is ours in it to others.

    A directory that was there keeps its mode: the doctor tells of one that others may enter.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in FOLDERS:
        if (directory / name).is_dir():
            _close(directory / name, 0o700)
    for pattern in FILES:
        for path in directory.glob(pattern):
            _close(path, 0o600)


def readable_by_others(directory: Path) -> bool:
    """Whether others than its owner may enter the data directory, or list it."""
    return directory.is_dir() and bool(directory.stat().st_mode & 0o077)


def _close(path: Path, mode: int) -> None:
    with contextlib.suppress(OSError):  # of another owner: not ours to change
        if path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)
