"""What a person meets at the keyboard: wrong values, damaged files, narrow terminals."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.line import Line, write_posts
from tests.servers import free_port
from tests.wire import serving

from tuneproof import cli
from tuneproof.cli.output import FAILED, OK, USAGE


def made(line: Line) -> Path:
    """The directory of a line, with a database in it."""
    assert line("token", "create", "first", "--scope", "read")[0] == OK
    return line.directory


def no_database(path: Path) -> None:
    """What a file is after something else was written over its beginning."""
    path.write_bytes(b"garbage" * 500)


def broken_pages(path: Path) -> None:
    """What a file is whose header is whole while the pages behind it are lost."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize("spoil", [no_database, broken_pages])
def test_a_damaged_database_is_one_sentence_and_what_to_restore(line, spoil):
    """It was 873 lines of traceback, and "a defect of TuneProof"."""
    spoil(made(line) / "tuneproof.db")
    for command in (["status"], ["run", "list"], ["token", "create", "x", "--scope", "read"]):
        code, out, err = line(*command)
        assert (code, out) == (FAILED, "")
        sentence, mend = err.strip().splitlines()
        assert sentence.startswith(f"Error: The database sqlite+aiosqlite:///{line.directory}")
        assert " is damaged: " in sentence
        assert "restore" in mend
        assert "engine.db" in mend
    code, out, err = line("doctor")
    assert code == FAILED
    assert "is damaged" in out
    assert "Traceback" not in out + err


@pytest.mark.parametrize("file", ["engine.db", "trainer/trainer.sqlite"])
def test_damage_beside_the_database_is_told_as_well(line, file):
    path = made(line) / file
    path.parent.mkdir(exist_ok=True)
    no_database(path)
    done = line.apart("run", "start")
    assert done.returncode == FAILED
    told = done.stderr.strip().splitlines()
    assert len(told) == 2
    assert file.rpartition("/")[2] in told[0]
    assert "is damaged: file is not a database" in told[0]


def test_damaged_posts_are_one_sentence(line, tmp_path):
    no_database(tmp_path / "posts.db")
    file = tmp_path / "posts.csv"
    file.write_text("id,engagement_rate,ts,original_input,hook,body\n1,0.1,2025-01-01,a,b,c\n")
    code, _, err = line("posts", "import", str(file), "--database", "sqlite:///posts.db")
    assert code == FAILED
    assert "is damaged: file is not a database" in err
    assert len(err.strip().splitlines()) == 2
    Path("tuneproof.toml").write_text('[sources.posts]\nurl = "sqlite:///posts.db"\n')
    found = {f["name"]: f for f in line.json("doctor", code=FAILED)}
    assert "is damaged" in found["default: posts"]["detail"]
    assert found["default: posts"]["mend"].startswith("Restore the file")


@pytest.mark.parametrize(
    "tokens",
    [
        ["--dir", "data", "--json", "run", "list"],
        ["--dir=data", "run", "list", "--json"],
        ["run", "--dir", "data", "--json", "list"],
        ["-y", "--json", "run", "--dir", "data", "list"],
    ],
)
def test_options_of_every_command_may_stand_before_it(line, capsys, tokens):
    """`tuneproof --dir X run list` was: Unknown command "--dir"."""
    made(line)
    capsys.readouterr()
    assert cli.run(tokens) == OK
    assert '"items": []' in capsys.readouterr().out
    assert not Path(".tuneproof").exists()


@pytest.mark.parametrize(
    "command",
    [
        "run start --engagement-threshold nan",
        "run start --days-back inf",
        "run start --set traffic_split=nan",
        "run start --set traffic_split=-inf",
        "experiment create a b --hours nan",
        "experiment create a b --min-engagement-lift inf",
        "experiment plan --lift nan",
    ],
)
def test_a_number_that_is_none_is_refused_by_its_option(line, command):
    """It was a traceback: Out of range float values are not JSON compliant."""
    code, out, err = line(*command.split())
    assert (code, out) == (USAGE, "")
    assert len(err.strip().splitlines()) == 2
    assert command.split("=")[0].split()[-2] in err
    assert "finite number" in err
    assert not line.directory.exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("run list --limit -1", "--limit"),
        ("experiment list --limit 1001", "--limit"),
        ("events tail --no-follow --limit 0", "--limit"),
        ("experiment plan --share 0.9", "--share"),
        ("experiment plan --candidates 99", "--candidates"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_option(line, command, option):
    """It was exit 1 and "The request breaks 1 rule(s): query.limit: ..."."""
    made(line)
    code, out, err = line(*command.split())
    assert (code, out) == (USAGE, "")
    assert err.startswith(f"Error: {option}: ")
    assert "rule(s)" not in err


def test_what_a_declaration_may_not_be_is_refused_by_its_option(line):
    done = line.apart("experiment", "create", "a", "b", "--share", "0.9")
    assert done.returncode == USAGE
    assert done.stderr.startswith("Error: --share: ")
    done = line.apart("experiment", "create", "a", "b", "--min-cost-efficiency-gain", "3")
    assert done.stderr.startswith("Error: --min-cost-efficiency-gain: ")


def test_a_failed_run_says_its_error_once_and_names_no_table_of_ours(line):
    """It said it four times, and listed `datasource_outputs, dbos_datasource_migrations`."""
    done = line.apart("run", "start")
    assert done.returncode == FAILED
    assert (done.stdout + done.stderr).count("there is no such table") == 1
    assert "there are none" in done.stderr
    assert "tuneproof posts import FILE" in done.stderr
    run_id = line.json("run", "list")["items"][0]["pipeline_id"]
    _, out, err = line("run", "show", run_id)
    assert (out + err).count("there is no such table") == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_sixty_columns_stay_readable(line, monkeypatch, width):
    """The doctor's texts were folded into columns of ten characters."""
    made(line)
    _, unfolded, _ = line("doctor")
    assert "Set MLFLOW_TRACKING_URI; until then the outbox keeps everything." in unfolded
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = line("doctor")
    assert max(len(text.rstrip()) for text in out.splitlines()) <= width
    assert "embedded trainer's own" in " ".join(out.split())
    hint = next(text for text in out.splitlines() if "Set REDIS_URL" in text)
    assert "Set REDIS_URL for a cache" in hint


@pytest.mark.parametrize(
    ("variable", "address", "setting"),
    [
        ("DATABASE_URL", "postgresql://u:{}@ü:notaport/x", "store.url"),
        ("DATABASE_URL", "postgresql://u:{}@h:99999/x", "store.url"),
        ("REDIS_URL", "redis://u:{}@h:notaport/0", "cache.url"),
        ("OPENAI_BASE_URL", "http://u:{}@h:0/v1", "providers.default.base_url"),
        ("MLFLOW_TRACKING_URI", "http://u:{}@h:notaport", "tracking.uri"),
        ("TUNEPROOF_URL", "http://u:{}@[::1", "remote.url"),
        ("TUNEPROOF_PUBLIC_URL", "http://u:{}@h:x", "server.public_url"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_by_its_setting(
    line, monkeypatch, variable, address, setting
):
    """A port that is no number ended in a traceback."""
    monkeypatch.setenv(variable, address.format("p4ss"))
    code, out, err = line("status")
    assert (code, out) == (USAGE, "")
    assert err.startswith(f"Error: {setting} is '")
    assert f"environment {variable}" in err
    assert "p4ss" not in err
    assert len(err.strip().splitlines()) == 2


@pytest.mark.parametrize("address", ["postgresql://u:p4ss@h:notaport/x", "nonsense"])
def test_a_database_of_posts_that_cannot_be_one_is_refused(line, tmp_path, address):
    (tmp_path / "posts.csv").write_text("id,engagement_rate,ts,original_input,hook,body\n")
    code, _, err = line("posts", "import", str(tmp_path / "posts.csv"), "--database", address)
    assert code == USAGE
    assert "is not a database address" in err
    assert "p4ss" not in err


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "run list",
        "run abort x --yes",
        "experiment list",
        "rollout show x",
        "rollback hook --reason harm",
        "events tail --no-follow",
        "models list",
    ],
)
@pytest.mark.parametrize("place", ["data", "file/below", "/proc/absent"])
def test_what_only_reads_makes_nothing_and_says_what_is_missing(tmp_path, capsys, command, place):
    """`status` made the folder of a mistyped address and an empty database in it."""
    (tmp_path / "file").touch()
    code, out, err = Line(tmp_path / place, capsys)(*command.split())
    assert (code, out) == (FAILED, "")
    assert f"There is no database {tmp_path / place}/tuneproof.db, and no folder" in err
    assert "tuneproof run start" in err.strip().splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_doctor_and_a_plan_make_nothing_either(line, tmp_path):
    Path("tuneproof.toml").write_text(f'[store]\nurl = "sqlite:///{tmp_path}/absent/x.db"\n')
    found = {f["name"]: f for f in line.json("doctor", code=FAILED)}
    assert found["database"]["status"] == "warning"
    assert f"no folder {tmp_path}/absent" in found["database"]["detail"]
    assert "posts import FILE" in found["default: posts"]["mend"]
    assert line("experiment", "plan")[0] == FAILED  # there are no posts
    assert [path.name for path in tmp_path.iterdir()] == ["tuneproof.toml"]


def test_a_server_without_our_tables_is_left_as_it_is(line, postgres):
    url = postgres.create_database()
    Path("tuneproof.toml").write_text(f'[store]\nurl = "{url}"\n')
    code, _, err = line("status")
    assert code == FAILED
    assert "has no tables of TuneProof yet" in err
    found = {f["name"]: f for f in line.json("doctor", code=FAILED)}
    assert found["database"]["status"] == "warning"
    assert "has no tables of TuneProof yet" in found["database"]["detail"]
    assert not line.directory.exists()


def test_the_data_directory_and_its_files_are_their_owners_alone(line, tmp_path):
    """They were 0755 and 0644. A directory that was there is kept, and told of."""
    write_posts(tmp_path / "posts.csv")
    assert line("posts", "import", str(tmp_path / "posts.csv"))[0] == OK
    done = line.apart(
        *("run", "start", "--as-of", "2025-01-28", "--days-back", "30"),
        *("--training-data-threshold", "50"),
    )
    assert done.returncode == OK, done.stderr
    paths = [line.directory, *line.directory.rglob("*")]
    assert {"tuneproof.db", "engine.db", "manifest.json"} <= {path.name for path in paths}
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    line.directory.chmod(0o755)
    (line.directory / "tuneproof.db").chmod(0o644)
    found = {f["name"]: f for f in line.json("doctor", code=FAILED)}  # its posts are old
    assert found["data directory"]["mend"] == f"chmod 700 {line.directory}"
    assert line("token", "create", "second", "--scope", "read")[0] == OK
    assert (line.directory / "tuneproof.db").stat().st_mode & 0o777 == 0o600


ODD = ("../../etc/passwd", "..", "a/../b", ".", "a/b", "log/x")
PATHS = {
    ("run", "show"): "/fine-tuning/status/{}",
    ("run", "logs"): "/fine-tuning/log/{}",
    ("run", "retry"): "/fine-tuning/retry/{}",
    ("run", "abort", "--reason", "why"): "/fine-tuning/status/{}",
    ("data", "export"): "/data/manifest/{}",
    ("experiment", "show"): "/evaluation/status/{}",
    ("experiment", "end", "--reason", "why"): "/evaluation/metrics/{}",
    ("rollout", "show"): "/deployment/status/{}",
    ("rollout", "pause", "--reason", "why"): "/deployment/status/{}",
    ("rollback", "--reason", "why"): "/routing/{}/rollback",
}


@pytest.mark.parametrize("asked", ODD)
def test_an_id_leads_to_no_other_address(line, asked):
    """`run show ../../etc/passwd` asked GET /etc/passwd, `run show a/b` a path that is none."""
    made(line)
    code, out, err = line("run", "show", asked)
    assert (code, out) == (FAILED, "")
    assert f"Nothing has the id {asked!r}." in err


@contextmanager
def listening(asked: list[str]) -> Iterator[str]:
    """The address of a server that notes each path as it came and knows none."""

    async def answer(request: Request) -> Response:
        assert not request.url.query
        asked.append(request.scope["raw_path"].decode())
        return JSONResponse({"type": "/problems/not-found", "detail": "None here."}, 404)

    port = free_port()
    with serving(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]), port):
        yield f"http://127.0.0.1:{port}"


def test_ids_are_escaped_in_every_path_that_is_asked_for(line):
    """A server on the wire hears each id as it was typed, in the part of the path that is its."""
    asked: list[str] = []
    with listening(asked) as address:
        for command in PATHS:
            code, _, err = line(*command, "ft?x=1#y z%2F", "--url", address)
            assert (code, err.splitlines()[0]) == (FAILED, "Error: None here."), command
    assert asked == [path.format("ft%3Fx%3D1%23y%20z%252F") for path in PATHS.values()]


def test_settings_that_are_a_directory_are_told_as_such(line, tmp_path):
    """It said "does not exist" of a directory that does."""
    code, _, err = line("status", "--config", str(tmp_path))
    assert code == USAGE
    assert "is a directory" in err
