"""What README, docs and examples show is what happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.documents import PAGES, ROOT, Block, Session, blocks, unprinted

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIMIT_S = 60.0


def _runnable(*, slow: bool) -> list[Path]:
    return [p for p in PAGES if any(b.is_run and b.slow == slow and not b.state for b in blocks(p))]


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", _runnable(slow=False), ids=_id)
def test_page_shows_what_happens(page: Path, tmp_path: Path) -> None:
    with Session(tmp_path) as session:
        assert session.run(blocks(page), slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", _runnable(slow=True), ids=_id)
def test_page_shows_what_happens_in_the_long_run(page: Path, tmp_path: Path) -> None:
    with Session(tmp_path) as session:
        assert session.run(blocks(page), slow=True)


def _run(example: Path, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_promotes_and_completes(tmp_path: Path) -> None:
    printed = _run(ROOT / "examples/quickstart.py", folder=tmp_path)
    shown = """
        ft-pipeline-20250106-001: success. The version is the model in use.
        gate The held-out loss fell 25.0%, from 2.000 to 1.500 nats per token; ...
        experiment promote. All criteria hold: engagement +...
        rollout complete at 100%
    """
    assert not unprinted(shown, printed), printed


def test_own_posts_reach_the_gate(tmp_path: Path) -> None:
    printed = _run(ROOT / "examples/own_posts.py", folder=tmp_path)
    shown = """
        success: {'subject': 306} examples
        The held-out loss fell ...
        e.g. 'Write a subject line about ...' -> 'Why ...
    """
    assert not unprinted(shown, printed), printed


def test_official_sdk_trains_and_asks(tmp_path: Path) -> None:
    printed = _run(ROOT / "examples/openai_wire.py", folder=tmp_path)
    shown = """
        succeeded: ... tokens, ft:tuneproof-ngram-1:local:releases:...
        Release ... is out: ...
    """
    assert not unprinted(shown, printed), printed


APPLICATION = '[tasks.%s]\\nserved_by = "application"\\n'
"""Settings by which the application asks the models of a task itself."""


def test_client_application_loses_no_event(tmp_path: Path) -> None:
    with Session(tmp_path) as session:
        serving = Block(
            page=ROOT / "examples/client_app.py",
            line=1,
            language="console",
            mark="run",
            text=f"$ printf '{APPLICATION}' hook body >> tuneproof.toml\n"
            "$ tuneproof serve &\nTuneProof serves at http://127.0.0.1:8686 ...\n"
            f"$ python {ROOT}/examples/client_app.py http://127.0.0.1:8686\n"
            "all events arrived: True; sent 80, lost 0\n"
            "the service has 40 exposures\n",
        )
        assert session.run([serving], slow=False)


def test_each_example_is_tested() -> None:
    tested = {"client_app", "openai_wire", "own_posts", "quickstart"}
    assert {example.stem for example in EXAMPLES} == tested
