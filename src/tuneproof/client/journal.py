"""Events on their way: each on disk within moments of being recorded, gone once the service
has it.

A folder holds one subfolder for each process, with a lock that lives as long as the process
and segments of JSON lines. What a killed process left behind is taken over by the next one
that looks. Without a folder the segments are kept in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections import deque
from pathlib import Path
from typing import IO

log = logging.getLogger("tuneproof.client")

SEGMENT_EVENTS = 1000
"""How many events make a full segment: one batch to the service."""

SEGMENT_BYTES = 4_000_000
"""A segment is closed at this size, well below what the service takes at once."""

MOST_IN_MEMORY = 200_000
"""Where there is no disk to write to, the oldest events above this number are given up: an
application is never brought down by its measurements."""

MOST_BYTES_IN_MEMORY = 256 * 1024**2
"""As much as that at most, however few events it is: some carry whole texts."""

MOST_REFUSED_BYTES = 64 * 1024**2
"""At this size the file of refused events begins anew; the one before it is kept."""

DISK_AGAIN_S = 30.0
"""How long after the disk took nothing it is tried again."""


class JournalSegment:
    """Some events: a closed file of lines, or the lines themselves.

    With both, the file has only a part of them: the disk took no more.
    """

    def __init__(
        self, *, path: Path | None = None, lines: list[str] | None = None, size: int = 0
    ) -> None:
        self.path = path
        self.size = size  # bytes
        self._lines = lines

    @property
    def in_memory(self) -> bool:
        """Whether the events would be gone with this process."""
        return self._lines is not None

    def lines(self) -> list[str]:
        """The events; a line that a kill cut short is left out."""
        if self._lines is not None or self.path is None:
            return list(self._lines or [])
        content = self.path.read_text(encoding="utf-8", errors="replace")
        whole, _, rest = content.rpartition("\n")
        if rest:
            log.warning("The last line of %s was cut off and is left out", self.path)
        return whole.split("\n") if whole else []

    def remove(self) -> None:
        """Forget the events: the service has them."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Journal:
    """The events of one process that the service has not taken yet. Not locked: its user is.

    Past `most_bytes` the oldest segments are given up.
    """

    def __init__(self, folder: Path | None, *, most_bytes: int | None = None) -> None:
        self._root = folder
        self._most_bytes = most_bytes
        self._disk_at = 0.0  # monotonic: before it the disk is not tried
        self._own: Path | None = None
        self._lock: IO[str] | None = None
        self._open: IO[str] | None = None
        self._open_path: Path | None = None
        self._lines: list[str] = []
        self._bytes = 0
        self._number = 0
        self._closed_bytes = 0
        self.closed: deque[JournalSegment] = deque()
        self.lost = 0

    @property
    def empty(self) -> bool:
        """Whether the service has everything."""
        return not self.closed and not self._lines

    @property
    def bytes(self) -> int:
        """How much the service has not taken yet."""
        return self._closed_bytes + self._bytes

    def append(self, lines: list[str]) -> None:
        """Write events to the open segment; a full one is closed."""
        for start in range(0, len(lines), SEGMENT_EVENTS):
            self._append(lines[start : start + SEGMENT_EVENTS])

    def _append(self, lines: list[str]) -> None:
        try:
            self._write(lines)
        except OSError as error:
            if self._root is not None:
                log.warning(
                    "Events cannot be kept in %s and stay in memory until they are sent: %s",
                    self._root,
                    error,
                )
                self._leave_disk()
        self._lines += lines
        self._bytes += sum(len(line) + 1 for line in lines)
        if len(self._lines) >= SEGMENT_EVENTS or self._bytes >= SEGMENT_BYTES:
            self.cut()

    def _write(self, lines: list[str]) -> None:
        if self._root is None or time.monotonic() < self._disk_at:
            return
        if self._open is None:
            if self._lines:  # this segment is in memory, whole
                return
            own = self._folder(self._root)
            self._number += 1
            self._open_path = own / f"{self._number:09d}.jsonl"
            self._open = self._open_path.open("a", encoding="utf-8")
        self._open.write("".join(f"{line}\n" for line in lines))
        self._open.flush()

    def _leave_disk(self) -> None:
        """Keep events in memory for a while; a folder that is gone is made anew afterwards."""
        self._hang_up()
        self._disk_at = time.monotonic() + DISK_AGAIN_S
        if self._own is not None and self._lock is not None and not self._own.is_dir():
            self._lock.close()
            self._own = self._lock = None

    def _hang_up(self) -> bool:
        """Close the open file; whether it has all that was written to it."""
        file, self._open = self._open, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            log.warning("A file of events could not be closed: %s", error)
            return False
        return file is not None

    def _folder(self, root: Path) -> Path:
        while self._own is None:
            own = root / uuid.uuid4().hex
            own.mkdir(parents=True)
            lock = (own / "lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is(own / "lock", lock):
                self._own, self._lock = own, lock
            else:  # another process was quicker, took it for one that ended, and removed it
                lock.close()
        return self._own

    def cut(self) -> None:
        """Close the open segment, if it has events, so that it can be sent."""
        if not self._lines:
            return
        lines = None if self._hang_up() else self._lines
        self._close(JournalSegment(path=self._open_path, lines=lines, size=self._bytes))
        if lines is not None:
            self._give_up()
        self._open_path, self._lines, self._bytes = None, [], 0

    def _close(self, segment: JournalSegment) -> None:
        self.closed.append(segment)
        self._closed_bytes += segment.size
        while self._most_bytes and self._closed_bytes > self._most_bytes and len(self.closed) > 1:
            oldest = self.closed[0]
            try:
                self.lost += len(oldest.lines())
            except OSError as error:
                log.error("%d bytes of events are given up unread: %s", oldest.size, error)
            self.done(oldest)

    def done(self, segment: JournalSegment) -> None:
        """Forget a segment: the service has it.

        A file that cannot be removed is taken over by the next process, and sent once more.
        """
        if segment in self.closed:
            self.closed.remove(segment)
            self._closed_bytes -= segment.size
        try:
            segment.remove()
        except OSError as error:
            log.warning("The file %s of sent events cannot be removed: %s", segment.path, error)

    def _give_up(self) -> None:
        """Forget the oldest events where too many are kept in memory."""
        held = [segment for segment in self.closed if segment.in_memory]
        count = sum(len(segment.lines()) for segment in held)
        held_bytes = sum(segment.size for segment in held)
        while count > MOST_IN_MEMORY or (held_bytes > MOST_BYTES_IN_MEMORY and held[1:]):
            oldest = held.pop(0)
            self.done(oldest)
            held_bytes -= oldest.size
            size = len(oldest.lines())
            count, self.lost = count - size, self.lost + size
            log.error(
                "%d events are lost: the service took none and there is no state_dir to keep "
                "them in (%d lost so far)",
                size,
                self.lost,
            )

    def adopt(self) -> int:
        """Take over what dead processes left; returns how many segments those are."""
        if self._root is None or not self._root.is_dir():
            return 0
        found = 0
        for other in sorted(self._root.iterdir()):
            if other != self._own and other.is_dir() and other.name != "refused":
                found += self._adopt(other)
        return found

    def _adopt(self, other: Path) -> int:
        try:
            with (other / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                root = self._root
                assert root is not None
                own = self._folder(root)
                moved = 0
                for path in sorted(other.glob("*.jsonl")):
                    self._number += 1
                    target = own / f"{self._number:09d}.jsonl"
                    os.replace(path, target)
                    self._close(JournalSegment(path=target, size=target.stat().st_size))
                    moved += 1
                (other / "lock").unlink()
            other.rmdir()
        except OSError:
            return 0  # its process lives, or another one adopts it at this moment
        return moved

    def refuse(self, line: str) -> None:
        """Keep an event that the service will never take, for people to look at."""
        if self._root is None:
            return
        try:
            folder = self._root / "refused"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "events.jsonl"
            if path.exists() and path.stat().st_size >= MOST_REFUSED_BYTES:
                path.replace(folder / "events.before.jsonl")
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            log.warning("A refused event could not be kept in %s: %s", self._root, error)

    def close(self) -> None:
        """Give the folder free; what is left in it belongs to the next process."""
        self.cut()
        if self._own is None or self._lock is None:
            return
        with contextlib.suppress(OSError):  # a folder that is gone, or that cannot be changed
            if not any(self._own.glob("*.jsonl")):
                (self._own / "lock").unlink(missing_ok=True)
                self._own.rmdir()
        self._lock.close()
        self._own = self._lock = None


def _is(path: Path, file: IO[str]) -> bool:
    """Whether this open file is the one that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
