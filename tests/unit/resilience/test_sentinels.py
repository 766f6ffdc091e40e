"""Addresses of Sentinels: taken apart, refused where they cannot be one, their secrets hidden."""

from __future__ import annotations

import doctest

import pytest

from tuneproof.cache import Cache
from tuneproof.errors import ConfigError
from tuneproof.resilience import redis_pool, sentinels
from tuneproof.resilience.sentinels import SentinelAddress
from tuneproof.settings import CacheConfig, Url

WHOLE = "rediss+sentinel://me:p%40ss@one,two:1,[::1]:2/primary/3?sentinel_username=s&sentinel_password=w"


def test_the_example_holds() -> None:
    assert doctest.testmod(sentinels).failed == 0


def test_everything_that_an_address_says_is_taken() -> None:
    assert SentinelAddress.parse(WHOLE) == SentinelAddress(
        hosts=(("one", 26379), ("two", 1), ("::1", 2)),
        name="primary",
        database=3,
        tls=True,
        username="me",
        password="p@ss",
        sentinel_username="s",
        sentinel_password="w",
    )


def test_a_setting_takes_it_and_hides_its_secrets() -> None:
    url = CacheConfig(url=Url(WHOLE)).url
    assert url.scheme == "rediss"
    assert url.masked == (
        "rediss+sentinel://me:***@one,two:1,[::1]:2/primary/3?sentinel_username=s"
        "&sentinel_password=***"
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one:26379",
        "redis+sentinel:///primary",
        "redis+sentinel://one:26379,/primary",
        "redis+sentinel://one:port/primary",
        "redis+sentinel://one:99999,two/primary",
    ],
)
def test_what_names_no_sentinel_or_no_primary_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\+sentinel://"):
        CacheConfig(url=Url(url))
    with pytest.raises(ConfigError, match="REDIS_URL"):
        redis_pool(url)


@pytest.mark.parametrize("rest", ["primary/zero", "primary?socket_timeout=1"])
def test_a_database_is_a_number_and_parameters_are_known(rest: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        redis_pool(f"redis+sentinel://one/{rest}")


async def test_a_pool_and_a_cache_are_made_of_it_without_a_call() -> None:
    pool = redis_pool(WHOLE, max_connections=7)
    assert pool.max_connections == 7
    cache = Cache(WHOLE, pool=pool)
    await cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:topsecret@one,two",
        "redis+sentinel://me:topsecret@one/primary/0?sentinel_word=topsecret",
        "redis://:topsecret@one:port/0",
        "http://me:topsecret@one?password=topsecret",
    ],
)
def test_what_is_secret_in_a_malformed_address_is_not_told(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL is '") as refused:
        redis_pool(url)
    assert "topsecret" not in refused.value.message
    assert "one" in refused.value.message
