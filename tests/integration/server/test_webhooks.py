"""Webhooks over HTTP: no token, but a signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace

from tests.integration.server.conftest import Service

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


async def test_webhook_needs_a_secret_and_then_its_signature(service: Service) -> None:
    event = {"id": "evt_1", "type": "fine_tuning.job.failed", "data": {"id": "ftjob-unknown"}}
    body = json.dumps(event).encode()
    unset = await service.http.post("/webhooks/openai", content=body, headers=signed(body, SECRET))
    assert (unset.status_code, unset.json()["type"].rpartition("/")[2]) == (422, "config")
    app = service.app
    name, provider = next(iter(app.settings.providers.items()))
    secret = {name: replace(provider, webhook_secret=SECRET)}
    app.settings = replace(app.settings, providers={**app.settings.providers, **secret})
    good = await service.http.post("/webhooks/openai", content=body, headers=signed(body, SECRET))
    assert (good.status_code, good.json()) == (200, {"run_id": None})
    bad = await service.http.post(
        "/webhooks/openai", content=body + b" ", headers=signed(body, SECRET)
    )
    assert bad.status_code == 401
    assert SECRET not in bad.text
