"""Where nothing of ours calls: each kind of client, at names and numbers that lead there.

The resolver is the system's, with some names of ours in front of it: the clients are as they are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from tuneproof.app.endpoints import ProviderEndpoint
from tuneproof.errors import ConfigError, TuneProofError
from tuneproof.outgoing import ANYWHERE, AddressRefused, Rules
from tuneproof.providers import open_provider
from tuneproof.server.upstream import Upstream, no_answer
from tuneproof.settings import OutgoingConfig, ProviderConfig, Secret, TargetConfig, Url
from tuneproof.targets import Cluster, WebhookTarget, open_target
from tuneproof.telemetry import Alerts
from tuneproof.workflow import SystemClock

PRIVATE_REFUSED = Rules(OutgoingConfig(private_addresses=False))

Call = Callable[[str, Rules], Awaitable[object]]


async def _openai(url: str, rules: Rules) -> object:
    provider = open_provider(_config("compatible", url), timeout_s=5, outgoing=rules)
    try:
        return await provider.ping()
    finally:
        await provider.close()


async def _together(url: str, rules: Rules) -> object:
    provider = open_provider(_config("together", url), timeout_s=5, outgoing=rules)
    try:
        return await provider.ping()
    finally:
        await provider.close()


async def _gateway(url: str, rules: Rules) -> object:
    upstream = Upstream.open(rules)
    endpoint = ProviderEndpoint(
        provider="p", base_url=Url(url), api_key=None, organization=None, timeout_s=5
    )
    try:
        headers: CIMultiDict[str] = CIMultiDict()
        return await upstream.pass_on(
            endpoint, "GET", "/models", headers=headers, content=b"", timeout_s=5
        )
    except (aiohttp.ClientError, OSError) as error:
        raise no_answer(endpoint, error) from error
    finally:
        await upstream.close()


async def _webhook(url: str, rules: Rules) -> object:
    target = WebhookTarget("http://127.0.0.1/", observe_url=url, outgoing=rules)
    return await target.observe("hook")


async def _alerts(url: str, rules: Rules) -> object:
    alerts = Alerts(now=SystemClock().now, webhook_url=url, outgoing=rules)
    return await alerts.check()


async def _cluster(url: str, rules: Rules) -> object:
    return await Cluster(server=url, circuit_breaker=False, outgoing=rules).get("/api")


CALLS: dict[str, Call] = {
    "openai": _openai,
    "together": _together,
    "gateway": _gateway,
    "webhook": _webhook,
    "alerts": _alerts,
    "cluster": _cluster,
}


def _config(kind: str, url: str) -> ProviderConfig:
    # What is written is refused when it is read, which is tested where it is; here a name leads on.
    config = ProviderConfig(name="p", kind=kind, base_url=Url("http://x/"), api_key=Secret("k"))
    object.__setattr__(config, "base_url", Url(url))
    return config


Names = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names of ours: each look-up takes the next address, the last one for ever."""
    known: Names = {}
    real = socket.getaddrinfo

    def found(host: Any, *args: Any, **options: Any) -> Any:
        host = host.decode() if isinstance(host, bytes) else host
        if host in known:
            addresses = known[host]
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    return known


class Listener:
    """Counts who comes, and answers all with one answer."""

    def __init__(self, answer: bytes) -> None:
        self.came = 0
        self.port = 0
        self._answer = answer

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        if await reader.readuntil(b"\r\n\r\n"):
            writer.write(self._answer)
        writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + (
    b'{"data":[]}'
)


@asynccontextmanager
async def listening(answer: bytes = OK) -> AsyncIterator[Listener]:
    made = Listener(answer)
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_name_that_leads_to_metadata_is_refused_when_it_is_called(
    names: Names, call: Call
) -> None:
    names["trainer.example"] = ["169.254.169.254"]
    with pytest.raises(TuneProofError, match="gives out keys"):
        await call("http://trainer.example:1/v1", ANYWHERE)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("host", ["2130706433", "0177.0.0.1", "[::ffff:7f00:1]", "localhost"])
async def test_private_addresses_are_refused_in_any_writing_and_nobody_is_called(
    names: Names, call: Call, host: str
) -> None:
    async with listening() as there:
        refused = r"private address.*private_addresses is false|canonical IPv4|Invalid IPv4"
        with pytest.raises(TuneProofError, match=refused):
            await call(f"http://{host}:{there.port}/v1", PRIVATE_REFUSED)
        assert there.came == 0


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_name_that_moves_between_two_looks_is_judged_where_it_is_connected_to(
    names: Names, call: Call
) -> None:
    """The first look finds an address that is fine, the second one that is not (DNS rebinding)."""
    async with listening() as there:
        names["moving.example"] = ["127.0.0.1", "169.254.169.254"]
        url = f"http://moving.example:{there.port}/v1"
        await call(url, ANYWHERE)
        assert there.came == 1
        with pytest.raises(TuneProofError, match="gives out keys"):
            await call(url, ANYWHERE)
        assert there.came == 1


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_allowed_networks_are_called_although_they_are_private(
    names: Names, call: Call
) -> None:
    rules = Rules(OutgoingConfig(private_addresses=False, allowed_networks=("127.0.0.0/8",)))
    async with listening() as there:
        names["trainer.example"] = ["127.0.0.1"]
        await call(f"http://trainer.example:{there.port}/v1", rules)
        assert there.came == 1


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("place", ["http://keys.example/", "http://[::ffff:169.254.169.254]/"])
async def test_a_redirect_leads_to_no_forbidden_address(
    names: Names, call: Call, place: str
) -> None:
    names["keys.example"] = ["169.254.169.254"]
    moved = b"HTTP/1.1 307 Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % place.encode()
    async with listening(moved) as there:
        names["trainer.example"] = ["127.0.0.1"]
        url = f"http://trainer.example:{there.port}/v1"
        if call is _gateway:  # it passes the redirect on, for the caller to judge
            assert (await call(url, ANYWHERE)).status == 307  # type: ignore[attr-defined]
        else:
            with pytest.raises(TuneProofError, match=r"gives out keys|307"):
                await call(url, ANYWHERE)
        assert there.came >= 1


async def test_an_address_that_may_be_called_is_taken_where_a_name_has_several(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def both(host: Any, *args: Any, **options: Any) -> Any:
        if host != "both.example":
            return real(host, *args, **options)
        return real("169.254.169.254", *args, **options) + real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", both)
    async with listening() as there:
        for call in CALLS.values():
            await call(f"http://both.example:{there.port}/v1", ANYWHERE)
        assert there.came == len(CALLS)


async def test_a_proxy_of_the_environment_is_used_and_may_be_private(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as there:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{there.port}")
        monkeypatch.setenv("no_proxy", "direct.example")
        await _openai("http://provider.example/v1", PRIVATE_REFUSED)
        await _webhook("http://hook.example/", PRIVATE_REFUSED)
        assert there.came == 2
        names["direct.example"] = ["10.0.0.1"]
        with pytest.raises(TuneProofError, match=r"direct.example leads to 10.0.0.1"):
            await _openai("http://direct.example/v1", PRIVATE_REFUSED)


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "::1", "fd12::1", "100.64.0.1",
     "0.0.0.0", "::ffff:10.0.0.1", "64:ff9b::a00:1", "167772161", "0xa000001"],
)  # fmt: skip
def test_what_the_internet_does_not_route_is_private(host: str) -> None:
    ANYWHERE.check(host)
    with pytest.raises(AddressRefused, match="private"):
        PRIVATE_REFUSED.check(host)


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "169.254.1.1", "fe80::1%eth0", "::ffff:169.254.169.254",
     "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "2852039166", "0xA9FEA9FE",
     "0251.0376.0251.0376", "100.100.100.200", "fd00:ec2::254", "metadata.google.internal."],
)  # fmt: skip
def test_no_setting_lets_keys_be_asked_for(host: str) -> None:
    rules = Rules(OutgoingConfig(allowed_networks=("0.0.0.0/0", "::/0")))
    with pytest.raises(AddressRefused, match="gives out keys"):
        rules.check(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "api.openai.com"])
def test_public_addresses_may_be_called(host: str) -> None:
    PRIVATE_REFUSED.check(host)
    with pytest.raises(AddressRefused, match="private"):
        PRIVATE_REFUSED.check("10.1.2.3")


def test_what_is_written_as_a_private_number_is_refused_before_it_is_called() -> None:
    config = ProviderConfig(name="p", base_url=Url("http://10.0.0.5/v1"), api_key=Secret("k"))
    with pytest.raises(ConfigError, match=r"providers.p.base_url is .*private address"):
        open_provider(config, outgoing=PRIVATE_REFUSED)
    for kind, options in (
        ("webhook", {"url": "http://10.0.0.5/"}),
        ("configmap", {"server": "https://10.0.0.1", "config_map": "models"}),
    ):
        target = TargetConfig(name="t", kind=kind, options=options)
        with pytest.raises(ConfigError, match=r"targets.t.(url|server) is .*private address"):
            open_target(target, outgoing=PRIVATE_REFUSED)


def test_networks_are_written_in_numbers() -> None:
    with pytest.raises(ConfigError, match="must be a network"):
        OutgoingConfig(allowed_networks=("trainer.svc",))
