"""Which version of TuneProof this is."""

from __future__ import annotations


def version() -> str:
    """The installed version, read from its metadata."""
    from importlib import metadata

    return metadata.version("tuneproof")
