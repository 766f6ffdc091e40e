"""The alert rules as they lie in deploy, and a copy that is held for seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["BASE", "RULES", "quick_copy", "rules"]

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
    rule = {**rules()[alert], "for": held}
    path = folder / "quick.rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "quick", "rules": [rule]}]}), "utf-8")
    return path
