"""Tells whoever is to be told, once, without keeping the caller waiting."""

from __future__ import annotations

from collections.abc import Mapping

from tuneproof import workflow
from tuneproof.errors import RetryableError
from tuneproof.resilience import Supervisor
from tuneproof.settings import Settings
from tuneproof.store import Store
from tuneproof.telemetry import Alerts

__all__ = ["Alerting", "alerts_of"]

ATTEMPTS, LONGEST_PAUSE_S = 300, 300.0
"""Somebody who is away is told when they are back, for about a day."""


def alerts_of(settings: Settings) -> Alerts:
    """Whom the settings name to be told when a person should look."""
    config = settings.alerts
    return Alerts(
        now=workflow.SystemClock().now,
        webhook_url=config.webhook_url,
        webhook_secret=settings.secret(config.webhook_secret_env),
        unset_secret=config.webhook_secret_env if _unset(settings) else "",
        prometheus_url=config.prometheus_url,
    )


def _unset(settings: Settings) -> bool:
    """Whether the settings name a variable for the secret that is not set."""
    fields = [error.details["field"] for error in settings.unset_variables()]
    return "alerts.webhook_secret_env" in fields


class Alerting:
    """Sends each alert in the background, and remembers which were taken.

    One that nobody takes is tried for a day, by this process; those that wait end with it.
    """

    def __init__(
        self, *, alerts: Alerts, store: Store, clock: workflow.Clock, supervisor: Supervisor
    ) -> None:
        self._alerts = alerts
        self._store = store
        self._clock = clock
        self._supervisor = supervisor
        self._sending: set[str] = set()

    def __call__(
        self, kind: str, subject: str, summary: str, *, once: str = "", **details: object
    ) -> None:
        """Tell it.

        The same is told once only, also where a run is taken up again by another process; `once`
        tells occasions of one subject from each other.
        """
        key = f"alerted:{kind}:{subject}:{once}"
        if self._alerts.sends and key not in self._sending:
            self._sending.add(key)
            self._supervisor.soon(
                "alert",
                lambda: self._send(key, kind, subject, summary, details),
                attempts=ATTEMPTS,
                longest_pause_s=LONGEST_PAUSE_S,
            )

    async def _send(
        self, key: str, kind: str, subject: str, summary: str, details: Mapping[str, object]
    ) -> None:
        """It counts as told only once somebody took it. Raises `RetryableError` until then."""
        if await self._store.meta.get(key) is None:
            if not await self._alerts.send(kind, subject, summary, **details):
                raise RetryableError(
                    f"Nobody took the alert {kind} of {subject}.",
                    mend="Check [alerts] in the settings, and that the webhook is up.",
                )
            await self._store.meta.set(key, self._clock.now().isoformat())
        self._sending.discard(key)
