"""What an installation of `tuneproof[lora]` brings is what a trainer imports, and no more."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tuneproof_trainer

SOURCES = Path(tuneproof_trainer.__file__).parent
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
WITH = {"pydantic_core": "pydantic"}
"""Modules that another's distribution brings by design."""
OF_THE_LOOP = (
    *("tuneproof", "aiosqlite", "alembic", "cashews", "dbos", "fastapi", "mlflow", "numpy"),
    *("openai", "prometheus_client", "psycopg", "redis", "scipy", "sqlalchemy", "stamina"),
)


def test_every_import_is_declared() -> None:
    """The engine ray may need its own extra, the rest the extra lora, all but the engines none."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    base = names_of(project["dependencies"])
    lora = base | names_of(extras["lora"])
    ray = lora | names_of(extras["ray"])
    installed = packages_distributions()
    for path in SOURCES.rglob("*.py"):
        folder = path.relative_to(SOURCES).parts[:2]
        declared = {("engines", "lora"): lora, ("engines", "ray"): ray}.get(folder, base)
        undeclared = imported(path, installed) - declared - {"tuneproof-trainer"}
        assert not undeclared, f"{path} imports what pyproject.toml does not declare: {undeclared}"


def names_of(requirements: list[str]) -> set[str]:
    """The distributions that a list of requirements names."""
    return {re.split(r"[\[<>=~! ;]", text)[0].lower() for text in requirements}


def imported(path: Path, installed: Mapping[str, Sequence[str]]) -> set[str]:
    """The distributions outside the standard library that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    found = set()
    for module in modules - sys.stdlib_module_names:
        name = WITH.get(module) or installed.get(module, [module])[0]
        found.add(name.lower().replace("_", "-"))
    return found


@pytest.mark.parametrize("module", ["cli", "server", "embedded", "openapi"])
def test_a_trainer_loads_nothing_of_the_loop(module: str) -> None:
    code = f"""
import sys, tuneproof_trainer.{module}
print(sorted({set(OF_THE_LOOP)!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
