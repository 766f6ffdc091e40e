"""What each panel asks, a real Prometheus answers that scrapes a service in which a loop ran."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
from tests.dashboards import expressions
from tests.integration.watched.middle import in_the_middle_of_a_test
from tests.servers import prometheus_server, query
from tests.waiting import eventually


async def test_every_query_of_every_dashboard_returns_data(
    tmp_path: Path, sqlite_store_url: str
) -> None:
    async with (
        in_the_middle_of_a_test(tmp_path, sqlite_store_url) as watched,
        httpx2.AsyncClient(base_url=watched.address, timeout=30, trust_env=False) as http,
    ):
        for test in (await http.get("/evaluation/tests")).json()["items"]:
            assert (await http.get(f"/evaluation/metrics/{test['ab_test_id']}")).status_code == 200
        with prometheus_server(f"127.0.0.1:{watched.metrics_port}") as prometheus:
            silent = {f"{where} <- {asked}": asked for where, asked in expressions()}
            assert len(silent) > 30

            async def answered() -> bool:
                for where, expression in list(silent.items()):
                    if await asyncio.to_thread(query, prometheus, expression):
                        del silent[where]
                return not silent

            await eventually(answered, 60, every_s=0.5, otherwise=lambda: "\n".join(silent))
