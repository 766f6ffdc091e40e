"""The user's columns by our words for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tuneproof.collection import Post, PostQuery, SourceCheck
from tuneproof.errors import DataError
from tuneproof.sources.arithmetic import Arithmetic, is_arithmetic

__all__ = [
    "RATE",
    "checked",
    "find_columns",
    "missing_columns",
    "need_columns",
    "rate_arithmetic",
]

RATE: Final = "engagement_rate"
MATURED: Final = "matured_at"
REQUIRED: Final = ("id", RATE, "ts")

OPTIONAL: Final = ("original_input",)
"""What a table may lack, though a task's prompt names it: its task's `empty_prompt` is asked."""

# Words for the same that other tables use; the first that exists is taken.
_ALSO: Final[Mapping[str, Sequence[str]]] = {
    "ts": ("created_at", "published_at", "timestamp"),
    "engagement_rate": ("engagement",),
    "persona_id": ("persona", "author_id"),
    "version": ("model_version",),
}


def find_columns(
    existing: Iterable[str], named: Mapping[str, str], query: PostQuery
) -> dict[str, str]:
    """Our word -> the user's column, for all that the query can use and the table has.

    Names are taken as they are written, else whatever their case where only one column is meant.
    The rate may be arithmetic over columns, which stands here as it was written.
    """
    have = list(existing)
    folded = Counter(name.casefold() for name in have)
    alone = {n.casefold(): n for n in have if folded[n.casefold()] == 1}
    found: dict[str, str] = {}
    late = query.matured is not None
    words = (word for word in Post._fields[:-1] if late or word != MATURED)
    for word in dict.fromkeys((*words, *query.columns)):
        wanted = (named[word],) if word in named else (word, *_ALSO.get(word, ()))
        names = (name if name in have else alone.get(name.casefold()) for name in wanted)
        column = next((name for name in names if name is not None), None)
        if column is None and word == RATE and _works_out(named.get(word, ""), have):
            column = named[word]
        if column is not None:
            found[word] = column
    return found


def rate_arithmetic(existing: Iterable[str], found: Mapping[str, str]) -> Arithmetic | None:
    """What the rate is worked out by; None where a column has it, or there is none."""
    text = found.get(RATE)
    return None if text is None or text in set(existing) else Arithmetic(text)


def _works_out(text: str, existing: Iterable[str]) -> bool:
    """Whether this is arithmetic over columns that there are."""
    return is_arithmetic(text) and set(Arithmetic(text).columns) <= set(existing)


def missing_columns(
    found: Mapping[str, str], named: Mapping[str, str], query: PostQuery
) -> tuple[str, ...]:
    """Our words for what the query cannot do without and the table does not have."""
    late = () if query.matured is None else (MATURED,)
    needed = dict.fromkeys((*REQUIRED, *late, *query.columns))
    return tuple(
        word for word in needed if word not in found and (word in named or word not in OPTIONAL)
    )


def need_columns(
    found: Mapping[str, str], named: Mapping[str, str], query: PostQuery, where: str
) -> None:
    """Raise `DataError` where a column is missing."""
    missing = missing_columns(found, named, query)
    if missing:
        raise DataError(
            f"{where} has no column for {', '.join(missing)}.",
            mend="Name the columns in [sources.posts.columns], or mend the task's template.",
            missing=list(missing),
        )


def checked(
    types: Mapping[str, str], named: Mapping[str, str], query: PostQuery, **more: object
) -> SourceCheck:
    """What there is, by its types, as a check."""
    found = find_columns(types, named, query)
    return SourceCheck(
        found=tuple(types),
        types=dict(types),
        used=found,
        missing=missing_columns(found, named, query),
        **more,  # type: ignore[arg-type]
    )
