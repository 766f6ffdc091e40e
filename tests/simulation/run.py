"""Run the simulations whole and write `results.json` (`make simulate`).

python -m tests.simulation            all rows
python -m tests.simulation cycles     some rows
python -m tests.simulation --small    a tenth of the runs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from tests.simulation import adaptive, declarations, families, faults, loops, tests_table, traps
from tests.simulation.records import Record, Row

SEED = 20_261_120
RESULTS = Path(__file__).with_name("results.json")
ROWS: dict[str, tuple[Row, int]] = {
    **tests_table.ROWS,
    **loops.ROWS,
    **traps.ROWS,
    **declarations.ROWS,
    **families.ROWS,
    **adaptive.ROWS,
    **faults.ROWS,
}


def run(name: str, *, scale: float = 1.0) -> list[Record]:
    """The records of one row; its generator depends on its name and `SEED` alone."""
    row, runs = ROWS[name]
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    return row(max(int(runs * scale), 50), rng)


def main(arguments: list[str] | None = None) -> int:
    """Run rows, print them, write the file when all were run whole; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="all by default")
    parser.add_argument("--small", action="store_true", help="a tenth of the runs, no file")
    options = parser.parse_args(arguments)
    records: list[Record] = []
    for name in options.rows or ROWS:
        started = time.perf_counter()
        found = run(name, scale=0.1 if options.small else 1.0)
        records += found
        for record in found:
            _print(record)
        print(f"    {name}: {time.perf_counter() - started:.1f} s", flush=True)  # noqa: T201
    if not options.rows and not options.small:
        text = json.dumps([r.to_dict() for r in records], indent=1, ensure_ascii=False)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    return 0 if all(r.met for r in records) else 1


def _print(record: Record) -> None:
    careless = "" if record.careless is None else f"  careless {record.careless:.4g}"
    said = f" ({record.careless_said})" if record.careless_said else ""
    print(  # noqa: T201
        f"{'ok  ' if record.met else 'MISS'} {record.name}: {record.ours:.4g}"
        f" ± {record.standard_error:.2g}, goal {record.goal}{careless}{said}"
    )


if __name__ == "__main__":
    sys.exit(main())
