"""The key that signs receipts: one for each database, so all workers and gateways share it.

A receipt names the unit whose outcome it is for. Unsigned, whoever saw one could write others, and
speak for units whose answers they never got.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tuneproof.store import Store
from tuneproof.workflow import Clock

__all__ = ["ReceiptKey", "receipt_key"]

KEPT = "receipt_key"
UNSIGNED_FOR = timedelta(days=30)
"""How long receipts of a version that signed none are still taken after an upgrade."""

KEY_BYTES = 32
SIGNATURE_BYTES = 12


@dataclass(frozen=True, kw_only=True)
class ReceiptKey:
    """The key, and until when receipts without a signature are taken (None: they are not)."""

    key: bytes = field(repr=False)
    unsigned_until: datetime | None = None

    def sign(self, text: str) -> str:
        """The signature of a text: HMAC-SHA256, its first 12 bytes as hexadecimal digits."""
        return hmac.digest(self.key, text.encode(), "sha256")[:SIGNATURE_BYTES].hex()


async def receipt_key(store: Store, clock: Clock) -> ReceiptKey:
    """The database's key; made by whoever asks first. Raises `StoreUnavailableError`."""
    kept = await store.meta.get(KEPT)
    if kept is None:
        until = clock.now() + UNSIGNED_FOR if await store.events.any_exposed() else None
        made = {
            "key": secrets.token_hex(KEY_BYTES),
            "unsigned_until": None if until is None else until.isoformat(),
        }
        kept = await store.meta.first(KEPT, made)
    until = kept["unsigned_until"]
    return ReceiptKey(
        key=bytes.fromhex(kept["key"]),
        unsigned_until=None if until is None else datetime.fromisoformat(until),
    )
