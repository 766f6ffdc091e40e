"""The env file: changed where needed, whole at every moment, the rest untouched."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneproof.errors import ConfigError, DataError, RetryableError
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing, Target
from tuneproof.targets import EnvFileTarget, open_target, variables

LANE = Lane(subject="deploy-1", candidate=Variant(model_id="ft:base:org::1"), share=0.1)
ROUTING = Routing(
    task="hook",
    baseline=Variant(model_id="gpt-base"),
    lanes=(LANE,),
    salt="salt with space",
    version=3,
)


def at_share(share: float, **changes: Any) -> Routing:
    """The routing with this share for its candidate."""
    return replace(ROUTING, lanes=(replace(LANE, share=share),), **changes)


async def test_own_lines_are_changed_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# models\nexport HOOK_MODEL=old\nLOG=info\nHOOK_MODEL=twice\n")
    target = EnvFileTarget(path)
    await target.apply(at_share(0.5))
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# models", "export HOOK_MODEL=ft:base:org::1", "LOG=info"]
    assert sum("HOOK_MODEL=" in line for line in lines) == 1
    assert await target.observe("hook") == {
        "model": "ft:base:org::1",
        "baseline": "gpt-base",
        "candidate": "ft:base:org::1",
        "share": 0.5,
        "version": 3,
    }
    assert await target.observe("body") is None


def test_shells_read_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    asyncio.run(EnvFileTarget(path).apply(ROUTING))
    command = f'. {path} && printf \'%s|%s\' "$HOOK_MODEL" "$HOOK_SALT"'
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout == "gpt-base|salt with space"


async def test_unchanged_routing_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    target = EnvFileTarget(path)
    await target.apply(ROUTING)
    before = path.stat()
    await target.apply(ROUTING)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_tasks_share_a_file_and_its_mode_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(0o600)
    targets = [EnvFileTarget(path) for _ in range(2)]
    tasks = ("hook", "body", "title-line", "cta")
    await asyncio.gather(
        *(targets[i % 2].apply(replace(ROUTING, task=task)) for i, task in enumerate(tasks))
    )
    text = path.read_text()
    assert all(f"{name}_MODEL=" in text for name in ("HOOK", "BODY", "TITLE_LINE", "CTA"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["..env.lock", ".env"]


async def test_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.env", tmp_path / ".env"
    real.write_text("")
    link.symlink_to(real)
    await EnvFileTarget(link).apply(ROUTING)
    assert link.is_symlink()
    assert "HOOK_MODEL" in real.read_text()


async def test_file_that_cannot_be_written_is_tried_again_later(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RetryableError, match="cannot be written"):
        await EnvFileTarget(tmp_path / "file" / ".env").apply(ROUTING)


async def test_value_that_would_break_the_file_is_refused(tmp_path: Path) -> None:
    target = EnvFileTarget(tmp_path / ".env")
    with pytest.raises(DataError, match="quote or a line break"):
        await target.apply(replace(ROUTING, salt="a\nPATH=/evil"))
    assert not (tmp_path / ".env").exists()


@settings(deadline=None, max_examples=40)
@given(
    salt=st.text(
        st.characters(exclude_characters="'", exclude_categories=("C", "Zl", "Zp")), max_size=20
    ),
    share=st.floats(0, 1),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, salt: str, share: float
) -> None:
    target = EnvFileTarget(tmp_path_factory.mktemp("env") / ".env")
    routing = at_share(share, salt=salt)
    asyncio.run(target.apply(routing))
    found = asyncio.run(target.observe("hook"))
    assert found is not None
    wanted = variables(routing)
    assert found["model"] == wanted["HOOK_MODEL"]
    assert found["share"] == float(wanted["HOOK_CANDIDATE_SHARE"])


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = "t"
    kind: str = "envfile"
    options: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("envfile", {"path": "/tmp/x.env", "switch_at": 0.9}),
        ("webhook", {"url": "https://example.org/x", "secret": "s"}),
        ("configmap", {"config_map": "models", "restart": ["api"], "server": "http://x"}),
        ("istio", {"virtual_service": "llm", "namespace": "prod", "context": "dev"}),
    ],
)
def test_settings_open_each_kind(kind: str, options: dict[str, Any]) -> None:
    target: Target = open_target(Config(name="mine", kind=kind, options=options))
    assert target.name == "mine"


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("ftp", {}, "which is unknown"),
        ("envfile", {"path": "x", "colour": 1}, "unknown option 'colour'"),
        ("envfile", {"path": "x", "name": "y"}, "unknown option 'name'"),
        ("envfile", {"path": "x", "server": "y"}, "unknown option 'server'"),
        ("istio", {}, "needs the option 'virtual_service'"),
        ("envfile", {"path": "x", "switch_at": 0.0}, "above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    kind: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        open_target(Config(kind=kind, options=options))
