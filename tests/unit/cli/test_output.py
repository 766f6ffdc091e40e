"""How the command line reads and shows things."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from tuneproof import cli
from tuneproof.cli import output
from tuneproof.cli.demo import Teller
from tuneproof.cli.progress import told
from tuneproof.cli.runs import MAX_FIGURES, _assignments, _detail
from tuneproof.cli.version import version
from tuneproof.errors import ConfigError, NotFoundError, RetryableError, StateError
from tuneproof.store import Run


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["run", "strat"], "start"),
        (["rollback", "hook"], "--reason"),
        (["token", "create", "x", "--scope", "root"], "scope"),
        (["run", "start", "--as-of", "yesterday"], "as-of"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_exits_2_and_ends_with_a_command(tokens, said, capsys):
    assert cli.run(tokens) == output.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.strip().splitlines()[-1].startswith("Run: tuneproof ")


def test_every_command_has_help(capsys):
    for name in cli._COMMANDS:
        assert cli.run([name, "--help"]) == 0
    for group, (_, commands) in cli._GROUPS.items():
        for name in commands:
            assert cli.run([group, name, "--help"]) == 0
            assert "--json" in capsys.readouterr().out


def test_help_starts_without_the_heavy_parts():
    code = """
import sys
from tuneproof.cli import run
run(["--help"])
heavy = {"fastapi", "sqlalchemy", "numpy", "scipy", "httpx2", "openai", "pydantic", "dbos"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "rollback" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "command"),
    [
        (ConfigError("x is 1."), 2, "tuneproof config check"),
        (NotFoundError("There is no run."), 1, "tuneproof status"),
        (RetryableError("Away."), 1, "tuneproof doctor"),
        (StateError("Busy.", run_id="ft-pipeline-1"), 1, "tuneproof run show ft-pipeline-1"),
    ],
)
def test_an_error_without_a_mend_ends_with_a_command_to_run(error, code, command, capsys):
    assert output.failure(error, as_json=False) == code
    err = capsys.readouterr().err
    assert error.message in err
    assert err.strip().endswith(f"Run: {command}")


def test_an_error_ends_with_its_own_mend(capsys):
    error = ConfigError("x is 1.", mend="Set it to 2.")
    assert output.failure(error, as_json=False) == output.USAGE
    assert capsys.readouterr().err == "Error: x is 1.\nSet it to 2.\n"


def test_an_error_as_json_goes_to_stderr(capsys):
    output.failure(ConfigError("x is 1.", mend="Mend it.", field="x"), as_json=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err)["error"] == {
        "type": "config",
        "message": "x is 1.",
        "mend": "Mend it.",
        "details": {"field": "x"},
    }


def test_text_cannot_drive_the_terminal(capsys):
    output.say("\x1b[2J[red]harmless[/red]\x07")
    assert capsys.readouterr().err == "�[2J[red]harmless[/red]�\n"
    output.table(["a"], [["\x1b]0;title\x07"]])
    assert "\x1b" not in capsys.readouterr().out


def test_without_a_terminal_a_question_needs_yes(monkeypatch):
    output.confirm("Sure?", yes=True)
    with pytest.raises(ConfigError, match="--yes"):
        output.confirm("Sure?", yes=False)


def test_figures_for_people():
    assert output.percent(0.1) == "10 %"
    assert output.percent(None) == "–"
    assert output.signed(-0.051) == "−5.1 %"
    assert output.signed(0.42) == "+42.0 %"
    assert output.moment("2026-11-20T09:00:00.000Z") == "2026-11-20 09:00 UTC"


def test_settings_by_hand_are_numbers_where_they_can_be():
    assert _assignments(["traffic_split=0.2", "min_units=50", "decision=confirmed"]) == {
        "traffic_split": 0.2,
        "min_units": 50,
        "decision": "confirmed",
    }
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        _assignments(["traffic_split"])


@pytest.mark.parametrize(
    ("stage", "detail", "said"),
    [
        ("collect", {"posts": 1589, "since": "2025-01-01T", "until": "2025-01-08T"}, "1,589 posts"),
        ("curate", {"examples": {"hook": 5}, "dropped": {"empty": 2, "long": 0}}, "2 empty"),
        ("train", {"model_id": "ft:x", "trained_tokens": 1000}, "ft:x on 1,000 tokens"),
        ("train", {"reason": "quota gone"}, "quota gone"),
        ("gate", {"reason": "The loss fell."}, "The loss fell."),
        ("experiment", {"lift": 0.4, "lower": 0.1, "upper": 0.7, "looks": 3}, "+40.0 %"),
        ("rollout", {"state": "rolled_back", "share": 0.0, "cause": "harm"}, "harm"),
    ],
)
def test_each_stage_tells_what_it_did(stage, detail, said):
    assert said in told(stage, detail)


def test_the_version_is_json_where_it_is_asked_for(capsys):
    for tokens in (["--version", "--json"], ["--json", "--version"]):
        assert cli.run(tokens) == output.OK
        assert json.loads(capsys.readouterr().out) == {"version": version()}


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(["run", "start", "--force"], "tuneproof serve"), (["demo"], "the same command again")],
)
def test_an_interrupt_says_how_it_goes_on(tokens, said):
    assert said in cli._after_interrupt(tokens)


def test_figures_leave_out_what_is_empty_and_show_where_they_are_cut():
    assert _detail({"detail": {"note": "", "posts": 0}}) == "posts 0"
    assert "note" not in told("train", {"note": "", "posts": 1})
    long = _detail({"detail": {"reason": "why " * 100}})
    assert len(long) <= MAX_FIGURES
    assert long.endswith("…")


def test_a_stage_is_told_at_the_day_it_ended():
    at = datetime(2026, 11, 20, tzinfo=UTC)
    stage = {"status": "completed", "ended_at": "2026-11-06T23:00:00+00:00", "detail": {"posts": 1}}
    run = Run(
        id="r", pipeline="p", config={}, arguments={}, created_at=at, stages={"collect": stage}
    )
    assert Teller().news(run, f"{at:%a %d %b}")[0].startswith("Fri 06 Nov")
