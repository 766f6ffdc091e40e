"""The client against a real HTTP service that changes, fails, goes away and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.service import Service, service
from tests.waiting import until

from tuneproof import assignment
from tuneproof.client import AsyncClient, Choice, Client
from tuneproof.errors import ConfigError, NotFoundError


@pytest.fixture
def served() -> Iterator[Service]:
    with service() as found:
        found.route("hook", share=0.5)
        yield found


@pytest.fixture
def client(served: Service, tmp_path: Path) -> Iterator[Client]:
    with _client(served, tmp_path / "state") as made:
        yield made


def _client(served: Service, state: Path | None, **options: object) -> Client:
    settings = {"poll_s": 0.05, "flush_s": 0.02, "state_dir": state, **options}
    return Client(served.url, **settings)  # type: ignore[arg-type]


def _segments(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.jsonl") if path.parent.name != "refused"]


def test_choices_follow_the_shared_assignment(client: Client) -> None:
    for unit in map(str, range(300)):
        choice = client.choose("hook", unit)
        assert choice.arm == assignment.arm(assignment.bucket("salt", unit), 0.5)
        assert choice.model == {"baseline": "base", "candidate": "tuned"}[choice.arm]
        assert choice.model_version == {"baseline": None, "candidate": "ver-1"}[choice.arm]
    assert (choice.subject, choice.phase, choice.source) == ("ab-test-1", 1, "service")


def test_change_is_pushed_without_polling(served: Service, tmp_path: Path) -> None:
    with _client(served, None, poll_s=60.0) as client:
        client.choose("hook", "1")
        until(lambda: served.listeners == 1)
        until(lambda: client.status().connected)
        began = time.monotonic()
        served.route("hook", share=0.0, candidate=None)
        until(lambda: client.choose("hook", "1").version == served.version)
        assert time.monotonic() - began < 1.0


def test_change_is_polled_where_there_is_no_push(served: Service) -> None:
    served.streams = False
    served.route("hook", share=0.0)
    with _client(served, None) as client:
        assert client.choose("hook", "1").arm == "baseline"
        served.route("hook", share=1.0)
        until(lambda: client.choose("hook", "1").arm == "candidate")
    assert served.polls > 1


def test_stream_that_broke_is_opened_again(served: Service) -> None:
    with _client(served, None) as client:
        until(lambda: served.listeners == 1)
        served.stop()
        assert client.choose("hook", "1").model in ("base", "tuned")
        until(lambda: not client.status().connected)
        served.start()
        until(lambda: client.status().connected and served.listeners >= 1)
        served.route("hook", share=1.0)
        until(lambda: client.choose("hook", "1").arm == "candidate")


def test_choices_go_on_from_disk_when_the_service_is_down_at_start(
    served: Service, tmp_path: Path
) -> None:
    with _client(served, tmp_path) as client:
        before = {unit: client.choose("hook", unit).model for unit in map(str, range(50))}
        until((tmp_path / "routing.json").exists)
    served.stop()
    with _client(served, tmp_path) as client:
        began = time.monotonic()
        choices = {unit: client.choose("hook", unit) for unit in before}
        assert time.monotonic() - began < 0.5
        assert {unit: choice.model for unit, choice in choices.items()} == before
        assert {choice.source for choice in choices.values()} == {"disk"}
        until(lambda: client.status().last_error is not None)
        assert not client.status().connected


def test_damaged_state_on_disk_is_ignored(served: Service, tmp_path: Path) -> None:
    (tmp_path / "routing.json").write_text('{"routing": [{"task": "ho')
    with _client(served, tmp_path) as client:
        assert client.choose("hook", "1").source == "service"


def test_default_answers_before_the_service_was_ever_heard(served: Service) -> None:
    served.stop()
    with _client(served, None, defaults={"hook": "gpt"}, first_wait_s=0.01) as client:
        choice = client.choose("hook", "1")
        assert (choice.model, choice.subject, choice.source) == ("gpt", None, "default")
        assert client.record(choice) is None
        with pytest.raises(NotFoundError, match="known: hook"):
            client.choose("headline", "1")


def test_first_choice_waits_for_the_service_once(served: Service) -> None:
    client = _client(served, None)
    assert client.choose("hook", "1").source == "service"
    client.close()


def test_malformed_address_is_refused() -> None:
    with pytest.raises(ConfigError):
        Client("localhost:8686")


def test_events_arrive_with_all_fields(served: Service, client: Client) -> None:
    choice = client.choose("hook", "post-1")
    at = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
    exposure = client.record(
        choice, latency_ms=12.5, tokens=9, cost_usd=0.01, at=at, attributes={"persona": "ana"}
    )
    outcome = client.outcome(subject=choice.subject, unit="post-1", value=0.07, at=at)
    assert client.flush()
    assert exposure is not None
    assert outcome is not None
    assert served.events == {
        exposure: {
            "id": exposure,
            "at": "2026-11-02T09:30:00+00:00",
            "subject": "ab-test-1",
            "phase": 1,
            "arm": choice.arm,
            "unit": "post-1",
            "task": "hook",
            "latency_ms": 12.5,
            "error": False,
            "tokens": 9,
            "cost_usd": 0.01,
            "attributes": {"persona": "ana"},
        },
        outcome: {
            "id": outcome,
            "at": "2026-11-02T09:30:00+00:00",
            "subject": "ab-test-1",
            "unit": "post-1",
            "value": 0.07,
            "quality": None,
        },
    }


def test_items_and_covariates_are_told_only_where_they_are_given(
    served: Service, client: Client
) -> None:
    choice = client.choose("hook", "ann")
    known = client.record(choice, covariate=0.05)
    plain = client.record(choice)
    post = client.outcome(subject=choice.subject, unit="ann", value=0.1, item="post-1")
    assert client.flush()
    assert served.events[known]["covariate"] == 0.05
    assert "covariate" not in served.events[plain]
    assert served.events[post]["item"] == "post-1"


def test_tokens_and_costs_that_are_not_known_are_not_sent(served: Service, client: Client) -> None:
    """Before: 0 tokens for 0.0 USD."""
    choice = client.choose("hook", "ann")
    unknown = client.record(choice, latency_ms=3.0)
    free = client.record(choice, tokens=0, cost_usd=0.0)
    assert client.flush()
    assert {"tokens", "cost_usd"}.isdisjoint(served.events[unknown])
    assert (served.events[free]["tokens"], served.events[free]["cost_usd"]) == (0, 0.0)


def test_many_threads_lose_nothing_and_events_go_in_batches(
    served: Service, client: Client, tmp_path: Path
) -> None:
    def work(number: int) -> None:
        for i in range(500):
            client.record(client.choose("hook", f"{number}-{i}"), id=f"{number}-{i}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(20)
    assert len(served.events) == 2000
    assert len(served.batches) < 200
    assert client.status().sent == 2000
    assert not client.status().waiting
    assert _segments(tmp_path) == []


def test_outage_delays_events_and_loses_none(served: Service, client: Client) -> None:
    choice = client.choose("hook", "1")
    served.stop()
    slowest = 0.0
    for i in range(200):
        began = time.perf_counter()
        client.record(choice, id=f"e{i}")
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.2
    assert not client.flush(0.1)
    assert client.status().last_error is not None
    served.start()
    assert client.flush(20)
    assert len(served.events) == 200


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_service_that_refuses_for_now_gets_the_events_later(
    served: Service, client: Client, status: int
) -> None:
    choice = client.choose("hook", "1")
    served.status = status
    client.record(choice, id="e1")
    assert not client.flush(0.1)
    assert served.events == {}
    served.status = 200
    assert client.flush(20)
    assert set(served.events) == {"e1"}


@pytest.mark.parametrize("status", [422, 500])
def test_one_bad_event_does_not_hold_back_the_others(
    served: Service, client: Client, tmp_path: Path, status: int
) -> None:
    """Seen: one that the service answered with 500 blocked the journal for ever."""
    choice = client.choose("hook", "1")
    served.bad_ids, served.bad_status = {"e7"}, status
    for i in range(20):
        client.record(choice, id=f"e{i}")
    assert client.flush(20)
    assert set(served.events) == {f"e{i}" for i in range(20)} - {"e7"}
    assert client.status().refused == 1
    (kept,) = (tmp_path / "state" / "events" / "refused").iterdir()
    assert [json.loads(line)["id"] for line in kept.read_text().splitlines()] == ["e7"]


def test_events_that_the_service_names_are_put_aside_and_told(
    served: Service, client: Client, tmp_path: Path
) -> None:
    choice = client.choose("hook", "1")
    client.outcome(subject="ab-test-9", unit="1", value=0.5, id="stray")
    client.outcome(subject=choice.subject, unit="1", value=0.5)
    assert client.flush()
    status = client.status()
    assert (status.sent, status.refused) == (1, 1)
    assert status.last_refused is not None
    assert status.last_refused.startswith("no such subject (")
    (kept,) = (tmp_path / "state" / "events" / "refused").iterdir()
    assert [json.loads(line)["id"] for line in kept.read_text().splitlines()] == ["stray"]


def test_what_cannot_be_an_event_never_reaches_the_caller(served: Service, client: Client) -> None:
    choice = client.choose("hook", "1")
    client.outcome(subject=choice.subject, unit="1", value=float("nan"))
    client.record(choice, attributes={"x": object()})  # type: ignore[dict-item]
    assert client.record(choice, at="yesterday") is None  # type: ignore[arg-type]
    client.record(choice, id="good")
    assert client.flush()
    assert set(served.events) == {"good"}
    assert client.status().refused == 2


def test_same_id_is_one_event(served: Service, client: Client) -> None:
    choice = client.choose("hook", "1")
    client.record(choice, id="e1")
    assert client.flush()
    client.record(choice, id="e1")
    assert client.flush()
    assert (len(served.events), client.status().duplicates) == (1, 1)


def test_events_closed_away_from_the_service_are_sent_by_the_next_process(
    served: Service, tmp_path: Path
) -> None:
    client = _client(served, tmp_path)
    choice = client.choose("hook", "1")
    served.stop()
    client.record(choice, id="e1")
    client.close(timeout_s=0.2)
    assert len(_segments(tmp_path)) == 1
    served.start()
    with _client(served, tmp_path) as later:
        later.choose("hook", "1")
        until(lambda: set(served.events) == {"e1"})
    assert _segments(tmp_path) == []


def test_journal_of_a_living_process_is_left_alone(served: Service, tmp_path: Path) -> None:
    first = _client(served, tmp_path)
    choice = first.choose("hook", "1")
    served.status = 503
    first.record(choice, id="e1")
    until(lambda: len(_segments(tmp_path)) == 1)
    with _client(served, tmp_path) as second:
        second.choose("hook", "1")
        second.record(choice, id="e2")
        until(lambda: len(_segments(tmp_path)) == 2)
        second.close(timeout_s=0.1)
    served.status = 200
    assert first.flush(20)
    assert "e1" in served.events
    first.close()


def test_service_that_hangs_keeps_no_event_from_the_disk(
    served: Service, client: Client, tmp_path: Path
) -> None:
    choice = client.choose("hook", "1")
    served.hanging = True
    client.record(choice, id="first")
    client.flush(0.1)  # the sender waits for an answer from now on
    for i in range(100):
        client.record(choice, id=f"e{i}")

    def on_disk() -> int:
        return sum(len(path.read_text().splitlines()) for path in _segments(tmp_path))

    until(lambda: on_disk() == 101)
    served.hanging = False
    assert client.flush(20)
    assert len(served.events) == 101


def test_folder_that_cannot_be_written_keeps_events_in_memory(
    served: Service, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with _client(served, tmp_path / "file" / "state") as client:
        client.record(client.choose("hook", "1"), id="e1")
        assert client.flush()
    assert set(served.events) == {"e1"}


def test_token_is_sent(served: Service) -> None:
    served.token = "secret"
    with _client(served, None, token="secret") as client:
        client.record(client.choose("hook", "1"), id="e1")
        assert client.flush()
    assert set(served.events) == {"e1"}


_KILLED = """
import os, pathlib, signal, sys
from tests.waiting import until
from tuneproof.client import Client
client = Client(sys.argv[1], state_dir=sys.argv[2], flush_s=60.0)
choice = client.choose("hook", "1")
for i in range(int(sys.argv[3])):
    client.record(choice, id=f"e{i}")
kept = lambda: sum(p.read_text().count("\\n") for p in pathlib.Path(sys.argv[2]).rglob("*.jsonl"))
until(lambda: kept() == int(sys.argv[3]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_its_events_to_the_next(served: Service, tmp_path: Path) -> None:
    served.events_status = 503
    command = [sys.executable, "-c", _KILLED, served.url, str(tmp_path), "2500"]
    ended = subprocess.run(command, check=False, timeout=30)
    assert ended.returncode == -signal.SIGKILL
    assert served.events == {}
    served.events_status = 200
    with _client(served, tmp_path) as client:
        client.choose("hook", "1")
        until(lambda: len(served.events) == 2500, within_s=20)


def test_forked_child_records_too(served: Service, tmp_path: Path) -> None:
    with _client(served, tmp_path) as client:
        choice = client.choose("hook", "1")
        client.record(choice, id="parent")
        assert client.flush()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            client.record(choice, id="child")
            os._exit(0 if client.flush(10) else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
    assert set(served.events) == {"parent", "child"}


async def test_async_client_chooses_and_records(served: Service, tmp_path: Path) -> None:
    async with AsyncClient(served.url, state_dir=tmp_path, flush_s=0.02) as client:
        choice = await client.choose("hook", "1")
        assert isinstance(choice, Choice)
        client.record(choice, id="e1")
        client.outcome(subject=choice.subject, unit="1", value=0.5, id="o1")
        assert await client.flush()
        assert client.status().connected
    assert set(served.events) == {"e1", "o1"}


def test_import_brings_no_heavy_module() -> None:
    code = (
        "import sys, tuneproof.client; "
        "heavy = {'numpy', 'pydantic', 'http.client', 'httpx2', 'openai', 'sqlalchemy', 'dbos', "
        "'asyncio', 'ssl'}; print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
