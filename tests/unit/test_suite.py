"""The suite's own rules: no test waits for a time, and each can fail."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers import free_port, listens
from tests.waiting import eventually, stays, until

TESTS = Path(__file__).parents[1]
WAITING = TESTS / "waiting.py"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    return sorted(path for path in TESTS.rglob("*.py") if path != WAITING)


def called(node: ast.Call) -> str:
    """`sleep` of `time.sleep(1)`."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
    return name.id if isinstance(name, ast.Name) else str(name)


PACED = {"chaos", "cluster/balancer.py", "cluster/load.py"}
"""Folders and files that do something for a time or at a pace, which is what they are for."""


def sleeps(tree: ast.AST) -> Iterator[int]:
    """Lines where a time is waited for; `asyncio.sleep(0)` is one turn of the loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "sleep":
            turn = node.args and isinstance(node.args[0], ast.Constant) and not node.args[0].value
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if not turn and (owner is None or ast.unparse(owner) in ("time", "asyncio")):
                yield node.lineno


def can_fail(test: Function, beside: dict[str, Function]) -> bool:
    """Whether it asserts, or expects an error, or calls what does in the same file."""
    seen, line = set[str](), [test]
    while line:
        for node in ast.walk(line.pop()):
            if isinstance(node, ast.Assert):
                return True
            if isinstance(node, ast.Call):
                name = called(node)
                if name in ("raises", "warns", "eventually", "until") or "assert" in name:
                    return True
                if name in beside and name not in seen:
                    seen.add(name)
                    line.append(beside[name])
    return False


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(TESTS)))
def test_nothing_sleeps_and_every_test_can_fail(file: Path) -> None:
    tree = ast.parse(file.read_text())
    if not PACED & {file.parent.name, str(file.relative_to(TESTS))}:
        assert list(sleeps(tree)) == [], "wait for a condition: tests/waiting.py"
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
    tests = [node for name, node in functions.items() if name.startswith("test_")]
    assert [test.name for test in tests if not can_fail(test, functions)] == []


def test_the_rules_see_what_they_forbid() -> None:
    sleeping = "time.sleep(1)\nawait asyncio.sleep(x)\nsleep(0.1)\nasyncio.sleep(0)\nclock.sleep(5)"
    assert sorted(sleeps(ast.parse(sleeping))) == [1, 2, 3]
    tree = ast.parse("def test_a():\n    work()\ndef test_b():\n    check()\ndef check(): assert 1")
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
    assert not can_fail(functions["test_a"], functions)
    assert can_fail(functions["test_b"], functions)


# --- waiting ----------------------------------------------------------------------------


async def test_waiting_returns_what_was_found_and_says_what_was_not() -> None:
    found = iter([0, None, [], "it"])
    assert until(lambda: next(found), every_s=0) == "it"
    found = iter([0, None, [], "it"])
    assert await eventually(lambda: next(found), every_s=0) == "it"

    async def later() -> int:
        return 7

    assert await eventually(later) == 7
    with pytest.raises(AssertionError, match=r"not within 0 s: .*never_mind.*\nall is lost"):
        until(lambda: "never_mind" == "", 0, otherwise=lambda: "all is lost")
    with pytest.raises(AssertionError, match="not within 0 s"):
        await eventually(lambda: False, 0)


async def test_what_does_not_stay_is_told() -> None:
    ended = asyncio.create_task(asyncio.sleep(0))
    with pytest.raises(AssertionError, match="did not stay so"):
        await stays(lambda: not ended.done())
    await stays(lambda: ended.done())


# --- ports ------------------------------------------------------------------------------


def test_ports_are_given_out_once_across_processes_and_never_by_the_kernel() -> None:
    ours = [free_port() for _ in range(30)]
    said = "from tests.servers import free_port; print(*[free_port() for _ in range(30)])"
    other = subprocess.run(
        [sys.executable, "-c", said], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    theirs = [int(port) for port in other.stdout.split()]
    assert len({*ours, *theirs}) == 60
    assert not any(map(listens, ours))
    text = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if text.exists():
        first, last = map(int, text.read_text().split())
        assert not any(first <= port <= last for port in ours)
