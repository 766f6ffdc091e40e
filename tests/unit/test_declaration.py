"""What is declared of a test: one record, stored with its version, described by its fields."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tuneproof.errors import ConfigError
from tuneproof.settings import Declaration, PipelineConfig, options


def test_declaration_is_the_part_of_a_pipelines_settings_that_a_test_keeps():
    config = PipelineConfig(name="x", traffic_split=0.2, segments=["persona"], holdback=0.1)
    declared = config.declaration
    assert type(declared) is Declaration
    assert declared == Declaration(traffic_split=0.2, segments=("persona",))


def test_a_declaration_is_stored_as_json_with_its_version():
    declared = Declaration(criteria=["quality non_inferior 0.02"], cuped=True, min_units=17)
    stored = json.loads(json.dumps(declared.to_stored()))
    assert stored["version"] == 1
    assert Declaration.from_stored(stored) == declared


def test_a_stored_option_that_nobody_knows_is_refused_by_name():
    stored = {**Declaration().to_stored(), "cupedd": True}
    with pytest.raises(ConfigError, match=r'cupedd is not a setting.*"cuped"'):
        Declaration.from_stored(stored)


@pytest.mark.parametrize("version", [None, 2])
def test_another_version_of_the_stored_form_is_refused(version):
    with pytest.raises(ConfigError, match="version"):
        Declaration.from_stored({**Declaration().to_stored(), "version": version})


@pytest.mark.parametrize(
    ("field", "value"),
    [("traffic_split", 0.6), ("criteria", ("nonsense",)), ("segments", "persona"), ("cuped", 1)],
)
def test_a_declaration_checks_itself(field, value):
    with pytest.raises(ConfigError) as caught:
        Declaration(**{field: value})
    assert caught.value.details["field"] == field


def test_options_say_of_each_field_what_others_are_made_of():
    known = {o.name: o for o in options(Declaration)}
    assert list(known) == [f.name for f in dataclasses.fields(Declaration)]
    share = known["traffic_split"]
    assert (share.kind, share.default, share.above, share.at_most) == (float, 0.1, 0, 0.5)
    assert known["allocation"].choices == ("fixed", "thompson")
    assert known["segments"].kind == tuple[str, ...]
    assert known["a_b_test_duration_hours"].request_key == "duration_hours"
    assert all(o.plain_doc and "](" not in o.plain_doc for o in known.values())
