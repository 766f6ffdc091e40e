"""Webhooks over HTTP: no token, but a signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace

from tests.integration.server.conftest import Service, open_service

from tuneproof.settings import Settings

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes!!!!").decode()


def signed(body: bytes, secret: str) -> dict[str, str]:
    at = str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"wh_1.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": "wh_1",
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        "content-type": "application/json",
    }


EVENT = {"id": "evt_1", "type": "fine_tuning.job.failed", "data": {"id": "ftjob-unknown"}}


async def test_without_a_secret_no_webhook_is_believed(service: Service) -> None:
    body = json.dumps(EVENT).encode()
    unset = await service.http.post("/webhooks/openai", content=body, headers=signed(body, SECRET))
    assert (unset.status_code, unset.json()["type"].rpartition("/")[2]) == (422, "config")


async def test_webhook_needs_the_signature_of_its_secret(settings: Settings) -> None:
    body = json.dumps(EVENT).encode()
    name, provider = next(iter(settings.providers.items()))
    known = {**settings.providers, name: replace(provider, webhook_secret=SECRET)}
    async with open_service(replace(settings, providers=known)) as service:
        good = await service.http.post(
            "/webhooks/openai", content=body, headers=signed(body, SECRET)
        )
        assert (good.status_code, good.json()) == (200, {"run_id": None})
        bad = await service.http.post(
            "/webhooks/openai", content=body + b" ", headers=signed(body, SECRET)
        )
        assert bad.status_code == 401
        assert SECRET not in bad.text
