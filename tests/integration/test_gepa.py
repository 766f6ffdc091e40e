"""A prompt that is looked for: found, tested, paid from one budget; refused where it must be."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.integration.loop import Loop, posts
from tests.integration.providing import Provider, open_providers

from tuneproof.collection import Post, Task
from tuneproof.errors import CredentialsError, ProviderUnavailableError
from tuneproof.evaluation import Scored
from tuneproof.settings import ScorerConfig, TaskConfig
from tuneproof.store import Run, RunStatus
from tuneproof.training import Completion

HOOK = TaskConfig(
    name="hook",
    prompt="A hook about {original_input}.",
    system="You write.",
    completion="hook",
    prompt_owner="variant",
)
FIRST = Task.of(HOOK).first_prompt
RECIPE = {
    "make": "prompt",
    "optimise": "taste",
    "reflection": "thinker@own",
    "budget_usd": "0.5",
    "calls": "60",
}
COST = 0.0001
"""What the scorer takes for a text."""

TASTED: list[str] = []


async def taste(messages: Sequence[Mapping[str, str]], text: str) -> Scored:
    """Likes the sun."""
    TASTED.append(text)
    return Scored(value=float(text.count("sun")), cost_usd=COST)


async def whim(messages: Sequence[Mapping[str, str]], text: str) -> Scored:
    """Likes what readers care nothing for."""
    return Scored(value=float(sum(map(ord, text)) % 7), cost_usd=COST)


def sunny() -> list[Post]:
    """Posts that do the better the more of the sun is in them."""
    said = "Hook {n} {sun}on topic {n}: a thing worth knowing now, and well worth telling"
    return [
        post._replace(hook=said.format(n=n, sun="sun " * (n // 40)))
        for n, post in enumerate(posts())
    ]


class Thought(NamedTuple):
    """A question to who proposes, what all had cost before, and how many answers there were."""

    asked: str
    spent: float
    answered: int


class Writer(Provider):
    """Writes of the sun where the prompt says so; as `thinker` it proposes these messages.

    The thinker hangs at its question number `hangs_at`; `broken` raises `breaks`, for good where
    it is a refusal.
    """

    def __init__(self, *proposals: str) -> None:
        super().__init__(name="own", base_models=("base", "thinker"))
        self.proposals = proposals
        self.thoughts: list[Thought] = []
        self.answered: list[str] = []
        self.spent = 0.0
        self.hangs_at = 0
        self.hangs = asyncio.Event()
        self.breaks: Exception | None = None
        self.broken = "thinker"
        self.broke = 0

    async def complete(self, model: str, messages: Any, **how: Any) -> Sequence[Completion]:
        said = " ".join(one["content"] for one in messages)
        if model == self.broken and self.breaks is not None:
            self.broke += 1
            error = self.breaks
            if isinstance(error, ProviderUnavailableError):
                self.breaks = None
            raise error
        if model == "thinker":
            self.thoughts.append(Thought(said, self.spent, len(self.answered)))
            if len(self.thoughts) == self.hangs_at:
                self.hangs.set()
                await asyncio.Event().wait()
            [place] = re.findall(r"message (\d+) is to be written anew", said)
            text = f"Well.\n<message>{self.proposals[int(place) - 1]}</message>"
        else:
            self.answered.append(said)
            topic = re.findall(r"topic number \d+", said)[-1:] or ["all"]
            text = f"{'The sun, the sun' if 'sun' in said else 'Rain'} and {topic[0]} for you"
        tokens = len(said.split()), len(text.split())
        self.spent += (tokens[0] * 1.0 + tokens[1] * 2.0) / 1e6
        made = Completion(
            text=text,
            model=model,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            latency_ms=10,
        )
        return [made] * how.get("n", 1)


def opened(
    folder: Path, database: str, writer: Writer, recipe: Mapping[str, str] = RECIPE
) -> AbstractAsyncContextManager[Loop]:
    changes = {"recipes": (recipe,), "tasks": ("hook",), "base_model": "base", "traffic_split": 0.5}
    return open_providers(
        folder,
        database,
        writer,
        changes=changes,
        source=sunny(),
        more={"prices": {"base": (1.0, 2.0), "thinker": (1.0, 2.0)}},
        tasks={"hook": HOOK},
        scorers={
            name: ScorerConfig(name=name, kind=f"tests.integration.test_gepa:{name}")
            for name in ("taste", "whim")
        },
    )


async def test_a_better_prompt_is_found_tested_and_promoted(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    writer = Writer("You write of all that is sunny.", "A sun for {original_input}.")
    async with opened(tmp_path, sqlite_store_url, writer) as loop:
        loop.traffic.lift = 0.8
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, (run.reason, run.stages["train"])
        [version] = await loop.app.store.versions.list(run_id=run.id)
        assert version.model_id == "base"
        kept = await loop.app.store.prompts.get(version.prompt or "")
        assert (kept.origin, kept.parent) == ("proposal", FIRST.hash)
        assert any("sun" in content for _, content in kept.prompt.messages)
        detail = optimised(run)
        assert detail["prompt"] == kept.prompt.hash
        assert 0 < detail["spent_usd"] == run.stages["train"]["detail"]["cost_usd"] < 0.5
        assert "correlate by 0.9" in detail["said"]
        assert not list((tmp_path / "gepa").iterdir())
        shown = "".join(one.asked for one in writer.thoughts)
        assert "Rain and topic number" in shown
        assert '"outcome"' in shown
        assert not held_out(tmp_path) & set(re.findall(r"topic number \d+", shown))


def optimised(run: Run) -> dict[str, Any]:
    [found] = run.stages["train"]["detail"]["optimised"]
    return dict(found)


def held_out(folder: Path) -> set[str]:
    """The topics of the gate's side."""
    text = "".join(path.read_text() for path in folder.glob("datasets/*/hook/validation.jsonl"))
    found = set(re.findall(r"topic number \d+", text))
    assert found
    return found


async def test_a_search_that_is_cut_off_goes_on_within_its_budget(
    tmp_path: Path, database_url: str
) -> None:
    """What was answered is not asked again, and both processes spend no more than there is."""
    cap = 0.06
    recipe = {**RECIPE, "budget_usd": f"{cap}", "calls": "5000"}
    writer = Writer("You write of all that is sunny.", "A sun for {original_input}.")
    writer.hangs_at = 2
    TASTED.clear()
    async with opened(tmp_path, database_url, writer, recipe) as loop:
        run = await loop.app.runs.start()
        await asyncio.wait_for(writer.hangs.wait(), 60)
        [folder] = (tmp_path / "gepa").iterdir()
        modes = [stat.S_IMODE(one.stat().st_mode) for one in (folder, folder / "state")]
        assert modes == [0o700, 0o700]
        assert (folder / "state" / "gepa_state.bin").exists()
    writer.hangs_at = 0
    answered, tasted = set(writer.answered), len(TASTED)
    writer.answered.clear()
    async with opened(tmp_path, database_url, writer, recipe) as loop:
        loop.traffic.lift = 0.8
        ended = await loop.end(run.id)
    assert ended.status is RunStatus.SUCCESS, ended.reason
    assert len(writer.thoughts) > 2
    assert not answered & set(writer.answered[: writer.thoughts[-1].answered])
    spent = optimised(ended)["spent_usd"]
    assert cap / 2 < spent <= cap
    assert writer.thoughts[-1].spent + COST * tasted <= spent


async def test_who_is_away_is_waited_for(tmp_path: Path, sqlite_store_url: str) -> None:
    writer = Writer("You write of all that is sunny.", "A sun for {original_input}.")
    writer.breaks = ProviderUnavailableError("It is away.", mend="Wait.")
    async with opened(tmp_path, sqlite_store_url, writer) as loop:
        loop.traffic.lift = 0.8
        run = await loop.turn()
    assert run.status is RunStatus.SUCCESS, run.reason
    assert writer.breaks is None


async def test_a_proposal_that_copies_a_post_is_not_tried(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """Eight words of one are a copy, whatever stands between them."""
    copy = "All sunny: A THING worth knowing now, and well - worth telling!"
    writer = Writer(copy, f"{copy} {{original_input}}")
    async with opened(tmp_path, sqlite_store_url, writer) as loop:
        run = await loop.turn()
    assert run.status is RunStatus.SKIPPED, run.reason
    assert "none did better than the prompt in use" in (run.reason or "")
    assert optimised(run)["prompt"] is None
    assert len(writer.thoughts) > 3
    assert not [one for one in writer.answered if "worth knowing" in one]


async def test_a_reward_that_says_nothing_of_outcomes_is_refused(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    """With its figures, before anything is proposed or answered."""
    writer = Writer("You write of all that is sunny.", "A sun for {original_input}.")
    async with opened(tmp_path, sqlite_store_url, writer, {**RECIPE, "optimise": "whim"}) as loop:
        run = await loop.turn()
    assert run.status is RunStatus.SKIPPED, run.reason
    assert re.search(r"whim is not known to go with outcomes: .* correlate by", run.reason or "")
    assert not writer.thoughts
    assert not writer.answered


async def test_the_doctor_looks_at_who_proposes(tmp_path: Path, sqlite_store_url: str) -> None:
    async with opened(tmp_path, sqlite_store_url, Writer("", "")) as loop:
        found = {one.name: one for one in await loop.app.doctor.examine()}
        assert found["default: thinker, which proposes prompts"].status == "ok"
        assert "scorer: taste" in found


async def test_outcomes_themselves_can_be_the_reward(tmp_path: Path, sqlite_store_url: str) -> None:
    writer = Writer("You write of all that is sunny.", "A sun for {original_input}.")
    async with opened(
        tmp_path, sqlite_store_url, writer, {**RECIPE, "optimise": "outcomes"}
    ) as loop:
        loop.traffic.lift = 0.8
        run = await loop.turn()
    assert run.status is RunStatus.SUCCESS, run.reason
    assert "measured by outcomes" in optimised(run)["said"]


@pytest.mark.parametrize("who", ["thinker", "base"])
async def test_refused_keys_end_it_at_once(tmp_path: Path, sqlite_store_url: str, who: str) -> None:
    writer = Writer("You write of all that is sunny.", "A sun for {original_input}.")
    writer.breaks, writer.broken = CredentialsError("The key is refused.", mend="Mend it."), who
    async with opened(tmp_path, sqlite_store_url, writer) as loop:
        run = await loop.turn()
    assert run.status is RunStatus.FAILED, run.reason
    assert "The key is refused." in (run.reason or "")
    assert writer.broke == 1 if who == "thinker" else writer.broke <= 8
