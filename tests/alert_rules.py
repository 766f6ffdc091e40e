"""The alert rules as they lie in deploy, and a copy that is held for seconds instead of minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["BASE", "RULES", "quick_copies", "quick_copy", "rules"]

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy/prometheus/fine-tuning-pipeline.rules.yaml"

BASE = "https://docs.threads-agent.com/runbooks"
"""Below which address the rules look for their runbooks, until somebody sets another."""


def rules() -> dict[str, dict[str, Any]]:
    """Each rule by the name of its alert."""
    [group] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def quick_copy(folder: Path, alert: str, *, held: str = "1s") -> Path:
    """A file with this rule alone, which fires once it has held for so long."""
    return _written(folder, [{**rules()[alert], "for": held}])


def quick_copies(folder: Path, *, windows: Mapping[str, str], held: str = "1s") -> Path:
    """A file with all rules, which look back over shorter windows, too: `{"[15m]": "[20s]"}`."""
    copies = [{**rule, "for": held} for rule in rules().values()]
    for rule in copies:
        for window, shorter in windows.items():
            rule["expr"] = rule["expr"].replace(window, shorter)
    return _written(folder, copies)


def _written(folder: Path, copies: Sequence[Mapping[str, Any]]) -> Path:
    path = folder / "quick.rules.yaml"
    group = {"name": "quick", "rules": list(copies)}
    path.write_text(yaml.safe_dump({"groups": [group]}), "utf-8")
    return path
