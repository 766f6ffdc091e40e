"""Would a candidate's answers win? Both models answer the same inputs; the outcome model judges.

What it says is an expectation, with the error of the sample and of what the outcome model knows.
It keeps a candidate away from users that would probably lose; that one is better, only the test
can show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tuneproof.evaluation.kept import together
from tuneproof.evaluation.outcomes import OutcomeModel, OutcomeReport
from tuneproof.evaluation.scorers import Messages
from tuneproof.evaluation.vectors import Embedder
from tuneproof.training import Answers

__all__ = ["Asked", "Prediction", "predict"]

MAX_TOKENS = 400

LEAST_INPUTS = 50
"""With fewer inputs the interval is wider than any difference that a training makes: what is
expected is told then, and refuses nobody."""


WIDEST = 0.12
"""An interval that is wider holds whatever a training makes, since the outcome model knows little:
by its lower bound alone every candidate would be refused."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model and who answers for it."""

    provider: Answers
    model: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How often a candidate's answers of a task are expected to do better than the baseline's.

    `win_rate` with its interval (95 %) over `inputs` held-out inputs; None where nothing can be
    said, which `outcomes`, the outcome model's report, explains, or `reason`.
    """

    task: str
    outcomes: OutcomeReport
    win_rate: float | None = None
    low: float | None = None
    high: float | None = None
    inputs: int = 0
    reason: str = ""

    def sentence(self) -> str:
        """What a person is told of it."""
        if self.win_rate is None or self.low is None or self.high is None:
            return f"{self.task}: {self.reason or self.outcomes.sentence()}."
        return (
            f"{self.task}: expected to do better in {self.win_rate:.0%} ({self.low:.0%} to "
            f"{self.high:.0%}) of {self.inputs} inputs; {self.outcomes.sentence()}."
        )

    def falls_short(self, least: float) -> bool:
        """Whether the lower bound, over 50 inputs or more, is below `least`: where little is known,
        only of a candidate that is expected to lose all the same."""
        if self.low is None or self.high is None or self.inputs < LEAST_INPUTS:
            return False
        told = self.high < 0.5 or self.high - self.low <= WIDEST
        return told and self.low < least


async def predict(
    task: str,
    outcomes: OutcomeModel,
    candidate: Asked,
    baseline: Asked,
    inputs: Sequence[Messages],
    *,
    embedder: Embedder | None = None,
    answers: int = 2,
    seed: int = 0,
) -> Prediction:
    """Ask both models `answers` times for each input (chats without their answer), and judge.

    `embedder` gives the vectors that the outcome model was fitted to. No model is asked where the
    outcome model knows no better than a coin.
    """
    if not outcomes.report.usable:
        return Prediction(task=task, outcomes=outcomes.report)

    async def texts(asked: Asked, number: int, messages: Messages) -> list[str]:
        found = await asked.provider.complete(
            asked.model, messages, n=answers, max_tokens=MAX_TOKENS, seed=seed + number
        )
        return [one.text for one in found]

    ours, theirs = [
        await together([texts(asked, number, one) for number, one in enumerate(inputs)])
        for asked in (candidate, baseline)
    ]
    vectors = None
    if embedder is not None:
        vectors = await embedder.vectors([text for some in (*ours, *theirs) for text in some])
    found = await asyncio.to_thread(outcomes.win_rate, ours, theirs, vectors)
    if found is None:
        return Prediction(
            task=task,
            outcomes=outcomes.report,
            reason="too few held-out inputs to compare answers",
        )
    return Prediction(
        task=task,
        outcomes=outcomes.report,
        win_rate=found.value,
        low=found.low,
        high=found.high,
        inputs=found.inputs,
    )
