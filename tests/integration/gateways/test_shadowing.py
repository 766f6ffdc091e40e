"""Gateway processes copy requests, too, within one budget for all of them."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.chat import Chat
from tests.gateways import HTTP, Place, placed, settings
from tests.waiting import until

SHADOW = """
[tasks.hook]
shadow_model = "shadow"
shadow_share = 1.0
shadow_budget_usd_per_day = 4.0
"""
PRICE = """
[providers.fake.prices]
"shadow" = [100000.0, 0.0]
"""
"""Each answer says that it read 7 tokens, so each copy costs 0.70 USD."""


def copied(provider: Chat) -> int:
    return len([body for body in provider.bodies if body["model"] == "shadow"])


def shown(place: Place) -> dict[str, Any]:
    """The only week of the service's report; nothing before there is one."""
    report = HTTP.get(f"{place.url}/evaluation/shadow/hook", timeout=30).json()
    return dict(report["weeks"][0]) if report["weeks"] else {}


def answered(place: Place, provider: Chat) -> int:
    """How many copies are made of what is asked over many connections, to either process."""
    before = copied(provider)
    assert {place.ask(f"u{number}").status_code for number in range(12)} == {200}
    return copied(provider) - before


def test_one_budget_holds_for_the_copies_of_all_gateways(provider, tmp_path):
    said = settings(provider.url).replace("[tasks.hook]", SHADOW.strip()) + PRICE
    with placed(tmp_path / "place", said) as place:
        place.serve()
        before = copied(provider)
        until(lambda: answered(place, provider) == 0)
        made = copied(provider) - before
        assert 5 <= made <= 12, "what a process knows of the other is a second old"
        until(lambda: shown(place).get("shadow", {}).get("requests") == made)
        week = shown(place)
        assert week["baseline"]["requests"] == made
        assert round(week["shadow"]["cost_usd"], 6) == round(0.7 * made, 6)
        os.kill(place.service_pid(), signal.SIGKILL)
        assert answered(place, provider) == 0
        until(place.ready)
        assert answered(place, provider) == 0
        assert shown(place)["shadow"]["requests"] == made
