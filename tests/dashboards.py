"""The dashboards as they lie in deploy, and the code that writes them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "dashboards", "expressions", "written"]

FOLDER = Path(__file__).parent.parent / "deploy/grafana"


def written() -> dict[str, str]:
    """What the code writes, by the name of the file."""
    spec = importlib.util.spec_from_file_location("dashboards", FOLDER / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.written()
    return found


def dashboards() -> dict[str, dict[str, Any]]:
    """Each dashboard by its title."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return {board["title"]: board for board in found}


def expressions() -> list[tuple[str, str]]:
    """What each panel asks, by "dashboard: panel"."""
    return [
        (f"{title}: {panel['title']}", target["expr"])
        for title, board in dashboards().items()
        for panel in board["panels"]
        for target in panel["targets"]
    ]
