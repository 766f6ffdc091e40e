"""Each option of a declaration can be asked for, and is shown again, with nothing else to write."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, replace
from html import escape

import pytest
from tests.unit.test_report import TEST

from tuneproof import cli
from tuneproof.cli.declared import DeclaredOptions, answered_values, asked_of, options_of
from tuneproof.cli.experiments import create
from tuneproof.experiments.report import report_html
from tuneproof.server.declared import (
    CreateRequest,
    DeclaredAnswer,
    SuccessCriteria,
    TestState,
    request_fields,
    shown_fields,
)
from tuneproof.server.declared import (
    test_state as state_of,
)
from tuneproof.settings import Declaration, Option, declared_rows, options
from tuneproof.settings.fields import option

KNOWN = options(Declaration)
each = pytest.mark.parametrize("known", KNOWN, ids=[known.name for known in KNOWN])


@dataclass(frozen=True, kw_only=True)
class Longer(Declaration):
    """A declaration with options that nothing else knows of."""

    patience_hours: float = option(
        3, Option(section="evaluation", above=0, unit="h", doc="how long it waits")
    )
    regions: tuple[str, ...] = option((), Option(flag="region", empty=True, doc="where it holds"))


@each
def test_a_request_sets_each_option_and_answers_show_it(known: Option) -> None:
    asked = SuccessCriteria if known.within else CreateRequest
    assert asked.model_fields[known.request_key].description == known.plain_doc
    if known.name == "traffic_split":
        assert "traffic_allocation" in TestState.model_fields
    elif known.within:
        assert "success_criteria" in TestState.model_fields
    else:
        assert known.request_key in TestState.model_fields
    if known.request_key not in ("traffic_split", "duration_hours") and not known.told_with:
        assert known.request_key in DeclaredAnswer.model_fields


@each
def test_the_command_line_sets_each_option(
    known: Option, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["experiment", "create", "--help"]) == 0
    assert f"{known.cli_flag} " in capsys.readouterr().out


def test_the_command_line_writes_no_option_of_its_own() -> None:
    assert [f.name for f in fields(DeclaredOptions)] == [known.name for known in KNOWN]
    assert not {known.name for known in KNOWN} & set(inspect.signature(create).parameters)


@each
def test_the_report_tells_each_option(known: Option) -> None:
    page = report_html(TEST, [])
    if not known.told_with:
        assert f"<td>{escape(known.row_label)}</td>" in page
        return
    other = not known.default if isinstance(known.default, bool) else known.default / 2
    told = replace(TEST.declaration, segments=("persona",))
    pages = [
        report_html(replace(TEST, declaration=replace(told, **{known.name: value})), [])
        for value in (known.default, other)
    ]
    assert pages[0] != pages[1]


def test_what_a_test_answers_is_read_back_by_option() -> None:
    answer = state_of(TEST).model_dump(mode="json")
    values = answered_values(answer)
    assert values.pop("criteria") == [str(c) for c in TEST.all_criteria]
    for name, value in values.items():
        told = getattr(TEST.declaration, name)
        assert value == (list(told) if isinstance(told, tuple) else told), name


def test_a_new_option_is_asked_for_and_shown_everywhere_by_its_field_alone() -> None:
    command_line = options_of(Longer)
    given = command_line(patience_hours=5.0, regions=["eu"], min_engagement_lift=0.2)
    assert asked_of(given, Longer) == {
        "patience_hours": 5.0,
        "regions": ["eu"],
        "success_criteria": {"min_engagement_lift": 0.2},
    }
    assert {"patience_hours", "regions"} < set(request_fields(Longer))
    assert {"patience_hours", "regions"} < set(shown_fields(Longer))
    values = {known.name: known.default for known in options(Longer)}
    rows = dict(declared_rows({**values, "patience_hours": 5.0}, {}, record=Longer))
    assert (rows["patience hours"], rows["regions"]) == ("5 h", "none")
