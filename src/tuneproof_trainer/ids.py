"""Identifiers in the forms that clients of this wire know."""

from __future__ import annotations

import secrets
import string

__all__ = ["new_id", "new_tag"]

_LETTERS = string.ascii_letters + string.digits


def new_tag(length: int = 8) -> str:
    """A short random name, as at the end of a fine-tuned model's."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def new_id(prefix: str) -> str:
    """`prefix` and 24 random letters and digits."""
    return f"{prefix}{new_tag(24)}"
