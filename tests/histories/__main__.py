"""Record histories with the schema of now: `python -m tests.histories [scenario ...]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.histories.scenarios import DATABASES, RECORDED, SCENARIOS, path_of, record, write
from tests.servers import PostgresServer, postgres_server

from tuneproof.store.migrate import HEAD


def main(names: list[str]) -> None:
    """Record these scenarios, or all, on both databases."""
    (RECORDED / HEAD).mkdir(exist_ok=True)
    with postgres_server() as server:
        for name in names or list(SCENARIOS):
            for database in DATABASES:
                _record(name, database, server)


def _record(name: str, database: str, server: PostgresServer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        sqlite = database == "sqlite"
        url = f"sqlite:///{directory / 'store.db'}" if sqlite else server.create_database()
        for history, found in asyncio.run(record(SCENARIOS[name], url, directory)).items():
            path = path_of(history, database, HEAD)
            write(path, found)
            print(f"{path.name}: {path.stat().st_size:,} bytes, {found['end']['runs'] or ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
