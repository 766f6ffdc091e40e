"""The chart and manifests as Kubernetes 1.20 takes them, which is what Debian has.

Only versions are rewritten, in a copy: those of kinds that were still beta in 1.20, and the
chart's own word on the oldest Kubernetes. A CronJob had no time zone yet.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.deploy.rendering import CHART

BETA = {
    "autoscaling/v2\n": "autoscaling/v2beta2\n",
    "batch/v1\nkind: CronJob": "batch/v1beta1\nkind: CronJob",
    "policy/v1\n": "policy/v1beta1\n",
}
OLDEST = ('kubeVersion: ">=1.24.0-0"', 'kubeVersion: ">=1.20.0-0"')


def beta(text: str) -> str:
    """Manifests or templates with the versions of 1.20."""
    for version, old in BETA.items():
        text = text.replace(f"apiVersion: {version}", f"apiVersion: {old}")
    return re.sub(r"^ *timeZone: .*\n", "", text, flags=re.M)


def for_1_20(copy: Path) -> Path:
    """Copy the chart to where there is nothing yet; where it is."""
    shutil.copytree(CHART, copy)
    for template in (copy / "templates").rglob("*.yaml"):
        template.write_text(beta(template.read_text("utf-8")), "utf-8")
    about = copy / "Chart.yaml"
    text = about.read_text("utf-8")
    assert OLDEST[0] in text
    about.write_text(text.replace(*OLDEST), "utf-8")
    return copy
