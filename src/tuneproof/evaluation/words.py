"""The list of words that nobody should be shown unasked: a maintained one, in English.

It knows words and some of their disguises (`sh1t`, `f*ck`), and nothing of what a sentence means:
some that it finds are harmless, and what is cruel in plain words it cannot find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from tuneproof.evaluation.unsafe import Flags

__all__ = ["listed"]

LONGEST: Final = 2_000
"""Characters of a text that are looked at: a word takes long where it is looked for in vain."""


async def listed(texts: Sequence[str]) -> Sequence[Flags]:
    """The rude words in each text."""
    return await asyncio.to_thread(_listed, texts)


def _listed(texts: Sequence[str]) -> list[Flags]:
    from glin_profanity import Filter  # most commands of ours look at no text

    # Without its decoding of digits, for which "455" is a rude word and "85" another.
    words = Filter({"languages": ["english"]})
    found = [words.check_profanity(text[:LONGEST])["profane_words"] for text in texts]
    return [tuple(sorted({str(word).lower() for word in one})) for one in found]
