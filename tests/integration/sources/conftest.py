"""A source of each kind, which holds the rows that a test gives it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.sourcing import FILES, Make, Row, hold

from tuneproof.collection import Source

KINDS = [
    "sqlite",
    *FILES,
    *(
        pytest.param(kind, marks=pytest.mark.postgres)
        for kind in ("postgres", "postgres without asyncpg", "any other database")
    ),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """One kind of source after the other."""
    found: str = request.param
    return found


@pytest.fixture
def make(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Make:
    """Makes a source of the kind that holds the given rows."""
    if kind == "postgres without asyncpg":
        monkeypatch.setitem(sys.modules, "asyncpg", None)

    def made(rows: list[Row], **config: Any) -> Source:
        return hold(
            kind, rows, tmp_path, lambda: str(request.getfixturevalue("postgres_url")), **config
        )

    return made
