"""Is the suite ever red by chance? Run it again and again, with a second one beside it in half.

    python tools/steady.py                # ten times `make test`, a second one beside in five
    python tools/steady.py --rounds 4 --command "make unit"

The second one runs in a clone of the last commit, so that the two share the machine and nothing
else. Prints a table, ends with 1 where any was red; the whole output of each is kept.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
ROUNDS = 10
_RED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One whole run of the tests."""

    number: int
    beside: bool
    minutes: float
    code: int
    log: Path

    @property
    def red(self) -> list[str]:
        """The tests that failed; empty where it failed otherwise, or not at all."""
        return sorted(set(_RED.findall(self.log.read_text(errors="replace"))))


class Running:
    """A suite under way."""

    def __init__(self, number: int, command: str, folder: Path, log: Path, *, beside: bool) -> None:
        self._number, self._beside, self._log = number, beside, log
        self._began = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                shell=True,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ended(self) -> Suite:
        """Wait for its end."""
        code = self._process.wait()
        return Suite(
            number=self._number,
            beside=self._beside,
            minutes=(time.monotonic() - self._began) / 60,
            code=code,
            log=self._log,
        )


def suites(command: str, rounds: int, logs: Path) -> list[Suite]:
    """Run all rounds; each second one has another suite beside it."""
    found: list[Suite] = []
    second = _second_checkout(logs)
    for number in range(1, rounds + 1):
        places = [(HERE, False), *([(second, True)] if number % 2 == 0 else [])]
        running = [
            Running(
                number,
                command,
                folder,
                logs / f"{number}{'-beside' if beside else ''}.log",
                beside=beside,
            )
            for folder, beside in places
        ]
        for suite in (one.ended() for one in running):
            found.append(suite)
            print(row(suite), flush=True)
    return found


def _second_checkout(logs: Path) -> Path:
    folder = logs / "second"
    subprocess.run(["git", "clone", "--quiet", str(HERE), str(folder)], check=True)
    data = HERE.parent / "shared"
    if data.exists():  # what some tests read lies beside a checkout
        (logs / "shared").symlink_to(data)
    return folder


def row(suite: Suite) -> str:
    """One line of the table."""
    which = f"{suite.number:>5}  {'beside' if suite.beside else '':<6}"
    said = "green" if suite.code == 0 else f"red ({suite.code})"
    return f"{which}  {suite.minutes:>7.1f}  {said:<8}  {' '.join(suite.red)}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit code whether all was green."""
    parser = argparse.ArgumentParser(description="Run the suite again and again.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--command", default="make test")
    asked = parser.parse_args(arguments)
    logs = Path(tempfile.mkdtemp(prefix="tuneproof-steady-"))
    print(f"round          minutes  result    red tests     (output: {logs})", flush=True)
    found = suites(asked.command, asked.rounds, logs)
    red = [suite for suite in found if suite.code != 0]
    print(f"{len(found) - len(red)} of {len(found)} green")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
