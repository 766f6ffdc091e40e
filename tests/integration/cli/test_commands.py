"""The command line against real services: one in this process, and one that runs beside."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.line import EXECUTABLE, Line, clean_env, write_posts

from tuneproof import cli
from tuneproof.cli.output import FAILED, OK, USAGE


def test_without_a_service_commands_open_the_data_themselves(line):
    line.json("token", "create", "first", "--scope", "read")
    assert line.json("run", "list") == {"items": [], "next_cursor": None}
    assert line.json("models", "list") == []
    assert [p["name"] for p in line.json("status")["pipelines"]] == ["default"]
    code, out, err = line("run", "list")
    assert (code, out) == (OK, "")
    assert "tuneproof run start" in err


def test_an_unknown_run_exits_1_with_a_command(line):
    line.json("token", "create", "first", "--scope", "read")
    code, out, err = line("run", "show", "ft-pipeline-20000101-001")
    assert (code, out) == (FAILED, "")
    assert "ft-pipeline-20000101-001" in err
    assert "tuneproof run list" in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "command", ["serve", "demo --exit", "run start", "token create x --scope read"]
)
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/absent"])
def test_a_data_directory_that_cannot_be_used_exits_2_with_its_path(
    tmp_path, capsys, command, place
):
    (tmp_path / "file").touch()
    wanted = str(tmp_path / place)
    code, out, err = Line(Path(wanted), capsys)(*command.split())
    assert (code, out) == (USAGE, "")
    assert f"The data directory {wanted} cannot be used" in err
    assert "--dir" in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_init_writes_settings_that_load_and_does_not_overwrite(line):
    assert line("init")[0] == OK
    assert Path("tuneproof.toml").is_file()
    assert line("init")[0] == FAILED
    assert line("init", "--yes")[0] == OK
    rows = {row["name"]: row for row in line.json("config", "check")}
    assert rows["pipelines.default.days_back"]["origin"].endswith("tuneproof.toml")
    assert rows["pipelines.default.poll_seconds"]["origin"] == "default"


def test_config_check_masks_secrets_and_refuses_nonsense(line, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    code, out, _ = line("config", "check")
    assert code == OK
    assert "sk-very-secret" not in out
    assert "environment OPENAI_API_KEY" in out
    Path("tuneproof.toml").write_text("[server]\nprot = 1\n")
    code, _, err = line("config", "check")
    assert code == USAGE
    assert 'Did you mean "port"?' in err


def test_a_token_made_here_is_known_to_the_store(line):
    made = line.json("token", "create", "ci", "--scope", "read", "--scope", "write")
    assert made["scopes"] == ["read", "write"]
    assert made["token"].startswith("tp_")
    code, _, err = line("token", "create", "ci", "--scope", "read")
    assert code == FAILED
    assert "ci" in err


def test_posts_are_loaded_and_a_run_is_done_in_this_process(line, tmp_path):
    file = tmp_path / "posts.csv"
    write_posts(file)
    assert line.json("posts", "import", str(file))["imported"] == 150
    assert line.json("posts", "import", str(file))["imported"] == 0
    done = line.apart(
        "run", "start", "--as-of", "2025-01-28", "--days-back", "30",
        "--training-data-threshold", "50", "--json",
    )  # fmt: skip
    assert done.returncode == OK, done.stderr
    run = json.loads(done.stdout)
    assert run["status"] == "running"
    assert run["stage"] == "experiment"
    assert run["progress"]["model_training"] == "completed"
    assert run["result"]["heldout_loss"] < run["result"]["base_heldout_loss"]
    run_id = run["pipeline_id"]
    code, out, _ = line("run", "show", run_id)
    assert code == OK
    assert "http://" not in out
    assert "http://" not in done.stderr
    second = line.apart("run", "start")
    assert second.returncode == FAILED
    assert f"Run {run_id} is unfinished." in second.stderr
    assert second.stderr.strip().endswith(
        f"Go on with `tuneproof serve`, or abort it: tuneproof run abort {run_id}"
    )
    assert line.json("data", "export", run_id)["hash"] == run["result"]["training_data"]["hash"]
    code, out, _ = line("run", "logs", run_id)
    assert "gate" in out
    test_id = run["result"]["ab_test_id"]
    code, out, _ = line("experiment", "show", test_id)
    assert code == OK
    assert "baseline" in out
    done = line.apart("experiment", "end", test_id, "--reason", "enough")
    assert done.returncode == USAGE
    assert "--yes" in done.stderr
    done = line.apart("run", "abort", run_id, "--reason", "enough", "--yes", "--json")
    assert done.returncode == OK, done.stderr
    assert json.loads(done.stdout)["status"] == "aborted"


def test_posts_from_a_file_and_too_few_of_them(line, tmp_path):
    file = tmp_path / "posts.csv"
    write_posts(file, 20)
    done = line.apart(
        "run", "start", "--posts", str(file), "--as-of", "2025-01-28", "--days-back", "30"
    )
    assert done.returncode == OK, done.stderr
    assert "skipped" in done.stdout
    done = line.apart("run", "start", "--posts", "absent.csv")
    assert done.returncode == USAGE
    assert "absent.csv" in done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """`tuneproof serve` in a process of its own; its address and data directory."""
    directory = tmp_path_factory.mktemp("served")
    command = [*EXECUTABLE, "serve", "--port", "0", "--json", "--dir", str(directory)]
    env = clean_env(PROMETHEUS_METRICS_ENABLED="false")
    with subprocess.Popen(
        command, cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        started = process.stdout.readline()
        assert started, process.stderr.read() if process.stderr else ""
        yield {**json.loads(started), "dir": directory, "process": process}
        process.send_signal(2)
        process.wait(20)


def test_commands_find_the_running_service(running, capsys):
    line = Line(running["dir"], capsys)
    code, _, err = line("status")
    assert code == OK
    assert running["address"] in err
    assert oct((running["dir"] / "service.json").stat().st_mode & 0o777) == "0o600"
    assert httpx2.get(f"{running['address']}/live").json()["pid"] == running["pid"]
    findings = {f["name"]: f["status"] for f in line.json("doctor", code=FAILED)}
    assert findings["database"] == "ok"
    assert findings["provider"] == "ok"
    assert findings["default: posts"] == "failed"


def test_the_running_service_refuses_a_foreign_source(running, capsys):
    line = Line(running["dir"], capsys)
    code, _, err = line("run", "start", "--posts", "x.csv")
    assert code == USAGE
    assert "posts import" in err


def test_rollback_with_nothing_to_take_back_says_so(running, capsys):
    line = Line(running["dir"], capsys)
    code, _, err = line("rollback", "hook", "--reason", "test")
    assert code == FAILED
    assert "hook" in err


def test_events_from_a_file(running, capsys, tmp_path):
    line = Line(running["dir"], capsys)
    file = tmp_path / "events.jsonl"
    outcome = {"id": "o", "subject": "nobody", "unit": "u", "at": "2025-01-01T00:00:00Z"}
    file.write_text(json.dumps({**outcome, "value": 1}) + "\n\n")
    assert line.json("events", "import", str(file), code=FAILED) == {
        "accepted": 0,
        "duplicates": 0,
        "unknown": 1,
    }
    file.write_text("not json\n")
    code, _, err = line("events", "import", str(file))
    assert code == FAILED
    assert "line 1" in err
    assert line("events", "tail", "--no-follow")[0] == OK


def test_by_address_and_token(running, capsys, tmp_path):
    line = Line(tmp_path / "elsewhere", capsys)
    assert line.json("run", "list", "--url", running["address"])["items"] == []
    code, _, err = line("status", "--url", running["address"], "--token", "nonsense")
    assert code == FAILED
    assert "token" in err
    code, _, err = line("status", "--url", "http://127.0.0.1:9")
    assert code == FAILED
    assert err.strip().endswith("Start it with `tuneproof serve`, or give --url.")


def test_a_second_service_on_the_same_data_is_refused(running, capsys):
    code = cli.run(["serve", "--port", "0", "--dir", str(running["dir"])])
    assert code == FAILED
    assert str(running["pid"]) in capsys.readouterr().err


def test_a_service_that_is_asked_to_stop_ends_soon_and_withdraws_its_address(tmp_path):
    command = [*EXECUTABLE, "serve", "--port", "0", "--json", "--dir", str(tmp_path / "data")]
    env = clean_env(PROMETHEUS_METRICS_ENABLED="false")
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        address = json.loads(process.stdout.readline())["address"]
        with httpx2.stream("GET", f"{address}/stream", timeout=30) as stream:
            assert next(stream.iter_lines()).startswith(":")
            began = time.monotonic()
            process.terminate()
            assert process.wait(15) == OK
        assert time.monotonic() - began < 10
        assert not (tmp_path / "data" / "service.json").exists()
