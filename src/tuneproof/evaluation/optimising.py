"""The search for a better prompt: GEPA's, by rewards and proposals of ours (extra `[gepa]`).

GEPA (arXiv:2507.19457) tries a prompt on some inputs, lets a model write one of its messages anew
by what came of that, and keeps what does better, also on inputs that the model never sees. It
blocks, so it has a thread of its own, which asks this process's loop for each answer. What it
knows stands in a folder, so a search that was broken off goes on there.

Errors end it by our stop and not by GEPA's own ways: it would log them and ask again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from tuneproof.errors import BudgetExceededError, ConfigError, DataError, InputError, NotFoundError
from tuneproof.evaluation.comparing import MAX_TOKENS
from tuneproof.evaluation.kept import together
from tuneproof.evaluation.proposals import Rules, proposed, question
from tuneproof.evaluation.scorers import Scorer, ask
from tuneproof.prompts import Prompt
from tuneproof.resilience import in_daemon_thread
from tuneproof.training import Answers

if TYPE_CHECKING:
    from gepa.core.adapter import EvaluationBatch
    from gepa.core.result import GEPAResult
    from gepa.core.state import GEPAState

__all__ = ["Case", "Found", "PromptSearch", "ensure_gepa"]

log = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE: Final = 3
"""On how many inputs a prompt is tried before it is tried on all that are measured."""

SHOWN_ANSWERS: Final = 5
"""How many published answers to an input the proposing model is told of, best and worst."""

REPLY_TOKENS: Final = 2_000
"""What a reply may have beside the prompt, for who thinks aloud."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An input, by the values of its variables, and what came of published answers to it."""

    values: Mapping[str, str]
    published: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a search ended. `score` and `before` are the mean rewards of the best prompt and of the
    first one; `prompt` is None where none did better. `refused` proposals were not tried."""

    prompt: Prompt | None
    score: float
    before: float
    tried: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    case: Case
    text: str
    value: float
    reason: str


class _Abandoned(BaseException):
    """Nobody waits for the search any more: it ends where it is, and writes nothing."""


def ensure_gepa() -> None:
    """Raises `ConfigError` where GEPA is not installed."""
    try:
        import gepa  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            "A recipe optimises a prompt, and gepa is not installed.",
            mend="Install tuneproof[gepa], or say the prompt in the recipe.",
        ) from e


class PromptSearch:
    """A search from one prompt; also the adapter that GEPA asks.

    An answer that is empty or cannot be scored gets `floor`.
    """

    def __init__(
        self,
        seed: Prompt,
        rules: Rules,
        *,
        model: str,
        answers: Answers,
        scorer: Scorer,
        proposer: Answers,
        proposing_model: str,
        floor: float,
        calls: int,
        most_tokens: int,
        number: int,
        folder: Path,
    ) -> None:
        self._seed = seed
        self._rules = rules
        self._model = model
        self._answers = answers
        self._scorer = scorer
        self._proposer = proposer
        self._proposing_model = proposing_model
        self._floor = floor
        self._calls = calls
        self._most_tokens = most_tokens
        self._number = number
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._asking: Future[Any] | None = None
        self._abandoned = False
        self._measured = 0
        self._why: Exception | None = None
        self.refused = 0

    async def run(self, shown: Sequence[Case], measured: Sequence[Case]) -> Found | None:
        """The best prompt: written by what came of `shown`, chosen by `measured` inputs.

        None where the budget ended before the first was measured. Raises what answers, scorer and
        proposing model raise, at once; asked again it goes on where it was.
        """
        self._measured = len(measured)
        try:
            result = await in_daemon_thread(self._search, shown, measured)
        except Exception:
            if self._why is None:
                raise
            result = None  # before the first was measured; why is told below
        finally:
            self._abandon()
        if self._why is not None and not isinstance(self._why, BudgetExceededError):
            raise self._why
        return None if result is None else self._found(result)

    def _search(self, shown: Sequence[Case], measured: Sequence[Case]) -> GEPAResult[str, int]:
        from gepa.api import optimize

        return optimize(
            seed_candidate=_texts(self._seed),
            trainset=list(shown),
            valset=list(measured),
            adapter=cast(Any, self),
            skip_perfect_score=False,
            reflection_minibatch_size=AT_ONCE,
            stop_callbacks=[self._ends],
            logger=_Log(),
            run_dir=str(self._folder),
            seed=self._number,
            raise_on_exception=False,
        )

    def _found(self, result: GEPAResult[str, int]) -> Found:
        scores, best = result.val_aggregate_scores, result.best_idx
        prompt = None
        if scores[best] > scores[0]:
            prompt = self._rules.checked(result.candidates[best])
        return Found(
            prompt=prompt,
            score=scores[best],
            before=scores[0],
            tried=len(result.candidates) - 1,
            refused=self.refused,
        )

    def _ends(self, gepa_state: GEPAState[str, int]) -> bool:
        """Whether no further turn begins: something failed, or it could take too many calls."""
        if self._abandoned:
            raise _Abandoned
        turn = 2 * AT_ONCE + self._measured
        over = gepa_state.total_num_evals + turn > self._calls or gepa_state.i >= self._calls
        return over or self._why is not None

    def _abandon(self) -> None:
        self._abandoned = True
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self, what: Coroutine[Any, Any, T]) -> T:
        """What the loop's coroutine finds. Nothing more is asked once something failed."""
        if self._abandoned or self._why is not None:
            what.close()
            if self._abandoned:
                raise _Abandoned
            raise RuntimeError("The search has ended.") from self._why
        self._asking = asking = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return asking.result()
        except Exception as error:
            if self._abandoned:
                raise _Abandoned from error
            self._why = error
            raise

    # --- what GEPA calls ----------------------------------------------------------------

    def evaluate(
        self, batch: list[Case], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[_Attempt, str]:
        """Try a prompt on inputs."""
        from gepa.core.adapter import EvaluationBatch

        first = candidate == _texts(self._seed)
        made = self._ask(self._attempts(batch, self._rules.made(candidate), first))
        return EvaluationBatch(
            outputs=[one.text for one in made],
            scores=[one.value for one in made],
            trajectories=made if capture_traces else None,
        )

    def make_reflective_dataset(
        self,
        candidate: dict[str, str],
        eval_batch: EvaluationBatch[_Attempt, str],
        components_to_update: list[str],
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What the proposing model is told of each attempt."""
        told = [_told(one) for one in eval_batch.trajectories or ()]
        return dict.fromkeys(components_to_update, told)

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """New texts of these messages; none where the proposal may not be tried."""
        made = dict(candidate)
        for name in components_to_update:
            asked = question(
                self._rules.made(made),
                int(name),
                reflective_dataset[name],
                most_tokens=self._most_tokens,
            )
            reply = self._ask(self._reply(asked))
            try:
                made[name] = proposed(reply)
                self._rules.checked(made)
            except InputError as error:
                self.refused += 1
                log.info("A proposal is not tried. %s", error)
                return {}
        return {name: made[name] for name in components_to_update}

    # --- in the loop ----------------------------------------------------------------------

    async def _reply(self, asked: str) -> str:
        [reply] = await self._proposer.complete(
            self._proposing_model,
            [{"role": "user", "content": asked}],
            max_tokens=2 * self._most_tokens + REPLY_TOKENS,
        )
        return reply.text

    async def _attempts(self, cases: Sequence[Case], prompt: Prompt, first: bool) -> list[_Attempt]:
        return await together([self._attempt(case, prompt, first) for case in cases])

    async def _attempt(self, case: Case, prompt: Prompt, first: bool) -> _Attempt:
        messages = prompt.render(case.values)
        said = dict(prompt.parameters)
        try:
            [answer] = await self._answers.complete(
                self._model,
                messages,
                max_tokens=said.pop("max_tokens", MAX_TOKENS),
                temperature=said.pop("temperature", None),
                seed=self._number,
                parameters=said or None,
            )
        except InputError as error:
            if first or isinstance(error, ConfigError | NotFoundError):
                raise  # it is not the proposal's fault
            return _Attempt(case=case, text="", value=self._floor, reason=error.message)
        if not answer.text.strip():
            return _Attempt(case=case, text="", value=self._floor, reason="The answer is empty.")
        try:
            scored = await ask(self._scorer, messages, answer.text)
        except DataError as error:
            return _Attempt(case=case, text=answer.text, value=self._floor, reason=error.message)
        return _Attempt(case=case, text=answer.text, value=scored.value, reason=scored.reason)


class _Log:
    """GEPA's notes, which have texts of posts in them: for who asks for details alone."""

    def log(self, message: str) -> None:
        """Note it."""
        log.debug("%s", message)


def _texts(prompt: Prompt) -> dict[str, str]:
    """The messages' texts by their places, which GEPA calls components."""
    return {str(place): content for place, (_, content) in enumerate(prompt.messages)}


def _told(attempt: _Attempt) -> dict[str, object]:
    best_first = sorted(attempt.case.published, key=lambda one: -one[1])
    if len(best_first) > SHOWN_ANSWERS:
        half = SHOWN_ANSWERS // 2
        best_first = [*best_first[: SHOWN_ANSWERS - half], *best_first[-half:]]
    return {
        "input": dict(attempt.case.values),
        "answer": attempt.text,
        "score": round(attempt.value, 4),
        **({"why": attempt.reason} if attempt.reason else {}),
        "published": [{"answer": text, "outcome": rate} for text, rate in best_first],
    }
