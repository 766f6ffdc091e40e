"""Whom to tell when a person should look, and whether they can really be told.

Two ways, either or both: a webhook of yours that gets a signed message (Standard Webhooks, as
OpenAI's are), and Prometheus, whose rules watch our metrics. Each is verified by a real call:
the webhook answers a test message, Prometheus names an alerting rule on one of our metrics and
an Alertmanager that it reaches.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import httpx2

from tuneproof.errors import ConfigError, RetryableError, TuneProofError
from tuneproof.outgoing import ANYWHERE, Rules
from tuneproof.outgoing.clients import http_client
from tuneproof.settings import Secret, Url, WebhookUrl

__all__ = ["Alerts"]

log = logging.getLogger(__name__)

OURS = ("fine_tuning_", "tuneproof_")
"""How the names of our metrics begin."""

WEBHOOK_VERIFIED_FOR = timedelta(hours=24)
"""A webhook gets no more test messages than this often: people read them."""

RULES_VERIFIED_FOR = timedelta(minutes=5)

PREFIX = "whsec_"

STANDARD = "standard"
"""The kind of webhook that gets the whole message; `BODIES` has the others."""


class Alerts:
    """Sends alerts to a webhook, and knows whether alerts reach anybody. Addresses may be None.

    `unset_secret` is the variable that should hold the webhook's secret and does not: messages
    are sent without a signature then, and the webhook does not count as working.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        webhook_url: WebhookUrl | str | None = None,
        webhook_secret: Secret | str | None = None,
        webhook_kind: str = STANDARD,
        unset_secret: str = "",
        prometheus_url: Url | str | None = None,
        timeout_s: float = 5.0,
        outgoing: Rules = ANYWHERE,
    ) -> None:
        self._now = now
        self._webhook_url = None if webhook_url is None else WebhookUrl(webhook_url)
        self._key = None if webhook_secret is None else _key(Secret(webhook_secret).reveal())
        self._body = BODIES[webhook_kind]
        self._unset_secret = unset_secret
        self._prometheus_url = None if prometheus_url is None else Url(prometheus_url)
        self._timeout_s = timeout_s
        self._outgoing = outgoing
        self._verified: dict[str, datetime] = {}

    @property
    def configured(self) -> bool:
        """Whether the settings name a way at all."""
        return self._webhook_url is not None or self._prometheus_url is not None

    @property
    def sends(self) -> bool:
        """Whether there is a webhook to be told; Prometheus sees for itself."""
        return self._webhook_url is not None

    async def verified(self) -> bool:
        """Whether one of the ways was seen to work, a short while ago or now."""
        try:
            await self.check()
        except TuneProofError as e:
            log.warning("alerts reach nobody: %s", e.message)
            return False
        return self.configured

    async def check(self) -> str:
        """What works, in words. Raises the `TuneProofError` of the first way where none does."""
        found = await self.ways()
        working = [f"{name} answers" for name, refusal in found.items() if refusal is None]
        for refusal in found.values():
            if refusal is not None and not working:
                raise refusal
        return ", ".join(working)

    async def ways(self) -> Mapping[str, TuneProofError | None]:
        """Each way that is set, "webhook" and "prometheus", with what keeps it from working."""
        found: dict[str, TuneProofError | None] = {}
        for name, url, look, age in (
            ("webhook", self._webhook_url, self._check_webhook, WEBHOOK_VERIFIED_FOR),
            ("prometheus", self._prometheus_url, self._check_rules, RULES_VERIFIED_FOR),
        ):
            if url is not None:
                try:
                    await self._looked(name, look, age)
                    found[name] = None
                except TuneProofError as e:
                    found[name] = e
        return found

    async def _looked(self, name: str, look: Callable[[], Any], age: timedelta) -> None:
        at = self._verified.get(name)
        if at is None or self._now() - at > age:
            self._verified.pop(name, None)
            await look()
            self._verified[name] = self._now()

    async def send(
        self,
        kind: str,
        subject: str,
        summary: str,
        *,
        id: str | None = None,
        at: datetime | None = None,
        details: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Tell the webhook, by one call. What is sent again has the same `id`; `at` is when it was.

        Raises the `TuneProofError` that says why it was not taken, or that there is no webhook.
        """
        if self._webhook_url is None:
            raise ConfigError(
                "There is no webhook to be told by.", mend="Name one: alerts.webhook_url."
            )
        message = {
            "type": f"tuneproof.{kind}",
            "timestamp": (at or self._now()).isoformat(),
            "data": {"subject": subject, "summary": summary, **details},
        }
        try:
            await self._post(self._webhook_url, message, id or uuid.uuid4().hex)
        except TuneProofError:
            self._verified.pop("webhook", None)
            raise
        self._verified["webhook"] = self._now()

    async def _check_webhook(self) -> None:
        if self._unset_secret:
            raise ConfigError(
                f"The webhook's secret should be in {self._unset_secret}, which is not set: its "
                "messages are not signed.",
                mend="Set it, or take alerts.webhook_secret_env out of the settings.",
                field="alerts.webhook_secret_env",
            )
        await self.send("test", "test", "TuneProof can reach you.")

    async def _post(self, url: WebhookUrl, message: Mapping[str, Any], id: str) -> None:
        body = json.dumps(self._body(message)).encode()
        headers = {"content-type": "application/json", **self._signed(body, f"msg_{id}")}
        await self._call("POST", url, content=body, headers=headers)

    def _signed(self, body: bytes, message_id: str) -> dict[str, str]:
        """Headers of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`."""
        at = str(int(self._now().timestamp()))
        headers = {"webhook-id": message_id, "webhook-timestamp": at}
        if self._key is not None:
            digest = hmac.digest(self._key, f"{message_id}.{at}.".encode() + body, hashlib.sha256)
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers

    async def _check_rules(self) -> None:
        url = Url("") if self._prometheus_url is None else self._prometheus_url
        base = url.reveal().rstrip("/")
        rules = await self._read(Url(f"{base}/api/v1/rules?type=alert"))
        ours = [
            rule
            for group in rules.get("groups", [])
            for rule in group.get("rules", [])
            if any(name in str(rule.get("query")) for name in OURS)
        ]
        if not ours:
            raise ConfigError(
                f"Prometheus at {url} has no alerting rule on a metric of ours.",
                mend="Load rules that watch tuneproof_* or fine_tuning_* metrics.",
                field="alerts.prometheus_url",
            )
        if not (await self._read(Url(f"{base}/api/v1/alertmanagers"))).get("activeAlertmanagers"):
            raise ConfigError(
                f"Prometheus at {url} reaches no Alertmanager, so its alerts go nowhere.",
                mend="Name one under `alerting` in its configuration.",
                field="alerts.prometheus_url",
            )

    async def _read(self, url: Url) -> dict[str, Any]:
        answer = await self._call("GET", url)
        try:
            found = answer.json()["data"]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise ConfigError(
                f"{url} does not answer as Prometheus does.",
                mend="Check alerts.prometheus_url.",
                field="alerts.prometheus_url",
            )
        return found

    async def _call(self, method: str, url: Url, **options: Any) -> httpx2.Response:
        async with http_client(self._outgoing, timeout=self._timeout_s) as client:
            try:
                answer = await client.request(method, url.reveal(), **options)
            except (httpx2.HTTPError, httpx2.InvalidURL) as e:
                raise RetryableError(
                    f"{url} cannot be reached: {e or type(e).__name__}.",
                    mend="Check the address in [alerts], and that it is up.",
                ) from e
        if answer.status_code >= 300:
            kind = RetryableError if answer.status_code >= 500 else ConfigError
            raise kind(
                f"{url} answered {answer.status_code}.",
                mend="Check the address and the secret in [alerts].",
            )
        return answer


def _standard(message: Mapping[str, Any]) -> dict[str, Any]:
    return dict(message)


def _slack(message: Mapping[str, Any]) -> dict[str, Any]:
    """One text, as incoming webhooks of Slack and of those that speak as it does take."""
    data = dict(message["data"])
    what = str(message["type"]).removeprefix("tuneproof.").replace("_", " ")
    text = f"TuneProof: {what}: {data.pop('subject')}\n{data.pop('summary')}"
    beside = ", ".join(f"{name} {value}" for name, value in data.items())
    text += f"\n({beside})" if beside else ""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return {"text": text}


BODIES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    STANDARD: _standard,
    "slack": _slack,
}
"""What a webhook of each kind is sent."""


def _key(secret: str) -> bytes:
    """The signing key: what is behind `whsec_` in base64, else the text itself."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as e:
        raise ConfigError(
            "alerts.webhook_secret begins with whsec_ but the rest is no base64.",
            mend="Take the whole secret as it was made.",
            field="alerts.webhook_secret",
        ) from e
