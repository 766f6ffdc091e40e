"""What a search for a prompt may propose and spend, and which rewards it takes."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuneproof.collection import Post, Task
from tuneproof.curation import TRAIN, side_of, split_key
from tuneproof.errors import (
    BudgetExceededError,
    ConfigError,
    CredentialsError,
    DataError,
    InputError,
    ProviderUnavailableError,
    TuneProofError,
)
from tuneproof.evaluation import (
    Paid,
    Rules,
    Scored,
    correlation,
    ensure_gepa,
    paid,
    published_answers,
)
from tuneproof.evaluation.proposals import proposed, question
from tuneproof.prompts import Prompt
from tuneproof.testing import MemoryProvider, MemorySource
from tuneproof.training import Price

SEED = Prompt(
    messages=(
        ("system", "Write as our house has always written, for people who love their garden."),
        ("user", 'About {topic}, as JSON: {"text": "…"}.'),
    ),
    variables=("topic",),
)
POST = "Who waters at noon waters the sky, and the roots learn nothing of it."


def rules(*, most_tokens: int = 200) -> Rules:
    return Rules(SEED, [POST, SEED.messages[0][1]], most_tokens=most_tokens)


def changed(place: int, text: str) -> dict[str, str]:
    texts = {str(number): content for number, (_, content) in enumerate(SEED.messages)}
    return {**texts, str(place): text}


def test_a_proposal_keeps_variables_length_and_its_hands_off_the_posts() -> None:
    better = rules().checked(changed(0, "Begin with a question. Who waters at noon waters the sky"))
    assert better.messages[0][1].startswith("Begin with a question.")
    assert (better.variables, better.messages[1]) == (SEED.variables, SEED.messages[1])
    for place, text, said in (
        (
            0,
            f"Write so: {POST}",
            "copies 8 words of a post: 'who waters at noon",
        ),
        (0, "WHO waters -- at noon\nwaters the sky. And so on.", "copies 8 words"),
        (1, "About it.", "names nothing in braces, where the prompt in use names topic"),
        (1, "About {topic} and {theme}.", "names theme, topic in braces"),
        (0, "Of {topic}.", "names topic in braces, where the prompt in use names nothing"),
        (0, "word " * 400, "tokens; 200 may be"),
    ):
        with pytest.raises(InputError, match=said):
            rules().checked(changed(place, text))


def test_what_the_prompt_in_use_says_already_is_no_copy() -> None:
    said = f"{SEED.messages[0][1]} Be brief."
    assert rules().checked(changed(0, said)).messages[0][1] == said


def test_the_proposing_model_is_asked_and_read() -> None:
    asked = question(SEED, 1, [{"input": {"topic": "{prompt}"}}], most_tokens=200)
    assert "Keep {topic} exactly as they stand" in asked
    assert '"topic": "{prompt}"' in asked
    assert "message 2 is to be written anew" in asked
    assert proposed("So:\n<message>\nAbout {topic}.\nNow.\n</message>") == "About {topic}.\nNow."
    for reply in ("About {topic}.", "<message> </message>"):
        with pytest.raises(InputError, match="has no message"):
            proposed(reply)


def test_a_reward_is_believed_where_its_interval_is_above_0() -> None:
    """Whatever the scales; of rewards that say nothing as few are believed as the interval says."""
    draw = random.Random(5)
    outcomes = [draw.random() for _ in range(150)]
    good = [outcome + draw.gauss(0, 0.3) for outcome in outcomes]
    found = correlation(good, [outcome**3 for outcome in outcomes])
    assert found.usable
    assert (found.low or 0) < (found.value or 0) < (found.high or 0)
    assert found == correlation(good, outcomes)  # of ranks alone
    assert not correlation([-one for one in good], outcomes).usable
    assert not correlation(good[:19], outcomes[:19]).usable
    assert not correlation([1.0] * 150, outcomes).usable
    chance = [correlation([draw.random() for _ in outcomes], outcomes).usable for _ in range(1_000)]
    assert 10 <= sum(chance) <= 45  # 2.5 % of rewards that say nothing


def test_without_gepa_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_gepa()
    monkeypatch.setitem(sys.modules, "gepa", None)
    with pytest.raises(ConfigError, match=r"Install tuneproof\[gepa\]"):
        ensure_gepa()


class Purse:
    """A budget in memory, and what was asked of it."""

    def __init__(self, usd: float) -> None:
        self.left = usd

    async def take(self, usd: float) -> bool:
        if usd > self.left:
            return False
        self.left -= usd
        return True

    async def settle(self, taken_usd: float, cost_usd: float) -> None:
        self.left += taken_usd - cost_usd


PRICE = Price(prompt=1.0, completion=10.0)
CHAT = [{"role": "user", "content": "About tea."}]


async def test_an_answer_is_paid_before_it_is_asked_for() -> None:
    purse = Purse(0.01)
    provider = MemoryProvider(answer=lambda *_: "Tea is a leaf")
    answers = Paid(provider, PRICE, purse)
    await answers.complete("base", CHAT, max_tokens=100)
    assert purse.left == pytest.approx(0.01 - (2 * 1.0 + 4 * 10.0) / 1e6)
    with pytest.raises(BudgetExceededError, match=r"no room for a call of up to 0\.02"):
        await answers.complete("base", CHAT, max_tokens=2_000)
    assert provider.calls == {"complete": 1}


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (CredentialsError("No."), 0.01),
        (ProviderUnavailableError("It did not answer in time."), 0.01 - (64 + 12 + 1_000) / 1e6),
    ],
)
async def test_what_may_have_been_answered_stays_paid(error: TuneProofError, left: float) -> None:
    purse, provider = Purse(0.01), MemoryProvider()
    provider.raises["complete"] = error
    with pytest.raises(type(error)):
        await Paid(provider, PRICE, purse).complete("base", CHAT, max_tokens=100)
    assert purse.left == pytest.approx(left, abs=2e-6)


async def test_a_score_is_paid_too() -> None:
    class Judging:
        """Says what it costs at most; some texts it cannot score."""

        async def __call__(self, messages: Sequence[Mapping[str, str]], text: str) -> Scored:
            await asyncio.sleep(0)
            if not text:
                raise DataError("No score.", cost_usd=0.2)
            return Scored(value=1.0, cost_usd=0.1)

        def most_usd(self, messages: Any, text: str) -> float:
            return 0.5

    purse = Purse(0.9)
    scorer = paid(Judging(), purse)
    assert (await scorer(CHAT, "tea")).value == 1.0
    with pytest.raises(DataError):
        await scorer(CHAT, "")
    assert purse.left == pytest.approx(0.6)
    both = await asyncio.gather(scorer(CHAT, "a"), scorer(CHAT, "b"), return_exceptions=True)
    assert sorted(type(one).__name__ for one in both) == ["BudgetExceededError", "Scored"]


async def test_a_scorer_that_names_no_price_is_paid_as_its_dearest_call() -> None:
    async def scorer(messages: Sequence[Mapping[str, str]], text: str) -> Scored:
        return Scored(value=1.0, cost_usd=0.4)

    purse = Purse(1.0)
    score = paid(scorer, purse)
    await score(CHAT, "a")
    await score(CHAT, "b")
    with pytest.raises(BudgetExceededError):
        await score(CHAT, "c")
    assert purse.left == pytest.approx(0.2)


async def test_the_gates_side_is_never_shown() -> None:
    task = Task(name="hook", prompt="About {original_input}.", completion="hook")
    until = datetime(2025, 1, 6, tzinfo=UTC)
    posts = [
        Post(
            id=f"post-{n}",
            persona_id=None,
            original_input=f"topic {n % 90}",
            hook=f"Hook {n}",
            body=None,
            engagement_rate=0.1,
            ts=until - timedelta(hours=1),
        )
        for n in range(300)
    ]
    found = await published_answers(MemorySource(posts), task, until, days=7, pair_days=7)
    sides = {post.id: side_of(split_key(post, (task,)), post.id) for post in posts}
    assert {one.id for one in found} == {id for id, side in sides.items() if side == TRAIN}
    assert len(found) < 300
    assert all(set(one.values) == {"original_input"} for one in found)
