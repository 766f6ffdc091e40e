"""What may be declared of one test, over what the settings say."""

from __future__ import annotations

import pytest

from tuneproof.errors import ConfigError, InputError
from tuneproof.experiments import Criteria, Criterion, declare, told_by
from tuneproof.settings import Declaration, PipelineConfig

SETTINGS = PipelineConfig(
    criteria=("engagement superior 0.2", "quality non_inferior 0.05"),
    segments=("persona",),
    min_engagement_lift=0.3,
    decision="confirmed",
)


def test_what_is_left_out_or_none_is_as_the_settings_say() -> None:
    assert declare(SETTINGS, {}) == SETTINGS
    assert declare(SETTINGS, {"criteria": None, "segments": None, "decision": None}) == SETTINGS


def test_criteria_are_texts_records_or_mappings() -> None:
    margin = 0.1234567891
    found = declare(
        SETTINGS,
        {
            "criteria": [
                "latency non-inferior 0.01",
                Criterion(metric="cost", kind="superior", margin=margin),
                {"metric": "quality", "kind": "non_inferior", "margin": 0.02},
            ]
        },
    )
    assert [Criterion.parse(text) for text in found.criteria] == [
        Criterion(metric="latency", kind="non_inferior", margin=0.01),
        Criterion(metric="cost", kind="superior", margin=margin),
        Criterion(metric="quality", kind="non_inferior", margin=0.02),
    ]


def test_thresholds_replace_the_settings_list_and_keep_the_other_thresholds() -> None:
    found = declare(SETTINGS, {"success_criteria": {"min_cost_efficiency_gain": 0.0}})
    assert found.criteria == ()
    assert (found.min_engagement_lift, found.min_cost_efficiency_gain) == (0.3, 0.0)


def test_the_error_alone_leaves_the_list() -> None:
    found = declare(SETTINGS, {"success_criteria": {"significance_threshold": 0.01}})
    assert found.criteria == SETTINGS.criteria
    assert found.significance_threshold == 0.01


def test_segments_can_be_none_at_all() -> None:
    assert declare(SETTINGS, {"segments": []}).segments == ()


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"criteria": ["beauty superior 0.1"]}, "'beauty'"),
        ({"criteria": ["quality better 0.1"]}, "'better'"),
        ({"criteria": ["quality superior much"]}, "'quality superior much'"),
        ({"criteria": ["quality superior nan"]}, "'quality superior nan'"),
        ({"criteria": ["quality non_inferior 0"]}, "above 0"),
        ({"criteria": ["quality superior -0.1"]}, "from 0 to 10"),
        ({"criteria": ["cost superior 0.1", "cost superior 0.1"]}, "twice"),
        ({"criteria": [{"metric": "quality", "margin": 0.1}]}, "metric, kind and margin"),
        ({"criteria": "quality superior 0.1"}, "must be a list"),
        ({"allocation": "bandit"}, "'bandit'"),
        ({"decision": "yes"}, "'yes'"),
        ({"cost_metric": "per_word"}, "'per_word'"),
        ({"segments": ["persona", "persona"]}, "twice"),
        ({"min_units": 11}, "min_units is 11"),
        ({"maturation_hours": -1}, "maturation_hours is -1"),
        ({"segments": [], "segment_guardrail": True}, "no segments"),
        ({"success_criteria": {"min_lift": 0.1}}, "'min_lift'"),
        ({"success_criteria": 0.1}, "must be a mapping"),
        ({"success_criteria": {"significance_threshold": 0.9}}, "significance_threshold is 0.9"),
        ({"criteria": ["cost superior 0.1"], "success_criteria": Criteria()}, "as well"),
    ],
)
def test_a_bad_declaration_is_refused_with_value_and_mend(declared: dict, told: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=told) as refused:
        declare(SETTINGS, declared)  # type: ignore[arg-type]
    assert refused.value.mend


def test_the_settings_refuse_a_margin_that_no_test_could_have() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        PipelineConfig(criteria=("quality non_inferior 0",))


def test_a_whole_declaration_holds_in_place_of_what_the_settings_declare() -> None:
    config = PipelineConfig(name="x", min_units=17, holdback=0.1)
    told = told_by(config, Declaration(cuped=True))
    assert (told.name, told.holdback) == ("x", 0.1)
    assert told.declaration == Declaration(cuped=True)
    assert declare(told, {"min_units": 19}).declaration == Declaration(cuped=True, min_units=19)
    assert told_by(config, None) is config
