"""What OpenAI sends when a job ends: a signed event, checked before it is believed.

Signed after the Standard Webhooks specification, as documented at
https://developers.openai.com/api/docs/guides/webhooks and read in openai 3.51, whose own check
is used: an HMAC-SHA256 over `webhook-id.webhook-timestamp.body` with the endpoint's secret, not
older than five minutes. Only the end of fine-tuning jobs means anything to us.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tuneproof.errors import DataError, DeniedError

KINDS = frozenset(
    {"fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"}
)


@dataclass(frozen=True, kw_only=True)
class JobEnded:
    """A provider says that a job ended; the run asks the provider itself what became of it."""

    event_id: str
    kind: str
    job_id: str


@cache
def _checker() -> Any:
    """The SDK's check. One for all: a client takes 60 ms to make, and anybody may post here."""
    from openai import OpenAI

    return OpenAI(api_key="none").webhooks


def read_webhook(body: bytes, headers: Mapping[str, str], *, secret: str) -> JobEnded | None:
    """The event that `body` tells of; None for one that is of no use to us.

    Raises `DeniedError` where the signature is not of this secret, or is too old, and
    `DataError` where the signed body is no event.
    """
    from openai import InvalidWebhookSignatureError

    try:
        _checker().verify_signature(body, dict(headers), secret=secret)
    except (InvalidWebhookSignatureError, ValueError) as e:
        raise DeniedError(
            f"The webhook's signature does not hold: {e}.",
            mend="Check that webhook_secret of this provider is the endpoint's whsec_… secret, "
            "and the clock of this machine.",
        ) from e
    try:
        event = json.loads(body)
        kind, event_id, job_id = event["type"], event["id"], event.get("data", {}).get("id")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"The webhook's body is no event: {e}.") from e
    if kind not in KINDS or not isinstance(job_id, str):
        return None
    return JobEnded(event_id=str(event_id), kind=str(kind), job_id=job_id)
