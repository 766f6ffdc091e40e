"""The outbox arrives at a real MLflow once, in order, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import HandClock
from tests.servers import Server, mlflow_server

from tuneproof.app import App
from tuneproof.errors import (
    CredentialsError,
    NotFoundError,
    StoreUnavailableError,
    TrackingUnavailableError,
)
from tuneproof.prompts import Prompt
from tuneproof.resilience import CircuitBreaker, State
from tuneproof.settings import Settings, StoreConfig, TrackingConfig
from tuneproof.store import Store
from tuneproof.tracking import MLflowExperimentTracker, MLflowModelRegistry

if TYPE_CHECKING:
    from mlflow import MlflowClient

numbers = itertools.count(1)


@pytest.fixture
def run_id() -> str:
    """A run that no other test has: they share the server."""
    return f"ft-pipeline-20250120-{next(numbers):03}"


@pytest.fixture
async def tracker(store: Store, mlflow: Server, clock: HandClock) -> AsyncIterator[Any]:
    tracker = MLflowExperimentTracker(store.outbox, mlflow.url, clock=clock, timeout_s=10)
    yield tracker
    tracker.close()


@pytest.fixture
def client(mlflow: Server) -> MlflowClient:
    from mlflow import MlflowClient  # takes seconds, of every process that collects this file

    return MlflowClient(mlflow.url)


def whole_run(run_id: str) -> list[tuple[str, dict[str, Any]]]:
    """What the pipeline writes in the course of one run."""
    version = f"ver-{run_id}"
    at = "2025-01-20T02:00:00Z"
    return [
        (
            "run_started",
            {
                "run_id": run_id,
                "experiment": "posts",
                "params": {"training": {"n_epochs": 3}, "threshold": 0.06, "seed": None},
                "tags": {"pipeline": "default"},
                "at": at,
            },
        ),
        ("dataset", {"run_id": run_id, "manifest": {"hash": "ab12" * 16, "examples": 120}}),
        ("metrics", {"run_id": run_id, "metrics": {"train/loss": 1.5}, "step": 1, "at": at}),
        ("metrics", {"run_id": run_id, "metrics": {"train/loss": 1.2}, "step": 2, "at": at}),
        (
            "model_version",
            {
                "run_id": run_id,
                "name": f"model-{run_id}",
                "version_id": version,
                "version": "1.0.0",
                "model_id": "ft:ngram:abc",
                "tags": {"provider": "trainer", "dataset": "ab12"},
            },
        ),
        (
            "alias",
            {
                "name": f"model-{run_id}",
                "alias": "candidate",
                "version_id": version,
                "run_id": run_id,
            },
        ),
        ("run_ended", {"run_id": run_id, "status": "success", "at": "2025-02-05T02:00:00Z"}),
    ]


async def add(store: Store, items: list[tuple[str, dict[str, Any]]]) -> None:
    for number, (kind, payload) in enumerate(items):
        await store.outbox.add(f"{payload['run_id']}:{number}:{kind}", kind, payload)


def assert_arrived_once(client: MlflowClient, run_id: str) -> None:
    """Exactly one run with one of each thing, looked up without our code."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.tuneproof_run = '{run_id}'")
    assert len(runs) == 1
    run = runs[0]
    assert run.data.params == {"training.n_epochs": "3", "threshold": "0.06"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.5), (2, 1.2)]
    assert len(run.inputs.dataset_inputs) == 1
    versions = client.search_model_versions(f"name = 'model-{run_id}'")
    assert len(versions) == 1
    assert versions[0].run_id == run.info.run_id
    assert client.get_registered_model(f"model-{run_id}").aliases == {"candidate": "1"}
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 16 * 86400 * 1000


async def test_run_is_found_with_parameters_metrics_and_version(
    store: Store, tracker: MLflowExperimentTracker, client: MlflowClient, run_id: str
) -> None:
    await add(store, whole_run(run_id))
    assert await tracker.deliver_once() == 7
    assert await tracker.deliver_once() == 0
    assert await store.outbox.pending() == 0
    found = await tracker.find_run(run_id)
    assert found is not None
    assert found.params["training.n_epochs"] == "3"
    assert found.metrics == {"train/loss": 1.2}
    assert found.tags["tuneproof_status"] == "success"
    assert found.tags["tuneproof_dataset"] == "ab12" * 16
    assert found.datasets == (("ab12" * 16)[:36],)
    assert found.version is not None
    assert found.version.version_id == f"ver-{run_id}"
    assert found.version.aliases == ("candidate",)
    assert found.version.source == "trainer:/ft:ngram:abc"
    assert found.version.tags["version"] == "1.0.0"
    assert_arrived_once(client, run_id)


class ForgetfulOutbox:
    """The store's outbox, cut off each time just after MLflow did what it was asked."""

    def __init__(self, store: Store) -> None:
        self._outbox = store.outbox
        self._forgotten: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)

    async def delivered(self, id: int) -> None:
        if id not in self._forgotten:
            self._forgotten.add(id)
            raise StoreUnavailableError("killed here")
        await self._outbox.delivered(id)


async def test_delivery_that_was_cut_off_after_its_effect_is_not_made_twice(
    store: Store, mlflow: Server, client: MlflowClient, clock: HandClock, run_id: str
) -> None:
    tracker = MLflowExperimentTracker(ForgetfulOutbox(store), mlflow.url, clock=clock)
    await add(store, whole_run(run_id))
    cuts = 0
    while await store.outbox.pending():
        try:
            await tracker.deliver_once()
        except StoreUnavailableError:
            cuts += 1
    assert cuts == 7
    assert_arrived_once(client, run_id)
    tracker.close()


async def test_refused_item_holds_back_its_own_run_only(
    store: Store,
    tracker: MLflowExperimentTracker,
    client: MlflowClient,
    clock: HandClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = f"ft-bad-{next(numbers)}", f"ft-good-{next(numbers)}"
    items = whole_run(bad)
    items.insert(1, ("nonsense", {"run_id": bad}))
    await add(store, items)
    await add(store, whole_run(good))
    assert await tracker.deliver_once() == 1 + 7
    assert_arrived_once(client, good)
    assert await tracker.deliver_once() == 0
    assert await store.outbox.pending() == 7
    assert "nonsense" in caplog.text
    assert tracker.breaker.state is State.CLOSED
    clock.move(hours=2)
    assert await tracker.deliver_once() == 0
    assert await store.outbox.pending() == 7


async def test_failed_and_aborted_runs_end_as_such(
    store: Store, tracker: MLflowExperimentTracker, run_id: str
) -> None:
    ends = {"failed": "FAILED", "aborted": "KILLED", "rolled_back": "FINISHED"}
    for status in ends:
        await store.outbox.add(
            f"{run_id}{status}", "run_ended", {"run_id": run_id + status, "status": status}
        )
    await tracker.deliver_once()
    for status, expected in ends.items():
        found = await tracker.find_run(run_id + status)
        assert found is not None
        assert (found.status, found.tags["tuneproof_status"]) == (expected, status)


async def test_retried_run_goes_on_in_the_same_mlflow_run(
    store: Store, tracker: MLflowExperimentTracker, run_id: str
) -> None:
    first = {"run_id": run_id, "params": {"days_back": 7, "seed": 1}}
    second = {"run_id": run_id, "params": {"days_back": 9, "seed": 1, "suffix": "b"}}
    await store.outbox.add(f"{run_id}:1:start", "run_started", first)
    await store.outbox.add(f"{run_id}:1:end", "run_ended", {"run_id": run_id, "status": "failed"})
    await store.outbox.add(f"{run_id}:2:start", "run_started", second)
    assert await tracker.deliver_once() == 3
    found = await tracker.find_run(run_id)
    assert found is not None
    assert found.status == "RUNNING"
    assert found.params == {"days_back": "7", "seed": "1", "suffix": "b"}
    assert found.tags["retried.days_back"] == "9"


async def test_notes_are_lines_of_the_description_once_each(
    store: Store, mlflow: Server, clock: HandClock, run_id: str
) -> None:
    tracker = MLflowExperimentTracker(ForgetfulOutbox(store), mlflow.url, clock=clock)
    for number, text in enumerate(["The breaker is open.", "Taken up again."]):
        await store.outbox.add(f"{run_id}:{number}", "note", {"run_id": run_id, "text": text})
    while await store.outbox.pending():
        with contextlib.suppress(StoreUnavailableError):
            await tracker.deliver_once()
    found = await tracker.find_run(run_id)
    assert found is not None
    assert found.tags["mlflow.note.content"] == "The breaker is open.\nTaken up again."
    tracker.close()


async def test_awkward_names_and_values_arrive(
    store: Store, tracker: MLflowExperimentTracker, run_id: str
) -> None:
    params = {f"p{n}": n for n in range(250)} | {"../up": 1, "a//b": 2, "é?*": "x" * 9000, "": 3}
    metrics = {f"m{n}": n for n in range(250)} | {"nan": float("nan"), "text": "no", "none": None}
    await add(
        store,
        [
            ("run_started", {"run_id": run_id, "experiment": "odd names ü", "params": params}),
            ("metrics", {"run_id": run_id, "metrics": metrics, "step": None, "at": None}),
        ],
    )
    assert await tracker.deliver_once() == 2
    found = await tracker.find_run(run_id)
    assert found is not None
    assert len(found.params) == 254
    assert found.params["a/b"] == "2"
    assert len(found.metrics) == 250


async def test_aliases_move_and_the_last_one_stands(
    store: Store, tracker: MLflowExperimentTracker, mlflow: Server, run_id: str
) -> None:
    name = f"champions-{run_id}"
    registry = MLflowModelRegistry(mlflow.url)
    first = await registry.register(name, f"{run_id}-1", model_id="ft:a", tags={"provider": "p"})
    again = await registry.register(name, f"{run_id}-1", model_id="ft:a")
    await registry.register(name, f"{run_id}-2", model_id="ft:b")
    assert first == again
    for number, version in enumerate([1, 2, 1]):
        payload = {"name": name, "alias": "champion", "version_id": f"{run_id}-{version}"}
        await store.outbox.add(f"{run_id}:{number}", "alias", payload, run=name)
    assert await tracker.deliver_once() == 3
    champion = await registry.by_alias(name, "champion")
    assert champion is not None
    assert champion.version_id == f"{run_id}-1"
    assert await registry.by_alias(name, "candidate") is None
    assert await registry.by_alias("no such model", "champion") is None
    with pytest.raises(NotFoundError, match="no version"):
        await registry.set_alias(name, "champion", "ver-unknown")
    registry.close()


async def test_prompts_are_registered_once_and_their_aliases_move(
    store: Store,
    tracker: MLflowExperimentTracker,
    mlflow: Server,
    client: MlflowClient,
    run_id: str,
) -> None:
    """In MLflow's prompt registry, as its own client reads them."""
    name = f"hook-{run_id}"
    registry = MLflowModelRegistry(mlflow.url)
    asks = Prompt(
        messages=(("system", 'As {"hook": …}.'), ("user", "About {topic}?")),
        parameters={
            "temperature": 0.4,
            "stop": "!",
            "reasoning_effort": "low",
            "response_format": {"type": "json_object"},
        },
        variables=("topic",),
    )
    tells = Prompt(messages=(("user", "Tell of {topic}."),), variables=("topic",))
    number = 0
    for prompt in (asks, tells, asks):
        version = f"{run_id}-{prompt.hash}"
        await registry.register(f"model-{run_id}", version, model_id="base")
        named = {"name": name, "hash": prompt.hash}
        champion = {"name": f"model-{run_id}", "alias": "champion", "version_id": version}
        for kind, payload in (
            ("prompt", {**named, "prompt": prompt.document()}),
            ("alias", {**champion, "prompt": named}),
        ):
            number += 1
            await store.outbox.add(f"{run_id}:{number}", kind, payload, run=run_id)
    assert await tracker.deliver_once() == 6
    found = {one.tags["tuneproof_prompt"]: one for one in client.search_prompt_versions(name)}
    assert found.keys() == {asks.hash, tells.hash}
    champion = client.get_prompt_version_by_alias(name, "champion")
    assert champion.tags["tuneproof_prompt"] == asks.hash
    assert champion.template == [
        {"role": "system", "content": 'As {"hook": …}.'},
        {"role": "user", "content": "About {{topic}}?"},
    ]
    assert champion.model_config == {
        "temperature": 0.4,
        "stop_sequences": ["!"],
        "extra_params": {"reasoning_effort": "low"},
    }
    assert champion.response_format == {"type": "json_object"}
    registry.close()


async def test_without_a_server_everything_is_kept(store: Store, run_id: str) -> None:
    tracker = MLflowExperimentTracker(store.outbox, None)
    await add(store, whole_run(run_id))
    assert await tracker.deliver_once() == 0
    assert await store.outbox.pending() == 7
    with pytest.raises(TrackingUnavailableError, match="MLFLOW_TRACKING_URI"):
        await tracker.check()


async def test_health_is_a_real_call_and_counts_what_waits(
    store: Store, tracker: MLflowExperimentTracker, run_id: str
) -> None:
    assert "answers" in await tracker.check()
    await add(store, whole_run(run_id))
    assert "7 items wait" in await tracker.check()


async def test_silent_server_costs_its_timeout_and_no_more(store: Store, run_id: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tracker = MLflowExperimentTracker(store.outbox, f"http://127.0.0.1:{port}", timeout_s=1)
    await add(store, whole_run(run_id))
    async with asyncio.timeout(10):
        assert await tracker.deliver_once() == 0
    assert await store.outbox.pending() == 7
    assert tracker.breaker.failure_count == 1
    tracker.close()
    server.close()


@pytest.fixture(scope="module")
def strict_mlflow() -> Iterator[Server]:
    with mlflow_server(allowed_hosts="mlflow.example.org") as server:
        yield server


async def test_host_check_is_explained_while_mlflow_itself_is_green(
    store: Store, strict_mlflow: Server, run_id: str
) -> None:
    tracker = MLflowExperimentTracker(store.outbox, strict_mlflow.url)
    with pytest.raises(CredentialsError) as refused:
        await tracker.check()
    assert f"--allowed-hosts '127.0.0.1:{strict_mlflow.port}'" in refused.value.mend
    await add(store, whole_run(run_id))
    for _ in range(5):
        await tracker.deliver_once()
    assert tracker.breaker.state is State.OPEN
    assert await store.outbox.pending() == 7
    tracker.close()


async def test_the_service_counts_what_is_delivered(
    tmp_path: Path, sqlite_store_url: str, mlflow: Server, run_id: str
) -> None:
    tracking = TrackingConfig(uri=mlflow.url)
    settings = Settings(dir=tmp_path, store=StoreConfig(url=sqlite_store_url), tracking=tracking)
    async with App.open(settings, background=False) as app:
        await add(app.store, whole_run(run_id))
        await app.tracker.deliver_once()
        assert "tuneproof_tracking_delivered_total 7.0" in app.metrics.render()[0].decode()


class TestOutage:
    """MLflow is down for the whole run, then comes back."""

    async def test_nothing_is_delayed_and_all_is_delivered_once(
        self, store: Store, mlflow: Server, client: MlflowClient, clock: HandClock, run_id: str
    ) -> None:
        seconds = 0.0
        breaker = CircuitBreaker.named("mlflow", clock=lambda: seconds)
        tracker = MLflowExperimentTracker(store.outbox, mlflow.url, clock=clock, breaker=breaker)
        mlflow.stop()
        try:
            async with asyncio.timeout(5):  # the pipeline's part: it only writes
                await add(store, whole_run(run_id))
            for _ in range(8):
                assert await tracker.deliver_once() == 0
                clock.move(seconds=5)
            assert breaker.state is State.OPEN
            assert breaker.diagnose().calls == 5
            assert await store.outbox.pending() == 7
        finally:
            mlflow.start()
        assert await tracker.deliver_once() == 0  # the breaker still holds
        seconds += 60
        assert await tracker.deliver_once() == 7
        assert breaker.state is State.CLOSED
        assert await store.outbox.pending() == 0
        assert_arrived_once(client, run_id)
        tracker.close()
