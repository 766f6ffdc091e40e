"""Prompts: kept for people, and found for what is tested, where variants own a task's prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tuneproof.collection import Task
from tuneproof.errors import InputError, NotFoundError
from tuneproof.experiments import Variant
from tuneproof.pipeline import SETTINGS, ensure_asks_for
from tuneproof.prompts import Prompt, check_values
from tuneproof.rollout import Routing
from tuneproof.settings import PipelineConfig, Settings
from tuneproof.store import KeptPrompt, Store
from tuneproof.workflow import Clock

__all__ = ["PERSON", "PromptService", "SeenPrompts", "ensure_kept", "ensure_recipes_kept"]

PERSON = "person"
"""Where a prompt came from that somebody gave."""


async def ensure_recipes_kept(store: Store, settings: Settings, config: PipelineConfig) -> None:
    """Refuse recipes by a prompt that nobody kept, or that is no prompt of the task, before
    anything is spent. Raises `NotFoundError` or `InputError`."""
    for recipe in config.untrained:
        if recipe.hash is not None:
            await ensure_kept(store, settings, config.tasks[0], recipe.hash)


async def ensure_kept(store: Store, settings: Settings, task: str, hash: str) -> None:
    """Refuse a prompt that nobody kept, or that is not the task's; raises `NotFoundError` or
    `InputError`."""
    ensure_asks_for(Task.of(settings.tasks[task]), (await store.prompts.get(hash)).prompt)


class SeenPrompts:
    """The prompts of what is routed, held in memory: they never change, so each is read once."""

    def __init__(self, store: Store, tasks: Mapping[str, Task]) -> None:
        self._store = store
        self._first = {
            name: task.first_prompt for name, task in tasks.items() if task.owned_by_variants
        }
        self._known = {prompt.hash: prompt for prompt in self._first.values()}

    async def of(self, hashes: Collection[str]) -> Mapping[str, Prompt]:
        """These prompts. Raises `NotFoundError` where one was never kept."""
        absent = [hash for hash in hashes if hash not in self._known]
        if absent:
            self._known.update(await self._store.prompts.of(absent))
        for hash in hashes:
            if hash not in self._known:
                raise NotFoundError(f"There is no prompt {hash}.", mend="tuneproof prompt list")
        return {hash: self._known[hash] for hash in hashes}

    def asked(self, routing: Routing) -> Routing:
        """The routing with the settings' prompt where the model in use has none of its own.

        Where the application owns the prompt, as it may again, nobody is asked by another: what
        has one is not tested any more, and the model in use is asked as the application asks.
        """
        first = self._first.get(routing.task)
        if first is None:
            return _without_prompts(routing)
        if routing.baseline.prompt is not None:
            return routing
        return replace(routing, baseline=replace(routing.baseline, prompt=first.hash))


def _without_prompts(routing: Routing) -> Routing:
    if not routing.prompts:
        return routing
    if any(model.prompt is not None for model in routing.candidates):
        routing = routing.unprompted
    return replace(routing, baseline=replace(routing.baseline, prompt=None))


class PromptService:
    """What can be asked of prompts."""

    def __init__(self, *, store: Store, clock: Clock, tasks: Mapping[str, Task]) -> None:
        self._store = store
        self._clock = clock
        self._tasks = tasks

    async def keep_first(self) -> None:
        """Keep the prompts of the settings: who is told their hashes may ask for them for ever."""
        for task in self._tasks.values():
            if task.owned_by_variants:
                await self._store.prompts.keep(task.first_prompt, origin=SETTINGS)

    async def add(self, prompt: Prompt, *, task: str, actor: str = "system") -> KeptPrompt:
        """Keep a prompt for a task. Raises `InputError` where it does not ask for that task."""
        ensure_asks_for(self._owned(task), prompt)
        async with self._store.database.begin() as tx:
            if await self._store.prompts.keep(prompt, origin=PERSON, tx=tx):
                await self._store.activity.add(
                    self._clock.now(), actor, "prompt add", prompt.hash, tx=tx
                )
            return await self._store.prompts.get(prompt.hash, tx=tx)

    async def get(self, hash: str) -> KeptPrompt:
        """The prompt with this hash. Raises `NotFoundError`."""
        return await self._store.prompts.get(hash)

    async def all(self) -> Sequence[KeptPrompt]:
        """All prompts, newest first."""
        return await self._store.prompts.list()

    def named(self, task: str, texts: Mapping[str, object]) -> Prompt:
        """The prompt that somebody wrote for a task: what it does not say of variables and of an
        `empty_prompt` is as the task says."""
        owned = self._owned(task)
        told = dict(texts)
        if told.get("empty_prompt") is None:
            told["empty_prompt"] = owned.first_prompt.empty_prompt
        if told.get("variables") is None:
            told["variables"] = owned.columns
        made = Prompt.of(told)
        check_values(made.parameters)
        return made

    async def resolved(
        self, tasks: Sequence[str], model: Variant, in_use: Variant | None = None
    ) -> Variant:
        """The model with the prompt that it is to be asked by: its own, else that of the model
        `in_use`, else the settings'.

        Raises `InputError` for a model with a prompt where the application owns that, and for a
        prompt with other variables than the task's.
        """
        owned = [t for t in tasks if t in self._tasks and self._tasks[t].owned_by_variants]
        if not owned:
            if model.prompt is None:
                return model
            raise InputError(
                f"{model} has a prompt, and the application owns that of {', '.join(tasks)}.",
                mend="Name the model alone; or have the application send variables, and set "
                'prompt_owner = "variant" in [tasks.NAME].',
                field="prompt",
            )
        if len(tasks) > 1:
            raise InputError(
                f"A variant has one prompt, and {', '.join(tasks)} have one each.",
                mend="Test one task at a time.",
                field="tasks",
            )
        task = self._tasks[owned[0]]
        if model.prompt is None:
            if in_use is not None and in_use.prompt is not None:
                return replace(model, prompt=in_use.prompt)
            await self._store.prompts.keep(task.first_prompt, origin=SETTINGS)
            return replace(model, prompt=task.first_prompt.hash)
        ensure_asks_for(task, (await self._store.prompts.get(model.prompt)).prompt)
        return model

    def _owned(self, task: str) -> Task:
        found = self._tasks.get(task)
        if found is None or not found.owned_by_variants:
            owned = [name for name, one in self._tasks.items() if one.owned_by_variants]
            raise InputError(
                f"Variants own no prompt of a task {task!r}.",
                mend=f"Use {', '.join(owned)}."
                if owned
                else f'Set prompt_owner = "variant" in [tasks.{task}].',
                field="task",
            )
        return found
