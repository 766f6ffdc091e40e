"""README and docs as tests see them: their fenced blocks, and how these are run.

Each block in `python` or `console` stands below a comment that says what becomes of it:

    <!-- run -->                  it is run, and must succeed
    <!-- run, slow -->            so it is, but only with the slow tests
    <!-- run, exit 1 -->          its (last) command must end with this code
    <!-- run, in STATE -->        it is run by tests/integration/watched/test_runbooks.py, against a
                                  service in that state
    <!-- not run: why -->         it cannot be run here

The blocks of a page share an empty folder, in their order. A `python` block is a program of its
own; what it must print stands in the next block, below `<!-- output -->`. A `console` block has
`$ command` lines with the output below each; a command that ends in `&` goes on in the
background until the page ends, and is waited for until it has printed what stands below it.
A `toml` block below `<!-- file: NAME -->` is written to that file.

Output is compared loosely: each line that is shown must come, in this order; `...` stands for
anything, and runs of blanks count as one. Ports of the docs (8686, 8700, 9090) are replaced by
free ones.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from tests.servers import free_port
from tests.waiting import until

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = ("python", "console")
TIMEOUT_S = 900.0
START_S = 60.0
PORTS = ("8686", "8700", "9090")

_BLOCK = re.compile(
    r"(?:^<!--[ ]*(?P<mark>[^>]*?)[ ]*-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its language, the comment above it, its text and its line."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def options(self) -> list[str]:
        """What stands behind `run`."""
        return [word.strip() for word in self.mark.split(",")][1:]

    @property
    def is_run(self) -> bool:
        """Whether it is run at all."""
        return self.mark.split(",")[0] == "run"

    @property
    def slow(self) -> bool:
        """Whether it is run with the slow tests only."""
        return "slow" in self.options

    @property
    def state(self) -> str:
        """In which state the service must be that it is run against; empty where in none."""
        return next((o.removeprefix("in ") for o in self.options if o.startswith("in ")), "")

    @property
    def exit_code(self) -> int:
        """The code with which its last command must end."""
        codes = [option.removeprefix("exit ") for option in self.options if "exit " in option]
        return int(codes[0]) if codes else 0


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            mark=found["mark"] or "",
            text=found["text"],
        )
        for found in _BLOCK.finditer(text)
    ]


class Session:
    """A page being run: one folder, one set of ports, its background processes.

    `stands_for` is what really is in place of what the page says, beside the ports: ids, say;
    `env` are variables that commands get.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stands_for: Mapping[str, str] = MappingProxyType({}),
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self._ports = {port: stands_for.get(port) or str(free_port()) for port in PORTS}
        self._ports |= stands_for
        self._running: list[subprocess.Popen[str]] = []
        self._env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "160",
            "NO_COLOR": "1",
            "TUNEPROOF_PORT": self._ports["8686"],
            "PROMETHEUS_METRICS_PORT": self._ports["9090"],
            **env,
        }

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.terminate()
            process.wait(timeout=30)

    def run(self, page: Sequence[Block], *, slow: bool = False, state: str = "") -> int:
        """Run the blocks of a page, those for this state of a service; how many there were."""
        count = 0
        for block, after in zip(page, [*page[1:], None], strict=True):
            if block.mark.startswith("file: "):
                name = self.folder / block.mark.removeprefix("file: ")
                name.write_text(self._here(block.text), "utf-8")
            elif block.is_run and (block.slow, block.state) == (slow, state):
                expected = after.text if after is not None and after.mark == "output" else ""
                self._run(block, expected)
                count += 1
        return count

    def _run(self, block: Block, expected: str) -> None:
        if block.language == "python":
            self._expect(block, [sys.executable, "-c", self._here(block.text)], expected, 0)
            return
        told = list(commands(block.text))
        for index, (command, shown) in enumerate(told):
            last = index == len(told) - 1
            if command.endswith("&"):
                self._start(block, command.rstrip("& "), shown)
            else:
                code = block.exit_code if last else 0
                self._expect(block, ["bash", "-c", self._here(command)], shown, code)

    def _expect(self, block: Block, command: list[str], shown: str, code: int) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        printed = self._there(done.stdout)
        missing = unprinted(shown, printed)
        if done.returncode != code or missing:
            said = f"it ended with {done.returncode}" if done.returncode != code else ""
            lacks = f"it did not print {missing!r}" if missing else ""
            raise AssertionError(f"{block.name}: {said} {lacks}\n\n{printed}")

    def _start(self, block: Block, command: str, shown: str) -> None:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self._here(command)}"],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)
        printed = Printed(process)

        def lacks() -> str:
            return unprinted(shown, self._there(printed.text))

        def failure() -> str:
            return f"{block.name}: {command} did not print {lacks()!r}\n\n{printed.text}"

        until(lambda: not lacks() or process.poll() is not None, START_S, otherwise=failure)
        assert not lacks(), failure()

    def _here(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def _there(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(free, port)
        return text


class Printed:
    """What a process has printed so far; reads on, so that it never waits for its reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text = ""
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.text += line


def unprinted(shown: str, printed: str) -> str:
    """The first line of `shown` that `printed` does not have in its order; empty if all came."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    at = 0
    for line in shown.splitlines():
        wanted = " ".join(line.split())
        if wanted in ("", "..."):
            continue
        pattern = ".*".join(re.escape(part.strip()) for part in wanted.split("..."))
        found = (i for i in range(at, len(lines)) if re.fullmatch(pattern, lines[i]))
        hit = next(found, None)
        if hit is None:
            return wanted
        at = hit + 1
    return ""


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, its lines joined, with what is shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = f"{command[:-1].rstrip()} {more.strip()}"
        yield command.strip(), shown
