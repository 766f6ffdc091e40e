"""Whom the service remembers: for how long, and while the database is away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from tuneproof.errors import StoreUnavailableError
from tuneproof.server.auth import MOST_TOKENS, OUTAGE_S, TRUST_S, Callers
from tuneproof.store import TokenInfo

TOKEN = "tp_one"
INFO = TokenInfo(
    name="application",
    scopes=("write",),
    created_at=datetime(2025, 1, 1, tzinfo=UTC),
    revoked_at=None,
)


@dataclass
class Tokens:
    """The tokens of a database that can be away."""

    known: dict[str, TokenInfo] = field(default_factory=lambda: {TOKEN: INFO})
    away: bool = False
    asked: int = 0

    async def verify(self, token: str) -> TokenInfo | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailableError("away")
        return self.known.get(token)


@dataclass
class Seconds:
    """A monotonic clock set by hand."""

    at: float = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def callers(seconds: Seconds) -> Callers:
    return Callers(clock=seconds)


async def test_a_good_token_is_looked_up_once_a_moment(callers, tokens, seconds):
    for _ in range(5):
        assert await callers.verified(TOKEN, tokens.verify, recent=True) is INFO
    assert tokens.asked == 1
    seconds.at += TRUST_S
    assert await callers.verified(TOKEN, tokens.verify, recent=True) is INFO
    assert tokens.asked == 2


async def test_who_asks_for_it_is_told_what_is_true_now(callers, tokens):
    assert await callers.verified(TOKEN, tokens.verify, recent=False) is INFO
    tokens.known.clear()
    assert await callers.verified(TOKEN, tokens.verify, recent=False) is None
    assert not callers.may_read(b"host", b"Bearer tp_one")


async def test_that_nobody_knows_a_token_is_remembered_for_a_moment_too(callers, tokens, seconds):
    assert await callers.verified("other", tokens.verify, recent=True) is None
    tokens.known["other"] = INFO
    assert await callers.verified("other", tokens.verify, recent=True) is None
    seconds.at += TRUST_S
    assert await callers.verified("other", tokens.verify, recent=True) is INFO


async def test_one_checks_anew_and_the_others_go_on(callers, tokens, seconds):
    await callers.verified(TOKEN, tokens.verify, recent=True)
    seconds.at += TRUST_S
    asking = [callers.verified(TOKEN, tokens.verify, recent=True) for _ in range(10)]
    assert await asyncio.gather(*asking) == [INFO] * 10
    assert tokens.asked == 2


async def test_a_revoked_token_is_refused_after_twice_the_trust(callers, tokens, seconds):
    await callers.verified(TOKEN, tokens.verify, recent=True)
    tokens.known.clear()
    seconds.at += 2 * TRUST_S
    asking = [callers.verified(TOKEN, tokens.verify, recent=True) for _ in range(10)]
    assert await asyncio.gather(*asking) == [None] * 10


async def test_a_good_token_stays_good_through_an_outage_but_not_for_ever(callers, tokens, seconds):
    await callers.verified(TOKEN, tokens.verify, recent=True)
    tokens.away = True
    for _ in range(4):
        seconds.at += 600
        assert await callers.verified(TOKEN, tokens.verify, recent=True) is INFO
        assert callers.may_read(b"host", b"Bearer tp_one")
    asked = tokens.asked
    assert await callers.verified(TOKEN, tokens.verify, recent=True) is INFO
    assert tokens.asked == asked  # an outage is not asked about for each request
    seconds.at += OUTAGE_S
    with pytest.raises(StoreUnavailableError):
        await callers.verified(TOKEN, tokens.verify, recent=True)


async def test_a_token_never_seen_cannot_be_checked_in_an_outage(callers, tokens):
    tokens.away = True
    with pytest.raises(StoreUnavailableError):
        await callers.verified(TOKEN, tokens.verify, recent=True)


def test_without_a_token_only_names_that_were_let_in_may_read(callers):
    assert not callers.may_read(b"127.0.0.1:8000", b"")
    callers.let_in(b"127.0.0.1:8000")
    assert callers.may_read(b"127.0.0.1:8000", b"")
    assert not callers.may_read(b"evil.example", b"")


async def test_a_token_may_come_as_anthropics_clients_send_it(callers, tokens, seconds):
    await callers.verified(TOKEN, tokens.verify, recent=True)
    assert callers.may_write({b"x-api-key": TOKEN.encode()})
    assert not callers.may_write({b"x-api-key": b"other"})
    seconds.at += TRUST_S
    assert not callers.may_write({b"x-api-key": TOKEN.encode()})


async def test_a_token_for_the_relay_alone_may_neither_read_nor_write(callers, tokens):
    tokens.known[TOKEN] = replace(INFO, scopes=("relay",))
    await callers.verified(TOKEN, tokens.verify, recent=True)
    assert not callers.may_write({b"authorization": b"Bearer tp_one"})
    assert not callers.may_read(b"host", b"Bearer tp_one")


async def test_a_token_that_another_process_checked_is_good_for_an_hour_since_then(tokens, seconds):
    """Seen: a gateway took what it had been told for a check of its own, and a token lived for two
    hours without the database."""
    checked_at = seconds.at
    tokens.away = True
    callers = Callers(clock=seconds, held=lambda token: (INFO, seconds.at - checked_at))
    for _ in range(5):
        seconds.at += 700
        assert await callers.verified(TOKEN, tokens.verify, recent=True) is INFO
    seconds.at = checked_at + OUTAGE_S + 1
    with pytest.raises(StoreUnavailableError):
        await callers.verified(TOKEN, tokens.verify, recent=True)


async def test_a_token_that_was_revoked_is_not_held_from_before(callers, tokens, seconds):
    callers = Callers(clock=seconds, held=lambda token: (INFO, 600.0))
    tokens.known.clear()
    assert await callers.verified(TOKEN, tokens.verify, recent=True) is None
    tokens.away = True
    seconds.at += TRUST_S
    with pytest.raises(StoreUnavailableError):
        await callers.verified(TOKEN, tokens.verify, recent=True)


async def test_whoever_tries_many_tokens_drives_no_good_one_out(callers, tokens, seconds):
    """Seen: a thousand keys that nobody knows, and no good token was known in the outage."""
    await callers.verified(TOKEN, tokens.verify, recent=True)
    for number in range(3 * MOST_TOKENS):
        assert await callers.verified(f"guess-{number}", tokens.verify, recent=True) is None
    tokens.away = True
    seconds.at += 60
    assert await callers.verified(TOKEN, tokens.verify, recent=True) is INFO
