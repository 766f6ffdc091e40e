"""What a cycle will find and cost: from posts to a sentence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tests.posts import ListSource

from tuneproof.collection import NO_TIME, Post, Window
from tuneproof.errors import InputError
from tuneproof.experiments import Variant
from tuneproof.experiments.planning import History, Prices, plan_cycle, read_history, untried
from tuneproof.settings import PipelineConfig
from tuneproof.stats.aggregates import Aggregate
from tuneproof.testing import MemorySource

T0 = datetime(2025, 1, 20, tzinfo=UTC)
WEEK = Window(since=T0 - timedelta(days=7), until=T0)


def rates(count: int) -> list[float]:
    return np.random.default_rng(0).beta(0.068 * 20, 0.932 * 20, count).tolist()  # type: ignore[no-any-return]


def history(per_hour: float = 20, hours: float = 168, tokens: float | None = 400) -> History:
    return History(units=Aggregate.of(rates(int(per_hour * hours))), hours=hours, tokens=tokens)


def post(i: int, rate: float | None, tokens: int | None = 100) -> Post:
    return Post(
        id=f"p{i}", persona_id=None, original_input="x", hook="h", body="b", engagement_rate=rate,
        ts=T0 - timedelta(hours=i + 1), tokens_used=tokens,
    )  # fmt: skip


async def test_history_counts_posts_with_a_rate_over_the_time_that_they_cover() -> None:
    rows = [post(0, 0.1), post(1, None), post(2, 0.3, 300), post(3, 1.5), post(49, 0.2, None)]
    found = await read_history(MemorySource(rows), WEEK)
    assert (found.units.n, found.hours, found.tokens) == (3, 50.0, 200.0)
    assert found.per_hour == pytest.approx(0.06)


async def test_posts_outside_the_window_do_not_count() -> None:
    found = await read_history(MemorySource([post(0, 0.1), post(24 * 8, 0.1)]), WEEK)
    assert found.units.n == 1


def test_plan_of_items_does_not_take_alike_posts_for_independent() -> None:
    plan = plan_cycle(history(), PipelineConfig(analysis_unit="item"))
    assert plan.probability is None
    assert "which posts share a unit" in plan.sentence()


async def test_posts_without_a_time_do_not_count() -> None:
    rows = [post(0, 0.1), post(1, 0.3), post(2, 0.2)._replace(ts=NO_TIME)]
    found = await read_history(ListSource(rows), WEEK)
    assert (found.units.n, found.hours) == (2, 2.0)


def test_plan_says_how_soon_how_likely_and_how_dear() -> None:
    plan = plan_cycle(
        history(),
        PipelineConfig(),
        alpha=0.0437,
        trained_tokens=3_000_000,
        prices=Prices(training=8.0, answers=2.0),
    )
    assert plan.probability == pytest.approx(0.84, abs=0.03)
    assert plan.promoted == pytest.approx(0.59, abs=0.03)
    assert plan.training_cost_usd == 24.0
    assert plan.answers_cost_usd == pytest.approx(20 * 168 * 0.1 * 400 * 2 / 1e6)
    assert plan.sentence().startswith("This traffic can find +15% in 6.")
    assert "at 10% share" in plan.sentence()
    assert "$24.27" in plan.sentence()


def test_less_traffic_needs_more_time_and_a_larger_share_less() -> None:
    few = plan_cycle(history(2), PipelineConfig())
    many = plan_cycle(history(2), PipelineConfig(traffic_split=0.5))
    assert few.needed_h is not None
    assert many.needed_h is not None
    assert few.needed_h > 2.5 * many.needed_h
    assert few.probability is not None
    assert few.probability < 0.2


def test_a_confirmed_decision_plans_for_a_lift_above_the_required_one() -> None:
    plan = plan_cycle(history(400), PipelineConfig(decision="confirmed"))
    assert plan.lift == pytest.approx(0.225)
    assert plan.probability is not None
    assert plan.probability > 0.5


def test_criteria_without_a_rise_plan_for_no_loss() -> None:
    config = PipelineConfig(criteria=("engagement non_inferior 0.1", "cost superior 0.2"))
    plan = plan_cycle(history(100), config)
    assert "engagement does not fall" in plan.sentence()
    assert plan.probability is not None
    assert plan.probability > 0.9


@pytest.mark.parametrize(
    ("units", "why"),
    [
        (Aggregate(), "there are 0 posts"),
        (Aggregate.of([0.0, 0.0]), "no post had any engagement"),
        (Aggregate.of([0.1, 0.1]), "all posts had the same rate"),
    ],
)
def test_what_cannot_be_planned_says_why(units: Aggregate, why: str) -> None:
    plan = plan_cycle(replace(history(), units=units), PipelineConfig())
    assert plan.probability is None
    assert why in plan.sentence()


def test_posts_whose_mean_rate_is_below_0_cannot_be_planned_for() -> None:
    seen = replace(history(), units=Aggregate.of([0.1, 0.2]), negative=2, negative_rates=-0.5)
    plan = plan_cycle(seen, PipelineConfig())
    assert (plan.probability, plan.mean) == (None, pytest.approx(-0.05))
    assert "the mean rate of the posts is -0.05: a relative lift needs a mean" in plan.sentence()
    above = replace(seen, negative_rates=-0.2)
    assert plan_cycle(above, PipelineConfig()).probability is not None


def test_unknown_prices_are_said_not_guessed() -> None:
    plan = plan_cycle(history(), PipelineConfig(), trained_tokens=1e6)
    assert plan.cost_usd is None
    assert "no price is set" in plan.sentence()


def test_answers_of_unknown_length_are_not_free() -> None:
    """Seen: "costs about $0.00", of a priced model that nobody trains."""
    config = PipelineConfig(recipes=(AS_IS,), base_model="base")
    plan = plan_cycle(history(tokens=None), config, prices=Prices(untrained=(10.0,)))
    assert (plan.answers_cost_usd, plan.unpriced) == (None, 0)
    assert "without the answers: how many tokens an answer has is not known." in plan.sentence()
    free = plan_cycle(history(tokens=None), config, prices=Prices(untrained=(0.0,)))
    assert "This cycle costs about $0.00." in free.sentence()


AS_IS = {"make": "as_is", "model": "newer", "provider": "house"}
OPEN = {"make": "as_is", "model": "open", "provider": "own"}
TRAINED = {"make": "train"}
USED = Variant(model_id="newer", provider="house")


def test_each_recipes_answers_cost_what_its_own_model_asks() -> None:
    config = PipelineConfig(recipes=(TRAINED, AS_IS, OPEN), base_model="base")
    each = plan_cycle(history(), PipelineConfig(), prices=Prices(answers=1.0)).answers_cost_usd
    assert each is not None
    prices = Prices(training=8.0, answers=1.0, untrained=(10.0, 0.5))
    plan = plan_cycle(history(), config, trained_tokens=1e6, prices=prices)
    assert (plan.candidates, plan.unpriced) == (3, 0)
    assert plan.answers_cost_usd == pytest.approx(11.5 * each)
    assert "without" not in plan.sentence()
    some = plan_cycle(history(), config, prices=Prices(answers=1.0, untrained=(10.0, None)))
    assert some.answers_cost_usd == pytest.approx(11 * each)
    assert "without the answers of 1 of its candidates, whose price is not set" in some.sentence()
    none = plan_cycle(history(), PipelineConfig(), trained_tokens=1e6, prices=Prices(training=8.0))
    assert (none.answers_cost_usd, none.unpriced) == (None, 1)
    assert "about $8.00, without the answers, whose price is not set." in none.sentence()


def test_a_model_that_is_in_use_is_no_candidate_of_a_plan() -> None:
    config = PipelineConfig(recipes=(AS_IS, OPEN), base_model="base")
    assert [one.model for one in untried(config, USED)] == ["open"]
    moved = replace(USED, provider="house@api.house")
    assert [one.model for one in untried(config, moved, lambda n: f"{n}@api.{n}")] == ["open"]
    elsewhere = replace(USED, provider="own")  # another house's model of the same name
    assert [one.model for one in untried(config, elsewhere)] == ["newer", "open"]
    plan = plan_cycle(history(), config, prices=Prices(untrained=(0.5,)))
    assert plan.candidates == 1
    assert plan.alpha == pytest.approx(0.05)


def test_a_plan_of_nothing_to_test_says_so() -> None:
    config = PipelineConfig(recipes=(AS_IS,), base_model="base")
    plan = plan_cycle(history(), config, prices=Prices(untrained=()))
    assert (plan.candidates, plan.probability) == (0, None)
    assert plan.sentence() == (
        "Nothing can be planned: each candidate that the recipes name is in use."
    )


def test_a_prompt_is_in_use_by_its_hash_alone() -> None:
    kept = {"make": "prompt", "hash": "0123456789abcdef"}
    said = {"make": "prompt", "prompt": "Write about {topic}."}
    config = PipelineConfig(recipes=(kept, said), base_model="base", tasks=("hook",))
    used = Variant(model_id="base", provider="default", prompt="0123456789abcdef")
    assert [one.hash for one in untried(config, used)] == [None]
    assert len(untried(config, replace(used, prompt="fedcba9876543210"))) == 2


def test_several_candidates_share_the_baseline_and_the_level() -> None:
    one = plan_cycle(history(), PipelineConfig(), prices=Prices(answers=2.0))
    four = plan_cycle(history(), PipelineConfig(), prices=Prices(answers=2.0), candidates=4)
    assert (one.candidates, four.candidates) == (1, 4)
    assert four.alpha == pytest.approx(one.alpha / 4)
    assert four.answers_cost_usd == pytest.approx(4 * (one.answers_cost_usd or 0))
    assert one.probability is not None
    assert four.probability is not None
    assert 0.5 < four.probability < one.probability
    assert "for each of 4 candidates" in four.sentence()
    alone = plan_cycle(history(0.7 * 20), PipelineConfig(traffic_split=1 / 7), alpha=0.0125)
    assert four.probability == pytest.approx(alone.probability or 0, abs=0.02)


def test_candidates_that_leave_the_baseline_too_little_are_refused() -> None:
    with pytest.raises(InputError, match=r"4 candidates cannot have 0\.3"):
        plan_cycle(history(), PipelineConfig(traffic_split=0.3), candidates=4)


def test_plan_takes_the_number_of_candidates_from_the_settings() -> None:
    config = PipelineConfig(candidates=2, search={"n_epochs": (1, 2)})
    assert plan_cycle(history(), config).candidates == 2
