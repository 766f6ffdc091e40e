"""The tool that changes one thing: which changes there are, and which of them were noticed."""

from __future__ import annotations

import ast
import json
from collections import Counter
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
from tools import mutate, trying
from tools.mutants import ROOT, TESTS, Mutant, drawn, files_of, mutants_of
from tools.mutants import SOURCE as MODULES

SOURCE = '''
"""A module."""

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["Arm", "share"]

Arm = Literal["a", "b"]
LIMIT: Final = 5


class Kind:
    """A class."""

    name = "kind"

    @property
    def least(self) -> "int | None":
        """A docstring."""
        assert LIMIT < 9
        return LIMIT


def share(part: int, whole: int = 7) -> str:
    if part > whole:
        raise ValueError(f"{part} is above {whole + 1}.")
    told = "told in words"
    return f"{told} {part / whole}"
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text(dedent(SOURCE).lstrip())
    return tmp_path


def test_what_cannot_change_a_decision_is_left_out(source: Path) -> None:
    found = mutants_of(source, "a.py")
    assert [(m.scope, m.in_class, *m.change[1:]) for m in found] == [
        ("", False, "LIMIT: Final = 5", "LIMIT: Final = None"),
        ("", False, "LIMIT: Final = 5", "LIMIT: Final = 6"),
        ("", True, 'name = "kind"', "name = None"),
        ("", True, 'name = "kind"', 'name = "XXkindXX"'),
        ("share", False, "def share(part: int, whole: int = 7) -> str:",
         "def share(part: int, whole: int = 8) -> str:"),
        ("share", False, "if part > whole:", "if part >= whole:"),
        ("share", False, 'return f"{told} {part / whole}"', 'return f"{told} {part * whole}"'),
    ]  # fmt: skip
    assert [m.number for m in found] == list(range(7))
    assert all(m.text.splitlines()[m.change[0] - 1].strip() == m.change[2] for m in found)


def test_every_mutant_of_what_decides_is_another_program() -> None:
    mutants = mutants_of(ROOT / MODULES, "rollout/machine.py")
    source = ast.dump(ast.parse(mutants[0].source))
    assert len(mutants) > 200
    assert all(ast.dump(ast.parse(m.text)) != source for m in mutants[::5])


def test_each_module_has_tests_that_are_there() -> None:
    for path in TESTS:
        assert all((ROOT / test).is_file() for test in files_of([path]))


def test_the_sample_is_drawn_by_its_seed_and_proportional(source: Path) -> None:
    (source / "b.py").write_text("\n".join(f"x{i} = {i}" for i in range(36)))
    known = {path: mutants_of(source, path) for path in ("b.py", "a.py")}
    assert [len(k) for k in known.values()] == [72, 7]
    sample = drawn(known, 40, 3)
    assert Counter(m.path for m in sample) == {"a.py": 4, "b.py": 37}
    assert len({m.key for m in sample}) == 41
    assert [m.key for m in drawn(known, 40, 3)] == [m.key for m in sample]
    assert [m.key for m in drawn(known, 40, 4)] != [m.key for m in sample]
    assert len(drawn(known, 79, 3)) == 79


@cache
def mutant_of(path: str, old: str, new: str) -> Mutant:
    """The change of a module from a line to another."""
    found = mutants_of(ROOT / MODULES, path)
    return next(m for m in found if m.change[1:] == (old, new))


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("return round(share * BUCKETS)", "return round(share / BUCKETS)", trying.KILLED),
        ("BUCKETS: Final = 10_000", "BUCKETS: Final = 10001", trying.KILLED),
        ('return "candidate" if bucket < candidate_buckets(share) else "baseline"',
         'return "candidate" if bucket <= candidate_buckets(share) else "baseline"',
         trying.SURVIVED),
    ],
)  # fmt: skip
def test_a_change_is_put_into_the_module_that_is_imported(
    old: str, new: str, status: int, tmp_path: Path
) -> None:
    """Noticed by how many buckets there are, which the last change does not touch."""
    mutant = mutant_of("assignment.py", old, new)

    def body(pipe: int) -> int:
        from tuneproof import assignment

        trying.put_in(mutant, trying.twin_of(mutant))
        return trying.SURVIVED if assignment.candidate_buckets(1) == 10_000 else trying.KILLED

    log = mutate.Log(tmp_path / "results.jsonl")
    pool = mutate.Pool(log, jobs=2, whole=1)
    pool.test(mutant, body, limit_s=60)
    pool.drain()
    assert log.known[mutant.key].survived == (status == trying.SURVIVED)
    from tuneproof import assignment

    assert assignment.candidate_buckets(1) == 10_000


def test_what_takes_far_too_long_is_noticed(tmp_path: Path) -> None:
    def endless(pipe: int) -> int:
        while True:
            pass

    mutant = mutant_of("assignment.py", "BUCKETS: Final = 10_000", "BUCKETS: Final = 10001")
    log = mutate.Log(tmp_path / "results.jsonl")
    pool = mutate.Pool(log, jobs=1, whole=1)
    pool.test(mutant, endless, limit_s=0.2)
    pool.drain()
    found = log.known[mutant.key]
    assert (found.survived, found.by) == (False, "time")


def test_a_fault_of_the_tool_is_no_finding(tmp_path: Path) -> None:
    def broken(pipe: int) -> int:
        raise RuntimeError("no such function")

    mutant = mutant_of("assignment.py", "BUCKETS: Final = 10_000", "BUCKETS: Final = 10001")
    log = mutate.Log(tmp_path / "results.jsonl")
    pool = mutate.Pool(log, jobs=1, whole=1)
    pool.test(mutant, broken, limit_s=60)
    with pytest.raises(SystemExit, match="no such function"):
        pool.drain()
    assert log.known == {}


def test_a_finding_counts_until_module_or_tests_change(tmp_path: Path) -> None:
    mutant = mutant_of("assignment.py", "BUCKETS: Final = 10_000", "BUCKETS: Final = 10001")
    log = mutate.Log(tmp_path / "results.jsonl")
    pool = mutate.Pool(log, jobs=1, whole=1)
    pool.found(mutant, mutate.Ended(status=trying.KILLED, said="tests/a.py::test_b"))
    again = mutate.Log(tmp_path / "results.jsonl")
    assert again.knows(mutant)
    assert again.known[mutant.key].by == "tests/a.py::test_b"
    row = json.loads((tmp_path / "results.jsonl").read_text())
    (tmp_path / "results.jsonl").write_text(json.dumps({**row, "digest": "another"}) + "\n")
    assert not mutate.Log(tmp_path / "results.jsonl").knows(mutant)


def test_the_table_counts_by_module_and_names_what_survived() -> None:
    def finding(key: str, survived: bool) -> mutate.Finding:
        return mutate.Finding(
            key=key, digest="d", survived=survived, by="", line=4, old="a | b", new="a & b"
        )

    told = mutate.table(
        [finding("a.py#1", False), finding("a.py#2", True), finding("b.py#1", False)]
    )
    assert told.splitlines() == [
        "| module | noticed | of | share |",
        "|---|---|---|---|",
        "| `a.py` | 1 | 2 | 50.0% |",
        "| `b.py` | 1 | 1 | 100.0% |",
        "| all | 2 | 3 | 66.7% |",
        "",
        "| where | is | noticed by none |",
        "|---|---|---|",
        "| `a.py:4` | `a \\| b` | `a & b` |",
    ]
