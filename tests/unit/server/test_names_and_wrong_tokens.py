"""Names that are not ours, and wrong tokens: refused, and ever later."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from tuneproof.errors import ConfigError
from tuneproof.server.auth import FORGIVEN_S, LONGEST_S, MOST_PEERS, WrongTokens, misdirected
from tuneproof.settings import ProviderConfig, ServerConfig, TargetConfig

SERVER = ServerConfig(host="0.0.0.0", allowed_hosts=("tuneproof.example.com", "*.cluster.local"))


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"host": "tuneproof.example.com"}, True),
        ({"host": "TuneProof.Example.com:8686"}, True),
        ({"host": "a.b.cluster.local"}, True),
        ({"host": "10.1.2.3:8686"}, True),
        ({"host": "[fd00::1]:8686"}, True),
        ({"host": "localhost"}, True),
        ({"host": "evil.example"}, False),
        ({"host": "cluster.local.evil.example"}, False),
        ({"host": ""}, False),
        ({"host": "[::1"}, False),
        ({"host": "localhost", "origin": "https://evil.example"}, False),
        ({"host": "localhost", "origin": "null"}, False),
        ({"host": "localhost", "origin": "https://tuneproof.example.com"}, True),
    ],
)
def test_only_our_names_are_served_once_they_are_set(headers: dict[str, str], ours: bool) -> None:
    assert (misdirected(Headers(headers), SERVER) is None) == ours
    assert misdirected(Headers(headers), ServerConfig(host="0.0.0.0")) is None


@pytest.mark.parametrize("name", ["https://a.example", "a.example:80", "a b", "*", "a/b"])
def test_what_is_no_name_of_a_host_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="the name of a host"):
        ServerConfig(allowed_hosts=(name,))


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def test_wrong_tokens_wait_twice_as_long_each_time_and_are_forgiven() -> None:
    time = Time()
    wrong = WrongTokens(clock=lambda: time.now, sleep=time.sleep)
    for _ in range(14):
        await wrong.answer_later("10.0.0.1")
    assert time.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_S, LONGEST_S, LONGEST_S]
    await wrong.answer_later("10.0.0.2")
    time.now += FORGIVEN_S + 1
    await wrong.answer_later("10.0.0.1")
    assert len(time.slept) == 9


async def test_what_is_remembered_of_addresses_is_bounded() -> None:
    wrong = WrongTokens(clock=lambda: 0.0)
    for number in range(3 * MOST_PEERS):
        await wrong.answer_later(str(number))
    assert len(wrong._seen) == MOST_PEERS


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fe80::1]", "2852039166", "0xA9FEA9FE", "[::ffff:169.254.169.254]",
     "metadata.google.internal", "METADATA.google.internal.", "100.100.100.200", "[fd00:ec2::254]"],
)  # fmt: skip
def test_addresses_that_give_out_a_machines_keys_are_refused(host: str) -> None:
    """A provider's `base_url` could read the cloud's credentials of the machine."""
    with pytest.raises(ConfigError, match="metadata"):
        ProviderConfig(name="default", base_url=f"http://{host}/v1")
    with pytest.raises(ConfigError, match="metadata"):
        TargetConfig(name="t", kind="webhook", options={"url": f"https://{host}/x"})


@pytest.mark.parametrize("host", ["10.0.0.5", "trainer.svc", "127.0.0.1:8700", "[fd00::5]"])
def test_addresses_within_a_cluster_are_fine(host: str) -> None:
    assert ProviderConfig(name="default", base_url=f"http://{host}/v1").base_url is not None
