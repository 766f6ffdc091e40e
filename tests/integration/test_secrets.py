"""What the doctor says of services that do not answer tells no password of their addresses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tuneproof.app import App
from tuneproof.settings import Settings

CANARY = "canary-7f3a"
CLOSED = f"http://me:{CANARY}@127.0.0.1:1"


async def test_doctor_and_log_tell_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    settings = Settings.load(
        dir=tmp_path,
        env={"TUNEPROOF_ALERTS_SECRET": CANARY},
        **{
            "providers.default.kind": "openai",
            "providers.default.base_url": f"{CLOSED}/v1",
            "providers.default.api_key": CANARY,
            "providers.default.webhook_secret": CANARY,
            "cache.url": f"redis://:{CANARY}@127.0.0.1:1/0",
            "tracking.uri": CLOSED,
            "alerts.webhook_url": f"http://127.0.0.1:1/services/{CANARY}",
            "alerts.prometheus_url": CLOSED,
            "sources.posts.url": f"postgresql://me:{CANARY}@127.0.0.1:1/db",
            "targets.x.kind": "webhook",
            "targets.x.options": {"url": f"http://127.0.0.1:1/?token={CANARY}", "secret": CANARY},
        },
    )
    async with App.open(settings, engine=False) as app:
        found = await app.doctor.examine()
    failing = {finding.name for finding in found if finding.status != "ok"}
    assert failing >= {"redis", "mlflow", "provider", "alerts: webhook", "default: posts"}
    assert CANARY not in repr(found)
    ours = [r for r in caplog.records if r.name.startswith("tuneproof")]
    assert not [r.getMessage() for r in ours if CANARY in r.getMessage()]
