"""A routing as variables: what env files and ConfigMaps can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tuneproof.errors import ConfigError
from tuneproof.rollout import Routing

SWITCH_AT = 0.5
"""The share from which an application that reads one model only gets the candidate."""


def check_switch(switch_at: float) -> float:
    """The share as it is; raises `ConfigError` outside 0..1 (0 excluded)."""
    if not 0 < switch_at <= 1:
        raise ConfigError(
            f"switch_at is {switch_at!r}, but must be above 0 and at most 1.",
            mend="Use the share from which applications that read one model get the candidate.",
        )
    return switch_at


def stem(task: str) -> str:
    """The task's name as the beginning of a variable's: `hook` -> `HOOK`."""
    return re.sub(r"\W+", "_", task).upper().strip("_")


def variables(
    routing: Routing, *, switch_at: float = SWITCH_AT, prompts: bool = False
) -> dict[str, str]:
    """The variables of one task. All are always there, so that none is left from before; with
    `prompts` also those that name the models' prompts by their hash.

    >>> from tuneproof.experiments import Variant
    >>> variables(Routing(task="hook", baseline=Variant(model_id="base"), version=3))["HOOK_MODEL"]
    'base'
    """
    name = stem(routing.task)
    lane = routing.only
    share = lane.share if lane is not None and lane.candidate is not None else 0.0
    candidate = lane.candidate if lane is not None and share > 0 else None
    switched = share >= switch_at
    model = candidate if candidate is not None and switched else routing.baseline
    asked_by = {
        f"{name}_PROMPT": model.prompt or "",
        f"{name}_BASELINE_PROMPT": routing.baseline.prompt or "",
        f"{name}_CANDIDATE_PROMPT": (candidate.prompt or "") if candidate else "",
    }
    return {
        **(asked_by if prompts else {}),
        f"{name}_MODEL": model.model_id,
        f"{name}_BASELINE_MODEL": routing.baseline.model_id,
        f"{name}_CANDIDATE_MODEL": candidate.model_id if candidate else "",
        f"{name}_CANDIDATE_SHARE": f"{share:.4f}",
        f"{name}_SALT": routing.salt,
        f"{name}_ROUTING_VERSION": str(routing.version),
    }


def observed(found: Mapping[str, str], task: str) -> Mapping[str, Any] | None:
    """What variables say about a task, or None where they say nothing of it."""
    name = stem(task)
    if f"{name}_MODEL" not in found:
        return None
    return {
        "model": found[f"{name}_MODEL"],
        "baseline": found.get(f"{name}_BASELINE_MODEL") or None,
        "candidate": found.get(f"{name}_CANDIDATE_MODEL") or None,
        "share": _number(found.get(f"{name}_CANDIDATE_SHARE")),
        "version": _whole(found.get(f"{name}_ROUTING_VERSION")),
    }


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
