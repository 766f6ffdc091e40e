"""What chose a candidate may not be all that judges it.

A measure that somebody selects or optimises by goes up, whether or not what it stands for does: a
judge likes what was picked for pleasing it. So of what chose, what gates and what decides, one at
least has to be another measure. The outcome itself is exempt: readers of a test decide anew, and
nobody picked them. Knows the settings, no answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tuneproof.settings import checks
from tuneproof.settings.pipelines import PipelineConfig
from tuneproof.settings.records import ScorerConfig, TaskConfig

__all__ = ["check_measures"]

MEND = 'Let readers decide, too: add "engagement non_inferior 0.05" to criteria.'


def check_measures(
    config: PipelineConfig,
    scorers: Mapping[str, ScorerConfig],
    tasks: Mapping[str, TaskConfig],
) -> None:
    """Refuse what lets one measure choose candidates and judge them alone.

    Raises `ConfigError`, which names the criteria, the rule and the mend.
    """
    metrics = {text.split()[0] for text in config.criteria}
    if not metrics or "engagement" in metrics:
        return
    if "quality" not in metrics:
        _refuse_own_picker(config, tasks)
    elif config.quality_scorer is not None:
        _refuse_one_judge(config, config.quality_scorer, scorers)
        _refuse_own_reward(config, config.quality_scorer, scorers)
        _refuse_own_judge(config, scorers.get(config.quality_scorer))


def _refuse_one_judge(
    config: PipelineConfig, judge: str, scorers: Mapping[str, ScorerConfig]
) -> None:
    """The scorer whose scores decide also picks at the gate who is tested."""
    for name in config.gate_min_scores or ():
        if name in scorers and name not in config.gate_scorers:
            continue  # nobody asks it, which is refused elsewhere
        if name == judge or _same(scorers.get(name), scorers.get(judge)):
            raise checks.refuse(
                f"pipelines.{config.name}.criteria",
                ", ".join(config.criteria),
                f"must ask for more than the quality by {judge!r}, since gate.min_scores lets only "
                f"candidates through that {name!r} likes: one measure would choose and decide",
                mend=f"{MEND} Or let another scorer than {name!r} gate.",
            )


def _refuse_own_reward(
    config: PipelineConfig, judge: str, scorers: Mapping[str, ScorerConfig]
) -> None:
    """The scorer whose scores decide is what a prompt is optimised by."""
    rewards = [recipe.search.reward for recipe in config.untrained if recipe.search is not None]
    for name in rewards:
        if name == judge or _same(scorers.get(name), scorers.get(judge)):
            raise checks.refuse(
                f"pipelines.{config.name}.criteria",
                ", ".join(config.criteria),
                f"must ask for more than the quality by {judge!r}, since a recipe optimises a "
                f"prompt by {name!r}: one measure would choose and decide",
                mend=f"{MEND} Or optimise by another scorer than {name!r}.",
            )


def _refuse_own_judge(config: PipelineConfig, judge: ScorerConfig | None) -> None:
    """The model that judges is one of those that are judged: models prefer what they wrote."""
    if judge is None or not judge.is_judge:
        return
    made_of = [recipe.model for recipe in config.untrained]
    made_of += [config.base_model] if config.trains else []
    if judge.model in made_of:
        raise checks.refuse(
            f"pipelines.{config.name}.criteria",
            ", ".join(config.criteria),
            f"must ask for more than the quality by {judge.name!r}, since its model "
            f"{judge.model!r} is what a candidate is made of: it would decide on its own answers",
            mend=f"{MEND} Or let a model of another family judge.",
        )


def _refuse_own_picker(config: PipelineConfig, tasks: Mapping[str, TaskConfig]) -> None:
    """The outcome model picks what is served and says at the gate whether it is good; no other
    measure of the answers decides."""
    picked = [name for name in config.tasks if name in tasks and tasks[name].best_of > 1]
    if picked and config.gate_compared and not config.gate_min_scores:
        raise checks.refuse(
            f"pipelines.{config.name}.criteria",
            ", ".join(config.criteria),
            f"must ask what the answers are worth, since the outcome model picks those of "
            f"{picked[0]!r} (best_of) and alone says whether they would win (gate.compared)",
            mend=f"{MEND} Or set gate.compared = 0, or a gate.min_scores.",
        )


def _same(one: ScorerConfig | None, other: ScorerConfig | None) -> bool:
    """Whether two names stand for one scorer."""
    return one is not None and other is not None and replace(one, name=other.name) == other
