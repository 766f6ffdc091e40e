"""What a manifest says of where a dataset came from: the source's columns, what could not be read
of them, and the versions of what looked at the texts.

The same input gives the same files as long as these versions are the same.
"""

from __future__ import annotations

import unicodedata
from importlib import metadata
from typing import Any, Final

from tuneproof.collection import Collected

__all__ = ["DETECTORS", "provenance"]

DETECTORS: Final = 1
"""The version of our rules for personal data and special tokens; whoever changes what they find
counts it up."""


def provenance(collected: Collected) -> dict[str, Any]:
    """The manifest's part that says this."""
    check = collected.check
    return {
        "columns": {} if check is None else dict(check.types),
        "used_columns": {} if check is None else dict(check.used),
        "unread": {word: dict(found) for word, found in collected.unread().items()},
        "versions": {
            "tuneproof": metadata.version("tuneproof"),
            "detectors": DETECTORS,
            "unicode": unicodedata.unidata_version,
        },
    }
