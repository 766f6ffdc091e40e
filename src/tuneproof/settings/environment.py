"""What the environment sets: each variable that a setting names, read as the setting's type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneproof.settings import checks, tables

DIRECTORY = "TUNEPROOF_DIR"
FILE = "TUNEPROOF_CONFIG"
"""Not settings of a table: where the data lie, and which file to read."""


def read(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The settings that the environment makes: path -> (value, variable). Empty is not set."""
    found: dict[str, tuple[Any, str]] = {
        path: (env[name], name)
        for path, name in (("dir", DIRECTORY), ("file", FILE))
        if env.get(name, "").strip()
    }
    for name, (path, option) in tables.variables().items():
        value = env.get(name, "")
        if value.strip():
            found[path] = (_read(name, value, option.kind), name)
    return found


def _read(name: str, value: str, kind: Any) -> Any:
    if kind is bool:
        return _truth(name, value)
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError as error:
            rule = "must be a whole number" if kind is int else "must be a number"
            raise checks.refuse(name, value, rule) from error
    return value


def _truth(name: str, value: str) -> bool:
    word = value.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise checks.refuse(name, value, "must be true or false")
