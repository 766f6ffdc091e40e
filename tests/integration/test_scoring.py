"""Answers of a running test, scored by a judge at a real provider: from exposure to verdict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.chat import Chat, chat_server
from tests.conftest import HandClock

from tuneproof import FineTuningPipeline
from tuneproof.app import App
from tuneproof.collection import Post
from tuneproof.errors import ConfigError
from tuneproof.experiments import ABTest, Arm, Exposure, ModelEvaluator, Outcome, Verdict
from tuneproof.settings import (
    PipelineConfig,
    ProviderConfig,
    ScorerConfig,
    Settings,
    StoreConfig,
    TargetConfig,
)
from tuneproof.store.tables import scores
from tuneproof.testing import MemoryProvider, MemorySource

USD_A_CALL = (7 * 1.0 + 3 * 2.0) / 1e6
"""What the chat server's usage costs at the prices below."""

Open = Callable[..., AbstractAsyncContextManager[App]]


@pytest.fixture(scope="module")
def provider() -> Iterator[Chat]:
    with chat_server() as chat:
        yield chat


@pytest.fixture
def chat(provider: Chat) -> Chat:
    """A provider whose judge thinks that a text with "good" in it deserves 4 of 5, others 3."""
    provider.bodies.clear()
    provider.failing.clear()
    provider.answers.clear()
    provider.answer("judge", lambda asked: f'{{"score": {4 if "good" in asked else 3}}}')
    return provider


@pytest.fixture
def opened(database_url: str, tmp_path: Path, clock: HandClock, chat: Chat) -> Open:
    """Opens an App whose pipeline scores its answers by a judge at the chat server."""

    @asynccontextmanager
    async def opening(
        scorer: Mapping[str, Any] | None = None,
        adapters: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> AsyncIterator[App]:
        config = {
            "tasks": ("hook", "body"),
            "quality_scorer": "judge",
            "criteria": ("quality non_inferior 0.1",),
            "maturation_hours": 0,
            **more,
        }
        described = {"name": "judge", "model": "judge", "provider": "judges", **(scorer or {})}
        settings = Settings(
            dir=tmp_path / "data",
            pipelines={"default": PipelineConfig(**config)},
            providers={
                "default": ProviderConfig(kind="compatible", base_url=chat.url, api_key="k"),
                "judges": ProviderConfig(
                    name="judges",
                    kind="compatible",
                    base_url=chat.url,
                    api_key="k",
                    prices={"judge": (1.0, 2.0)},
                ),
            },
            scorers={"judge": ScorerConfig(**described)},
            store=StoreConfig(url=database_url),
        )
        async with App.open(
            settings, engine=False, clock=clock, source=MemorySource([]), **(adapters or {})
        ) as app:
            yield app

    return opening


async def experiment(app: App, split: float = 0.5) -> ABTest:
    config = app.pipelines.get("default")
    evaluator = ModelEvaluator(store=app.store, clock=app.clock, config=config)
    return await evaluator.create_a_b_test("base", "cand", split)


def answer(test: ABTest, i: int, text: str = "a hook", **more: Any) -> Exposure:
    """The i-th unit is served: even ones by the baseline, odd ones by the candidate."""
    fields: dict[str, Any] = {
        "id": f"e{i}", "unit": f"u{i}", "at": test.start_at, "task": "hook", "text": text,
        "messages": ({"role": "user", "content": f"topic {i}"},), **more,
    }  # fmt: skip
    arm = (Arm.BASELINE, Arm.CANDIDATE)[i % 2]
    return Exposure(subject=test.id, phase=1, arm=arm, **fields)


async def score_all(app: App) -> int:
    """Score until nothing more ends at this instant."""
    total = 0
    while done := await app.scoring.score_waiting():
        total += done
    return total


def asked(chat: Chat) -> list[str]:
    """What the judge was asked."""
    return [b["messages"][-1]["content"] for b in chat.bodies if b["model"] == "judge"]


async def rows(app: App) -> Sequence[Any]:
    async with app.store.database.read() as tx:
        return (await tx.execute(select(scores).order_by(scores.c.unit))).all()


@pytest.mark.parametrize(
    ("seldom", "holds", "verdict"),
    [(2, True, Verdict.PROMOTE), (30, False, Verdict.REJECT)],
)
async def test_the_judges_scores_decide_a_criterion_of_quality(
    opened: Open, chat: Chat, clock: HandClock, seldom: int, holds: bool, verdict: Verdict
) -> None:
    async with opened(decision="confirmed") as app:
        test = await experiment(app)
        shown = [
            answer(
                test,
                i,
                "a good hook" if i // 2 % (seldom if i % 2 else 2) == 0 else "so-so",
                at=test.start_at + timedelta(minutes=i),
            )
            for i in range(600)
        ]
        told = [
            Outcome(id=f"o{i}", subject=test.id, unit=f"u{i}", at=e.at, value=0.05 + i % 7 / 100)
            for i, e in enumerate(shown)
        ]
        clock.move(hours=10)
        await app.events.record(exposures=shown, outcomes=told)
        assert await score_all(app) == len(asked(chat)) == 600
        clock.move(days=7)
        config = app.pipelines.get("default")
        evaluator = ModelEvaluator(store=app.store, clock=clock, config=config)
        [look] = await evaluator.look(test.family)
        [quality] = [r for r in look.criteria if r.metric == "quality"]
        assert quality.holds is holds, look.reason
        assert look.verdict is verdict
        assert look.baseline.quality_score == pytest.approx((0.75 + 0.5) / 2)
        found = await app.scoring.of(test.id)
        assert (found.scorer, found.arms[Arm.CANDIDATE].scored) == ("judge", 300)
        assert found.today.calls == 0, "a week later it is another day"


async def test_a_unit_counts_once_with_the_mean_of_its_tasks(opened: Open, chat: Chat) -> None:
    async with opened() as app:
        test = await experiment(app)
        shown = [
            answer(test, 1, "good"),
            answer(test, 1, "other", id="again"),
            answer(test, 1, "other", id="body", task="body"),
        ]
        await app.events.record(exposures=shown)
        await app.events.record(exposures=shown)
        assert await score_all(app) == 2
        await app.events.record(exposures=shown)
        assert await score_all(app) == 0
        evidence = await app.store.events.evidence(test.id)
        [cell] = [c for c in evidence.cells if c.arm is Arm.CANDIDATE]
        assert (cell.qualities.n, cell.quality) == (1, (0.75 + 0.5) / 2)
        assert len(asked(chat)) == 2


async def test_the_texts_of_the_other_arm_after_a_move_do_not_count(
    opened: Open, clock: HandClock
) -> None:
    async with opened() as app:
        test = await experiment(app)
        clock.move(hours=1)
        first = answer(test, 0, "so-so")
        later = Exposure(
            id="later", subject=test.id, phase=1, arm=Arm.CANDIDATE, unit="u0", task="body",
            at=test.start_at + timedelta(hours=1), text="good",
        )  # fmt: skip
        await app.events.record(exposures=[first, later])
        assert await score_all(app) == 2
        cells = (await app.store.events.evidence(test.id)).cells
        assert {(c.arm, c.quality) for c in cells if c.exposed} == {(Arm.BASELINE, 0.5)}


async def test_what_came_with_outcomes_counts_where_no_text_was_scored(opened: Open) -> None:
    async with opened() as app:
        test = await experiment(app)
        told = Outcome(id="o", subject=test.id, unit="u1", at=test.start_at, value=0.1, quality=0.9)
        await app.events.record(exposures=[answer(test, 1, "good")], outcomes=[told])
        before = (await app.store.events.evidence(test.id)).cells
        assert [c.quality for c in before] == [0.9]
        await score_all(app)
        after = (await app.store.events.evidence(test.id)).cells
        assert [c.quality for c in after] == [0.75]


async def test_as_many_of_the_baseline_are_scored_as_of_a_small_candidate(opened: Open) -> None:
    async with opened() as app:
        test = await experiment(app, split=0.1)
        await app.events.record(
            exposures=[answer(test, i) for i in range(2000) if i % 2 == 0 or i < 200]
        )
        arms = (await app.scoring.of(test.id)).arms
        assert arms[Arm.CANDIDATE].waiting == 100
        assert 75 < arms[Arm.BASELINE].waiting < 150


async def test_the_days_budget_is_never_passed_and_the_next_day_goes_on(
    opened: Open, chat: Chat, clock: HandClock
) -> None:
    async with opened(quality_calls_day=10) as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, i) for i in range(30)])
        await score_all(app)
        assert len(asked(chat)) == 10
        clock.move(minutes=59)
        await score_all(app)
        assert len(asked(chat)) == 10
        for _ in range(24):
            clock.move(hours=1)
            await score_all(app)
        assert len(asked(chat)) == 20
        found = await app.scoring.of(test.id)
        assert found.today.calls == 10
        assert sum(t.waiting for t in found.arms.values()) == 10


async def test_a_budget_in_dollars_is_kept_to_what_calls_really_cost(
    opened: Open, chat: Chat
) -> None:
    most = 0.002  # one call is reserved at about 0.001, and costs 0.000013
    async with opened(quality_cost_usd_day=most, scorer={"concurrency": 1}) as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, i) for i in range(200)])
        await score_all(app)
        today = (await app.scoring.of(test.id)).today
        assert today.calls == len(asked(chat)) > 50
        assert today.cost_usd == pytest.approx(today.calls * USD_A_CALL)
        assert today.cost_usd <= most


async def test_a_provider_that_is_away_loses_no_text_and_is_asked_seldom(
    opened: Open, chat: Chat, clock: HandClock
) -> None:
    async with opened() as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, i) for i in range(40)])
        chat.fail("judge", status=503)
        assert await score_all(app) == 0
        assert 0 < len(asked(chat)) <= 4, "no more than are asked at once"
        clock.move(seconds=20)
        assert await score_all(app) == 0
        assert len(asked(chat)) <= 4, "and not again for a while"
        assert (await app.scoring.of(test.id)).today.calls == 0
        chat.failing.clear()
        app.providers.breaker_of("judges").reset()  # its time is the machine's, not the test's
        clock.move(minutes=10)
        assert await score_all(app) == 40


async def test_a_refused_key_is_told_and_the_texts_wait(
    opened: Open, chat: Chat, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, i) for i in range(5)])
        chat.fail("judge", status=401)
        assert await score_all(app) == 0
        assert "cannot be asked" in caplog.text
        waits = (await app.scoring.of(test.id)).waits
        assert waits is not None
        assert "401" in waits
        chat.failing.clear()
        assert await score_all(app) == 0, "nobody can have mended it at once"
        clock.move(minutes=11)
        assert await score_all(app) == 5
        assert (await app.scoring.of(test.id)).waits is None


async def test_a_text_without_a_score_in_three_tries_is_dropped(
    opened: Open, chat: Chat, clock: HandClock
) -> None:
    async with opened() as app:
        test = await experiment(app)
        chat.answer("judge", lambda asked: "Nice!" if "topic 1" in asked else '{"score": 4}')
        await app.events.record(exposures=[answer(test, i) for i in range(3)])
        for _ in range(4):
            await score_all(app)
            clock.move(hours=1)
        tally = (await app.scoring.of(test.id)).arms[Arm.CANDIDATE]
        assert (tally.dropped, tally.reasons) == (1, {"no score in 3 tries": 1})
        assert len(asked(chat)) == 2 + 3
        assert (await app.scoring.of(test.id)).today.calls == 5
        assert (await app.scoring.of(test.id)).today.cost_usd == pytest.approx(5 * USD_A_CALL)


async def test_personal_data_neither_leaves_nor_stays(opened: Open, chat: Chat) -> None:
    async with opened() as app:
        test = await experiment(app)
        told = {"role": "user", "content": "Call +49 30 901820"}
        await app.events.record(
            exposures=[answer(test, 1, "Write to ada@example.org", messages=(told,))]
        )
        [row] = await rows(app)
        assert "ada@" not in row.text
        await score_all(app)
        [question] = asked(chat)
        assert "[email]" in question
        assert "[phone]" in question
        assert "ada@" not in question
        [row] = await rows(app)
        assert (row.text, row.messages, row.score) == (None, None, 0.5)


async def test_a_text_with_personal_data_can_be_left_out(opened: Open) -> None:
    async with opened(quality_personal_data="drop") as app:
        test = await experiment(app)
        shown = [answer(test, 1, "Write to ada@example.org"), answer(test, 3, "clean")]
        await app.events.record(exposures=shown)
        assert [row.unit for row in await rows(app)] == ["u3"]


async def test_texts_are_kept_no_longer_than_the_settings_say(
    opened: Open, chat: Chat, clock: HandClock
) -> None:
    async with opened(quality_keep_hours=2, quality_calls_day=0) as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, 1)])
        clock.move(hours=3)
        await score_all(app)
        [row] = await rows(app)
        assert (row.state, row.reason, row.text) == ("dropped", "waited too long", None)
        assert not asked(chat)


async def test_the_texts_of_a_test_that_ended_are_forgotten_without_a_call(
    opened: Open, chat: Chat
) -> None:
    async with opened() as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, 1)])
        await app.experiments.end(test.id, reason="enough")
        assert await score_all(app) == 1
        [row] = await rows(app)
        assert (row.state, row.reason, row.text) == ("dropped", "the test ended", None)
        assert not asked(chat)


async def test_scores_go_with_the_raw_events(opened: Open, clock: HandClock) -> None:
    async with opened() as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, 1)])
        await score_all(app)
        await app.store.retention.purge(test.id, clock.now())
        assert await rows(app) == []


async def test_texts_that_no_database_keeps_are_cleaned(opened: Open) -> None:
    async with opened() as app:
        test = await experiment(app)
        odd = "nul \x00, half \ud83d, whole 🙂"
        told = ({"role": "user", "content": odd},)
        await app.events.record(exposures=[answer(test, 1, odd, messages=told)])
        assert await score_all(app) == 1


async def test_nothing_is_kept_of_what_nobody_scores(opened: Open, chat: Chat) -> None:
    async with opened(quality_scorer=None) as app:
        test = await experiment(app)
        taken = await app.events.record(exposures=[answer(test, i) for i in range(4)])
        assert taken.accepted == 4
        assert await rows(app) == []


async def test_errors_and_unknown_subjects_bring_no_text(opened: Open) -> None:
    async with opened() as app:
        test = await experiment(app)
        stranger = Exposure(
            id="x", subject="ab-test-1", phase=1, arm=Arm.BASELINE, unit="u", at=test.start_at,
            text="good",
        )  # fmt: skip
        taken = await app.events.record(exposures=[answer(test, 1, error=True), stranger])
        assert (taken.accepted, taken.unknown) == (1, ("x",))
        assert await rows(app) == []


# --- scorers of one's own -----------------------------------------------------------------


def make_length(limit: int):  # type: ignore[no-untyped-def]
    """What the settings below name: makes a scorer from their options."""

    async def short(messages: object, text: str) -> float:
        if text == "boom":
            raise RuntimeError("a scorer's own fault")
        return 1.0 if len(text) < limit else 0.0

    return short


async def test_a_scorer_is_named_by_its_import_path_with_options(opened: Open) -> None:
    scorer = {"kind": f"{__name__}:make_length", "model": None, "options": {"limit": 5}}
    async with opened(scorer=scorer) as app:
        test = await experiment(app)
        await app.events.record(
            exposures=[
                answer(test, 1, "long enough"),
                answer(test, 3, "abc"),
                answer(test, 5, "boom"),
            ]
        )
        assert await score_all(app) == 2
        found = [(row.score, row.attempts) for row in await rows(app)]
        assert found == [(0.0, 0), (1.0, 0), (None, 1)]


async def test_a_scorer_is_given_to_the_app(opened: Open) -> None:
    given = {"scorers": {"mine": make_length(5)}}
    async with opened(quality_scorer="mine", adapters=given) as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, 3, "abc")])
        assert await score_all(app) == 1


async def test_two_workers_give_each_text_one_score(opened: Open, database_url: str) -> None:
    async with opened() as app:
        test = await experiment(app)
        await app.events.record(exposures=[answer(test, i) for i in range(60)])
        async with App.open(
            app.settings, engine=False, source=MemorySource([]), clock=app.clock
        ) as b:
            ended = await asyncio.gather(score_all(app), score_all(b))
        assert sum(ended) == 60
        cells = (await app.store.events.evidence(test.id)).cells
        assert [c.qualities.n for c in cells] == [30, 30]


@pytest.mark.parametrize(("least", "status"), [(0.9, "rejected"), (0.4, "success")])
async def test_the_gate_asks_the_scorers_that_its_settings_name(
    tmp_path: Path, chat: Chat, least: float, status: str
) -> None:
    now = datetime(2025, 1, 6, tzinfo=UTC)
    posts = [
        Post(
            id=f"{i}", persona_id=None, original_input=f"topic {i}", hook=f"A hook on topic {i}",
            body=f"All that there is to say about topic {i}.", engagement_rate=0.08,
            ts=now - timedelta(minutes=i + 1),
        )
        for i in range(200)
    ]  # fmt: skip
    config = PipelineConfig(
        base_model="base", poll_seconds=0.02, gate_samples=5, tasks=("hook",),
        gate_scorers=("judge", "short"), gate_min_scores={"judge": least},
    )  # fmt: skip
    settings = Settings(
        dir=tmp_path / "data",
        pipelines={"default": config},
        scorers={
            "judge": ScorerConfig(name="judge", model="judge"),
            "short": ScorerConfig(
                name="short", kind=f"{__name__}:make_length", options={"limit": 1000}
            ),
        },
    )

    def say(model: str, messages: Sequence[Mapping[str, str]], i: int) -> str:
        return '{"score": 3}' if model == "judge" else f"a hook, the {i}th"

    trains = MemoryProvider(base_models=("base", "judge"), answer=say)
    async with App.open(settings, source=MemorySource(posts), provider=trains, poll_s=0.02) as app:
        result = await FineTuningPipeline(config, app=app).run(as_of=now, last_stage="gate")
    assert result.gate is not None
    assert dict(result.gate.scores) == {"judge": 0.5, "short": 1.0}
    assert result.status == status, result.reason


async def test_a_target_is_named_by_its_import_path(tmp_path: Path) -> None:
    target = TargetConfig(name="mine", kind=f"{__name__}:OpenedTarget", options={"host": "mesh"})
    settings = Settings(dir=tmp_path / "data", targets={"mine": target})
    async with App.open(settings, engine=False, source=MemorySource([])) as app:
        [found] = app.targets
    assert isinstance(found, OpenedTarget)
    assert found.config.options == {"host": "mesh"}
    broken = replace(target, kind="no.such.module:Target")
    with pytest.raises(ConfigError, match=r"targets.mine.kind is 'no.such.module:Target'"):
        async with App.open(
            replace(settings, targets={"mine": broken}), source=MemorySource([]), background=False
        ):
            pass


class OpenedTarget:
    """A target of one's own, which keeps what it was made from."""

    def __init__(self, config: TargetConfig) -> None:
        self.config = config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quality_scorer": "nobody"}, "no scorer 'nobody'"),
        ({"scorer": {"kind": "no.such.module:thing"}}, "cannot be imported"),
        ({"gate_scorers": ("nobody",)}, "no scorer 'nobody'"),
        ({"gate_min_scores": {"judge": 0.5}}, "which the gate does not ask"),
        (
            {"quality_cost_usd_day": 1.0, "scorer": {"provider": "default"}},
            "what judge costs at provider 'default'",
        ),
    ],
)
async def test_what_cannot_be_had_is_said_at_the_start(
    opened: Open, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        async with opened(**changes):
            pass
    assert refused.value.mend
