"""Which small faults a module could have: its mutants, made by mutmut's operators.

A mutant is the module with one thing changed: a number, a comparison, an argument left out. What
cannot change a decision is left out by rule:

- annotations and other types, decorators, docstrings, assertions, `__all__`;
- wording: texts with a space in them, and what an error that is raised says;
- the same text in capitals and in small letters, beside the text that is another.

All others count, also those that no behaviour tells from the module itself.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "src/tuneproof"

_LOOKS = (
    "test_verdicts.py",
    "test_view.py",
    "test_experiments.py",
    "test_families.py",
    "test_items.py",
)
_STEPS = ("test_rollout.py", "test_watch.py")

TESTS: Mapping[str, tuple[str, ...]] = {
    "experiments/judge.py": _LOOKS,
    "experiments/view.py": _LOOKS,
    "rollout/machine.py": _STEPS,
    "rollout/watch.py": _STEPS,
    "assignment.py": ("test_assignment.py", "test_assignment_vectors.py", "test_families.py"),
    "stats/guardrails.py": ("stats/test_guardrails.py", "stats/test_doctests.py"),
}
"""The modules that decide over promotion, rollback and shares, and the unit tests of each."""


def dotted(path: str) -> str:
    """The name of the module at a path."""
    return "tuneproof." + path.removesuffix(".py").replace("/", ".")


def files_of(paths: Iterable[str]) -> list[str]:
    """The test files of these modules, each once."""
    return list(dict.fromkeys(f"tests/unit/{test}" for path in paths for test in TESTS[path]))


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A module with one change. `number` counts the mutants of the module from 0.

    `scope` is the function that the change is in (`View.lift`), empty where it is in none;
    `in_class` says that it makes another class: a field's default, a member. `start` and `end` are
    what `new` takes the place of in `source`.
    """

    path: str
    number: int
    scope: str
    in_class: bool
    source: str
    start: int
    end: int
    new: str

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.path}#{self.number}"

    @property
    def text(self) -> str:
        """The source of the changed module."""
        return self.source[: self.start] + self.new + self.source[self.end :]

    @property
    def change(self) -> tuple[int, str, str]:
        """The first line that differs, from 1: its number, what it says, what it would say."""
        old, new = self.source.splitlines(), self.text.splitlines()
        pairs = enumerate(zip(old, new, strict=False), 1)
        return next((i, a.strip(), b.strip()) for i, (a, b) in pairs if a.strip() != b.strip())


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    from tools.sites import sites_of  # its parser takes seconds to import

    source = (root / path).read_text()
    begins = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
    return [
        Mutant(
            path=path,
            number=number,
            scope=site.scope,
            in_class=site.in_class,
            source=source,
            start=begins[site.start[0] - 1] + site.start[1],
            end=begins[site.end[0] - 1] + site.end[1],
            new=site.new,
        )
        for number, site in enumerate(sites_of(source))
    ]


def drawn(mutants: Mapping[str, Sequence[Mutant]], size: int, seed: int) -> list[Mutant]:
    """A sample without repetition of `size` at least, each module's part as large as its mutants'.

    The same source, size and seed give the same sample.
    """
    whole = sum(map(len, mutants.values()))
    chosen: list[Mutant] = []
    for path, known in sorted(mutants.items()):
        part = min(len(known), -(-size * len(known) // whole))
        lot = random.Random(f"{seed} {path}").sample(known, part)
        chosen += sorted(lot, key=lambda m: m.number)
    return chosen
