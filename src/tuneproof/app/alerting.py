"""Tells whoever is to be told, once, without keeping the caller waiting."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from tuneproof import workflow
from tuneproof.errors import RetryableError, TuneProofError
from tuneproof.outgoing import Rules
from tuneproof.resilience import Supervisor
from tuneproof.settings import Settings
from tuneproof.store import KeptAlert, Store
from tuneproof.telemetry import Alerts

__all__ = ["TELL_EVERY_S", "Alerting", "alerts_of"]

log = logging.getLogger(__name__)

ATTEMPTS, LONGEST_PAUSE_S = 300, 300.0
"""For about a day it is tried to keep an alert, while the database is away."""

TELL_EVERY_S = 5.0
"""How often it is looked for alerts that are due again."""

FIRST_PAUSE_S = 10.0


def alerts_of(settings: Settings) -> Alerts:
    """Whom the settings name to be told when a person should look."""
    config = settings.alerts
    return Alerts(
        now=workflow.SystemClock().now,
        webhook_url=config.webhook_url,
        webhook_secret=settings.secret(config.webhook_secret_env),
        webhook_kind=config.webhook_kind,
        unset_secret=config.webhook_secret_env if _unset(settings) else "",
        prometheus_url=config.prometheus_url,
        outgoing=Rules(settings.outgoing),
    )


def _unset(settings: Settings) -> bool:
    """Whether the settings name a variable for the secret that is not set."""
    fields = [error.details["field"] for error in settings.unset_variables()]
    return "alerts.webhook_secret_env" in fields


class Alerting:
    """Keeps each alert in the store, and sends it until somebody takes it or a day has passed.

    So one waits for a webhook that is away, whoever raised it has died meanwhile or not.
    """

    def __init__(
        self,
        *,
        alerts: Alerts,
        store: Store,
        supervisor: Supervisor,
        now: Callable[[], datetime] = workflow.SystemClock().now,
    ) -> None:
        self._alerts = alerts
        self._store = store
        self._supervisor = supervisor
        self._now = now
        self._keeping: set[str] = set()

    def __call__(
        self, kind: str, subject: str, summary: str, *, once: str = "", **details: object
    ) -> None:
        """Tell it.

        The same is told once only, also where a run is taken up again by another process; `once`
        tells occasions of one subject from each other.
        """
        key = f"{kind}:{subject}:{once}"
        if not self._alerts.sends or key in self._keeping:
            return
        self._keeping.add(key)
        now = self._now()
        alert = KeptAlert(
            key=key,
            kind=kind,
            subject=subject,
            summary=summary.replace("\0", ""),  # PostgreSQL keeps none
            details=details,
            since=now,
            due_at=now,
        )
        self._supervisor.soon(
            "alert",
            lambda: self._keep(alert),
            attempts=ATTEMPTS,
            longest_pause_s=LONGEST_PAUSE_S,
        )

    async def _keep(self, alert: KeptAlert) -> None:
        if await self._store.alerts.add(alert):
            await self.tell()
        self._keeping.discard(alert.key)

    async def tell(self) -> None:
        """Send what is due. Once nobody answers, the rest waits for the next time."""
        if not self._alerts.sends:
            return
        while (alert := await self._store.alerts.take_due(self._now())) is not None:
            try:
                await self._send(alert)
            except TuneProofError as error:
                log.error("an alert reached nobody (%s: %s): %s", alert.subject, alert.kind, error)
                await self._store.alerts.failed(alert, error.message, self._again(alert))
                if isinstance(error, RetryableError):
                    return
            else:
                await self._store.alerts.told(alert.key, self._now())

    async def _send(self, alert: KeptAlert) -> None:
        await self._alerts.send(
            alert.kind,
            alert.subject,
            alert.summary,
            id=hashlib.sha256(alert.key.encode()).hexdigest()[:32],
            at=alert.since,
            details=alert.details,
        )

    def _again(self, alert: KeptAlert) -> datetime:
        pause_s = min(FIRST_PAUSE_S * 2.0**alert.attempts, LONGEST_PAUSE_S)
        return self._now() + timedelta(seconds=pause_s)

    async def waiting(self) -> Mapping[bool, Sequence[KeptAlert]]:
        """What nobody has taken: under False what is still tried, under True what was given up."""
        now, waiting = self._now(), await self._store.alerts.waiting()
        return {up: [a for a in waiting if a.given_up(now) is up] for up in (False, True)}
