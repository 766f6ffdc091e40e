"""The doctor does what a run does up to the first example, and goes on where one look fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from tests.line import Line
from tests.moderation import moderation_server
from tests.servers import free_port
from tests.wire import wire_server

from tuneproof.cli.output import FAILED, OK, USAGE

HEADER = "id,persona_id,original_input,hook,body,engagement_rate,ts\n"


def posts(count: int, *, rate: float = 0.08) -> str:
    """A CSV of posts of the last days that did well, each with texts of its own."""
    now = datetime.now(UTC)
    rows = [
        f"p{i},a,topic {i},hook number {i},a body with number {i},{rate},"
        f"{(now - timedelta(minutes=30 * i)).isoformat()}\n"
        for i in range(count)
    ]
    return HEADER + "".join(rows)


def findings(line: Line, *, code: int = OK) -> Mapping[str, Any]:
    return {found["name"]: found for found in line.json("doctor", code=code)}


def source(text: str, encoding: str = "utf-8") -> None:
    """Settings whose posts are a file with this text."""
    Path("posts.csv").write_text(text, encoding)
    Path("tuneproof.toml").write_text('[sources.posts]\nurl = "posts.csv"\n')


def test_the_first_example_of_each_task_is_shown(line):
    source(posts(200))
    found = findings(line)
    assert found["default: posts"]["status"] == "ok"
    assert found["default: posts"]["detail"].startswith("200 posts give examples: ")
    assert "kept_back" in found["default: posts"]["detail"]
    hook = found["default: first hook"]["detail"]
    assert hook.startswith("user: topic ")
    assert "; assistant: hook number " in hook
    assert "Write a detailed post" in found["default: first body"]["detail"]


def test_a_source_without_the_columns_is_refused_as_by_a_run(line):
    """It said "the source has all the columns" of one that had id and rate alone."""
    source("id,engagement_rate,ts\np1,0.1,2026-01-01\n")
    found = findings(line, code=FAILED)["default: posts"]
    assert found["status"] == "failed"
    assert "no column for hook, body" in found["detail"]
    done = line.apart("run", "start")
    assert found["detail"] in done.stderr


def semicolons(text: str) -> str:
    return text.replace(",", ";")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (posts(200), "utf-16"),
        (posts(200), "utf-8-sig"),
        ("sep=;\n" + semicolons(posts(200)), "utf-8"),
        ('"sep=;"\r\n' + semicolons(posts(200)), "utf-16"),
        ("SEP=\t\n" + posts(200).replace(",", "\t"), "utf-8-sig"),
    ],
)
def test_files_as_spreadsheets_write_them_are_read(line, text, encoding):
    """UTF-16 was "not UTF-8: the byte 0xff", and a first line `sep=;` "no column for hook, ..."."""
    source(text, encoding)
    found = findings(line)
    assert found["default: posts"]["detail"].startswith("200 posts give examples: ")
    assert "; assistant: hook number " in found["default: first hook"]["detail"]


def one_id(text: str, *, rows: int, id: str = "p0") -> str:
    """The posts, the first of which have this id."""
    lines = text.splitlines(keepends=True)
    same = [f"{id},{line.split(',', 1)[1]}" for line in lines[1 : rows + 1]]
    return "".join([lines[0], *same, *lines[rows + 1 :]])


@pytest.mark.parametrize(
    ("text", "encoding", "said", "mend"),
    [
        (
            one_id(posts(200), rows=30),
            "utf-8",
            "30 posts of file posts.csv have the id 'p0'.",
            "give each one of its own",
        ),
        (
            one_id(posts(200), rows=3, id=""),
            "utf-8",
            "row 1 (line 2): the column id is empty",
            "id",
        ),
        (posts(200), "utf-16-le", "byte 2 is 0, as in UTF-16 without a mark", "iconv -f UTF-16LE"),
        (semicolons(posts(200)), "utf-8", "are separated by semicolons", "the line sep=;"),
        (posts(200).replace("id,", "key,", 1), "utf-8", "no column for id", "columns"),
    ],
)
def test_a_file_that_is_no_file_of_posts_is_told_as_by_a_run(line, text, encoding, said, mend):
    source(text, encoding)
    found = findings(line, code=FAILED)["default: posts"]
    assert found["status"] == "failed"
    assert said in found["detail"]
    assert mend in found["mend"]
    done = line.apart("run", "start")
    assert found["detail"] in done.stderr
    assert found["mend"] in done.stderr


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (posts(20), "warning", "a run needs 100 in all, and is skipped"),
        (posts(200, rate=0.01), "failed", "a run would be skipped"),
        (HEADER, "failed", "a run would be skipped"),
    ],
)
def test_too_few_posts_for_a_run_are_told(line, text, status, said):
    source(text)
    found = findings(line, code=FAILED if status == "failed" else OK)["default: posts"]
    assert found["status"] == status
    assert said in found["detail"]
    assert found["mend"]


def test_rates_that_are_no_shares_are_refused_as_by_a_run(line):
    source(posts(50, rate=8.0))
    found = findings(line, code=FAILED)["default: posts"]
    assert "50 of 50 posts have an engagement_rate that is no share of 1" in found["detail"]


@pytest.mark.parametrize("kind", ["azure", "nebius", "compatible", "openai", "together"])
def test_a_provider_that_cannot_be_called_is_found_before_a_run(line, kind):
    """`config check` passed it, and the doctor showed one error instead of its table."""
    Path("tuneproof.toml").write_text(f'[providers.default]\nkind = "{kind}"\n')
    code, out, err = line("config", "check")
    assert code == USAGE
    lacking = "no key" if kind in ("openai", "together") else "no base_url"
    assert f"has {lacking}" in err
    assert "pipelines.default.days_back" in out
    found = findings(line, code=FAILED)
    assert found["database"]["status"] == "warning"
    assert found["provider"]["status"] == "warning"
    told = [f for name, f in found.items() if name.startswith("providers.default.")]
    assert [f["status"] for f in told] == ["failed"]
    assert found["default: posts"]["status"] == "failed"


def test_a_variable_that_is_named_and_holds_nothing_is_an_error(line, monkeypatch):
    Path("tuneproof.toml").write_text(
        '[providers.default]\napi_key_env = "MY_KEY"\n'
        '[providers.other]\nkind = "nebius"\nbase_url = "http://127.0.0.1:1/v1"\n'
        'webhook_secret_env = "MY_HOOK"\n'
        '[alerts]\nwebhook_url = "http://127.0.0.1:1/x"\nwebhook_secret_env = "MY_SECRET"\n'
        '[targets.t]\nkind = "webhook"\n'
    )
    code, _, err = line("config", "check")
    assert code == USAGE
    for name in ("MY_KEY", "MY_HOOK", "MY_SECRET"):
        assert f"names the variable '{name}', which is not set." in err
        monkeypatch.setenv(name, "set")
    assert "Target 't' needs the option 'url'" in err
    code, _, err = line("config", "check")
    assert (code, err.count("Error: ")) == (USAGE, 1)


def test_each_way_of_alerts_is_checked_by_itself(line, monkeypatch):
    """One way that worked hid the other that did not."""
    Path("tuneproof.toml").write_text(
        f'[alerts]\nwebhook_url = "http://127.0.0.1:{free_port()}/x"\n'
        f'webhook_secret_env = "MY_SECRET"\nprometheus_url = "http://127.0.0.1:{free_port()}"\n'
    )
    found = findings(line, code=FAILED)
    assert "MY_SECRET, which is not set" in found["alerts: webhook"]["detail"]
    assert "cannot be reached" in found["alerts: prometheus"]["detail"]
    monkeypatch.setenv("MY_SECRET", "set")
    found = findings(line, code=FAILED)
    assert "cannot be reached" in found["alerts: webhook"]["detail"]


def test_the_moderation_endpoint_is_asked(line):
    source(posts(200))
    with moderation_server() as server:
        settings = Path("tuneproof.toml").read_text()
        provider = f'[providers.safety]\nkind = "compatible"\nbase_url = "{server.url}"\n'
        gate = '[pipelines.default.gate]\nmoderation = "safety"\n'
        Path("tuneproof.toml").write_text(f"{settings}{provider}{gate}")
        found = findings(line)["default: moderation"]
        assert found["status"] == "ok"
        assert found["detail"] == "omni-moderation-latest at safety"
        assert server.asked == [["Hello"]]
        server.next(JSONResponse({"error": {"message": "no such model"}}, 404))
        assert findings(line, code=FAILED)["default: moderation"]["status"] == "failed"


def provided(wire, more):
    """Settings whose models are served by this server, and what more they say."""
    settings = Path("tuneproof.toml").read_text()
    provider = f'[providers.default]\nkind = "compatible"\nbase_url = "{wire.url}"\n'
    Path("tuneproof.toml").write_text(f"{settings}{provider}{more}")


def test_the_model_that_the_settings_name_for_a_task_is_looked_for(line):
    """Seen: each request was answered 404, and all rows were ok."""
    source(posts(200))
    with wire_server() as wire:
        provided(wire, '[tasks.hook]\nmodel = "nobodys"\n')
        line("token", "create", "x", "--scope", "read")  # the database is there from now on
        found = findings(line)["hook: model in use"]
        assert found["status"] == "warning"
        assert "does not list nobodys" in found["detail"]


def test_prompts_that_are_tested_are_looked_for(line):
    """A recipe of parameters alone names no model; one of a hash that nobody kept is said."""
    source(posts(200))
    with wire_server() as wire:
        owned = (
            '[tasks.hook]\nprompt = "About {original_input}."\ncompletion = "hook"\n'
            'prompt_owner = "variant"\n[pipelines.default]\ntasks = ["hook"]\n'
            '[[pipelines.default.recipes]]\nmake = "prompt"\nparameters = {temperature = 0.2}\n'
            f'[[pipelines.default.recipes]]\nmake = "prompt"\nhash = "{"a" * 16}"\n'
            "[pipelines.default.evaluation]\ntraffic_split = 0.3\n"
        )
        provided(wire, owned)
        line("token", "create", "x", "--scope", "read")  # the database is there from now on
        found = findings(line, code=FAILED)
        assert "the settings'" in found["hook: prompt in use"]["detail"]
        kept = found[f"default: prompt {'a' * 16}"]
        assert (kept["status"], "no prompt aaaa" in kept["detail"]) == ("failed", True)


def test_models_that_are_tested_as_they_are_are_looked_for(line):
    source(posts(200))
    with wire_server() as wire:
        provided(wire, '[[pipelines.default.recipes]]\nmake = "as_is"\nmodel = "nobodys"\n')
        found = findings(line)
        assert found["default: nobodys as it is"]["status"] == "warning"
        assert "does not list nobodys" in found["default: nobodys as it is"]["detail"]
        assert "default: base model" not in found  # nothing is trained
