"""What is for no task goes through gateway processes, too, within one budget for all of them."""

from __future__ import annotations

import os
import signal

from tests.gateways import HTTP, Place, alive, placed, settings
from tests.waiting import until

RELAY = """
[relay]
enabled = true
budget_usd_per_day = 2.0

[providers.fake.prices]
"base" = [100000.0, 0.0]
"""
"""Each answer says that it read 7 tokens, so each request costs 0.70 USD."""


def status(place: Place, model: str = "base-2") -> int:
    body = {"model": model, "messages": []}
    url = f"{place.gateway}/v1/chat/completions"
    return HTTP.post(url, json=body, timeout=30).status_code


def all_refuse(place: Place) -> bool:
    """Whether none of many new connections, which come to either process, is let through."""
    return {status(place) for _ in range(12)} == {429}


def test_one_budget_holds_for_all_gateways_and_whoever_of_them_ends(provider, tmp_path):
    with placed(tmp_path / "place", settings(provider.url) + RELAY) as place:
        place.serve()
        assert status(place, "unpriced") == 400
        assert status(place) == 200
        assert provider.headers[-1]["authorization"] == "Bearer sk-of-the-provider"
        until(lambda: all_refuse(place))
        assert place.ask("u").status_code == 200  # tasks are no part of it
        os.kill(place.service_pid(), signal.SIGKILL)
        assert all_refuse(place)
        until(place.ready)
        assert all_refuse(place)
        before = place.pids() | {place.service_pid()}
        place.process.send_signal(signal.SIGHUP)
        until(lambda: not any(map(alive, before)), within_s=120)
        until(place.ready)
        until(lambda: all_refuse(place))
        spent = len([body for body in provider.bodies if body["model"] == "base-2"])
        assert 3 <= spent <= 12, "what a process knows of the others is a second old"
