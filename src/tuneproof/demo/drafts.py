"""Drafts that models write for the demo's application, asked for in batches and kept.

An editor asks for a handful of hooks on a topic, then for bodies to a hook, and draws from
them for four days: that is how ten thousand posts fit into a minute. Seeds are named by topic,
edition and number, so a draft does not depend on what was asked before.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tuneproof.demo.draws import draws, number
from tuneproof.demo.writing import INPUTS, TOPICS
from tuneproof.prompts import Prompt
from tuneproof.settings import BODY, HOOK, TaskConfig
from tuneproof.training import Completion, Provider

T = TypeVar("T")

EDITION_HOURS = 96
"""How long a batch of drafts is drawn from."""

HOOKS = 5
"""Hooks asked for at once, for one topic and edition."""

BODIES = 5
"""Bodies asked for at once, for one hook."""

_HOOK_TOKENS, _BODY_TOKENS = 32, 72
_KEPT = 20_000


@dataclass(frozen=True, kw_only=True)
class Written:
    """A draft that a model wrote, with the tokens that each of its two calls cost."""

    original_input: str
    hook: str
    body: str
    hook_tokens: int
    body_tokens: int


class Drafts:
    """The drafts of one provider's models; equal questions are asked once."""

    def __init__(
        self,
        provider: Provider,
        *,
        seed: int,
        hook: TaskConfig = HOOK,
        body: TaskConfig = BODY,
        concurrency: int = 4,
    ) -> None:
        self._provider = provider
        self._seed = seed
        self._hook_task = hook
        self._body_task = body
        self._slots = asyncio.Semaphore(concurrency)
        self._drafts: OrderedDict[tuple[object, ...], asyncio.Future[Sequence[Completion]]] = (
            OrderedDict()
        )

    async def draft(
        self,
        post: str,
        *,
        slot: int,
        hook_model: str,
        body_model: str,
        hook_prompt: Prompt | None = None,
    ) -> Written:
        """The draft for one post of an hour: drawn by the post's name from its edition.

        Hooks are asked for by `hook_prompt`, where that is the variant's.
        """
        random = draws(self._seed, "draft", post)
        topic = random.randrange(len(TOPICS))
        edition = slot // EDITION_HOURS
        picked, bodied = random.randrange(HOOKS), random.randrange(BODIES)
        given = self._input(topic, edition)
        hooks = await self._hooks(hook_model, hook_prompt, topic, edition, given)
        hook = hooks[picked % len(hooks)]
        bodies = await self._bodies(body_model, topic, edition, picked, hook.text)
        body = bodies[bodied % len(bodies)]
        return Written(
            original_input=given,
            hook=hook.text,
            body=body.text,
            hook_tokens=hooks[0].prompt_tokens + hook.completion_tokens,
            body_tokens=bodies[0].prompt_tokens + body.completion_tokens,
        )

    def _input(self, topic: int, edition: int) -> str:
        template = draws(self._seed, "input", topic, edition).choice(INPUTS)
        return template.format(topic=TOPICS[topic].name)

    async def _hooks(
        self, model: str, by: Prompt | None, topic: int, edition: int, given: str
    ) -> Sequence[Completion]:
        task = self._hook_task
        if by is not None:
            chat, how = by.render({"original_input": given}), dict(by.parameters)
            asked = (model, by.hash, topic, edition)
            return await self._once(
                asked, lambda: self._chat(model, task, chat, n=HOOKS, key=(topic, edition), **how)
            )
        prompt = task.prompt.format(original_input=given) if given else task.empty_prompt
        key = (model, topic, edition)
        return await self._once(
            key, lambda: self._ask(model, task, prompt, n=HOOKS, limit=_HOOK_TOKENS, key=key[1:])
        )

    async def _bodies(
        self, model: str, topic: int, edition: int, picked: int, hook: str
    ) -> Sequence[Completion]:
        task = self._body_task
        prompt = task.prompt.format(hook=hook) if hook.strip() else task.empty_prompt
        # Two models' hooks differ, so the hook's text is part of what was asked.
        key = (model, topic, edition, picked, hook)
        return await self._once(
            key, lambda: self._ask(model, task, prompt, n=BODIES, limit=_BODY_TOKENS, key=key[1:])
        )

    async def _ask(
        self,
        model: str,
        task: TaskConfig,
        prompt: str,
        *,
        n: int,
        limit: int,
        key: tuple[object, ...],
    ) -> Sequence[Completion]:
        messages = [{"role": "user", "content": prompt}]
        if task.system:
            messages.insert(0, {"role": "system", "content": task.system})
        return await self._chat(model, task, messages, n=n, key=key, max_tokens=limit)

    async def _chat(
        self,
        model: str,
        task: TaskConfig,
        messages: Sequence[Mapping[str, str]],
        *,
        n: int,
        key: tuple[object, ...],
        max_tokens: int = _HOOK_TOKENS,
        temperature: float | None = None,
    ) -> Sequence[Completion]:
        seed = number(self._seed, task.name, *key) % 2**31
        async with self._slots:
            return await self._provider.complete(
                model, messages, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed
            )

    async def _once(
        self, key: tuple[object, ...], ask: Callable[[], Awaitable[Sequence[Completion]]]
    ) -> Sequence[Completion]:
        """The answer to one question, asked by the first who needs it; a failure is not kept."""
        future = self._drafts.get(key)
        if future is None:
            future = asyncio.ensure_future(ask())
            self._drafts[key] = future
            if len(self._drafts) > _KEPT:
                self._drafts.popitem(last=False)
        try:
            return await future
        except BaseException:
            self._drafts.pop(key, None)
            raise
