"""What the house weighs: functions, names, circles, corridors and types, counted in the source.

    python tools/house.py                                   # this checkout
    python tools/house.py --root before/src --root src      # two versions beside each other
    python tools/house.py --places                          # and where each thing counted stands
    python tools/house.py --json

Each count is defined in the docstring of the function that makes it. Nothing under the root is
imported: any version of the project can be counted, by whatever interpreter parses it.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import operator
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import grimp

Function = ast.FunctionDef | ast.AsyncFunctionDef

LOOP, TRAINER = "tuneproof", "tuneproof_trainer"
OPTIONS = ("cuped", "segment_guardrail")
"""Options of a test by which is measured in how many files an option stands."""
TYPED = ("app", "pipeline", "experiments", "rollout", "client")
"""The packages that say no `Any`."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file: its dotted name, its path under the root, its text and tree."""

    name: str
    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @cached_property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]

    @cached_property
    def classes(self) -> Mapping[str, ast.ClassDef]:
        """The classes at its top."""
        return {n.name: n for n in self.tree.body if isinstance(n, ast.ClassDef)}

    @cached_property
    def functions(self) -> Mapping[str, Function]:
        """The functions at its top."""
        return {n.name: n for n in self.tree.body if isinstance(n, Function)}

    @cached_property
    def imported(self) -> Mapping[str, tuple[str, str]]:
        """What each `from module import name [as alias]` brings: alias to module and name."""
        brought = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
                    source = ".".join([*above, *filter(None, [node.module])])
                for name in node.names:
                    brought[name.asname or name.name] = (source, name.name)
        return brought


@dataclass(frozen=True, kw_only=True)
class Source:
    """All modules under one root, by dotted name."""

    root: Path
    modules: Mapping[str, Module] = field(repr=False)

    @classmethod
    def read(cls, root: Path) -> Source:
        """Read every Python file under `root`; a folder without any is refused."""
        modules = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(
                name=name, path=path.relative_to(root).as_posix(), text=path.read_text()
            )
        if not modules:
            raise SystemExit(
                f"{root} holds no Python file: name the folder that holds the packages."
            )
        return cls(root=root, modules=modules)

    @cached_property
    def packages(self) -> list[str]:
        """The packages directly under the root."""
        return sorted({name.partition(".")[0] for name in self.modules})

    def within(self, package: str) -> list[Module]:
        """The modules of one package."""
        return [
            m
            for m in self.modules.values()
            if m.name == package or m.name.startswith(package + ".")
        ]

    def find_class(self, module: str, name: str) -> tuple[Module, ast.ClassDef] | None:
        """The class that `name` means in `module`, its imports followed."""
        seen = set()
        while module in self.modules and (module, name) not in seen:
            seen.add((module, name))
            if name in self.modules[module].classes:
                return self.modules[module], self.modules[module].classes[name]
            if name not in self.modules[module].imported:
                return None
            module, name = self.modules[module].imported[name]
        return None


# --- functions -----------------------------------------------------------------------


def function_lengths(modules: Iterable[Module]) -> list[int]:
    """Lines of each function's and method's body, its docstring aside, to its last line."""
    lengths = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                body = _body(node)
                lengths.append((node.end_lineno or 0) - body[0].lineno + 1 if body else 0)
    return lengths


def _body(node: Function) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body


def percentile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(round(len(ranked) * share, 6)) - 1)] if ranked else 0


# --- names ---------------------------------------------------------------------------


def named_twice(
    modules: Iterable[Module], of: Callable[[Module], Mapping[str, ast.ClassDef | Function]]
) -> dict[str, list[str]]:
    """Public names (no leading underscore) that stand at the top of two modules or more.

    A name imported from elsewhere is not a second one: only definitions count.
    """
    places = defaultdict(list)
    for module in modules:
        for name, node in of(module).items():
            if not name.startswith("_"):
                places[name].append(f"{module.path}:{node.lineno}")
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def files_naming(modules: Iterable[Module], word: str) -> list[str]:
    """Files in whose text `word` stands, in code, text or comment."""
    return [module.path for module in modules if word in module.text]


# --- corridors -----------------------------------------------------------------------


def pass_on_methods(modules: Iterable[Module]) -> list[str]:
    """Methods that only pass on.

    The whole body, but for a docstring, is one call on `self` or on what `self` holds
    (`self.f(...)`, `self.a.b.f(...)`), returned, awaited or left; and it computes nothing:
    each argument is a parameter, an attribute (`self.x`, `test.id`) or a constant.
    """
    found = []
    for module in modules:
        for owner in ast.walk(module.tree):
            if isinstance(owner, ast.ClassDef):
                found += [
                    f"{module.path}:{method.lineno} {owner.name}.{method.name}"
                    for method in owner.body
                    if isinstance(method, Function) and _only_passes_on(method)
                ]
    return found


def _only_passes_on(method: Function) -> bool:
    parameters = [*method.args.posonlyargs, *method.args.args]
    call = _one_call(method)
    if call is None or not parameters or not isinstance(call.func, ast.Attribute):
        return False
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    root = _root(call.func)
    return (
        isinstance(root, ast.Name)
        and root.id == parameters[0].arg
        and all(isinstance(_root(a), ast.Name | ast.Constant) for a in arguments)
    )


def _one_call(method: Function) -> ast.Call | None:
    body = _body(method)
    if len(body) != 1 or not isinstance(body[0], ast.Return | ast.Expr):
        return None
    value = body[0].value
    if isinstance(value, ast.Await):
        value = value.value
    return value if isinstance(value, ast.Call) else None


def _root(expression: ast.expr) -> ast.expr:
    """`self` of `self.a.b`; of `*args` it is `args`."""
    while isinstance(expression, ast.Attribute | ast.Starred):
        expression = expression.value
    return expression


# --- one class with its bases --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What an instance of a class answers to, by where it is written."""

    defined: frozenset[str]
    """In the body of the class or of one of its bases: methods, properties, class attributes."""
    assigned: frozenset[str]
    """To `self`, in any method of these."""
    bases: int
    """Classes of the project that it inherits from, at any distance."""


def attributes_of(source: Source, module: str, name: str) -> Attributes | None:
    """The attributes of a class, inherited ones included, names with two underscores not.

    None where the module has no class of that name. Bases outside the root are not followed.
    """
    found = source.find_class(module, name)
    if found is None:
        return None
    defined, assigned = set[str](), set[str]()
    line, seen = [found], set[tuple[str, str]]()
    while line:
        where, node = line.pop()
        if (where.name, node.name) in seen:
            continue
        seen.add((where.name, node.name))
        defined |= {n for n in _body_names(node) if not n.startswith("__")}
        assigned |= _assigned_to_self(node)
        for base in node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name) and (parent := source.find_class(where.name, base.id)):
                line.append(parent)
    return Attributes(defined=frozenset(defined), assigned=frozenset(assigned), bases=len(seen) - 1)


def _body_names(node: ast.ClassDef) -> Iterator[str]:
    for item in node.body:
        if isinstance(item, Function | ast.ClassDef):
            yield item.name
        elif isinstance(item, ast.Assign):
            yield from (t.id for t in item.targets if isinstance(t, ast.Name))
        elif (
            isinstance(item, ast.AnnAssign)
            and item.value is not None
            and isinstance(item.target, ast.Name)
        ):
            yield item.target.id


def _assigned_to_self(node: ast.ClassDef) -> set[str]:
    return {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and isinstance(n.value, ast.Name)
        and n.value.id == "self"
    }


# --- types ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Written types, and how many of them say `Any`."""

    written: int
    explicit_any: int

    @property
    def share(self) -> float:
        """The share that says `Any`, 0–1."""
        return self.explicit_any / self.written if self.written else 0.0


def written_types(modules: Iterable[Module]) -> Annotations:
    """The types of parameters, results and annotated names; one counts once, however deep."""
    written = explicit = 0
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                said = node.returns
            elif isinstance(node, ast.arg | ast.AnnAssign):
                said = node.annotation
            else:
                continue
            if said is not None:
                written += 1
                explicit += any(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(said))
    return Annotations(written=written, explicit_any=explicit)


# --- circles -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Circle:
    """Children of one package that import each other, imports for type checkers included."""

    package: str
    breakers: list[str]
    """A small set of imports without which no circle is left (grimp nominates them)."""
    components: list[list[str]]
    """Strongly connected components: the children that reach each other."""


def circles(source: Source, packages: Sequence[str]) -> list[Circle]:
    """The packages whose children import each other in a circle.

    The graph is import-linter's (grimp), and a package is judged as its contract
    `acyclic_siblings` does: children against each other, their descendants with them.
    """
    already = [name for name in packages if name in sys.modules]
    if already:
        raise RuntimeError(f"{already[0]} is imported already: its graph would be of that copy.")
    sys.path.insert(0, str(source.root.resolve()))
    try:
        graph = grimp.build_graph(*packages, exclude_type_checking_imports=False, cache_dir=None)
    finally:
        sys.path.pop(0)
    found = []
    for package in sorted(graph.modules):
        children = graph.find_children(package)
        if len(children) < 2:
            continue
        breakers = graph.nominate_cycle_breakers(package)
        if breakers:
            edges = _sibling_edges(graph, package, children)
            found.append(
                Circle(
                    package=package,
                    breakers=sorted(f"{importer} -> {imported}" for importer, imported in breakers),
                    components=components(edges),
                )
            )
    return found


def _sibling_edges(
    graph: grimp.ImportGraph, package: str, children: set[str]
) -> dict[str, set[str]]:
    depth = package.count(".") + 2
    edges: dict[str, set[str]] = {child: set() for child in children}
    for importer in graph.modules:
        ours = ".".join(importer.split(".")[:depth])
        if ours in edges:
            for imported in graph.find_modules_directly_imported_by(importer):
                theirs = ".".join(imported.split(".")[:depth])
                if theirs in edges and theirs != ours:
                    edges[ours].add(theirs)
    return edges


def components(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of two or more nodes, largest first."""
    reached = {node: _reach(edges, node) for node in edges}
    left, found = set(edges), []
    while left:
        node = min(left)
        circle = {other for other in reached[node] if node in reached[other]} | {node}
        left -= circle
        if len(circle) > 1:
            found.append(sorted(circle))
    return sorted(found, key=lambda c: (-len(c), c))


def _reach(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen, line = set[str](), [start]
    while line:
        for following in edges[line.pop()] - seen:
            seen.add(following)
            line.append(following)
    return seen


# --- all of it -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The figures of one root, and where what was counted stands."""

    figures: Mapping[str, str | int | float]
    places: Mapping[str, Sequence[str]]


def weigh(root: Path) -> Weighed:
    """Count everything under one root."""
    source = Source.read(root)
    everything = list(source.modules.values())
    loop, trainer = source.within(LOOP), source.within(TRAINER)
    figures: dict[str, str | int | float] = {}
    places: dict[str, Sequence[str]] = {}

    figures["files"] = len(everything)
    figures["lines"] = sum(m.text.count("\n") for m in everything)
    lengths = function_lengths(everything)
    figures["functions"] = len(lengths)
    figures["lines a function, median"] = int(statistics.median(lengths)) if lengths else 0
    figures["lines a function, p90"] = percentile(lengths, 0.9)

    def count(title: str, found: Sequence[str]) -> None:
        figures[title], places[title] = len(found), found

    for kind in ("classes", "functions"):
        for title, modules in ((LOOP, loop), (TRAINER, trainer), ("all", everything)):
            twice = named_twice(modules, operator.attrgetter(kind))
            count(
                f"public {kind} named twice, {title}",
                [f"{name}: {', '.join(where)}" for name, where in twice.items()],
            )

    for title, modules in ((LOOP, loop), (TRAINER, trainer)):
        count(f"methods that only pass on, {title}", pass_on_methods(modules))

    round_about = circles(source, source.packages)
    figures["packages with import circles"] = len(round_about)
    figures["imports that close a circle"] = sum(len(c.breakers) for c in round_about)
    places["imports that close a circle"] = [
        f"{c.package}: {len(c.breakers)} ({'; '.join(c.breakers)}); "
        + "; ".join(f"{len(names)} modules in one: {' '.join(names)}" for names in c.components)
        for c in round_about
    ]
    for word in OPTIONS:
        count(f"files that name {word}", files_naming(everything, word))

    app = attributes_of(source, f"{LOOP}.app", "App")
    if app is not None:
        figures["App: attributes defined, own and inherited"] = len(app.defined)
        figures["App: with those assigned to self"] = len(app.defined | app.assigned)
        figures["App: public among these"] = sum(
            not name.startswith("_") for name in app.defined | app.assigned
        )
        figures["App: classes that it inherits from"] = app.bases
        places["App: with those assigned to self"] = sorted(app.defined | app.assigned)

    for title, modules in (
        ("all", everything),
        *((f"{LOOP}.{name}", source.within(f"{LOOP}.{name}")) for name in TYPED),
    ):
        types = written_types(modules)
        figures[f"written types that say Any, {title}"] = types.explicit_any
        figures[f"share of written types that say Any, {title}"] = round(types.share, 4)
    return Weighed(figures=figures, places=places)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of each root, side by side."""
    parser = argparse.ArgumentParser(description="What the house weighs.")
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        help="a folder that holds the packages; once for each version (default: this src)",
    )
    parser.add_argument("--places", action="store_true", help="say where, for the last root")
    parser.add_argument("--json", action="store_true", help="figures and places as JSON")
    asked = parser.parse_args(arguments)
    roots = asked.root or [Path(__file__).resolve().parent.parent / "src"]
    weighed = [weigh(root) for root in roots]
    if asked.json:
        print(
            json.dumps(
                {
                    str(root): {"figures": w.figures, "places": w.places}
                    for root, w in zip(roots, weighed, strict=True)
                },
                indent=2,
            )
        )
        return 0
    titles = dict.fromkeys(title for w in weighed for title in w.figures)
    wide = max(map(len, titles))
    for title in titles:
        print(title.ljust(wide), *(f"{w.figures.get(title, '-'):>9}" for w in weighed))
    if asked.places:
        for title, where in weighed[-1].places.items():
            print(f"\n{title}")
            for line in where:
                print(f"  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
