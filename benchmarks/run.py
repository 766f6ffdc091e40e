"""Runs the benchmarks, writes `results.json` and `docs/benchmarks.md`, prints a table.

    python benchmarks/run.py [--strict] [NAME ...]      NAME: a file of this folder, or FOLDER_FILE

A benchmark is a file here with `def records() -> list[dict]`; each record has `name, ours, unit,
peer, peer_value, ratio, goal, met` (and may have more). `ratio` says how many times better ours
is than the peer's, whichever direction is better; `met` is null where no goal is set. Each file
runs in a process of its own, so none
sees another's memory. Results of benchmarks that were not run this time stay in the file;
`--strict` ends with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import ast
import glob
import json
import platform
import re
import runpy
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
VERSIONS = (
    "tuneproof",
    "dbos",
    "sqlalchemy",
    "psycopg",
    "fastapi",
    "uvicorn",
    "httptools",
    "openai",
)
FIELDS = ("name", "ours", "unit", "peer", "peer_value", "ratio", "goal", "met")
_CHILD = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
found = runpy.run_path(sys.argv[2])["records"]()
open(sys.argv[3], "w").write(json.dumps(found))
"""


def main() -> int:
    """Run what the command line names, or everything."""
    known = discover()
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--strict", action="store_true", help="end with 1 where a goal is missed")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    found, failed = run({name: known[name] for name in arguments.names or known})
    write(found, known)
    show([record for records in found.values() for record in records])
    missed = [record for records in found.values() for record in records if record["met"] is False]
    return 1 if failed or (arguments.strict and missed) else 0


def discover() -> dict[str, Path]:
    """The files here that define `records`, by name; none is imported for that."""
    files = sorted([*FOLDER.glob("*.py"), *FOLDER.glob("trainer/*.py")])
    return {_name(path): path for path in files if _has_records(path)}


def run(chosen: dict[str, Path]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The records of each benchmark, and the names of those that failed."""
    found: dict[str, list[dict[str, Any]]] = {}
    failed = []
    for name, path in chosen.items():
        started = time.perf_counter()
        print(f"{name} …", flush=True)
        try:
            found[name] = _records(name, path)
        except RuntimeError as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed.append(name)
            continue
        print(f"{name} took {time.perf_counter() - started:.0f} s", flush=True)
    return found, failed


def write(found: dict[str, list[dict[str, Any]]], known: dict[str, Path]) -> None:
    """Put the records into the results file, beside those of the other benchmarks."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = json.loads(RESULTS.read_text())["records"] if RESULTS.exists() else []
    kept = [r for r in before if r["benchmark"] in known and r["benchmark"] not in found]
    new = [
        {"benchmark": name, "measured_at": now, **record}
        for name, records in found.items()
        for record in records
    ]
    records = sorted(kept + new, key=lambda record: (record["benchmark"], record["name"]))
    RESULTS.write_text(json.dumps({"machine": machine(), "records": records}, indent=2) + "\n")
    runpy.run_path(str(FOLDER / "page.py"))["write_page"]()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "versions": {name: version(name) for name in VERSIONS} | _servers(),
    }


def _servers() -> dict[str, str]:
    """The versions of the servers that benchmarks start."""
    found = {}
    for name, program in (("PostgreSQL", "postgres"), ("Redis", "redis-server")):
        places = [shutil.which(program), *glob.glob(f"/usr/lib/postgresql/*/bin/{program}")]
        path = next((place for place in places if place), None)
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            number = re.search(r"\d+\.[\d.]+", said)
            found[name] = number[0] if number else said.strip()
    return found


def show(records: list[dict[str, Any]]) -> None:
    """Print the records as a table."""
    table = Table("benchmark", "ours", "peer", "its value", "ratio", "goal", "met")
    for record in records:
        table.add_row(
            record["name"],
            f"{_number(record['ours'])} {record['unit']}",
            str(record["peer"]),
            f"{_number(record['peer_value'])} {record['unit']}",
            "" if record["ratio"] is None else f"{_number(record['ratio'])} ×",
            str(record["goal"]),
            {True: "[green]yes[/]", False: "[red]no[/]"}.get(record["met"], ""),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _records(name: str, path: Path) -> list[dict[str, Any]]:
    output = FOLDER / f".{name}.json"
    try:
        done = subprocess.run([sys.executable, "-c", _CHILD, str(FOLDER), str(path), str(output)])
        if done.returncode != 0:
            raise RuntimeError(f"it ended with {done.returncode}")
        records: list[dict[str, Any]] = json.loads(output.read_text())
    finally:
        output.unlink(missing_ok=True)
    for record in records:
        missing = [field for field in FIELDS if field not in record]
        if missing:
            raise RuntimeError(f"a record lacks {', '.join(missing)}: {record}")
    return records


def _name(path: Path) -> str:
    """`trainer_poll` for `trainer/poll.py`."""
    return "_".join(path.relative_to(FOLDER).with_suffix("").parts)


def _has_records(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == "records" for node in tree.body)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,}"


if __name__ == "__main__":
    raise SystemExit(main())
