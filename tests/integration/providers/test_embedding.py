"""Vectors of texts from a real HTTP server that answers, refuses and talks nonsense."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response
from tests.embedding import Embedding, embedding_server, embeddings

from tuneproof import errors
from tuneproof.evaluation import Embedder
from tuneproof.providers import OpenAIWire, open_provider
from tuneproof.settings import ProviderConfig

MODEL = "text-embedding-3-small"


@pytest.fixture
def server() -> Iterator[Embedding]:
    with embedding_server() as made:
        yield made


@pytest.fixture
async def provider(server: Embedding) -> AsyncIterator[OpenAIWire]:
    config = ProviderConfig(name="vectors", base_url=server.url, api_key="sk-test")
    made = open_provider(config, timeout_s=5)
    assert isinstance(made, OpenAIWire)
    yield made
    await made.close()


async def test_each_text_is_asked_for_once_and_many_at_a_time(
    server: Embedding, provider: OpenAIWire
) -> None:
    embedder = Embedder(provider, MODEL)
    texts = [f"text {i}" for i in range(70)]
    assert embedder.calls(texts) == 3
    await embedder.vectors(texts)
    found = await embedder.vectors([*texts, "another", "", "  ", "text 3"])
    assert sorted(len(batch) for batch in server.asked) == [1, 6, 32, 32]
    assert set(server.models) == {MODEL}
    assert found["text 21"].tolist() == pytest.approx([1.0, 0.07, 0.5])
    assert found.keys() == {*texts, "another"}


async def test_a_text_that_is_refused_costs_the_others_nothing(
    server: Embedding, provider: OpenAIWire
) -> None:
    server.refuses = lambda text: text == "text 5"
    embedder, texts = Embedder(provider, MODEL), [f"text {i}" for i in range(9)]
    found = await embedder.vectors(texts)
    assert found.keys() == {f"text {i}" for i in range(9) if i != 5}
    asked = len(server.asked)
    await embedder.vectors(texts)
    assert len(server.asked) == asked, "it was refused once, and is not asked for again"


async def test_long_texts_are_cut(server: Embedding, provider: OpenAIWire) -> None:
    long = "7" + "x" * 10_000
    assert long in await Embedder(provider, MODEL).vectors([long])
    assert [len(text) for text in server.asked[0]] == [2_000]


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        (JSONResponse(embeddings([1.0])), True),
        (JSONResponse({"error": {"message": "not an embedding model"}}, 400), False),
        (JSONResponse({"error": {"message": "you may not embed with this"}}, 403), False),
        (JSONResponse({"error": {"message": "no such route"}}, 404), False),
        (JSONResponse({"error": {"message": "start it with --embeddings"}}, 501), False),
        (HTMLResponse("<h1>Hello</h1>"), False),
    ],
)
async def test_who_makes_no_vectors_is_known_by_asking(
    server: Embedding, provider: OpenAIWire, answer: Response, answers: bool
) -> None:
    server.next(*[answer] * 3)
    assert await Embedder(provider, MODEL).answers() is answers


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_who_is_away_is_not_taken_for_one_that_makes_none(
    server: Embedding, provider: OpenAIWire, status: int
) -> None:
    server.next(*[JSONResponse({}, status)] * 5)
    with pytest.raises((errors.ProviderUnavailableError, errors.RateLimitedError)):
        await Embedder(provider, MODEL).answers()


@pytest.mark.parametrize(
    "answer",
    [
        embeddings([1.0, 2.0]),
        embeddings([1.0, 2.0], [3.0]),
        embeddings([], []),
        embeddings([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]),
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
        {"data": []},
    ],
)
async def test_an_answer_that_is_not_one_vector_of_each_text_is_refused(
    server: Embedding, provider: OpenAIWire, answer: object
) -> None:
    server.next(JSONResponse(answer))
    with pytest.raises(errors.DataError, match="does not speak the OpenAI API"):
        await provider.embed(MODEL, ["one", "two"])


async def test_a_number_that_is_none_is_refused(server: Embedding, provider: OpenAIWire) -> None:
    text = '{"data": [{"index": 0, "embedding": [NaN, 1.0]}], "model": "m", "object": "list"}'
    server.next(Response(text, media_type="application/json"))
    with pytest.raises(errors.DataError):
        await provider.embed(MODEL, ["one"])


async def test_vectors_are_kept_where_a_check_breaks_off(
    server: Embedding, provider: OpenAIWire, tmp_path: Path
) -> None:
    texts, path = [f"text {i}" for i in range(40)], tmp_path / "vectors.db"
    before = await Embedder(provider, MODEL, path).vectors(texts)
    asked = len(server.asked)
    again = Embedder(provider, MODEL, path)
    await again.recall(texts)
    assert again.calls([*texts, "new"]) == 1
    after = await again.vectors(texts)
    assert len(server.asked) == asked
    assert {t: v.tolist() for t, v in after.items()} == {t: v.tolist() for t, v in before.items()}
    assert "text 1" not in path.read_bytes().decode("latin-1")


async def test_vectors_of_a_model_that_was_replaced_under_its_name_are_asked_for_anew(
    server: Embedding, provider: OpenAIWire, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.db"
    for changed in (False, True):
        embedder = Embedder(provider, MODEL, path)
        if changed:
            server.next(JSONResponse(embeddings([1.0, -5.0, 3.0])))
        assert await embedder.answers()
        asked = len(server.asked)
        await embedder.vectors(["a text"])
        assert len(server.asked) == asked + 1
        same = Embedder(provider, MODEL, path)
        if not changed:
            assert await same.answers()
        asked = len(server.asked)
        await same.vectors(["a text"])
        assert len(server.asked) == asked
    other = Embedder(provider, "another", path)
    await other.vectors(["a text"])
    assert len(server.asked) == asked + 1


async def test_a_file_of_vectors_that_is_broken_is_done_without(
    server: Embedding, provider: OpenAIWire, tmp_path: Path
) -> None:
    path = tmp_path / "vectors.db"
    path.write_bytes(b"no database " * 1000)
    for place in (path, tmp_path / "absent" / "vectors.db"):
        embedder = Embedder(provider, MODEL, place)
        assert await embedder.answers()
        assert set(await embedder.vectors(["a text"])) == {"a text"}
