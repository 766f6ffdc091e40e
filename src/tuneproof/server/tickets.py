"""The receipt of an answer: its id says whose outcome belongs to what, so nothing is remembered.

The id of its exposure signs it, so it is a receipt of before as well, and a version of before reads
it: random digits, and behind them the signature of these with task, subject and unit.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Self

from tuneproof.app import ReceiptKey
from tuneproof.errors import NotFoundError
from tuneproof.server.bodies import loaded

__all__ = ["Ticket"]

NONCE = 16
"""How many random hexadecimal digits an exposure's id begins with; the others sign the receipt."""

UNSIGNED = 32
"""How long the ids of exposures were before receipts were signed."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What the id of an answer says: whose outcome belongs to what.

    `theirs` is the provider's own id of the answer, where a request can go on from that; it is not
    signed, since a provider's ids are its own secret.
    """

    PREFIX: ClassVar[str] = "tp-"

    exposure: str
    task: str
    subject: str | None
    unit: str
    theirs: str = ""

    @classmethod
    def new(cls, key: ReceiptKey | None, *, task: str, subject: str | None, unit: str) -> Self:
        """The receipt of an answer that is about to be given."""
        if key is None:
            exposure = uuid.uuid4().hex
        else:
            nonce = secrets.token_hex(NONCE // 2)
            exposure = nonce + key.sign(_signed(nonce, task, subject, unit))
        return cls(exposure=exposure, task=task, subject=subject, unit=unit)

    def genuine(self, key: ReceiptKey | None, now: datetime) -> bool:
        """Whether a gateway of ours gave it, as far as the key can tell."""
        if key is None:
            return True
        if len(self.exposure) <= UNSIGNED:
            return key.unsigned_until is not None and now < key.unsigned_until
        nonce, signature = self.exposure[:NONCE], self.exposure[NONCE:]
        wanted = key.sign(_signed(nonce, self.task, self.subject, self.unit))
        return hmac.compare_digest(wanted.encode(), signature.encode(errors="replace"))

    def encode(self) -> str:
        """As the id of a response."""
        fields = [self.exposure, self.task, self.subject, self.unit]
        fields += [self.theirs] if self.theirs else []
        text = json.dumps(fields, separators=(",", ":"))
        return self.PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, id: str) -> Ticket:
        """From the id of a response. Raises `NotFoundError` for any other text."""
        text = id.removeprefix(cls.PREFIX)
        try:
            fields = loaded(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            exposure, task, subject, unit, theirs = [*fields, ""] if len(fields) == 4 else fields
            good = all(isinstance(part, str) for part in (exposure, task, unit, theirs))
            if not good or not isinstance(subject, str | None):
                raise ValueError
        except (ValueError, TypeError) as error:
            raise unknown_answer(id) from error
        return cls(exposure=exposure, task=task, subject=subject, unit=unit, theirs=theirs)


def _signed(nonce: str, task: str, subject: str | None, unit: str) -> str:
    return json.dumps([nonce, task, subject, unit])


def unknown_answer(id: str) -> NotFoundError:
    """The error for an id that no answer of this service has."""
    return NotFoundError(
        f"response_id {id[:80]!r} is not the id of an answer of this gateway.",
        mend="Send the `id` of the answer as it came.",
        code="response_not_found",
    )
