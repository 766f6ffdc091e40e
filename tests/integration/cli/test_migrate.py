"""`tuneproof migrate --to …`: what is asked for, planned, and refused before anything begins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.line import Line
from tests.wire import Wire, wire_server

from tuneproof.cli.output import FAILED, USAGE

SETTINGS = """
[sources.posts]
url = "posts.csv"

[providers.default]
kind = "compatible"
base_url = "{url}"

[tasks.hook]
prompt = "A hook about {{original_input}}."
completion = "hook"
prompt_owner = "variant"
model = "base-model"
model_provider = "default"

[pipelines.default]
tasks = ["hook"]
"""
SEARCH = ("--optimise", "outcomes", "--reflection", "thinker@default", "--budget-usd", "2")


@pytest.fixture
def wire() -> Iterator[Wire]:
    now = datetime.now(UTC)
    rows = [
        f"p{i},topic {i},hook {i},body {i},0.08,{(now - timedelta(hours=i)).isoformat()}\n"
        for i in range(100)
    ]
    Path("posts.csv").write_text("id,original_input,hook,body,engagement_rate,ts\n" + "".join(rows))
    with wire_server() as made:
        Path("tuneproof.toml").write_text(SETTINGS.format(url=made.url))
        yield made


def test_each_successor_is_planned_as_it_is_and_by_a_prompt_that_is_looked_for(
    line: Line, wire: Wire
) -> None:
    plan = line.json(
        "migrate", "--to", "newer", "--to", "other@default", *SEARCH, "--cheaper", "0", "--plan"
    )
    assert plan["candidates"] == [
        "newer at default",
        "other at default",
        "newer at default with another prompt",
        "other at default with another prompt",
    ]
    assert plan["in_use"] == [{"model": "base-model", "provider": "default"}]
    assert plan["share"] == pytest.approx(1 / 5)
    assert not Path("data").exists()  # a plan makes nothing


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--to", "newer", *SEARCH[:4]), "cannot be looked for without --budget-usd"),
        ((*SEARCH,), "cannot be looked for without --to"),
        (("--to", "newer", *SEARCH[2:]), "cannot be looked for without --optimise"),
        (("--to", "newer@nobody"), "names the provider 'nobody', which is not set"),
        (("--to", "@default"), "names no model"),
        (("--plan",), "There is nowhere to move."),
        (("--to", "newer", "--margin", "2"), "margin"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_begins(
    line: Line, wire: Wire, given: tuple[str, ...], said: str
) -> None:
    code, _, err = line("migrate", *given)
    assert code in (USAGE, FAILED)
    assert said in err
    _, out, _ = line("run", "list", "--json")
    assert '"id"' not in out
