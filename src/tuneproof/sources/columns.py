"""The user's columns by our words for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tuneproof.collection import Post, PostQuery, SourceCheck
from tuneproof.errors import DataError

__all__ = ["checked", "find_columns", "need_columns"]

REQUIRED: Final = ("id", "engagement_rate", "ts")

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
    """Our word -> the user's column, for all that the query can use and the table has."""
    have = set(existing)
    found: dict[str, str] = {}
    words = dict.fromkeys((*Post._fields[:-1], *query.columns))
    for word in words:
        wanted = (named[word],) if word in named else (word, *_ALSO.get(word, ()))
        column = next((name for name in wanted if name in have), None)
        if column is not None:
            found[word] = column
    return found


def missing_columns(
    found: Mapping[str, str], named: Mapping[str, str], query: PostQuery
) -> tuple[str, ...]:
    """Our words for what the query cannot do without and the table does not have."""
    needed = dict.fromkeys((*REQUIRED, *query.columns))
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
    existing: Iterable[str], named: Mapping[str, str], query: PostQuery, **more: object
) -> SourceCheck:
    """What there is, as a check."""
    existing = tuple(existing)
    found = find_columns(existing, named, query)
    return SourceCheck(
        found=existing,
        missing=missing_columns(found, named, query),
        **more,  # type: ignore[arg-type]
    )
