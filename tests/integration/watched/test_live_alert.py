"""A real Prometheus scrapes a real service, and a real Alertmanager tells of it when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.alert_rules import quick_copy
from tests.alert_webhook import Webhook, tuneproof
from tests.servers import alertmanager_server, prometheus_server, query
from tests.waiting import until
from tests.wire import serving

ALERT = "FineTuningPipelineDown"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    with serving(made.app, made.port):
        yield made


def test_a_service_that_is_gone_is_told_and_so_is_its_return(
    tmp_path: Path, webhook: Webhook
) -> None:
    with (
        tuneproof(tmp_path) as service,
        alertmanager_server(webhook=webhook.url) as manager,
        prometheus_server(
            f"127.0.0.1:{service.port}", rules=quick_copy(tmp_path, ALERT), alertmanager=manager
        ) as prometheus,
    ):
        up = 'up{job="fine-tuning-pipeline"} == 1'
        until(lambda: query(prometheus, up), otherwise=lambda: prometheus.log)
        assert query(prometheus, "fine_tuning_openai_circuit_breaker_state == 1")
        assert not webhook.alerts

        service.stop()
        [fired] = until(lambda: webhook.told("firing"), otherwise=lambda: manager.log)[:1]
        assert fired["labels"]["alertname"] == ALERT
        assert fired["labels"]["severity"] == "critical"
        assert fired["annotations"]["runbook_url"].endswith("/runbooks/pipeline-down")

        service.start()
        [over] = until(lambda: webhook.told("resolved"), otherwise=lambda: manager.log)[:1]
        assert over["fingerprint"] == fired["fingerprint"]
