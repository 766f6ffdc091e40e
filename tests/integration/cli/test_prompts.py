"""`tuneproof prompt`: kept from a file, listed, shown, and why not."""

from __future__ import annotations

import json

import pytest

SETTINGS = """
[tasks.hook]
prompt = "A hook about {original_input}."
completion = "hook"
prompt_owner = "variant"

[pipelines.default]
tasks = ["hook"]
"""

ASKS = """
system = "You ask."
prompt = "About {original_input}, a question."

[parameters]
temperature = 0.4
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "tuneproof.toml").write_text(SETTINGS)
    (tmp_path / "asks.toml").write_text(ASKS)
    return tmp_path / "asks.toml"


def test_a_prompt_is_kept_listed_and_shown(line, file):
    code, out, err = line("prompt", "add", str(file), "--task", "hook")
    assert code == 0, err
    hash = out.strip()
    assert f"tuneproof run start --recipe make=prompt,hash={hash}" in err
    again = json.loads(line("prompt", "add", str(file), "--task", "hook", "--json")[1])
    assert (again["hash"], again["origin"]) == (hash, "person")
    [listed] = json.loads(line("prompt", "list", "--json")[1])
    assert (listed["hash"], listed["variables"]) == (hash, ["original_input"])
    assert "About {original_input}, a question." in line("prompt", "list")[1]
    shown = line("prompt", "show", hash)[1]
    assert shown.splitlines() == [
        "system: You ask.",
        "user: About {original_input}, a question.",
        'parameters: {"temperature": 0.4}',
        "where all variables are blank: Create engaging content",
    ]


def test_a_run_is_refused_for_its_prompt_before_it_begins(line, file):
    assert line("prompt", "add", str(file), "--task", "hook")[0] == 0
    for recipe, said in (
        ("make=prompt,hash=ffffffffffffffff", "There is no prompt ffffffffffffffff"),
        ("make=prompt,prompt=Well, nothing", "no prompt of hook: The prompt does not say"),
        ('make=prompt,parameters={"top_p": 1, "n": 2}', "has no parameter n"),
        ("make=prompt,parameters=warm", "is no JSON"),
    ):
        code, _, err = line("run", "start", "--recipe", recipe, "--no-wait")
        assert code != 0, recipe
        assert said in err
    assert json.loads(line("run", "list", "--json")[1])["items"] == []


def test_the_doctor_looks_for_prompts_that_runs_would_test(line, file, tmp_path):
    settings = tmp_path / "tuneproof.toml"
    recipe = '[[pipelines.default.recipes]]\nmake = "prompt"\nhash = "ffffffffffffffff"\n'
    line("prompt", "add", str(file), "--task", "hook")
    settings.write_text(SETTINGS + recipe)
    rows = {one["name"]: one for one in json.loads(line("doctor", "--json")[1])}
    assert "default: recipes" not in rows
    assert rows["default: prompt ffffffffffffffff"]["status"] == "failed"
    settings.write_text(SETTINGS + recipe.replace('hash = "f', 'prompt = "{original_input} f'))
    rows = {one["name"]: one for one in json.loads(line("doctor", "--json")[1])}
    assert "default: recipes" not in rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt = ", "cannot be read as TOML"),
        ('temperature = 1\nprompt = "{original_input}"', "has temperature"),
        ('system = "You."', "needs prompt, or messages"),
        ('prompt = "Anything."', "does not say original_input"),
        ("prompt = 5", "prompt in"),
        ('prompt = "{original_input}"\nsystem = 5', "is 5, no text"),
        ('prompt = "{original_input}"\nparameters = 5', "is 5, no table"),
        ('prompt = "{original_input}"\n[parameters]\nstop = 2026-01-01', "what JSON has not"),
        ('prompt = "{original_input}"\n[parameters]\ntop_p = nan', "what JSON has not"),
    ],
)
def test_what_is_no_prompt_is_said(line, file, text, said):
    file.write_text(text)
    code, _, err = line("prompt", "add", str(file), "--task", "hook")
    assert code == 1, err
    assert said in err
