"""The measuring script counts what its definitions say, on small houses made for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest
from tools import house

Build = Callable[[Mapping[str, str]], house.Source]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Write a house of the given files and read it."""

    def build(files: Mapping[str, str]) -> house.Source:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return house.Source.read(tmp_path)

    return build


def test_a_body_is_measured_without_its_head_and_docstring(build: Build) -> None:
    source = build(
        {
            "a.py": '''
            def long(
                x: int,
            ) -> int:
                """Says much.

                And more.
                """
                y = x

                return y

            class C:
                async def short(self): return 1

                def told(self):
                    """Only a docstring."""
            '''
        }
    )
    assert sorted(house.function_lengths(source.modules.values())) == [0, 1, 3]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.9, 9), ([5], 0.9, 5), ([], 0.9, 0), ([2, 1], 0.5, 1)],
)
def test_percentiles_are_values_that_occur(values: list[int], share: float, expected: int) -> None:
    assert house.percentile(values, share) == expected


def test_only_public_definitions_at_the_top_count_as_named_twice(build: Build) -> None:
    source = build(
        {
            "p/__init__.py": "from p.a import Twice",
            "p/a.py": "class Twice: ...\nclass _Hidden: ...\nclass Once:\n    class Inner: ...",
            "p/b.py": "class Twice: ...\nclass _Hidden: ...\nclass Inner: ...\ndef Once(): ...",
        }
    )
    twice = house.named_twice(source.modules.values(), lambda module: module.classes)
    assert twice == {"Twice": ["p/a.py:1", "p/b.py:1"]}


PASSING_ON = [
    "def f(self, a, b): return self.x.f(a, b=b)",
    "async def f(self, a): await self.x.y.f(a)",
    "def f(self, *a, **k): return self.x.f(*a, **k)",
    "def f(self, test): return self.f2(test.id, 'why', self.y)",
    "def f(self):\n        '''With a docstring.'''\n        return self._x.f()",
]
WORKING = [
    "def f(self, a): return self.x.f(a + 1)",
    "def f(self, a): return self.x.f(g(a))",
    "def f(self, a): return g(self.x, a)",
    "def f(self, a): return a.f(self)",
    "def f(self): return self.x",
    "def f(self, a):\n        check(a)\n        return self.x.f(a)",
    "def f(self, a): return self.x.f(a).y",
    "@staticmethod\n    def f(): return x.f()",
]


@pytest.mark.parametrize("method", PASSING_ON)
def test_a_method_that_hands_on_what_it_got_only_passes_on(build: Build, method: str) -> None:
    source = build({"a.py": f"class C:\n    {method}"})
    assert len(house.pass_on_methods(source.modules.values())) == 1


@pytest.mark.parametrize("method", WORKING)
def test_a_method_that_computes_does_not_only_pass_on(build: Build, method: str) -> None:
    source = build({"a.py": f"class C:\n    {method}"})
    assert house.pass_on_methods(source.modules.values()) == []


def test_attributes_are_followed_through_bases_in_other_modules(build: Build) -> None:
    source = build(
        {
            "p/__init__.py": "from p.top import App",
            "p/top.py": """
            from p.middle import Middle as Base
            from elsewhere import Foreign

            class App(Base, Foreign):
                def __init__(self): self.set_here = 1
                def run(self): self.set_later: int = 2
            """,
            "p/middle.py": """
            from .low import Low

            class Middle(Low["x"]):
                constant = 1
                told: int
                @property
                def size(self): return 1
            """,
            "p/low.py": "class Low:\n    def run(self): self.o.x = 1\n    def _x(self): ...",
        }
    )
    found = house.attributes_of(source, "p", "App")
    assert found is not None
    assert found.defined == {"run", "constant", "size", "_x"}
    assert found.assigned == {"set_here", "set_later"}
    assert found.bases == 2
    assert house.attributes_of(source, "p", "Nobody") is None


def test_each_written_type_counts_once(build: Build) -> None:
    source = build(
        {"a.py": "x: dict[Any, Any]\ndef f(a: int, b: list[Any], c, *d: str) -> Any: ..."}
    )
    types = house.written_types(source.modules.values())
    assert (types.written, types.explicit_any) == (5, 3)
    assert types.share == pytest.approx(0.6)


def test_components_are_what_reaches_each_other() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert house.components(edges) == [["a", "b", "c"], ["e", "f"]]


def test_circles_count_imports_for_type_checkers_and_of_descendants(build: Build) -> None:
    source = build(
        {
            "circled/__init__.py": "",
            "circled/a.py": "from circled.deep.b import B",
            "circled/deep/__init__.py": "",
            "circled/deep/b.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from circled.a import A
            """,
            "straight/__init__.py": "",
            "straight/a.py": "from straight.b import B",
            "straight/b.py": "",
        }
    )
    (circle,) = house.circles(source, ["circled", "straight"])
    assert circle.package == "circled"
    assert len(circle.breakers) == 1
    assert circle.components == [["circled.a", "circled.deep"]]


def test_two_versions_stand_beside_each_other(build: Build, tmp_path: Path) -> None:
    small = {f"{name}/__init__.py": "" for name in ("tuneproof", "tuneproof_trainer")}
    build({f"before/{path}": text for path, text in small.items()})
    build({f"after/{path}": text for path, text in small.items()})
    build(
        {
            "before/tuneproof/app/__init__.py": "from tuneproof.app.core import App",
            "before/tuneproof/app/core.py": "class App:\n    def run(self): self.cuped = 1",
            "before/tuneproof/other.py": "class App: ...",
            "after/tuneproof/app/__init__.py": "class App:\n    run = 1",
        }
    )
    roots = [f"--root={tmp_path / which}" for which in ("before", "after")]
    # Another process: here the packages of these names are imported already.
    said = subprocess.run(
        [sys.executable, "tools/house.py", *roots], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    rows = {line[:60].rstrip(): line.split()[-2:] for line in said.stdout.splitlines()}
    assert rows["public classes named twice, tuneproof"] == ["1", "0"]
    assert rows["files that name cuped"] == ["1", "0"]
    assert rows["App: with those assigned to self"] == ["2", "1"]
    told = subprocess.run(
        [sys.executable, "tools/house.py", roots[0], "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    places = json.loads(told.stdout)[str(tmp_path / "before")]["places"]
    assert places["files that name cuped"] == ["tuneproof/app/core.py"]


def test_a_folder_without_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no Python file"):
        house.Source.read(tmp_path)
