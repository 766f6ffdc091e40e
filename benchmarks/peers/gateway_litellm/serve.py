"""LiteLLM's proxy with one worker, its logging and telemetry off; without a database.

python serve.py PROVIDER_URL      prints {"port", "pid", "model"}, serves until it is stopped
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

CONFIG = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/base, api_base: "{url}", api_key: any}}
general_settings: {{master_key: sk-any-key-of-this-benchmark}}
litellm_settings: {{telemetry: false, set_verbose: false, num_retries: 0}}
"""


def main(url: str) -> None:
    """Become the proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Path(tempfile.mkdtemp()) / "config.yaml"
    config.write_text(CONFIG.format(url=url))
    print(json.dumps({"port": port, "pid": os.getpid(), "model": "fake"}), flush=True)
    environment = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    command = Path(sys.executable).with_name("litellm")
    arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    os.execve(command, [str(command), *arguments, "--num_workers", "1"], environment)


if __name__ == "__main__":
    main(sys.argv[1])
