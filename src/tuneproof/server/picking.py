"""Several answers of one model to a request, of which one is picked and passed on.

Where a provider is known to give several to one request, it is asked once for all; elsewhere, and
for streams, once for each, all at the same time. One is picked among those that come: others that
fail, or take much longer than the first, are done without. Streams are read to their end, and the
one that is picked is passed on as it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneproof.errors import ProviderUnavailableError, TuneProofError
from tuneproof.resilience import end_tasks
from tuneproof.server.bodies import dumped
from tuneproof.server.upstream import (
    MAX_EVENT,
    Answer,
    Event,
    Recorded,
    Refused,
    Stream,
    Upstream,
    nothing_was_spent,
)
from tuneproof.server.wires import CHAT
from tuneproof.server.written import Spent, Written

if TYPE_CHECKING:
    from tuneproof.app import ChatEndpoint, Picker
    from tuneproof.server.chatting import ChatRequest
    from tuneproof.telemetry import Metrics

__all__ = ["Picking", "may_pick"]

log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""How much longer than the first answer the others may take at least; else as long again."""

_NEEDS_THE_ONE = (
    "tools",
    "functions",
    "web_search_options",
    "mcp_servers",
    "conversation",
    "previous_response_id",
    "container",
    "logprobs",
    "top_logprobs",
    "audio",
    "prediction",
)
"""What a request may say that acts elsewhere, goes on from somewhere, or wants more than a text."""


def may_pick(asked: ChatRequest) -> bool:
    """Whether a request is for one free text, so that several can be asked for in its place.

    Not where the caller wants several itself, a form, a tool's call, or no chance at all.
    """
    body = asked.body
    if any(body.get(name) for name in _NEEDS_THE_ONE):
        return False
    alone = body.get("n") in (None, 1) and body.get("temperature") != 0
    return alone and body.get("modalities") in (None, ["text"]) and not _wants_a_form(body)


def _wants_a_form(body: Mapping[str, Any]) -> bool:
    """Whether the answer is to be JSON, say, as each of the wires has it."""
    text, output = body.get("text"), body.get("output_config")
    forms = (
        body.get("response_format"),
        text.get("format") if isinstance(text, Mapping) else None,
        output.get("format") if isinstance(output, Mapping) else None,
        body.get("output_format"),
    )
    return any(form and _kind(form) != "text" for form in forms)


def _kind(form: object) -> object:
    return form.get("type") if isinstance(form, Mapping) else None


@dataclass(frozen=True, slots=True)
class _Came:
    """An answer that came: itself, or all events of its stream."""

    answer: Answer | Stream
    groups: Sequence[list[Event]]
    written: Written

    @property
    def text(self) -> str:
        return "".join(self.written.texts or ())


class Picking:
    """Asks for several answers, and picks. One per gateway."""

    def __init__(self, upstream: Upstream, metrics: Metrics) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._one_each: set[tuple[str, str]] = set()  # who refused to give several at once

    async def ask(
        self, endpoint: ChatEndpoint, asked: ChatRequest, model: str, picker: Picker
    ) -> Answer | Recorded:
        """The picked one of as many answers as come.

        Raises as `Upstream` does where none comes: what became of the first.
        """
        key = endpoint.provider, model
        several = endpoint.takes_n and asked.wire is CHAT and not asked.stream
        if several and key not in self._one_each:
            try:
                return await self._together(endpoint, asked, model, picker)
            except Refused as refusal:
                if not _is_about_n(refusal):
                    raise
            log.info("%s gives one answer at a time of %s", *key)
            self._one_each.add(key)
        return await self._apart(endpoint, asked, model, picker)

    def _count(self, task: str, **counts: int) -> None:
        for result, count in counts.items():
            if count:
                self._metrics.best_of_answers.labels(task, result).inc(count)

    # --- all at once --------------------------------------------------------------------------

    async def _together(
        self, endpoint: ChatEndpoint, asked: ChatRequest, model: str, picker: Picker
    ) -> Answer:
        wanted = replace(asked, body={**asked.body, "n": picker.answers})
        answer = await self._upstream.complete(endpoint, wanted, model)
        choices = [choice for choice in answer.body["choices"] if isinstance(choice, Mapping)]
        texts = [CHAT.text({"choices": [{**choice, "index": 0}]}) for choice in choices]
        written = Written()
        for text in texts:
            written.note({}, text)
        written.note(CHAT.usage(answer.body), "")
        if not choices:
            return answer
        place = await self._picked(asked.task, picker, texts)
        body = {**answer.body, "choices": [{**choices[place], "index": 0}]}
        missing = max(0, picker.answers - len(choices))
        self._count(asked.task, failed=missing)
        return Answer(dumped(body), body, answer.headers, Spent(tokens=written.tokens(asked)))

    # --- one by one ---------------------------------------------------------------------------

    async def _apart(
        self, endpoint: ChatEndpoint, asked: ChatRequest, model: str, picker: Picker
    ) -> Answer | Recorded:
        calls = [
            asyncio.create_task(self._one(endpoint, _variant(asked, number), model))
            for number in range(picker.answers)
        ]
        try:
            await _enough(calls)
            ended = [call.result() for call in calls if call.done()]
        finally:
            await end_tasks(calls)
        came = [one for one in ended if isinstance(one, _Came)]
        failures = [one for one in ended if not isinstance(one, _Came)]
        late = len(calls) - len(ended)
        self._count(asked.task, failed=len(failures), late=late)
        if not came:
            raise failures[0]
        for failure in failures:
            log.info("An answer for %s is done without: %s", asked.task, failure)
        known = not late and all(map(nothing_was_spent, failures))
        spent = Spent(tokens=_sum([one.written.tokens(asked) for one in came]) if known else None)
        picked = came[await self._picked(asked.task, picker, [one.text for one in came])]
        if isinstance(picked.answer, Answer):
            return replace(picked.answer, spent=spent)
        return Recorded(picked.answer, picked.groups, spent)

    async def _one(
        self, endpoint: ChatEndpoint, asked: ChatRequest, model: str
    ) -> _Came | Refused | TuneProofError:
        """One answer to its end, or what became of it."""
        try:
            if asked.stream:
                return await self._read(endpoint, asked, model)
            answer = await self._upstream.complete(endpoint, asked, model)
        except (Refused, TuneProofError) as failure:
            return failure
        written = Written(texts=[])
        written.note(asked.wire.usage(answer.body), asked.wire.text(answer.body))
        return _Came(answer, (), written)

    async def _read(self, endpoint: ChatEndpoint, asked: ChatRequest, model: str) -> _Came:
        written, wire, groups, taken = Written(texts=[]), asked.wire, [], 0
        stream = await self._upstream.stream(endpoint, asked, model)
        try:
            async for events in stream.events():
                groups.append(events)
                for event in events:
                    taken += len(event.raw)
                    if event.chunk is not None:
                        written.note(wire.usage(event.chunk), wire.delta(event.chunk))
                if taken > MAX_EVENT:
                    raise ProviderUnavailableError(
                        f"Provider {endpoint.provider!r} sent an answer above {MAX_EVENT} bytes.",
                        mend="Ask for shorter ones, or set best_of = 1.",
                    )
        finally:
            stream.close()
        return _Came(stream, groups, written)

    async def _picked(self, task: str, picker: Picker, texts: Sequence[str]) -> int:
        """The place of the text to pass on; whatever becomes of picking, there is one."""
        place = 0
        try:
            place = await asyncio.to_thread(picker.pick, texts)
        except Exception:
            log.exception("no answer of %s could be picked: the first is passed on", task)
        self._count(task, picked=1, passed_over=len(texts) - 1)
        return place


async def _enough(calls: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for all, but for those that take much longer than the first answer."""
    began = now = asyncio.get_running_loop().time()
    until: float | None = None
    waiting: set[asyncio.Task[Any]] = set(calls)
    while waiting and (until is None or now < until):
        left = None if until is None else until - now
        done, waiting = await asyncio.wait(
            waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
        )
        now = asyncio.get_running_loop().time()
        if until is None and any(isinstance(call.result(), _Came) for call in done):
            until = now + max(PATIENCE_S, now - began)


def _variant(asked: ChatRequest, number: int) -> ChatRequest:
    """The same request with a seed of its own, where it has one: else all answers were the same."""
    seed = asked.body.get("seed")
    if not number or not isinstance(seed, int):
        return asked
    return replace(asked, body={**asked.body, "seed": seed + number})


def _sum(usages: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = {name: None for usage in usages for name in usage}
    return {name: sum(usage.get(name, 0) for usage in usages) for name in names}


_N = (b'"n"', b"'n'", b"`n`", b'\\"n\\"')
"""How a refusal names `n`."""


def _is_about_n(refusal: Refused) -> bool:
    """Whether a provider refuses to give several answers at once."""
    return refusal.status in (400, 422) and any(name in refusal.body for name in _N)
