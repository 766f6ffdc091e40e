"""What callers spend by the relay is counted by day, among all processes, and over restarts."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from tests.conftest import HandClock

from tuneproof.app.spending import KEPT, Spending
from tuneproof.errors import StoreUnavailableError
from tuneproof.server.fed_spending import FedSpending
from tuneproof.store import Store


def process(store: Store, clock: HandClock) -> Spending:
    """What one more process counts."""
    return Spending(store=store, clock=clock)


async def test_each_process_knows_what_all_have_spent(store, clock):
    first, second = process(store, clock), process(store, clock)
    first.spend("app", 0.25)
    first.spend("app", 0.5)
    first.spend("other", 9.0)
    second.spend("app", 1.0)
    for each in (first, second, first):
        await each.settle()
    assert first.spent_usd("app") == second.spent_usd("app") == pytest.approx(1.75)
    assert second.spent_usd("other") == 9.0
    assert second.spent_usd("nobody") == 0.0


async def test_what_was_spent_holds_over_a_restart(store, clock):
    before = process(store, clock)
    before.spend("app", 0.75)
    await before.settle()
    again = process(store, clock)
    await again.settle()
    assert again.spent_usd("app") == 0.75


async def test_a_new_day_begins_at_nothing_and_old_ones_are_forgotten(store, clock):
    one = process(store, clock)
    one.spend("app", 5.0)
    await one.settle()
    clock.move(days=1)
    assert one.spent_usd("app") == 0.0
    one.spend("app", 1.0)
    await one.settle()
    assert [*(await store.meta.under(KEPT)).values()] == [{"app": 1.0}]
    assert one.spent_usd("app") == 1.0


async def test_who_spends_nothing_leaves_nothing(store, clock):
    await process(store, clock).settle()
    assert await store.meta.under(KEPT) == {}


async def test_what_gateways_counted_is_kept_and_told_twice_is_once(store, clock):
    service = process(store, clock)
    service.spend("app", 1.0)
    gateways = [gateway(service, clock) for _ in range(2)]
    for each in gateways:
        each.spend("app", 0.25)
    for each in [*gateways, *gateways]:
        await each.told()
    assert {each.spent_usd("app") for each in (service, *gateways)} == {1.5}
    await service.settle()
    again = process(store, clock)  # the service ends, and another takes its place
    await again.settle()
    assert again.spent_usd("app") == 1.5
    gateways[0]._tell = teller(again)
    gateways[0].spend("app", 0.25)
    assert gateways[0].spent_usd("app") == 1.75
    await gateways[0].told()
    assert again.spent_usd("app") == gateways[0].spent_usd("app") == 1.75
    await again.settle()
    assert again.spent_usd("app") == 1.75


async def test_a_gateway_without_its_service_knows_its_own(store, clock):
    service = process(store, clock)
    service.spend("app", 1.0)
    one = gateway(service, clock)
    await one.told()

    async def away(_told: Mapping[str, Any]) -> Mapping[str, float]:
        raise StoreUnavailableError("The service does not answer.")

    one._tell = away
    one.spend("app", 0.5)
    with pytest.raises(StoreUnavailableError):
        await one.told()
    assert one.spent_usd("app") == 1.5
    clock.move(days=1)
    assert one.spent_usd("app") == 0.0


def gateway(service: Spending, clock: HandClock) -> FedSpending:
    """What a gateway process of this service counts."""
    return FedSpending(teller(service), now=clock.now)


def teller(service: Spending) -> Callable[[Mapping[str, Any]], Awaitable[Mapping[str, float]]]:
    async def tell(told: Mapping[str, Any]) -> Mapping[str, float]:
        return service.told(**json.loads(json.dumps(told)))

    return tell
