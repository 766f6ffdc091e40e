"""The public names are complete, lazy, and what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tuneproof
from tuneproof import errors


@pytest.mark.parametrize("name", tuneproof.__all__)
def test_public_name_can_be_imported(name: str) -> None:
    assert getattr(tuneproof, name) is not None


def test_every_lazy_name_is_public() -> None:
    assert set(tuneproof._WHERE) | {"__version__"} == set(tuneproof.__all__)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tuneproof.nonsense


def test_every_error_is_public_and_drawn() -> None:
    names = set(errors.by_name())
    assert names == set(errors.__all__)
    assert all(name in (errors.__doc__ or "") for name in names)


@pytest.mark.parametrize(
    "module", ["tuneproof", "tuneproof.client", "tuneproof.assignment", "tuneproof.blocking"]
)
def test_light_import_stays_light(module: str) -> None:
    heavy = ("numpy", "scipy", "pydantic", "httpx2", "fastapi", "sqlalchemy", "dbos", "openai")
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
