"""The list of words that nobody should be shown unasked: a maintained one, in English.

It knows words and some of their disguises (`sh1t`, `f*ck`), and nothing of what a sentence means:
some that it finds are harmless, and what is cruel in plain words it cannot find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

from tuneproof.evaluation.unsafe import Flags

if TYPE_CHECKING:
    from glin_profanity import Filter

__all__ = ["listed"]

LONGEST: Final = 2_000
"""Characters of a text that are looked at: a word takes long where it is looked for in vain."""

KEPT: Final = 4_096
"""How many texts are remembered: candidates of one run learnt from the same ones."""


async def listed(texts: Sequence[str]) -> Sequence[Flags]:
    """The rude words in each text."""
    return await asyncio.to_thread(lambda: [_words(text[:LONGEST]) for text in texts])


@lru_cache(maxsize=KEPT)
def _words(text: str) -> Flags:
    found = _filter().check_profanity(text)["profane_words"]
    return tuple(sorted({str(word).lower() for word in found}))


@cache
def _filter() -> Filter:
    from glin_profanity import Filter  # most commands of ours look at no text

    # Without its decoding of digits, for which "455" is a rude word and "85" another.
    return Filter({"languages": ["english"]})
