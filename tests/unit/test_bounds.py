"""Each number that can be set has its bounds in one place, and every face knows them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

import tuneproof.pipeline  # noqa: F401 - registers what crosses durable steps
from tuneproof.errors import ConfigError
from tuneproof.server.declared import CreateRequest, SuccessCriteria
from tuneproof.server.deployment import RolloutConfig
from tuneproof.settings import Declaration, Option, PipelineConfig, options
from tuneproof.settings.tables import NAMED, SINGLE
from tuneproof.workflow.codec import RecordSerializer

NUMBERS = [
    (record, known)
    for record in {**NAMED, **SINGLE}.values()
    for known in options(record)
    if known.kind in (int, float)
]
DECLARED = [known for known in options(Declaration) if known.kind in (int, float)]
ROLLOUT = [known for known in options(PipelineConfig) if known.name in RolloutConfig.model_fields]


def named(value: Any) -> str:
    return value.name if isinstance(value, Option) else ""


@pytest.mark.parametrize(("record", "known"), NUMBERS, ids=named)
def test_every_number_has_an_upper_bound(record, known):
    """`duration_hours = 1e30` passed `config check`; the run failed after its training."""
    assert known.at_most is not None
    known.checked(known.kind(known.at_most))
    with pytest.raises(ConfigError, match="at most"):
        known.checked(known.kind(10**30))


@pytest.mark.parametrize("known", DECLARED, ids=named)
def test_a_request_and_the_settings_have_the_same_bounds(known):
    model = SuccessCriteria if known.within else CreateRequest
    models = {"baseline_model": {"model_id": "a"}, "candidate_model": {"model_id": "b"}}
    given = {} if known.within else models
    highest = known.kind(known.at_most)
    above = highest + 1 if known.kind is int else highest * 1.001 + 0.001
    model.model_validate({**given, known.request_key: highest})
    with pytest.raises(ValidationError):
        model.model_validate({**given, known.request_key: above})
    with pytest.raises(ConfigError):
        Declaration(**{known.name: above})


@pytest.mark.parametrize("known", ROLLOUT, ids=named)
def test_a_rollout_is_asked_for_within_the_bounds_of_the_settings(known):
    RolloutConfig.model_validate({known.name: known.at_most})
    with pytest.raises(ValidationError):
        RolloutConfig.model_validate({known.name: known.at_most + 0.001})


def test_the_longest_durations_are_dates():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for _, known in NUMBERS:
        for unit in ("hours", "days", "seconds"):
            if known.name.endswith(unit):
                assert now + timedelta(**{unit: known.at_most}) > now
                assert now - timedelta(**{unit: known.at_most}) < now


def test_what_was_stored_before_a_bound_was_set_stays_readable():
    stored = {**Declaration().to_stored(), "a_b_test_duration_hours": 10_000.0}
    assert Declaration.from_stored(stored).a_b_test_duration_hours == 24 * 365
    config = PipelineConfig.from_dict({**PipelineConfig().to_dict(), "max_records": 10**12})
    assert config.max_records == 10**9
    serializer = RecordSerializer()
    text = json.loads(serializer.serialize(PipelineConfig()))
    record = text.get("value", text)
    record["fields"]["pause_after_hours"] = 1e8
    assert serializer.deserialize(json.dumps(text)).pause_after_hours == 24 * 365 * 100
