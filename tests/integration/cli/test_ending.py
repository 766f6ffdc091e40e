"""A service that is told to end ends, whatever its database does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.chaos.faults import Proxy
from tests.gateways import placed, settings
from tests.servers import postgres_server

from tuneproof.cli.serve import CLOSING_S


async def test_a_database_that_hangs_does_not_keep_it(tmp_path: Path) -> None:
    """It took its connections and answered nothing: a stop waited for as long as that went on."""
    with postgres_server() as server:
        proxy = Proxy(server.port)
        await proxy.start()
        url = server.create_database().replace(str(server.port), str(proxy.port))
        with placed(
            tmp_path / "place", settings("http://127.0.0.1:9/v1") + f'\n[store]\nurl = "{url}"\n'
        ) as place:
            await asyncio.to_thread(place.serve)
            proxy.set("stall")
            began = time.monotonic()
            code = await asyncio.to_thread(place.stop)
            assert time.monotonic() - began < CLOSING_S + 20, place.said()
            assert "Not everything was closed within 15 s" in place.said()
            assert code == 0
        await proxy.stop()
