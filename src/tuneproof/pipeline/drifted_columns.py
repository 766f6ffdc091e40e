"""What became of a source's columns since the run before: told, or a reason to stop.

A column that a run reads and that is gone or holds another kind of values means that the posts are
no longer what they were: nobody should find that out by the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuneproof.collection import TrainingDataBatch
from tuneproof.errors import DataError

__all__ = ["ColumnChanges", "column_changes"]

_AIDS: Final = frozenset(("persona_id", "tokens_used", "impressions", "clicks", "version"))
"""Our words for columns without which a run goes on as before, but for what they are good for."""

_KINDS: Final = (
    ("time with zone", re.compile(r"timestamp.*(with time zone|tz=)|timestamptz")),
    ("time", re.compile(r"timestamp|datetime|date|time")),
    ("number", re.compile(r"(tiny|small|medium|big|huge)?(serial|u?int(eger|\d+)?\b)")),
    ("number", re.compile(r"float|double|real|numeric|decimal|number|halffloat")),
    ("truth", re.compile(r"bool|truth")),
    ("text", re.compile(r"text|string|large_string|(n?var)?char|character|clob|enum|dictionary")),
)


def kind_of(declared: str) -> str:
    """The kind of values that a type holds: a wider number is a number as before."""
    text = declared.strip().lower()
    if " or " in text:  # a file of JSON lines that has both
        return text
    return next((kind for kind, known in _KINDS if known.match(text)), text)


@dataclass(frozen=True, kw_only=True)
class ColumnChanges:
    """Sentences about columns: those that are told, and those that stop a run."""

    told: tuple[str, ...] = ()
    stopping: tuple[str, ...] = ()

    def refuse(self, source: str) -> None:
        """Raise `DataError` where something stops a run."""
        if self.stopping:
            raise DataError(
                f"The columns of {source} are not what they were at the last run: "
                f"{'; '.join(self.stopping)}.",
                mend="Look at the posts by `tuneproof posts check`; where it is meant so, start "
                "the run with --force once.",
                changes=list(self.stopping),
            )


def column_changes(
    types: Mapping[str, str], used: Mapping[str, str], now: TrainingDataBatch
) -> ColumnChanges:
    """What changed since a run whose source had columns of these types and read these of them."""
    told: list[str] = []
    stopping: list[str] = []
    needed = {column for word, column in used.items() if word not in _AIDS}
    for word, column in used.items():
        if column in types and column not in now.columns:
            sentence = f"{column}, which was read as {word}, is gone"
            (stopping if column in needed else told).append(sentence)
        elif now.used.get(word, column) != column:
            told.append(f"{word} is read from {now.used[word]}, no longer from {column}")
    for column, declared in types.items():
        if column in now.columns and kind_of(declared) != kind_of(now.columns[column]):
            sentence = f"{column} was {declared} and is {now.columns[column]}"
            (stopping if column in needed else told).append(sentence)
        elif column not in now.columns and column not in used.values():
            told.append(f"{column} is gone")
    told += [f"{column} is new" for column in now.columns if column not in types]
    return ColumnChanges(told=tuple(told), stopping=tuple(stopping))
