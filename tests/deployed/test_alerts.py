"""Each alert fires and resolves: a service, Prometheus, Alertmanager and who is told, all real.

The rules are held for a second instead of minutes, and `TaskRestarting` looks back for 20 s
instead of 15 minutes; all else is as it lies in deploy. What is wrong, is wrong with a service
that has the clock of tests, so that hours pass at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.alert_rules import quick_copies, rules
from tests.alert_webhook import Webhook, tuneproof
from tests.integration.loop import QUICK, T0, posts, settings
from tests.integration.test_watches import BASE, BETTER, LOOK, later, until_it_waits
from tests.integration.watched.test_concerns import exposed
from tests.servers import (
    Server,
    alertmanager_server,
    free_port,
    mlflow_server,
    prometheus_server,
    query,
)
from tests.waiting import eventually
from tests.wire import serving, wire_server

from tuneproof.app import App
from tuneproof.errors import TuneProofError
from tuneproof.experiments import Arm, Exposure, Outcome
from tuneproof.resilience import State
from tuneproof.settings import RelayConfig, Settings, TrackingConfig, Url
from tuneproof.telemetry import Metrics
from tuneproof.testing import MemoryProvider, MemorySource, VirtualClock

pytestmark = pytest.mark.cluster

HOUR = timedelta(hours=1)
Story = Callable[["Stage"], AsyncIterator[None]]
"""Goes wrong until its first `yield`, and is mended until its second."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a story is told: who scrapes it, who is told, and where it keeps its files."""

    folder: Path
    metrics_port: int
    prometheus: Server
    webhook: Webhook

    @asynccontextmanager
    async def opened(self, **more: Any) -> AsyncIterator[App]:
        """A service whose time stands still, and whose metrics are scraped."""
        clock, database = VirtualClock(T0), f"sqlite:///{self.folder}/store.db"
        config = replace(QUICK, max_cost_usd_month=100.0)
        async with App.open(
            settings(self.folder / "data", database, config, **more),
            clock=clock,
            provider=MemoryProvider(clock=clock, base_models=("base", "better")),
            source=MemorySource(posts()),
            poll_s=0.005,
            background=False,
        ) as app:
            with self.shown(app.metrics):
                yield app

    @contextmanager
    def shown(self, metrics: Metrics) -> Iterator[None]:
        """Serve these metrics where Prometheus looks for them."""
        end = metrics.serve(self.metrics_port)
        try:
            yield
        finally:
            end()

    async def told(self, status: str, alert: str, since: int) -> dict[str, Any]:
        """What the webhook is told of an alert, from the message of that number on."""

        def found() -> list[dict[str, Any]]:
            named = [a for a in self.webhook.alerts[since:] if a["labels"]["alertname"] == alert]
            return [a for a in named if a["status"] == status]

        return (await eventually(found, otherwise=lambda: f"{alert}: {self.webhook.alerts}"))[0]


async def gone(stage: Stage) -> AsyncIterator[None]:
    """A service in a process of its own ends, and comes back."""
    up = 'up{job="fine-tuning-pipeline"} == 1'
    firing = f'ALERTS{{alertname="{DOWN}",alertstate="firing"}}'
    async with AsyncExitStack() as stack:
        service = stack.enter_context(tuneproof(stage.folder, stage.metrics_port))
        await eventually(
            lambda: query(stage.prometheus, up) and not query(stage.prometheus, firing)
        )
        await asyncio.to_thread(service.stop)
        yield
        await asyncio.to_thread(service.start)
        yield


async def provider_fails(stage: Stage) -> AsyncIterator[None]:
    """The first pipeline's provider answers 503, and then answers again."""
    with wire_server() as wire:
        wire.fail("GET /models", status=503)
        told = {"base_url": wire.url, "api_key": "key", "base_model": "base"}
        known = Settings.load(dir=stage.folder / "data", env={}, port=0, **told)
        clock = VirtualClock(T0)
        async with App.open(
            known, clock=clock, source=MemorySource(posts()), background=False
        ) as app:
            with stage.shown(app.metrics):
                breaker = app.providers.breakers["openai"]
                while breaker.state is not State.OPEN:
                    with pytest.raises(TuneProofError):
                        await app.providers.get("default").models()
                yield
                wire.faults.clear()
                later(app, HOUR)
                await app.providers.get("default").models()
                yield


async def memory_is_taken(stage: Stage) -> AsyncIterator[None]:
    """The process really takes 1600 MB more, and gives it back."""
    async with stage.opened():
        taken = b"\1" * (1600 << 20)
        assert len(taken) > 0
        yield
        del taken
        yield


async def cache_misses(stage: Stage) -> AsyncIterator[None]:
    async with stage.opened() as app:
        for number in range(4):
            assert await app.cache.get(f"absent-{number}") is None
        yield
        await app.cache.set("there", 1, 60)
        for _ in range(36):
            assert await app.cache.get("there") == 1
        yield


class Pacer:
    """Lets the clock of tests go on to an instant, and no further."""

    def __init__(self, to: datetime) -> None:
        self.to = to

    async def advance(self, since: datetime, until: datetime) -> None:
        await eventually(lambda: until <= self.to, math.inf)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Units of each arm that come between two looks: what became of them, what they cost."""

    units: int
    value: float = 0.08
    cost_per_token: float = 0.0001

    async def come(self, app: App, subject: str) -> None:
        at = app.clock.now() + timedelta(minutes=1)
        arms = [arm for arm in (Arm.BASELINE, Arm.CANDIDATE) for _ in range(self.units)]
        ids = [f"{at.isoformat()}-{number}" for number in range(len(arms))]
        exposures = [
            Exposure(
                id=id, subject=subject, phase=1, arm=arm, unit=id, at=at, task="hook",
                latency_ms=20.0, tokens=100, cost_usd=100 * self.cost_per_token,
            )
            for id, arm in zip(ids, arms, strict=True)
        ]  # fmt: skip
        outcomes = [Outcome(id=id, subject=subject, unit=id, at=at, value=self.value) for id in ids]
        await app.store.events.ingest(exposures, outcomes, now=at + timedelta(minutes=1))


def looks_find(figure: str, *batches: Batch) -> Story:
    """Units come, and looks find what they show of the model in use; the last mends it."""

    async def story(stage: Stage) -> AsyncIterator[None]:
        async with stage.opened() as app:
            [test] = await app.experiments.create(
                baseline=BASE, candidates=[BETTER], traffic_split=0.5
            )
            await until_it_waits(app, test.id)
            pacer = Pacer(app.clock.now())
            app.let_time_pass(pacer)
            for number, batch in enumerate(batches, 1):
                await batch.come(app, test.id)
                pacer.to += LOOK
                shown = await eventually(partial(_looked, app, test.id, number, figure))
                await app.gauges.refresh()
                asked = f"fine_tuning_model_{figure}"
                await eventually(partial(_shows, stage.prometheus, asked, shown))
                if number >= len(batches) - 1:
                    yield

    return story


async def _looked(app: App, test_id: str, number: int, figure: str) -> float | None:
    """What the look of this number found of the baseline, once it is there."""
    look = await app.store.experiments.last_look(test_id)
    if look is None or look.number < number:
        return None
    found: float | None = getattr(look.baseline, figure)
    return found


def _shows(prometheus: Server, expression: str, value: float) -> bool:
    found = _last(prometheus, expression)
    return found is not None and math.isclose(found, value, rel_tol=1e-6)


def _last(prometheus: Server, expression: str) -> float | None:
    found = query(prometheus, expression)
    return float(found[0]["value"][1]) if found else None


async def rolled_back(stage: Stage) -> AsyncIterator[None]:
    """It resolves by itself after six hours."""
    async with stage.opened() as app:
        manager = app.managers.of(replace(QUICK, holdback_days=0))
        begun = await manager.begin((await manager.declare(BETTER, BASE)).id)
        await app.routing.board.refresh()
        await app.rollouts.rollback(begun.id, reason="readers complain")
        await app.concerns.refresh()
        yield
        later(app, 7 * HOUR)
        yield


async def nobody_looks(stage: Stage) -> AsyncIterator[None]:
    async with stage.opened() as app:
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER])
        await until_it_waits(app, test.id)
        later(app, LOOK + 2 * HOUR)
        await app.concerns.refresh()
        yield
        await app.experiments.end(test.id, reason="enough")
        await app.concerns.refresh()
        yield


async def run_hangs(stage: Stage) -> AsyncIterator[None]:
    async with stage.opened() as app:
        run = await app.runs.start()

        async def trains() -> bool:
            return (await app.store.runs.get(run.id)).current_stage == "train"

        await eventually(trains)
        later(app, timedelta(seconds=3600 + 60))
        await app.concerns.refresh()
        yield
        await app.runs.abort(run.id, reason="enough")
        app.let_time_pass()
        await app.runs.wait(run.id, seconds=60)
        await app.concerns.refresh()
        yield


async def mlflow_is_away(stage: Stage) -> AsyncIterator[None]:
    """A run is told to an MLflow that is down for two hours, and then comes back."""
    with mlflow_server() as mlflow:
        mlflow.stop()
        async with stage.opened(tracking=TrackingConfig(uri=Url(mlflow.url))) as app:
            run = await app.runs.start()
            await app.runs.abort(run.id, reason="enough")
            tracker, breaker = app.tracker, app.providers.breakers["mlflow"]
            assert tracker is not None

            async def opens() -> bool:
                await tracker.deliver_once()
                return breaker.state is State.OPEN and bool(await app.store.outbox.pending())

            await eventually(opens, every_s=0.2)
            later(app, 2 * HOUR)
            await app.concerns.refresh()
            yield
            await asyncio.to_thread(mlflow.start)

            async def delivers() -> bool:
                later(app, HOUR)
                await tracker.deliver_once()
                return breaker.state is State.CLOSED and not await app.store.outbox.pending()

            await eventually(delivers, 120, every_s=0.5)
            await app.concerns.refresh()
            yield


async def split_breaks(stage: Stage) -> AsyncIterator[None]:
    """Three quarters of the units come where half was set; it is shown for a day after its end."""
    async with stage.opened() as app:
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER], traffic_split=0.5)
        at = app.clock.now() + timedelta(minutes=1)
        later(app, HOUR)
        await exposed(app, test.id, {Arm.BASELINE: 900, Arm.CANDIDATE: 300}, at, outcomes=1)
        await app.concerns.refresh()
        yield
        app.let_time_pass()
        await app.engine.result(test.id)
        later(app, timedelta(days=1, hours=1))
        await app.concerns.refresh()
        yield


async def outcomes_are_missing(stage: Stage) -> AsyncIterator[None]:
    async with stage.opened() as app:
        [test] = await app.experiments.create(baseline=BASE, candidates=[BETTER], traffic_split=0.5)
        at, half = app.clock.now() + timedelta(minutes=1), {Arm.BASELINE: 50, Arm.CANDIDATE: 50}
        later(app, 3 * HOUR)
        await exposed(app, test.id, half, at, outcomes=0)
        await app.concerns.refresh()
        yield
        units = [
            f"{arm}-{at.isoformat()}-{number}" for arm, n in half.items() for number in range(n)
        ]
        told = [Outcome(id=u, subject=test.id, unit=u, at=at, value=0.07) for u in units]
        await app.store.events.ingest([], told, now=app.clock.now())
        await app.concerns.refresh()
        yield


async def model_is_shut_down(stage: Stage) -> AsyncIterator[None]:
    async with stage.opened() as app:
        at = (T0 + timedelta(days=40)).isoformat()
        announced = {"model": "base", "provider": "p", "base": "base", "at": at}
        heard = {"asked_at": T0.isoformat(), "shutdown": announced}
        await app.store.meta.set("shutdown:default", heard)
        await app.concerns.refresh()
        yield
        await app.store.meta.set("shutdown:default", {**heard, "shutdown": None})
        await app.concerns.refresh()
        yield


async def budget_is_used(stage: Stage) -> AsyncIterator[None]:
    """A caller of the relay spends nearly all of its day."""
    async with stage.opened(relay=RelayConfig(enabled=True, budget_usd_per_day=2.0)) as app:
        app.spending.spend("the newsletter", 1.9)
        await app.concerns.refresh()
        yield
        later(app, timedelta(days=1))
        await app.concerns.refresh()
        yield


async def task_dies(stage: Stage) -> AsyncIterator[None]:
    async def dies() -> None:
        raise RuntimeError("again")

    async with stage.opened() as app:
        app.supervisor.every("dies", 0.1, dies, longest_pause_s=1.0)
        yield
        await app.supervisor.stop("dies")
        yield


DOWN = "FineTuningPipelineDown"
STORIES: dict[str, Story] = {
    DOWN: gone,
    "OpenAICircuitBreakerOpen": provider_fails,
    "HighMemoryUsage": memory_is_taken,
    "LowCacheHitRate": cache_misses,
    "ModelPerformanceDegradation": looks_find(
        "engagement_rate", Batch(units=100, value=0.05), Batch(units=300, value=0.08)
    ),
    "CostEfficiencyDegradation": looks_find(
        "cost_per_token",
        Batch(units=100),
        Batch(units=200, cost_per_token=0.002),
        Batch(units=3000),
    ),
    "TuneProofRolledBack": rolled_back,
    "TuneProofWatchStalled": nobody_looks,
    "TuneProofRunStuck": run_hangs,
    "TuneProofOutboxBacklog": mlflow_is_away,
    "TuneProofSplitBroken": split_breaks,
    "TuneProofOutcomesMissing": outcomes_are_missing,
    "TuneProofProviderShutdownNear": model_is_shut_down,
    "TuneProofBudgetNear": budget_is_used,
    "TuneProofTaskRestarting": task_dies,
    "TuneProofMlflowBreakerOpen": mlflow_is_away,
}


def test_each_rule_has_its_story() -> None:
    assert set(STORIES) == set(rules())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Server, Webhook]]:
    """A Prometheus with all rules, and who it tells by its Alertmanager."""
    port, webhook = free_port(), Webhook()
    copies = quick_copies(tmp_path_factory.mktemp("rules"), windows={"[15m]": "[20s]"})
    with (
        serving(webhook.app, webhook.port),
        alertmanager_server(webhook=webhook.url) as manager,
        prometheus_server(f"127.0.0.1:{port}", rules=copies, alertmanager=manager) as prometheus,
    ):
        yield port, prometheus, webhook


@pytest.mark.parametrize("alert", list(STORIES))
async def test_an_alert_fires_and_resolves(
    watched: tuple[int, Server, Webhook], tmp_path: Path, alert: str
) -> None:
    port, prometheus, webhook = watched
    stage = Stage(folder=tmp_path, metrics_port=port, prometheus=prometheus, webhook=webhook)
    before = len(webhook.alerts)
    async with aclosing(STORIES[alert](stage)) as story:
        await anext(story)
        fired = await stage.told("firing", alert, before)
        assert fired["labels"]["severity"] == rules()[alert]["labels"]["severity"]
        assert "{{" not in fired["annotations"]["description"]
        await anext(story)
        over = await stage.told("resolved", alert, before)
        assert over["fingerprint"] == fired["fingerprint"]
