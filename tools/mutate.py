"""Would a test notice? Changes one thing in what decides, runs the tests, and names what survives.

    python -m tools.mutate                           # a seeded sample of 400, as `make mutate`
    python -m tools.mutate --size 0                  # all
    python -m tools.mutate --module rollout/watch    # one of the modules alone

`tools/mutants.py` says which changes there are, `tools/trying.py` how each is made in the memory of
a forked process, so that no file is touched. Of a module's tests those run that call what was
changed, the fastest first, until one fails. What makes them take far longer is noticed, too.

What was found is kept in a file, so that a run that was stopped goes on; it counts until the module
or its tests change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest

from tools.mutants import ROOT, SOURCE, TESTS, Mutant, drawn, files_of, mutants_of
from tools.trying import (
    BROKEN,
    OPTIONS,
    PATIENCE_S,
    SURVIVED,
    Body,
    Session,
    import_changed,
    warm,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a mutant. `digest` is of its module and tests; `by` the test that noticed."""

    key: str
    digest: str
    survived: bool
    by: str
    line: int
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the process of a mutant ended: its exit status, what it said; None where it took too
    long."""

    status: int | None
    said: str


# --- the processes --------------------------------------------------------------------------


class Running:
    """A forked process that tests one mutant."""

    def __init__(self, mutant: Mutant, body: Body, limit_s: float) -> None:
        self.mutant = mutant
        self._until = time.monotonic() + limit_s
        self._said, pipe = os.pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _silent_child(body, pipe)
        os.close(pipe)

    def ended(self) -> Ended | None:
        """How it ended; None while it runs."""
        ready, status = os.waitpid(self._pid, os.WNOHANG)
        late = ready == 0 and time.monotonic() > self._until
        if ready == 0 and not late:
            return None
        if late:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        said = os.read(self._said, 4096).decode()
        os.close(self._said)
        return Ended(status=None if late else os.waitstatus_to_exitcode(status), said=said)


def _silent_child(body: Body, pipe: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    status = BROKEN
    try:
        status = body(pipe)
    except BaseException as error:
        os.write(pipe, repr(error).encode()[:2000])
    finally:
        os._exit(status)


class Log:
    """The file of findings, one a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digests = {module: digest_of(module) for module in TESTS}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {f.key: f for f in (Finding(**json.loads(line)) for line in lines)}

    def knows(self, mutant: Mutant) -> bool:
        """Whether it was tested as module and tests are now."""
        found = self.known.get(mutant.key)
        return found is not None and found.digest == self.digests[mutant.path]

    def add(self, finding: Finding) -> None:
        """Keep one."""
        self.known[finding.key] = finding
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(finding)) + "\n")


class Pool:
    """So many processes at a time, each with one mutant."""

    def __init__(self, log: Log, jobs: int, whole: int) -> None:
        self._log, self._jobs, self._whole = log, jobs, whole
        self._running: list[Running] = []
        self._done = 0

    def test(self, mutant: Mutant, body: Body, limit_s: float) -> None:
        """Begin one, once there is room."""
        while len(self._running) >= self._jobs:
            self._turn()
        self._running.append(Running(mutant, body, limit_s))

    def drain(self) -> None:
        """Wait for all that run."""
        while self._running:
            self._turn()

    def _turn(self) -> None:
        for one in list(self._running):
            ended = one.ended()
            if ended is not None:
                self._running.remove(one)
                self.found(one.mutant, ended)
        select.select([], [], [], 0.01)

    def found(self, mutant: Mutant, ended: Ended) -> None:
        """Keep what became of a mutant, and say so where nothing noticed it."""
        if ended.status == BROKEN:
            raise SystemExit(f"{mutant.key} {mutant.change} could not be tested: {ended.said}")
        line, old, new = mutant.change
        survived = ended.status == SURVIVED
        by = "" if survived else ended.said or ("time" if ended.status is None else "import")
        digest = self._log.digests[mutant.path]
        self._log.add(
            Finding(
                key=mutant.key, digest=digest, survived=survived, by=by, line=line, old=old, new=new
            )
        )
        self._done += 1
        if survived:
            print(
                f"[{self._done}/{self._whole}] {mutant.path}:{line}: {old}  ->  {new}", flush=True
            )


# --- the whole --------------------------------------------------------------------------------


def digest_of(path: str) -> str:
    """Of a module and its tests: what was found counts until one of them changes."""
    files = [f"{SOURCE}/{path}", *files_of([path])]
    return hashlib.sha256(b"".join((ROOT / f).read_bytes() for f in files)).hexdigest()[:16]


def try_all(mutants: Sequence[Mutant], log: Log, jobs: int) -> None:
    """Find out about each that is not known yet."""
    left = [m for m in mutants if not log.knows(m)]
    if not left:
        return
    print(
        f"{len(mutants) - len(left)} of {len(mutants)} are known; {len(left)} to test", flush=True
    )
    warm()
    pool = Pool(log, jobs, len(left))
    for mutant in (m for m in left if m.in_class):
        pool.test(mutant, partial(import_changed, mutant), 10 * PATIENCE_S)
    pool.drain()
    within = [m for m in left if not m.in_class]
    if within:
        arguments = [*OPTIONS, *files_of(dict.fromkeys(m.path for m in within))]
        pytest.main(arguments, plugins=[Session(within, pool.test)])
        pool.drain()


def table(found: Sequence[Finding]) -> str:
    """What was noticed for each module, and each that was not, as Markdown."""
    killed, whole = Counter[str](), Counter[str]()
    for one in found:
        path = one.key.partition("#")[0]
        whole[path] += 1
        killed[path] += not one.survived
    rows = ["| module | noticed | of | share |", "|---|---|---|---|"]
    rows += [_row(f"`{path}`", killed[path], whole[path]) for path in whole]
    rows += [
        _row("all", killed.total(), whole.total()),
        "",
        "| where | is | noticed by none |",
        "|---|---|---|",
    ]
    for one in found:
        if one.survived:
            path = one.key.partition("#")[0]
            old, new = (text.replace("|", "\\|") for text in (one.old, one.new))
            rows.append(f"| `{path}:{one.line}` | `{old}` | `{new}` |")
    return "\n".join(rows)


def _row(name: str, killed: int, whole: int) -> str:
    return f"| {name} | {killed} | {whole} | {killed / max(1, whole):.1%} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, test and print; ends with 1 where less than `--least` of the sample was noticed."""
    parser = argparse.ArgumentParser(description="Change what decides; name what no test notices.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=400, help="at least so many; 0 for all")
    parser.add_argument("--module", choices=[path.removesuffix(".py") for path in TESTS])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.85)
    parser.add_argument("--results", type=Path, default=ROOT / ".mutate" / "results.jsonl")
    asked = parser.parse_args(arguments)
    os.chdir(ROOT)
    paths = [f"{asked.module}.py"] if asked.module else list(TESTS)
    whole = {path: mutants_of(ROOT / SOURCE, path) for path in paths}
    count = sum(map(len, whole.values()))
    sample = drawn(whole, asked.size or count, asked.seed)
    log = Log(asked.results)
    try_all(sample, log, asked.jobs)
    if not all(map(log.knows, sample)):
        raise SystemExit("Not all could be tested; what was found is kept.")
    found = [log.known[m.key] for m in sample]
    print(f"Seed {asked.seed}: {len(sample)} of {count} mutants.\n\n{table(found)}")
    return 0 if sum(not f.survived for f in found) >= asked.least * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
