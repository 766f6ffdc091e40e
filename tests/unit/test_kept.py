"""What a check asked for until it broke off is not asked again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.unit.test_evaluation import VERSION, heldout, provider

from tuneproof.errors import ProviderUnavailableError
from tuneproof.evaluation import Gate, Kept, Scored
from tuneproof.testing import MemoryProvider
from tuneproof.training import Completion, Score

Messages = Sequence[Mapping[str, str]]


class Counting:
    """A provider that counts what it answered, and breaks off after so many answers."""

    def __init__(
        self, inner: MemoryProvider, breaks_after: int = 1_000_000, name: str = "memory"
    ) -> None:
        self.name = name
        self._inner = inner
        self._left = breaks_after
        self.answered: Counter[tuple[object, ...]] = Counter()

    def _count(self, *what: object) -> None:
        if self._left <= 0:
            raise ProviderUnavailableError("It is away.", mend="Wait.")
        self._left -= 1
        self.answered[what] += 1

    async def complete(self, model, messages, *, n=1, seed=None, **how) -> Sequence[Completion]:
        await asyncio.sleep(0)
        self._count("complete", model, seed, str(messages))
        return await self._inner.complete(model, messages, n=n, seed=seed, **how)

    async def score(self, model, messages, *, timeout_s=None) -> Score | None:
        await asyncio.sleep(0)
        self._count("score", model, str(messages))
        return await self._inner.score(model, messages)


def wordy(messages: Messages, text: str) -> float:
    return float(len(text.split()))


async def checked(kept: Kept, asked: Counting, directory: Path) -> object:
    async def scorer(messages: Messages, text: str) -> Scored:
        asked._count("wordy", str(messages), text)
        return Scored(value=len(text), reason="its length", cost_usd=0.001)

    scorers = {"wordy": kept.scorer("wordy", scorer)}
    gate = Gate(kept.of(asked), scorers=scorers, min_scores={"wordy": 1.0})
    return await gate.check(VERSION, {"hook": heldout(directory)})


@pytest.mark.parametrize("breaks_after", [1, 7, 30, 59, 75, 95])
async def test_a_check_goes_on_where_it_broke_off(tmp_path: Path, breaks_after: int) -> None:
    whole = await checked(Kept(tmp_path / "whole.jsonl"), Counting(provider(tuned=2.0)), tmp_path)
    file = tmp_path / "answers.jsonl"
    first = Counting(provider(tuned=2.0), breaks_after)
    with pytest.raises(ProviderUnavailableError):
        await checked(Kept(file), first, tmp_path)
    second = Counting(provider(tuned=2.0))
    assert await checked(Kept(file), second, tmp_path) == whole
    assert sum(first.answered.values()) == breaks_after
    assert max((first.answered + second.answered).values()) == 1
    assert (first.answered + second.answered).total() == 30 * 2 + 20 + 20


async def test_a_line_that_was_cut_off_is_read_over(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    whole = await checked(Kept(file), Counting(provider(tuned=2.0)), tmp_path)
    content = file.read_bytes()
    for end in range(len(content) - 120, len(content), 7):
        file.write_bytes(content[:end])
        again = Counting(provider(tuned=2.0))
        assert await checked(Kept(file), again, tmp_path) == whole
        assert again.answered.total() <= 2
        assert await checked(Kept(file), Counting(provider(tuned=2.0), 0), tmp_path) == whole


async def test_another_model_or_seed_is_asked(tmp_path: Path) -> None:
    asked = Counting(MemoryProvider(base_models=("a", "b"), answer=lambda m, _, i: f"{m} {i}"))
    kept = Kept(tmp_path / "answers.jsonl").of(asked)
    chat = [{"role": "user", "content": "x"}]
    for model, seed in (("a", 1), ("a", 2), ("b", 1), ("a", 1)):
        [found] = await kept.complete(model, chat, seed=seed)
        assert found.text == f"{model} 0"
    assert len(asked.answered) == 3


async def test_two_providers_that_call_a_model_alike_are_both_asked(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "x"}]
    kept = Kept(tmp_path / "answers.jsonl")
    for name in ("here", "there"):
        inner = MemoryProvider(base_models=("a",), answer=lambda *_, name=name: f"from {name}")
        [found] = await kept.of(Counting(inner, name=name)).complete("a", chat, seed=1)
        assert found.text == f"from {name}"


async def test_a_disk_that_is_full_breaks_no_check(tmp_path: Path) -> None:
    asked = Counting(provider(tuned=2.0))
    kept = Kept(tmp_path / "folder")
    (tmp_path / "folder").mkdir()  # so that nothing can be written
    report = await checked(kept, asked, tmp_path)
    assert report.passed  # type: ignore[attr-defined]


async def test_what_cannot_be_scored_is_asked_again(tmp_path: Path) -> None:
    """A provider that learnt to score since is not taken for one that cannot."""
    file = tmp_path / "answers.jsonl"
    blind = MemoryProvider(base_models=("a",), score=lambda model, messages: None)
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert await Kept(file).of(blind).score("a", chat) is None
    sees = MemoryProvider(base_models=("a",), score=lambda m, _: Score(tokens=1, logprob=-1.0))
    assert await Kept(file).of(sees).score("a", chat) == Score(tokens=1, logprob=-1.0)


TURNS = 20
"""How many turns of the loop a call is under way."""


class Slow:
    """A machine that answers one at a time: who waits behind too many others loses patience."""

    name = "slow"

    def __init__(self, bears: int) -> None:
        self._bears = bears
        self._busy = 0
        self.most = 0
        self.timed_out = 0

    async def complete(self, model, messages, **how) -> Sequence[Completion]:
        raise NotImplementedError

    async def score(self, model, messages, *, timeout_s=None) -> Score | None:
        self._busy += 1
        self.most = max(self.most, self._busy)
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if self._busy > self._bears:
                self.timed_out += 1
                raise ProviderUnavailableError("Too late.", mend="", timed_out=True)
            return Score(tokens=1, logprob=-1.0)
        finally:
            self._busy -= 1


async def scored(kept: Kept, slow: Slow, count: int) -> None:
    calls = [kept.of(slow).score("a", [{"content": str(i)}]) for i in range(count)]
    async with asyncio.timeout(30):
        await asyncio.gather(*calls)


@pytest.mark.parametrize("bears", [1, 2, 5])
async def test_a_machine_that_is_too_slow_for_many_is_asked_fewer_at_once(
    tmp_path: Path, bears: int
) -> None:
    file = tmp_path / "answers.jsonl"
    first = Slow(bears)
    await scored(Kept(file), first, 40)
    assert first.most == 8
    again = Slow(bears)  # who goes on knows it from the beginning
    await scored(Kept(file), again, 80)
    assert 0 < again.most <= bears
    assert again.timed_out == 0


async def test_one_that_is_alone_and_too_slow_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailableError):
        await scored(Kept(tmp_path / "answers.jsonl", concurrency=4), Slow(0), 4)
