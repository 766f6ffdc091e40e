"""Who calls: API keys, their organisation, and how often they may."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
from collections.abc import Callable
from sqlite3 import Connection

from tuneproof_trainer.database import Row, TrainerDatabase, insert
from tuneproof_trainer.errors import ApiError
from tuneproof_trainer.ids import new_id
from tuneproof_trainer.settings import TrainerSettings

__all__ = ["Access", "ApiCaller", "KeyStore"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ApiCaller:
    """On whose behalf a request is answered."""

    org: str
    may_train: bool = True
    key_id: str = "anyone"


class KeyStore:
    """API keys; only their hashes are kept."""

    def __init__(self, database: TrainerDatabase, clock: Callable[[], float]) -> None:
        self._db, self._clock = database, clock

    def create(self, name: str, org: str, *, may_train: bool = True) -> str:
        """Make a key and return it, the only time that it can be seen."""
        key = f"sk-tuneproof-{secrets.token_urlsafe(32)}"

        def work(connection: Connection) -> None:
            insert(
                connection,
                "keys",
                id=new_id("key_"),
                name=name,
                hash=_hash(key),
                hint=f"{key[:16]}…{key[-4:]}",
                org=org,
                may_train=int(may_train),
                created_at=int(self._clock()),
            )

        self._db.write(work)
        return key

    def list(self) -> list[Row]:
        """All keys, without the keys themselves."""
        return self._db.rows("SELECT * FROM keys ORDER BY created_at, id")

    def revoke(self, key_id: str) -> bool:
        """Refuse this key from now on; says whether it was good until now."""
        now = int(self._clock())
        sql = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
        return self._db.write(lambda c: c.execute(sql, (now, key_id)).rowcount == 1)

    def any(self) -> bool:
        """Whether a key was ever made: from then on every request needs one."""
        return self._db.row("SELECT 1 FROM keys LIMIT 1") is not None

    def find(self, key: str) -> Row | None:
        """The living key of this text."""
        sql = "SELECT * FROM keys WHERE hash = ? AND revoked_at IS NULL"
        return self._db.row(sql, _hash(key))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


class Access:
    """Decides for each request who calls and whether now is not too soon."""

    _REMEMBERED_S = 2.0

    def __init__(
        self,
        settings: TrainerSettings,
        keys: KeyStore,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._keys, self._monotonic = settings, keys, monotonic
        self._known: dict[str, tuple[float, ApiCaller | ApiError]] = {}
        self._buckets: dict[str, _Bucket] = {}

    def caller(self, authorization: str, organization: str) -> ApiCaller:
        """The caller behind these headers; raises ApiError 401.

        An answer is remembered for two seconds, so a revoked key works that much longer.
        """
        now = self._monotonic()
        remembered = self._known.get(authorization)
        if remembered is None or now - remembered[0] > self._REMEMBERED_S:
            if len(self._known) > 10_000:
                self._known.clear()
            remembered = (now, self._look_up(authorization))
            self._known[authorization] = remembered
        found = remembered[1]
        if isinstance(found, ApiError):
            raise found
        if organization and found.key_id != "anyone" and organization != found.org:
            raise ApiError(
                401,
                f"OpenAI-Organization header should match organization for API key. "
                f"'{organization}' is not it.",
                code="mismatched_organization",
            )
        return found

    def _look_up(self, authorization: str) -> ApiCaller | ApiError:
        if not self._keys.any() and self._settings.open_without_keys:
            return ApiCaller(org=self._settings.organization)
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return _no_key()
        row = self._keys.find(key.strip())
        if row is None:
            return _bad_key(key.strip())
        return ApiCaller(org=row["org"], may_train=bool(row["may_train"]), key_id=row["id"])

    def admit(self, caller: ApiCaller) -> dict[str, str]:
        """Count one request; returns headers to answer with, raises ApiError 429 if too soon."""
        rate = self._settings.requests_per_minute
        if rate is None:
            return {}
        now = self._monotonic()
        bucket = self._buckets.setdefault(caller.key_id, _Bucket(rate, now))
        return bucket.take(now, caller.org)


class _Bucket:
    """A token bucket: `rate` requests at once, refilled evenly over a minute."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate, self._level, self._at = rate, float(rate), now

    def take(self, now: float, org: str) -> dict[str, str]:
        per_second = self._rate / 60
        self._level = min(self._rate, self._level + (now - self._at) * per_second)
        self._at = now
        if self._level < 1:
            wait_s = (1 - self._level) / per_second
            raise ApiError(
                429,
                f"Rate limit reached in organization {org} on requests per min (RPM): "
                f"Limit {self._rate}. Please try again in {wait_s:.3f}s.",
                type="requests",
                code="rate_limit_exceeded",
                headers={
                    "retry-after": str(int(wait_s) + 1),
                    "retry-after-ms": str(int(wait_s * 1000) + 1),
                    **self._rate_headers(wait_s),
                },
            )
        self._level -= 1
        return self._rate_headers((self._rate - self._level) / per_second)

    def _rate_headers(self, reset_s: float) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(self._rate),
            "x-ratelimit-remaining-requests": str(int(self._level)),
            "x-ratelimit-reset-requests": f"{reset_s:.3f}s",
        }


def _no_key() -> ApiError:
    return ApiError(
        401,
        "You didn't provide an API key. Send it in an Authorization header: "
        "`Authorization: Bearer YOUR_KEY`. `tuneproof-trainer keys create` makes one.",
        code="missing_api_key",
    )


def _bad_key(key: str) -> ApiError:
    shown = f"{key[:6]}…{key[-4:]}" if len(key) > 14 else "…"
    return ApiError(
        401,
        f"Incorrect API key provided: {shown}. `tuneproof-trainer keys list` shows the keys.",
        code="invalid_api_key",
    )
