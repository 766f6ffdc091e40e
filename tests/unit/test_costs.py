"""What training costs: tokens counted or estimated, prices with their dates, grids of trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.app.providing import price_at
from tuneproof.errors import DataError
from tuneproof.providers import default_price, price_of
from tuneproof.settings import ProviderConfig
from tuneproof.training import Price, cost_of_training, costs, estimate_training, trials


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


CHAT = {
    "messages": [
        {"role": "user", "content": "topic number one"},
        {"role": "assistant", "content": "A hook about it: a thing worth knowing"},
    ]
}


def test_tokens_are_counted_where_the_extra_is_there(tmp_path: Path) -> None:
    pytest.importorskip("rs_bpe")
    tokens, counted = costs.count_file(written(tmp_path / "a.jsonl", CHAT, CHAT))
    assert counted
    assert tokens == 2 * (3 + 9 + 2 * costs.MESSAGE_TOKENS)


def test_tokens_are_estimated_from_bytes_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_counter", lambda: None)
    tokens, counted = costs.count_file(written(tmp_path / "a.jsonl", CHAT))
    assert not counted
    assert tokens == 4 + 10 + 2 * costs.MESSAGE_TOKENS


def test_preference_counts_its_request_with_each_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_counter", lambda: None)
    line = {
        "input": {"messages": [{"role": "user", "content": "abcd"}]},
        "preferred_output": [{"role": "assistant", "content": "abcdefgh"}],
        "non_preferred_output": [{"role": "assistant", "content": "abcd"}],
    }
    tokens, _ = costs.count_file(written(tmp_path / "a.jsonl", line))
    assert tokens == (1 + 2) + (1 + 1) + 4 * costs.MESSAGE_TOKENS


def test_file_that_is_no_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(CHAT) + "\nnot json\n")
    with pytest.raises(DataError, match="Line 2"):
        costs.count_file(path)
    with pytest.raises(DataError, match="cannot be read"):
        costs.count_file(tmp_path / "absent.jsonl")


def test_estimate_multiplies_tokens_epochs_and_price(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", *[CHAT] * 100)
    price = Price(training=3.0, source="page", as_of="2026-03", auto_epochs=2)
    chosen = estimate_training(path, price, n_epochs=5)
    assert chosen.trained_tokens == chosen.tokens * 5
    assert chosen.cost_usd == pytest.approx(chosen.tokens * 5 * 3e-6)
    assert estimate_training(path, price).epochs == 2
    assert estimate_training(path, None).cost_usd is None


def test_cost_is_unknown_rather_than_nothing() -> None:
    assert cost_of_training(None, Price(training=1.0)) is None
    assert cost_of_training(10, Price()) is None
    assert cost_of_training(10, None) is None
    assert cost_of_training(10, Price(training=0.0)) == 0.0


@pytest.mark.parametrize(
    ("vendor", "model", "method", "training"),
    [
        ("openai", "gpt-4.1-mini-2025-04-14", "supervised", 5.0),
        ("openai", "gpt-4.1-2025-04-14", "dpo", 25.0),
        ("azure", "gpt-4o-mini-2024-07-18", "supervised", 3.0),
        ("together", "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference", "supervised", 0.48),
        ("together", "meta-llama/Llama-3.3-70B-Instruct-Reference", "dpo", 7.25),
        ("fireworks", "accounts/fireworks/models/llama-v3p1-8b-instruct", "supervised", 0.5),
        ("fireworks", "accounts/fireworks/models/qwen2p5-72b-instruct", "dpo", 6.0),
        ("trainer", "tuneproof-ngram-1", "supervised", 0.0),
    ],
)
def test_price_table_knows(vendor: str, model: str, method: str, training: float) -> None:
    found = price_of(vendor, model, method)
    assert found is not None
    assert found.training == training
    assert found.source
    assert found.as_of or vendor == "trainer"


def test_unknown_models_have_no_price() -> None:
    assert price_of("openai", "o9-great") is None
    assert price_of("together", "somebody/model-without-a-size") is None
    assert default_price("compatible", "http://10.0.0.1/v1", "gpt-4o") is None
    assert default_price("openai", None, "gpt-4o") is not None


def test_fine_tune_answers_at_its_own_price() -> None:
    base, tuned = (price_of("openai", m, "answers") for m in ("gpt-4o", "ft:gpt-4o:acme::1"))
    assert base is not None
    assert tuned is not None
    assert (base.completion, tuned.completion) == (10.0, 15.0)
    assert tuned.request_usd(prompt_tokens=1000, completion_tokens=100) == pytest.approx(0.00525)


def test_settings_go_before_the_table() -> None:
    config = ProviderConfig(
        name="p",
        training_prices={"gpt-4.1": 9.0, "gpt-4.1-mini": 1.0},
        prices={"gpt-4.1": (7.0, 8.0)},
    )
    found = price_at(config, "gpt-4.1-mini-2025-04-14", "supervised")
    assert found is not None
    assert (found.training, found.prompt, found.completion) == (1.0, 7.0, 8.0)
    assert found.source == "the settings"


@given(
    st.dictionaries(
        st.sampled_from(["n_epochs", "batch_size", "beta"]),
        st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
        min_size=1,
    ),
    st.integers(1, 12),
)
def test_trials_are_distinct_points_of_the_grid_and_keep_its_ends(
    space: dict[str, list[int]], most: int
) -> None:
    found = trials(space, most)
    whole = trials(space, 10**6)
    assert len(found) == min(most, len(whole))
    assert len({tuple(point.items()) for point in found}) == len(found)
    assert all(point in whole for point in found)
    assert found[0] == whole[0]
    if most > 1:
        assert found[-1] == whole[-1]


def test_validation_file_is_counted_where_it_is_billed(tmp_path: Path) -> None:
    train = written(tmp_path / "a.jsonl", *[CHAT] * 10)
    held_out = written(tmp_path / "b.jsonl", *[CHAT] * 2)
    together = price_of("together", "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference")
    assert together is not None
    with_it = estimate_training(train, together, n_epochs=3, validation=held_out)
    assert with_it.trained_tokens == with_it.tokens * 3 + with_it.tokens // 5
    openai = price_of("openai", "gpt-4.1-mini")
    assert estimate_training(train, openai, n_epochs=3, validation=held_out).evaluated_tokens == 0
