"""Rates from other columns: `likes / views`, the same in every source.

Columns, numbers, + - * / and brackets, and nothing else. It is worked out in double precision,
step by step, by a database or here. Where a column is absent, or divided by 0, or the result is no
number, the rate is unknown. A name that is no word stands in double quotes: `"Likes (all)" / seen`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.sql.elements import Grouping

from tuneproof.errors import DataError

__all__ = ["Arithmetic", "is_arithmetic"]

_TOKEN: Final = re.compile(
    r'\s*(?:(\d+\.?\d*|\.\d+)|"([^"]+)"|([^\W\d]\w*)|([-+*/()]))', re.UNICODE
)
_DEEPEST: Final = 50
_MEND: Final = 'Write columns, numbers, + - * / and brackets: engagement_rate = "likes / views".'


def is_arithmetic(text: str) -> bool:
    """Whether this can be no plain name of a column."""
    return any(sign in text for sign in "+-*/()") or text.startswith('"')


@dataclass(frozen=True)
class _Number:
    value: float


@dataclass(frozen=True)
class _Column:
    name: str


@dataclass(frozen=True)
class _Operation:
    sign: str
    left: _Node
    right: _Node


_Node = _Number | _Column | _Operation


class Arithmetic:
    """An expression over columns. Raises `DataError` for what is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _tokens(text)
        self._depth = 0
        self._tree = self._sum()
        if self._tokens:
            raise _refused(text, f"{self._tokens[0][1]!r} is out of place")

    def __str__(self) -> str:
        return self.text

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, each once."""
        return tuple(dict.fromkeys(_columns(self._tree)))

    def of(self, values: Mapping[str, float | None]) -> float | None:
        """The result for the values of the columns; None where it is unknown."""
        try:
            found = _worked_out(self._tree, values)
        except OverflowError:
            return None
        return found if found is None or math.isfinite(found) else None

    def sql(self, column: Callable[[str], sa.ColumnElement[Any]]) -> sa.ColumnElement[Any]:
        """The same for a database, of columns as it makes them."""
        return _sql(self._tree, column)

    # --- reading it: a sum of products of brackets, names and numbers -----------------------

    def _sum(self) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _refused(self.text, "it is nested too deep")
        node = self._product()
        while sign := self._taken("+-"):
            node = _Operation(sign, node, self._product())
        self._depth -= 1
        return node

    def _product(self) -> _Node:
        node = self._single()
        while sign := self._taken("*/"):
            node = _Operation(sign, node, self._single())
        return node

    def _single(self) -> _Node:
        if self._taken("-"):
            return _Operation("-", _Number(0.0), self._single())
        if self._taken("("):
            node = self._sum()
            if not self._taken(")"):
                raise _refused(self.text, "a bracket is not closed")
            return node
        if not self._tokens or self._tokens[0][0] == "sign":
            raise _refused(self.text, "a column or a number is missing")
        kind, word = self._tokens.pop(0)
        return _Number(float(word)) if kind == "number" else _Column(word)

    def _taken(self, signs: str) -> str:
        if self._tokens and self._tokens[0][0] == "sign" and self._tokens[0][1] in signs:
            return self._tokens.pop(0)[1]
        return ""


def _tokens(text: str) -> list[tuple[str, str]]:
    found, place = [], 0
    kinds = ("number", "name", "name", "sign")
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise _refused(text, f"{text[place:].strip()[:20]!r} cannot be read")
        index = next(i for i, group in enumerate(match.groups()) if group is not None)
        found.append((kinds[index], match.groups()[index]))
        place = match.end()
    return found


def _refused(text: str, why: str) -> DataError:
    return DataError(
        f"The rate {text!r} is no column and no arithmetic: {why}.", mend=_MEND, value=text
    )


def _columns(node: _Node) -> list[str]:
    if isinstance(node, _Operation):
        return [*_columns(node.left), *_columns(node.right)]
    return [node.name] if isinstance(node, _Column) else []


def _worked_out(node: _Node, values: Mapping[str, float | None]) -> float | None:
    if isinstance(node, _Number):
        return node.value
    if isinstance(node, _Column):
        return values[node.name]
    left, right = _worked_out(node.left, values), _worked_out(node.right, values)
    if left is None or right is None:
        return None
    if node.sign == "/":
        return left / right if right else None
    return {"+": left + right, "-": left - right}.get(node.sign, left * right)


def _sql(node: _Node, column: Callable[[str], sa.ColumnElement[Any]]) -> sa.ColumnElement[Any]:
    double: sa.Double[float] = sa.Double()
    if isinstance(node, _Number):
        return sa.cast(sa.literal(node.value, double), double)
    if isinstance(node, _Column):
        return column(node.name)
    left, right = _sql(node.left, column), _sql(node.right, column)
    if node.sign == "/":
        zero = sa.cast(sa.literal(0.0, double), double)
        right = sa.func.nullif(right, zero)
    return sa.type_coerce(Grouping(left.op(node.sign)(right)), double)
