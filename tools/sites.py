"""Where a module may be changed, and into what, by mutmut's operators: see `mutants.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import libcst as cst
from libcst.metadata import WhitespaceInclusivePositionProvider
from mutmut.mutation.mutators import mutation_operators

__all__ = ["Site", "sites_of"]

_NO_BEHAVIOUR = (cst.Annotation, cst.Decorator, cst.Raise, cst.Assert)


@dataclass(frozen=True, kw_only=True)
class Site:
    """What may be changed: where it stands (line from 1, column), in what, and what it becomes."""

    scope: str
    in_class: bool
    start: tuple[int, int]
    end: tuple[int, int]
    new: str


def sites_of(source: str) -> list[Site]:
    """All changes that a module may be made by, in the order of its lines."""
    wrapper = cst.MetadataWrapper(cst.parse_module(source))
    sites = _Sites(wrapper.module)
    wrapper.visit(sites)
    return sorted(sites.found, key=lambda site: (site.start, site.end))


class _Sites(cst.CSTVisitor):
    """Collects the sites of a module."""

    METADATA_DEPENDENCIES = (WhitespaceInclusivePositionProvider,)

    def __init__(self, module: cst.Module) -> None:
        super().__init__()
        self._module = module
        self.found: list[Site] = []
        self._scope: list[cst.ClassDef | cst.FunctionDef] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, _NO_BEHAVIOUR) or _only_for_readers(node):
            return False
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            self._scope.append(node)
        for changed in _changes(node):
            place = self.get_metadata(WhitespaceInclusivePositionProvider, node)
            self.found.append(
                Site(
                    scope=self._function(),
                    in_class=bool(self._scope) and not self._function(),
                    start=(place.start.line, place.start.column),
                    end=(place.end.line, place.end.column),
                    new=self._module.code_for_node(changed),
                )
            )
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self._scope and self._scope[-1] is original_node:
            self._scope.pop()

    def _function(self) -> str:
        """The outermost function, by its qualified name; empty in none."""
        names: list[str] = []
        for node in self._scope:
            names.append(node.name.value)
            if isinstance(node, cst.FunctionDef):
                return ".".join(names)
        return ""


def _only_for_readers(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.If):
        return _names(node.test, "TYPE_CHECKING")
    if isinstance(node, cst.Assign):
        return _names(node.targets[0].target, "__all__") or _only_for_readers(node.value)
    if isinstance(node, cst.Subscript):
        return _names(node.value, "Literal")
    return isinstance(node, cst.SimpleString) and " " in str(node.evaluated_value)


def _names(node: cst.CSTNode, name: str) -> bool:
    return isinstance(node, cst.Name) and node.value == name


def _changes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            changed: Iterable[cst.CSTNode] = operator(node)
            yield from list(changed)[:1] if isinstance(node, cst.SimpleString) else changed
