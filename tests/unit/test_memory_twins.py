"""The in-memory twins behave as the adapters that they stand for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tuneproof import errors
from tuneproof.collection import Post, PostQuery, Source, Window
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.testing import MemoryProvider, MemorySource, MemoryTarget
from tuneproof.training import JobRequest, JobStatus

START = datetime(2026, 11, 2, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("one two three\n")
    return path


async def _started(provider: MemoryProvider, file: Path) -> str:
    uploaded = await provider.upload(file, name="t.jsonl")
    request = JobRequest(model="base", training_file=uploaded, suffix="tp", metadata={"run": "r1"})
    return (await provider.create_job(request)).id


def _post(number: int, rate: float | None) -> Post:
    return Post(
        id=f"p{number}",
        persona_id=None,
        original_input="tomatoes",
        hook="h",
        body="b",
        engagement_rate=rate,
        ts=START + number * timedelta(hours=1),
    )


async def test_source_gives_the_best_posts_of_the_window_first_in_chunks() -> None:
    rates = [0.05, 0.09, None, 0.06, 0.09, 0.5]
    source: Source = MemorySource([_post(i, rate) for i, rate in enumerate(rates)])
    window = Window(since=START, until=START + timedelta(hours=5))
    query = PostQuery(window=window, threshold=0.06, max_records=None, chunk_size=2)
    chunks = [[post.id for post in chunk] async for chunk in source.posts(query)]
    assert chunks == [["p1", "p4"], ["p3"]]
    two = PostQuery(window=window, threshold=0.0, max_records=2, chunk_size=10)
    assert [[post.id for post in chunk] async for chunk in source.posts(two)] == [["p1", "p4"]]
    check = await source.check(query)
    assert (check.rows, check.missing, check.newest) == (6, (), START + timedelta(hours=5))


async def test_source_fails_once_where_it_is_told_to() -> None:
    source = MemorySource([_post(1, 0.1)])
    source.fail = errors.StoreUnavailableError("away")
    window = Window(since=START, until=START + timedelta(hours=5))
    query = PostQuery(window=window, threshold=0.0)
    with pytest.raises(errors.StoreUnavailableError):
        _ = [chunk async for chunk in source.posts(query)]
    assert len([chunk async for chunk in source.posts(query)]) == 1


async def test_job_succeeds_after_its_polls_and_its_model_answers(file: Path) -> None:
    provider = MemoryProvider(polls=3)
    job_id = await _started(provider, file)
    states = [(await provider.job(job_id)).status for _ in range(3)]
    assert states == [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.SUCCEEDED]
    job = await provider.job(job_id)
    assert job.fine_tuned_model == "ft:base:memory:tp:0001"
    assert job.trained_tokens == 3
    replies = await provider.complete(
        job.fine_tuned_model, [{"role": "user", "content": "hi"}], n=2
    )
    assert [reply.text for reply in replies] == [
        "hi [0 by 0001]",
        "hi [1 by 0001]",
    ]
    assert "ft:base:memory:tp:0001" in [model.id for model in await provider.models()]


async def test_tuned_model_scores_better_by_default(file: Path) -> None:
    provider = MemoryProvider(polls=1)
    job = await provider.job(await _started(provider, file))
    messages = [{"role": "assistant", "content": "four words of text"}]
    base = await provider.score("base", messages)
    tuned = await provider.score(job.fine_tuned_model or "", messages)
    assert base is not None
    assert tuned is not None
    assert tuned.logprob > base.logprob


async def test_files_and_jobs_are_found_again(file: Path) -> None:
    provider = MemoryProvider()
    job_id = await _started(provider, file)
    found = await provider.find_job("run", "r1")
    assert found is not None
    assert found.id == job_id
    assert await provider.find_job("run", "r2") is None
    assert await provider.find_file("t.jsonl") == "file-memory-0001"


async def test_failed_and_cancelled_jobs(file: Path) -> None:
    provider = MemoryProvider(polls=1)
    cancelled = await provider.cancel_job(await _started(provider, file))
    assert cancelled.status is JobStatus.CANCELLED
    provider.fail_job = ("invalid_training_file", "Example 3 is empty")
    failed = await provider.job(await _started(provider, file))
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "invalid_training_file")
    assert (await provider.cancel_job(failed.id)).status is JobStatus.FAILED


async def test_unknown_models_files_and_jobs_are_refused() -> None:
    provider = MemoryProvider()
    with pytest.raises(errors.NotFoundError):
        await provider.complete("ft:none", [])
    with pytest.raises(errors.NotFoundError):
        await provider.job("ftjob-none")
    with pytest.raises(errors.DataError):
        await provider.create_job(JobRequest(model="base", training_file="file-none"))


async def test_provider_fails_where_it_is_told_to() -> None:
    provider = MemoryProvider()
    provider.raises["ping"] = errors.ProviderUnavailableError("away")
    with pytest.raises(errors.ProviderUnavailableError):
        await provider.ping()
    del provider.raises["ping"]
    await provider.ping()
    assert provider.calls["ping"] == 2


async def test_target_serves_what_was_applied_last() -> None:
    target = MemoryTarget()
    assert await target.observe("hook") is None
    for version, share in ((1, 0.1), (2, 0.2)):
        await target.apply(
            Routing(
                task="hook",
                baseline=Variant(model_id="base"),
                lanes=(Lane(subject="deploy-1", candidate=Variant(model_id="ft"), share=share),),
                version=version,
            )
        )
    assert await target.observe("hook") == {
        "baseline": "base",
        "candidate": "ft",
        "share": 0.2,
        "version": 2,
    }
