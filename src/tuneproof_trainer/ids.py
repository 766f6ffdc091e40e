"""Identifiers in the forms that clients of this wire know."""

from __future__ import annotations

import secrets
import string

__all__ = ["new_id", "new_tag"]

_LETTERS = (string.ascii_letters + string.digits).encode()
_LETTER_OF = bytes(_LETTERS[byte % len(_LETTERS)] for byte in range(256))


def new_tag(length: int = 8) -> str:
    """A short random name, as at the end of a fine-tuned model's."""
    return secrets.token_bytes(length).translate(_LETTER_OF).decode()


def new_id(prefix: str) -> str:
    """`prefix` and 24 random letters and digits."""
    return f"{prefix}{new_tag(24)}"
