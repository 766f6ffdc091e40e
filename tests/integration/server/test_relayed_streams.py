"""Whatever legal stream a provider sends, cut anywhere: its reader gets those bytes but for the id.

Each example goes through the whole service, from a socket of the provider to one of the reader.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.integration.server.conftest import Service, open_service
from tests.raw_provider import RawProvider, raw_provider

from tuneproof.settings import Settings, Url

CHAT = "/v1/chat/completions"
THEIRS = b"chatcmpl-their-own"
IN_PLACE = b'"@id@"'
"""Where the id stands in an event before it is known whose it is."""


@pytest.fixture
async def provider() -> AsyncIterator[RawProvider]:
    async with raw_provider() as serving:
        yield serving


@pytest.fixture
async def service(settings: Settings, provider: RawProvider) -> AsyncIterator[Service]:
    default = replace(settings.providers["default"], base_url=Url(provider.url))
    hook = replace(settings.tasks["hook"], model="base")
    used = replace(
        settings,
        providers={**settings.providers, "default": default},
        tasks={**settings.tasks, "hook": hook},
    )
    async with open_service(used) as opened:
        yield opened


@dataclass(frozen=True)
class Sent:
    """A stream, with `IN_PLACE` where ids stand, and where it is cut."""

    stream: bytes
    cuts: tuple[int, ...]

    def under(self, id: bytes) -> bytes:
        return self.stream.replace(IN_PLACE, b'"' + id + b'"')

    @property
    def pieces(self) -> list[bytes]:
        whole = self.under(THEIRS)
        ends = sorted({cut % (len(whole) + 1) for cut in self.cuts} | {0, len(whole)})
        return [whole[a:b] for a, b in itertools.pairwise(ends)]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    [
        "a\u2028b\u2029c\u0085d",
        "\x0b\x0c\x1c",
        'data: [DONE]\n\n"id": "x"',
        "\r\n\r\n",
        "\ufeff",
        "@",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
BESIDE = st.sampled_from([b": hi", b":", b"event: message", b"id: 7", b"retry: 5", b"unknown: x"])
HEARTBEATS = st.sampled_from(
    [(b": waking up",), (b"data:",), (b"data",), (b"event: ping", b"data:")]
)


@st.composite
def chunks(draw: st.DrawFn, finish: str | None = None) -> list[bytes]:
    """The lines of an event that carries a chunk."""
    delta = {"content": draw(TEXTS), "x": draw(st.floats(allow_nan=False, allow_infinity=False))}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    fields: dict[str, Any] = {"object": "chat.completion.chunk", "choices": [choice]}
    names = draw(st.permutations([*fields, "id"]))
    body = {name: fields.get(name, "@id@") for name in names}
    compact = draw(st.booleans())
    text = json.dumps(
        body,
        ensure_ascii=draw(st.booleans()),
        separators=(",", ":") if compact else None,
        indent=draw(st.sampled_from([None, None, 1])),
    )
    data = [b"data: " + line.encode() for line in text.split("\n")]
    before, behind = (draw(st.lists(BESIDE, max_size=2)) for _ in range(2))
    return [*before, *data, *behind]


@st.composite
def streams(draw: st.DrawFn) -> Sent:
    """A whole answer as a stream that any reader must take."""
    events: list[list[bytes]] = [
        draw(chunks() | HEARTBEATS.map(list)) for _ in range(draw(st.integers(0, 4)))
    ]
    events.append(draw(chunks(finish="stop")))
    events += [[b"data: [DONE]"]] if draw(st.booleans()) else []
    end = draw(ENDS)
    stream = b"".join(b"".join(line + end for line in lines) + end for lines in events)
    bom = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    cuts = draw(st.lists(st.integers(0, 5000), max_size=12))
    return Sent(bom + stream, tuple(cuts))


ONE = (
    b'data: {"id": "@id@", "choices": [{"index": 0, "delta": {"content": "a"}}]}\r\n\r\n'
    b'event: x\r\ndata: {"id": "@id@",\r\ndata:  "choices": [{"finish_reason": "stop"}]}\r\n\r\n'
)


EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
async def test_a_reader_gets_the_providers_bytes(service: Service, provider: RawProvider) -> None:
    loop = asyncio.get_running_loop()

    async def check(sent: Sent) -> None:
        provider.stream("base", sent.pieces)
        body = {"model": "tuneproof/hook", "messages": [], "user": "u", "stream": True}
        answer = await service.post(CHAT, body)
        assert answer.status_code == 200, answer.text
        ours = answer.headers["x-tuneproof-response"].encode()
        assert answer.content == sent.under(ours)

    @EXAMPLES
    @given(streams())
    @example(Sent(ONE, tuple(range(0, 200, 3))))
    def holds(sent: Sent) -> None:
        asyncio.run_coroutine_threadsafe(check(sent), loop).result(60)

    await asyncio.to_thread(holds)
