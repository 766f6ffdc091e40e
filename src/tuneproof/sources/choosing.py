"""Which posts are wanted, and in which order, where the source itself cannot say: files, and
tables that keep rates or times as text.

Only the best are kept while reading, so memory does not grow with the source; where all are
wanted, those that match are sorted in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tuneproof.collection import NO_TIME, Post, PostQuery
from tuneproof.errors import DataError

__all__ = ["OWN_ID", "Best", "check_ids", "chunked", "order", "shared_id"]

_SLACK: Final = 10_000

OWN_ID: Final = "Posts are told apart by their id: give each one of its own."


class Best:
    """The posts that a query asks for, of all that are added, in its order.

    Those without a time or with a rate that is no number come last, for curation to count.
    """

    def __init__(self, query: PostQuery) -> None:
        self._query = query
        self._most = query.max_records
        self._kept: list[Post] = []

    def add(self, posts: Iterable[Post]) -> None:
        """Take in posts; what can no longer be among the best is forgotten."""
        self._kept += [post for post in posts if self.wanted(post)]
        if self._most is not None and len(self._kept) > 2 * self._most + _SLACK:
            self._kept = self.posts()

    def posts(self) -> list[Post]:
        """The best of those that were added."""
        return sorted(self._kept, key=order)[: self._most]

    def wanted(self, post: Post) -> bool:
        """Whether the query asks for this post, or it must be counted as one that has no time."""
        rate = post.engagement_rate
        known = 0.0 if rate is None else rate
        enough = known >= self._query.threshold or math.isnan(known)
        return enough and (post.ts is NO_TIME or self._query.inside(post))


def order(post: Post) -> tuple[object, ...]:
    """Best first; of the same rate ids that are whole numbers by their size, then others by code
    point."""
    rate, id = post.engagement_rate, post.id
    worst = rate is None or math.isnan(rate)
    digits = id.lstrip("0") if id.isascii() and id.isdecimal() else None
    place = (1, 0, "", id) if digits is None else (0, len(digits), digits, id)
    return (post.ts is NO_TIME, math.inf if worst else -(rate or 0.0), *place)


def check_ids(ids: Sequence[Any], where: str) -> None:
    """Raise `DataError` where posts that are to be used have no id, or one that others have."""
    absent = sum(id is None or id == "" for id in ids)
    if absent:
        raise DataError(f"{absent:,} of {len(ids):,} posts of {where} have no id.", mend=OWN_ID)
    repeated = [(id, n) for id, n in Counter(ids).most_common() if n > 1]
    if repeated:
        raise shared_id(*repeated[0], len(repeated) - 1, where)


def shared_id(id: object, posts: int, others: int, where: str) -> DataError:
    """The error for an id that so many posts have, and so many more ids that are shared."""
    also = f", and {others:,} other ids are not of one post alone" if others else ""
    return DataError(f"{posts:,} posts of {where} have the id {str(id)!r}{also}.", mend=OWN_ID)


def chunked(posts: Sequence[Post], size: int) -> Iterator[list[Post]]:
    """Posts in chunks."""
    for start in range(0, len(posts), size):
        yield list(posts[start : start + size])
