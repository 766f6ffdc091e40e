"""The receipt of an answer: its id says whose outcome belongs to what, so nothing is remembered."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from tuneproof.errors import InputError

__all__ = ["Ticket"]


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What the id of an answer says: whose outcome belongs to what."""

    exposure: str
    task: str
    subject: str | None
    unit: str

    def encode(self) -> str:
        """As the id of a response."""
        fields = [self.exposure, self.task, self.subject, self.unit]
        text = json.dumps(fields, separators=(",", ":"))
        return "tp-" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, id: str) -> Ticket:
        """From the id of a response. Raises `InputError` for any other text."""
        text = id.removeprefix("tp-")
        try:
            fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            exposure, task, subject, unit = fields
            good = all(isinstance(part, str) for part in (exposure, task, unit))
            if not good or not isinstance(subject, str | None):
                raise ValueError
        except (ValueError, TypeError) as error:
            raise InputError(
                f"response_id {id[:80]!r} is not the id of an answer of this gateway.",
                mend="Send the `id` of the chat completion as it came.",
            ) from error
        return cls(exposure=exposure, task=task, subject=subject, unit=unit)
