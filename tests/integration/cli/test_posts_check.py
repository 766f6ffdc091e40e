"""`tuneproof posts check`: what a run would make of the posts, and what is wrong with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.posts import UNTIL, row
from tests.sourcing import fill_sqlite, jsonl_file

from tuneproof.cli.output import FAILED, OK, USAGE


def posts(count: int, **changes: object) -> list[dict[str, object]]:
    now = datetime.now(UTC)
    return [row(i, ts=now - timedelta(minutes=i), **changes) for i in range(1, count + 1)]


def settings(url: str) -> None:
    Path("tuneproof.toml").write_text(f'[sources.posts]\nurl = "{url}"\n')


def test_ten_examples_are_shown_as_the_provider_would_see_them(line):
    settings(fill_sqlite(Path("p.db").absolute(), posts(200)))
    code, out, err = line("posts", "check")
    assert code == OK
    shown = [json.loads(text) for text in out.splitlines()]
    assert len(shown) == 10
    assert all([m["role"] for m in one["messages"]] == ["user", "assistant"] for one in shown)
    assert "engagement_rate = engagement_rate (real)" in err
    assert "CREATE INDEX" in err
    assert not Path(".tuneproof", "datasets").exists()


def test_what_cannot_be_read_is_named_with_its_mend(line):
    rows = [{**r, "engagement_rate": str(r["engagement_rate"])} for r in posts(200)]
    rows[3]["engagement_rate"] = "4.5%"
    settings(fill_sqlite(Path("p.db").absolute(), rows, {"engagement_rate": "TEXT"}))
    found = line.json("posts", "check")
    assert found["status"] == "warning"
    assert "change the column's type to a number" in found["mend"]
    assert "1 engagement_rate that cannot be read, such as '4.5%' (post 4)" in found["left_out"]
    assert "1 invalid_rate, such as post 4 (4.5%)" in found["left_out"]
    assert sum(len(lines) for lines in found["examples"].values()) == 10


def test_a_file_can_be_checked_before_it_is_used_as_of_any_instant(line):
    file = jsonl_file(Path("p.jsonl"), [{**r, "ts": str(r["ts"])} for r in map(row, range(1, 150))])
    code, _, err = line("posts", "check", str(file))
    assert code == FAILED
    assert "a run would be skipped" in err
    found = line.json("posts", "check", str(file), "--as-of", UNTIL.date().isoformat())
    assert found["status"] == "ok"


def test_what_stops_a_run_stops_the_check(line):
    rows = [{**r, "engagement_rate": "4,5"} for r in posts(20)]
    settings(fill_sqlite(Path("p.db").absolute(), rows, {"engagement_rate": "TEXT"}))
    code, _, err = line("posts", "check")
    assert code != OK
    assert "20 of 20 values of engagement_rate" in err
    assert "decimal point" in err
    code, _, err = line("posts", "check", "--pipeline", "other")
    assert code == USAGE
    assert "There is no pipeline 'other'" in err
