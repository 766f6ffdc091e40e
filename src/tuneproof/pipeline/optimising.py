"""The search for a better prompt than that in use, where a recipe asks for one.

Before anything is proposed it is checked that the reward goes with outcomes. All is paid from one
budget, which stands in the store: whoever goes on after a kill spends no more than was left.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tuneproof.collection import Task, TrainingDataBatch
from tuneproof.errors import BudgetExceededError, ConfigError
from tuneproof.evaluation import (
    Answered,
    Case,
    Correlation,
    Found,
    Judge,
    Kept,
    Messages,
    OutcomeModel,
    Paid,
    PromptSearch,
    Rules,
    Scored,
    Scorer,
    ask,
    correlation,
    ensure_gepa,
    examples_of,
    fit_outcomes,
    inputs_of,
    paid,
    published_answers,
    together,
)
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.gating import answering, telling
from tuneproof.pipeline.prompting import owned_task, prompt_in_use
from tuneproof.pipeline.records import Optimised, RunStore
from tuneproof.pipeline.routing import model_in_use
from tuneproof.pipeline.steps import StepName
from tuneproof.prompts import Prompt
from tuneproof.settings.recipes import OUTCOMES, Optimise, Recipe
from tuneproof.training import Answers, Price

__all__ = ["FOLDER", "PROPOSAL", "OptimiseStage", "forget"]

PROPOSAL: Final = "proposal"
"""Where a prompt came from that a search found."""

FOLDER: Final = "gepa"
STATE: Final = "state"
"""Where searches stand that are under way, and in each what GEPA knows."""

IN_ALL: Final = "in all"
"""The day of a budget that has none."""

CHECKED: Final = 200
"""How many published answers the reward is checked by, at most."""

CHECK_EVERY: Final = 3
"""They answer each input of so many, and the search does not see these."""

SHOWN: Final = 200
MEASURED: Final = 50
"""How many inputs proposals are written by, and how many they are chosen by, at most."""

LEAST_INPUTS: Final = 4
"""Of either; fewer say nothing."""

MEASURED_OF: Final = 12
"""The first prompt is measured by at most this part of the calls."""

MOST_LINES: Final = 50_000

NO_LIMIT: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """By what is searched: the same after a kill, whatever posts came since."""

    dataset: str
    prompt: str
    shown: tuple[Case, ...]
    measured: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class _Purse:
    """The budget of one recipe of a run."""

    store: RunStore
    name: str
    most_usd: float

    async def take(self, usd: float) -> bool:
        """Take what a call may cost; False where there is less."""
        return await self.store.scores.reserve(
            self.name, IN_ALL, usd, max_calls=NO_LIMIT, max_cost_usd=self.most_usd
        )

    async def settle(self, taken_usd: float, cost_usd: float) -> None:
        """Put what the call did cost in place of what was taken."""
        await self.store.scores.settle(self.name, IN_ALL, taken_usd, cost_usd)

    async def spent(self) -> float:
        """What was taken until now."""
        return (await self.store.scores.spent(self.name, IN_ALL)).cost_usd


class _Asked(NamedTuple):
    """Which model is asked, who answers for it, and who proposes."""

    model: str
    answers: Answers
    proposer: Answers


class OptimiseStage:
    """From the prompt in use to a better one, for each recipe that asks for it."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    async def optimise(self, batch: TrainingDataBatch) -> tuple[Optimised, ...]:
        """What came of each search; who is away is waited for."""
        found = []
        for number, recipe in enumerate(self._run.config.untrained, 1):
            if recipe.search is not None:
                found.append(
                    await self._run.patiently(
                        StepName.TRAIN_OPTIMISE, self._optimised, number, recipe, batch
                    )
                )
        return tuple(found)

    async def _optimised(self, number: int, recipe: Recipe, batch: TrainingDataBatch) -> Optimised:
        search = recipe.search
        assert search is not None
        ensure_gepa()
        purse = _Purse(
            store=self._run.parts.store,
            name=f"{self._run.id}/recipe-{number}",
            most_usd=search.budget_usd,
        )
        one = _Search(self._run, number, recipe, search, purse)
        try:
            prompt, said = await one.go(await with_files(self._run, batch))
        except BudgetExceededError:
            prompt, said = None, "the budget ended before the reward was checked"
        spent = await purse.spent()
        told = f"Recipe {number}: {said} ({spent:.4f} of {search.budget_usd:g} USD spent)."
        return Optimised(recipe=number, said=told, prompt=prompt, spent_usd=spent)


class _Search:
    """One recipe's search."""

    def __init__(
        self, run: RunContext, number: int, recipe: Recipe, search: Optimise, purse: _Purse
    ) -> None:
        task = owned_task(run)
        assert task is not None  # the settings refuse a recipe without one
        self._run = run
        self._number = number
        self._recipe = recipe
        self._search = search
        self._purse = purse
        self._task = task
        self._folder = _folder(run, number)

    async def go(self, batch: TrainingDataBatch) -> tuple[str | None, str]:
        """The hash of a better prompt, if there is one, and what to tell of the search."""
        seed = await prompt_in_use(self._run, self._task)
        await asyncio.to_thread(self._make_folder, batch, seed)
        kept = Kept(self._folder / "answers.jsonl")
        # For each try an answer and its score; a reward of ours is asked beside.
        async with telling(self._run, kept, CHECKED + 2 * self._search.calls):
            return await self._gone(batch, seed, kept)

    async def _gone(
        self, batch: TrainingDataBatch, seed: Prompt, kept: Kept
    ) -> tuple[str | None, str]:
        asked = await self._asked(kept)  # refuses what has no price before anything is paid
        posts = await self._posts(batch)
        known, held_out = _parted(posts)
        scorer = await self._scorer(known, kept)
        scores = await _scored(scorer, held_out, seed)
        checked = correlation(scores, [one.published.rate for one in held_out])
        if not checked.usable:
            return None, _refused(self._search.reward, checked)
        made_by = await self._made_by(batch)
        inputs = await asyncio.to_thread(self._inputs, batch, seed, posts, made_by)
        if min(len(inputs.shown), len(inputs.measured)) < LEAST_INPUTS:
            return None, "the training side has too few different inputs to search by"
        texts = await asyncio.to_thread(lambda: list(_texts(batch, self._task, posts)))
        rules = Rules(seed, texts, most_tokens=self._search.prompt_max_tokens)
        looking = self._looking(seed, rules, asked, scorer, floor=min(scores))
        found = await looking.run(inputs.shown, inputs.measured)
        return await self._told(seed, checked, found)

    def _looking(
        self, seed: Prompt, rules: Rules, asked: _Asked, scorer: Scorer, *, floor: float
    ) -> PromptSearch:
        return PromptSearch(
            seed,
            rules,
            model=asked.model,
            answers=asked.answers,
            scorer=scorer,
            proposer=asked.proposer,
            proposing_model=self._search.model,
            floor=floor,
            calls=self._search.calls,
            most_tokens=self._search.prompt_max_tokens,
            number=self._run.config.seed,
            folder=self._folder / STATE,
        )

    async def _told(
        self, seed: Prompt, checked: Correlation, found: Found | None
    ) -> tuple[str | None, str]:
        """Keep what was found, and say what came of it."""
        if found is None:
            return None, "the budget ended before the prompt in use was measured"
        told = (
            f"{checked.sentence()}; of the proposals {found.tried} did well enough to be measured "
            f"by {self._search.reward}, and {found.refused} might not be tried"
        )
        if found.prompt is None:
            return None, f"{told}, and none did better than the prompt in use, {found.before:.4g}"
        prompts = self._run.parts.store.prompts
        await prompts.keep(found.prompt, origin=PROPOSAL, parent=seed.hash)
        better = f"the best has {found.score:.4g}, the prompt in use {found.before:.4g}"
        return found.prompt.hash, f"{told}, and {better}"

    # --- who answers ----------------------------------------------------------------------

    async def _asked(self, kept: Kept) -> _Asked:
        """Who answers and who proposes, both paid; what was answered before is kept."""
        run, search = self._run, self._search
        provider, model, answers = await self._answering()
        proposer = run.parts.provider(search.provider)
        return _Asked(
            model=model,
            answers=kept.of(Paid(answers, self._price(provider, model), self._purse)),
            proposer=Paid(proposer, self._price(search.provider, search.model), self._purse),
        )

    async def _answering(self) -> tuple[str, str, Answers]:
        """The provider's name and the model that is asked, and who answers for it."""
        run, recipe = self._run, self._recipe
        if recipe.model is not None:
            provider = recipe.provider or run.config.provider
            return provider, recipe.model, run.parts.provider(provider)
        found = await model_in_use(run, run.config.base_model or "")
        provider = (found.provider or run.config.provider).partition("@")[0]
        return provider, found.model_id, await answering(run, found)

    def _price(self, provider: str, model: str) -> Price:
        """What a model's answers cost: without it no budget means anything."""
        try:
            found = self._run.parts.price(provider, model, "answers")
        except KeyError:  # it left the settings since
            found = None
        if found is None or found.prompt is None or found.completion is None:
            raise ConfigError(
                f"Recipe {self._number} has a budget_usd, but nobody knows what {model} costs at "
                f"provider {provider!r}.",
                mend=f'Say it: [providers.{provider}.prices] "{model}" = [prompt, completion] in '
                "USD per million tokens; [0, 0] for one of your own.",
            )
        return found

    # --- the reward ------------------------------------------------------------------------

    async def _scorer(self, known: Sequence[Answered], kept: Kept) -> Scorer:
        reward = self._search.reward
        if reward == OUTCOMES:
            return _liked(await asyncio.to_thread(fit_outcomes, [one.published for one in known]))
        parts = self._run.parts
        scorer = parts.scorers.get(reward) or (parts.scorer and parts.scorer(reward))
        if scorer is None:
            raise ConfigError(
                f"There is no scorer {reward!r}, by which recipe {self._number} optimises.",
                mend=f"Add [scorers.{reward}].",
            )
        if isinstance(scorer, Judge) and not scorer.priced:
            raise ConfigError(
                f"Recipe {self._number} has a budget_usd, but nobody knows what scorer {reward!r} "
                "costs.",
                mend="Say what its model costs in the prices of its provider.",
            )
        return kept.scorer(reward, paid(scorer, self._purse))

    # --- by what is searched -----------------------------------------------------------------

    async def _posts(self, batch: TrainingDataBatch) -> list[Answered]:
        run, config = self._run, self._run.config
        source = run.parts.source(config, run.arguments.posts)
        try:
            return await published_answers(
                source,
                self._task,
                batch.window.until,
                days=max(config.gate_outcome_days, config.days_back),
                pair_days=config.pair_days,
            )
        finally:
            await source.close()

    async def _made_by(self, batch: TrainingDataBatch) -> Prompt:
        """The prompt that the dataset's inputs are written in."""
        if batch.prompt is None:
            return self._task.first_prompt
        return (await self._run.parts.store.prompts.get(batch.prompt)).prompt

    def _make_folder(self, batch: TrainingDataBatch, seed: Prompt) -> None:
        """Make the search's folder, for its owner alone: what stands there is unpickled. One that
        began with another dataset or prompt is begun anew."""
        before = self._read()
        if before is not None and (before.dataset, before.prompt) != (batch.hash, seed.hash):
            shutil.rmtree(self._folder)
        for folder in (self._folder.parent, self._folder, self._folder / STATE):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def _inputs(
        self,
        batch: TrainingDataBatch,
        seed: Prompt,
        posts: Sequence[Answered],
        made_by: Prompt,
    ) -> _Inputs:
        """The dataset's inputs to train on, halved; what the reward is checked by is left out."""
        known = self._read()
        if known is not None:
            return known
        came_of: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for post in posts:
            came_of[_key(post.values)].append((post.published.text, post.published.rate))
        halves: tuple[list[Case], list[Case]] = ([], [])
        for values in _values(batch, self._task, made_by):
            key, place = _key(values), _place(values)
            if place % CHECK_EVERY:
                case = Case(values=values, published=tuple(came_of[key]))
                halves[place // CHECK_EVERY % 2].append(case)
        measured = min(MEASURED, max(LEAST_INPUTS, self._search.calls // MEASURED_OF))
        found = _Inputs(
            dataset=batch.hash,
            prompt=seed.hash,
            shown=tuple(halves[0][:SHOWN]),
            measured=tuple(halves[1][:measured]),
        )
        beside = self._file.with_suffix(".part")
        beside.write_text(json.dumps(asdict(found)))
        beside.replace(self._file)
        return found

    @property
    def _file(self) -> Path:
        return self._folder / "inputs.json"

    def _read(self) -> _Inputs | None:
        try:
            told = json.loads(self._file.read_text())
        except FileNotFoundError:
            return None
        shown, measured = [
            tuple(
                Case(values=one["values"], published=tuple((t, r) for t, r in one["published"]))
                for one in told[half]
            )
            for half in ("shown", "measured")
        ]
        return _Inputs(
            dataset=told["dataset"], prompt=told["prompt"], shown=shown, measured=measured
        )


async def forget(run: RunContext) -> None:
    """Remove what the run's searches wrote on this machine: their prompts are kept."""
    numbers = range(1, len(run.config.untrained) + 1)
    for folder in [_folder(run, number) for number in numbers]:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _folder(run: RunContext, number: int) -> Path:
    return run.parts.directory / FOLDER / f"{run.id}-recipe-{number}"


def _key(values: Mapping[str, str]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _place(values: Mapping[str, str]) -> int:
    return zlib.crc32(_key(values).encode())


def _parted(posts: Sequence[Answered]) -> tuple[list[Answered], list[Answered]]:
    """The posts that may be learnt from, and those by which the reward is checked."""
    held_out = [one for one in posts if not _place(one.values) % CHECK_EVERY]
    texts = {one.published.text for one in held_out}
    known = [
        one for one in posts if _place(one.values) % CHECK_EVERY and one.published.text not in texts
    ]
    return known, held_out[:CHECKED]


async def _scored(scorer: Scorer, posts: Sequence[Answered], asked_by: Prompt) -> list[float]:
    """What the reward says of published answers."""

    async def one(post: Answered) -> float:
        return (await ask(scorer, asked_by.render(post.values), post.published.text)).value

    return await together([one(post) for post in posts])


def _liked(model: OutcomeModel) -> Scorer:
    """A model of outcomes as a scorer."""

    async def score(messages: Messages, text: str) -> Scored:
        return Scored(value=float(model.scores([text])[0]))

    return score


def _values(batch: TrainingDataBatch, task: Task, made_by: Prompt) -> Iterator[dict[str, str]]:
    """The different inputs of a task's training file."""
    dataset = batch.datasets.get(task.name)
    for messages in inputs_of(dataset.train_path, MOST_LINES) if dataset else ():
        yield made_by.values_of(messages)


def _texts(batch: TrainingDataBatch, task: Task, posts: Sequence[Answered]) -> Iterator[str]:
    """All that the training data say: answers and the inputs that they answer."""
    for post in posts:
        yield post.published.text
        yield from post.values.values()
    dataset = batch.datasets.get(task.name)
    for chat in examples_of(dataset.train_path, MOST_LINES) if dataset else ():
        yield chat[-1]["content"]


def _refused(reward: str, checked: Correlation) -> str:
    return (
        f"refused, since {reward} is not known to go with outcomes: {checked.sentence()}, and the "
        "lower bound must be above 0"
    )
