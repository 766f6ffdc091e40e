"""What to do where a provider shuts a model down: the command, and the last day to begin.

In one place, since status, doctor, page and alert say it alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tuneproof.rollout import plan
from tuneproof.settings import PipelineConfig

__all__ = ["GUIDE", "Needed", "command", "needed", "succession"]

START = "tuneproof run start"
MOVE = "tuneproof migrate --to SUCCESSOR"
"""What tests a successor as it is; the guide says what else may take the place."""

GUIDE = "docs/how-to/migrate.md"


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How long a successor needs before nobody is served by the old model any more."""

    test: timedelta
    maturing: timedelta
    rollout: timedelta
    holdback: timedelta

    @property
    def without_holdback(self) -> timedelta:
        return self.test + self.maturing + self.rollout

    @property
    def all(self) -> timedelta:
        return self.without_holdback + self.holdback

    def sentence(self) -> str:
        """Its parts in words, those of no length left out."""
        parts = {
            "of test": self.test,
            "for its outcomes": self.maturing,
            "of rollout": self.rollout,
            "of holdback": self.holdback,
        }
        return ", ".join(f"{_days(one)} {of}" for of, one in parts.items() if one)


def needed(config: PipelineConfig) -> Needed:
    """How long the test, its last outcomes, the rollout and the holdback of a pipeline take."""
    steps = plan(config)
    return Needed(
        test=timedelta(hours=config.a_b_test_duration_hours),
        maturing=timedelta(hours=config.maturation_hours),
        rollout=timedelta(hours=(len(steps.steps) - 1) * steps.interval_hours),
        holdback=timedelta(days=steps.holdback_days),
    )


def command(config: PipelineConfig, doomed: Sequence[str]) -> str:
    """What starts a run that tests a successor: one of the settings' recipes, else one to be named.

    `doomed` are the models that go: their own recipes lead nowhere.
    """
    pipeline = "" if config.name == "default" else f" --pipeline {config.name}"
    named = any(recipe.model not in (None, *doomed) for recipe in config.untrained)
    return f"{START if named else MOVE}{pipeline}"


def succession(
    config: PipelineConfig,
    at: datetime,
    now: datetime,
    *,
    follower: str | None,
    doomed: Sequence[str] = (),
) -> str:
    """What to do about a shutdown at this instant, and until when.

    `follower` is what the loop goes on with by itself.
    """
    takes = needed(config)
    if follower is None:
        what = f"test what is to follow it: {command(config, doomed)} ({GUIDE})"
        return f"{what}; {_when(takes, at, now)}"
    said = f"{config.retrain_lead_days:g} days before, the loop starts a run with {follower}"
    if timedelta(days=config.retrain_lead_days) > takes.all:
        return said
    least = math.floor(takes.all / timedelta(days=1)) + 1
    mend = f"set training.retrain_lead_days to {least} or more"
    mend += ", or holdback = 0" if takes.holdback else ""
    return f"{said}, too late for {takes.sentence()}: {mend} ({GUIDE})"


def _when(takes: Needed, at: datetime, now: datetime) -> str:
    """The last day to start, as the settings are; without the holdback where that day is past."""
    first, last = at - takes.all, at - takes.without_holdback
    if now <= first:
        later = f"; by {last:%Y-%m-%d} with holdback = 0" if takes.holdback else ""
        return f"start by {first:%Y-%m-%d} ({takes.sentence()}{later})"
    if now <= last:
        return (
            f"start by {last:%Y-%m-%d} and with holdback = 0, since its {_days(takes.holdback)} "
            f"would outlast the model ({takes.sentence()})"
        )
    return (
        f"a whole test and rollout ({takes.sentence()}) would outlast the model, so a person has "
        "to choose"
    )


def _days(one: timedelta) -> str:
    days = one / timedelta(days=1)
    return f"{days:g} day" if days == 1 else f"{days:.4g} days"
