"""The audience has a taste that differs by style, and the same luck for the same post."""

from __future__ import annotations

from statistics import fmean, pvariance

from hypothesis import given, settings
from hypothesis import strategies as st

from tuneproof.demo import STYLES, Audience, features, write
from tuneproof.demo.audience import HIGHEST, LOWEST, WEIGHTS
from tuneproof.demo.draws import draws, poisson


def _rates(style: str, count: int = 200) -> list[float]:
    random, audience = draws("test", style), Audience(1)
    drafts = [write(random, style=style) for _ in range(count)]
    return [audience.rate(draft.hook, draft.body) for draft in drafts]


def test_taste_differs_by_style_from_dull_to_fine() -> None:
    means = {style: fmean(_rates(style)) for style in STYLES}
    loved = ("specific question", "numbered list", "measured story")
    ignored = ("vague", "bait", "announcement")
    assert min(means[style] for style in loved) > 0.09
    assert max(means[style] for style in ignored) < 0.045
    assert max(max(_rates(style)) for style in STYLES) > 0.12
    assert min(min(_rates(style)) for style in STYLES) < 0.035


def test_observed_rates_have_the_declared_mean_and_spread() -> None:
    random, audience = draws("test", "all"), Audience(1)
    drafts = [write(random) for _ in range(6000)]
    rates = [audience.react(f"p{i}", d.hook, d.body).rate for i, d in enumerate(drafts)]
    mean = fmean(rates)
    kappa = mean * (1 - mean) / pvariance(rates) - 1
    assert 0.065 < mean < 0.071
    assert 17 < kappa < 24


def test_high_observed_rates_mean_high_taste() -> None:
    random, audience = draws("test", "threshold"), Audience(1)
    drafts = [write(random) for _ in range(4000)]
    true = [audience.rate(d.hook, d.body) for d in drafts]
    seen = [audience.react(f"p{i}", d.hook, d.body).rate for i, d in enumerate(drafts)]
    above = fmean(t for t, s in zip(true, seen, strict=True) if s >= 0.06)
    below = fmean(t for t, s in zip(true, seen, strict=True) if s < 0.06)
    assert above > 1.4 * below


def test_same_post_has_the_same_reaction_and_another_seed_another() -> None:
    first = Audience(1).react("post-1", "Do you run 5 miles?", "Yes.")
    assert first == Audience(1).react("post-1", "Do you run 5 miles?", "Yes.")
    assert first != Audience(2).react("post-1", "Do you run 5 miles?", "Yes.")
    assert first.rate == first.clicks / first.impressions


def test_mean_reaction_is_the_expected_rate() -> None:
    audience = Audience(3)
    hook, body = "Can you bake a loaf in 18 hours?", "Start small. You need 2 dollars."
    rates = [audience.react(f"p{i}", hook, body).rate for i in range(4000)]
    error = (pvariance(rates) / len(rates)) ** 0.5
    assert abs(fmean(rates) - audience.rate(hook, body)) < 4 * error


def test_true_effect_compares_expected_rates() -> None:
    audience = Audience(1)
    dull = [("Some thoughts on tomatoes", "There are various aspects.")]
    fine = [("Can you bake a loaf in 18 hours?", "Start small. You need 2 dollars.")]
    assert audience.true_effect(dull, fine) > 1.0
    assert audience.true_effect(dull, dull) == 0.0
    hook, body = fine[0]
    assert audience.rate(hook, body, disliked=True) < audience.rate(hook, body)


@settings(deadline=None)
@given(hook=st.text(max_size=300), body=st.text(max_size=600))
def test_any_text_has_a_rate_within_bounds(hook: str, body: str) -> None:
    assert LOWEST <= Audience(1).rate(hook, body) <= HIGHEST
    seen = features(hook, body)
    assert seen.keys() == WEIGHTS.keys()
    assert all(0.0 <= value <= 1.0 for value in seen.values())


@settings(deadline=None)
@given(post=st.text(max_size=50))
def test_outcomes_come_within_the_declared_hours(post: str) -> None:
    assert 6.0 <= Audience(1).outcome_delay_h(post) < 24.0


def test_poisson_has_its_mean_and_variance() -> None:
    random = draws("poisson")
    counts = [poisson(random, 20.0) for _ in range(4000)]
    assert abs(fmean(counts) - 20.0) < 0.4
    assert abs(pvariance(counts) - 20.0) < 2.0
