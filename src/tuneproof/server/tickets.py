"""The receipt of an answer: its id says whose outcome belongs to what, so nothing is remembered."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import ClassVar

from tuneproof.errors import NotFoundError
from tuneproof.server.bodies import loaded

__all__ = ["Ticket"]


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What the id of an answer says: whose outcome belongs to what.

    `theirs` is the provider's own id of the answer, where a request can go on from that.
    """

    PREFIX: ClassVar[str] = "tp-"

    exposure: str
    task: str
    subject: str | None
    unit: str
    theirs: str = ""

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


def unknown_answer(id: str) -> NotFoundError:
    """The error for an id that no answer of this service has."""
    return NotFoundError(
        f"response_id {id[:80]!r} is not the id of an answer of this gateway.",
        mend="Send the `id` of the answer as it came.",
        code="response_not_found",
    )
