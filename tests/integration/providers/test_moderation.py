"""The moderation endpoint against a real HTTP server that answers, refuses and talks nonsense."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response
from tests.moderation import Moderation, moderation_server, result

from tuneproof import errors
from tuneproof.evaluation import Endpoint
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.resilience import CircuitBreaker
from tuneproof.settings import ProviderConfig

MODEL = "omni-moderation-latest"


@pytest.fixture
def server() -> Iterator[Moderation]:
    with moderation_server() as made:
        yield made


def opened(server: Moderation, breaker: CircuitBreaker | None = None) -> OpenAIWire:
    config = ProviderConfig(name="safety", base_url=server.url, api_key="sk-test")
    made = open_provider(config, breaker=breaker, timeout_s=5)
    assert isinstance(made, OpenAIWire)
    return made


@pytest.fixture
async def provider(server: Moderation) -> AsyncIterator[OpenAIWire]:
    made = opened(server)
    yield made
    await made.close()


async def test_texts_are_asked_about_in_batches_and_come_back_in_their_order(
    server: Moderation, provider: OpenAIWire
) -> None:
    server.flag = lambda text: {"text 3": ["sexual"], "text 69": ["hate/threatening", "hate"]}.get(
        text, []
    )
    found = await Endpoint(provider, MODEL)([f"text {i}" for i in range(70)])
    assert [len(batch) for batch in server.asked] == [32, 32, 6]
    assert set(server.models) == {MODEL}
    assert {i: flags for i, flags in enumerate(found) if flags} == {
        3: ("sexual",),
        69: ("hate", "hate/threatening"),
    }


async def test_long_texts_are_cut_and_share_no_request(
    server: Moderation, provider: OpenAIWire
) -> None:
    await Endpoint(provider, MODEL)(["a" * 50_000, "b" * 12_000, "c" * 8_000, "d"])
    assert [[len(text) for text in batch] for batch in server.asked] == [
        [20_000],
        [12_000, 8_000],
        [1],
    ]


async def test_a_flag_without_a_category_is_one(server: Moderation, provider: OpenAIWire) -> None:
    bare = {"results": [{"flagged": True, "categories": {}}]}
    server.next(JSONResponse(bare))
    assert await provider.moderate(MODEL, ["text"]) == [("flagged",)]


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (JSONResponse({}, 500), errors.ProviderUnavailableError),
        (JSONResponse({}, 503), errors.ProviderUnavailableError),
        (JSONResponse({}, 429, {"retry-after": "7"}), errors.RateLimitedError),
        (
            JSONResponse({"error": {"code": "insufficient_quota"}}, 429),
            errors.QuotaExhaustedError,
        ),
        (JSONResponse({}, 401), errors.CredentialsError),
        (JSONResponse({"error": {"message": "no such model"}}, 404), errors.NotFoundError),
        (JSONResponse({"error": {"message": "too long"}}, 400), errors.DataError),
        (HTMLResponse("<html>We are down</html>"), errors.DataError),
        (Response(b"", media_type="application/json"), errors.DataError),
        (Response(b"{", media_type="application/json"), errors.DataError),
        (JSONResponse([]), errors.DataError),
        (JSONResponse({}), errors.DataError),
        (JSONResponse({"results": None}), errors.DataError),
        (JSONResponse({"results": []}), errors.DataError),
        (JSONResponse({"results": ["safe", "safe"]}), errors.DataError),
        (JSONResponse({"results": [result([])]}), errors.DataError),
        (JSONResponse({"results": [result([])] * 3}), errors.DataError),
        (JSONResponse({"results": [result([]), {"categories": {}}]}), errors.DataError),
        (JSONResponse({"results": [result([]), {"flagged": False}]}), errors.DataError),
        (
            JSONResponse({"results": [result([]), {"flagged": "no", "categories": {}}]}),
            errors.DataError,
        ),
        (
            JSONResponse({"results": [result([]), {"flagged": False, "categories": "none"}]}),
            errors.DataError,
        ),
    ],
)
async def test_whatever_is_no_answer_is_an_error_and_never_safe(
    server: Moderation, provider: OpenAIWire, answer: Response, raised: type[Exception]
) -> None:
    server.next(answer)
    with pytest.raises(raised) as refused:
        await Endpoint(provider, MODEL)(["one", "two"])
    assert type(refused.value) is raised
    assert len(server.asked) == 1  # nobody asks again but the run
    if isinstance(refused.value, errors.RateLimitedError):
        assert refused.value.details["retry_after_s"] == 7


async def test_a_broken_second_batch_loses_the_first(
    server: Moderation, provider: OpenAIWire
) -> None:
    whole = JSONResponse({"results": [result([])] * 32})
    server.next(whole, JSONResponse({}, 500))
    with pytest.raises(errors.ProviderUnavailableError):
        await Endpoint(provider, MODEL)(["text"] * 40)


async def test_its_breaker_opens_and_spares_the_endpoint(server: Moderation) -> None:
    breaker = CircuitBreaker(name="safety", failure_threshold=3, timeout=60.0)
    provider = opened(server, breaker)
    server.next(*[JSONResponse({}, 500)] * 3)
    for _ in range(3):
        with pytest.raises(errors.ProviderUnavailableError):
            await Endpoint(provider, MODEL)(["text"])
    with pytest.raises(errors.CircuitBreakerError):
        await Endpoint(provider, MODEL)(["text"])
    assert len(server.asked) == 3
    await provider.close()
