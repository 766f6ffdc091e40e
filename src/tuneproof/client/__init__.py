"""What an application imports: which model to call now, and what came of it.

    from tuneproof.client import Client

    client = Client("http://127.0.0.1:8686", state_dir="/var/lib/app/tuneproof")
    choice = client.choose("hook", unit=post_id)        # in process, no network, microseconds
    answer = ask(model=choice.model)
    client.record(choice, latency_ms=412, tokens=96, cost_usd=0.0002)
    client.outcome(subject=choice.subject, unit=post_id, value=0.071)   # maybe days later

`choose` decides from a state that a background thread holds fresh: pushed by the service,
polled where the push fails, and kept on disk for the next start. `record` and `outcome` queue,
journal to disk and send in batches until the service has taken them; they never block and
never raise. Imports the standard library and a hash, nothing else.
"""

from __future__ import annotations

from tuneproof.client.clients import AsyncClient, Client, Status
from tuneproof.client.state import Choice
from tuneproof.prompts import Prompt

__all__ = ["AsyncClient", "Choice", "Client", "Prompt", "Status"]
