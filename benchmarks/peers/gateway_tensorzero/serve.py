"""TensorZero's own HTTP gateway, as its wheel starts it; without a database.

python serve.py PROVIDER_URL      prints {"port", "pid", "url", "model"}, serves until it is stopped
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from urllib.parse import urlsplit

from tensorzero import _start_http_gateway

CONFIG = """
[models.fake]
routing = ["fake"]

[models.fake.providers.fake]
type = "openai"
model_name = "base"
api_base = "{url}/"
api_key_location = "none"
"""


async def main(url: str) -> None:
    """Serve until the process is ended."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(CONFIG.format(url=url))
        file.flush()
        gateway = await _start_http_gateway(
            config_file=file.name,
            clickhouse_url=None,
            postgres_url=None,
            valkey_url=None,
            async_setup=True,
        )
        port = urlsplit(gateway.base_url).port
        found = {"port": port, "pid": os.getpid(), "url": gateway.base_url}
        print(json.dumps({**found, "model": "tensorzero::model_name::fake"}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
