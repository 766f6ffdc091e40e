"""Use cases of the whole: status, health, doctor, activity, tokens, metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from tuneproof.app.core import Core
from tuneproof.app.live import LiveEvent
from tuneproof.app.providing import provider_of
from tuneproof.app.watches import Watchdog, WatchState
from tuneproof.app.watching import SHUTDOWN_WARNING, Watching
from tuneproof.errors import StoreUnavailableError, TuneProofError
from tuneproof.experiments import ModelRef
from tuneproof.resilience import TaskHealth
from tuneproof.rollout import Routing
from tuneproof.settings import WITHOUT_EFFECT, PipelineConfig
from tuneproof.store import Activity, Page, Run, TokenInfo
from tuneproof.telemetry import (
    BreakerCheck,
    CallCheck,
    HealthCheck,
    HealthReport,
    ProcessFigures,
    Status,
    run_checks,
)
from tuneproof.training import find_model, preflight


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Whether the service can take requests, and why not."""

    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `doctor` found about one thing, and how to mend it."""

    name: str
    status: str
    detail: str
    mend: str = ""


class Overview(Watching, Core):
    """What can be asked of the service as a whole."""

    # --- health ---------------------------------------------------------------------

    def _checks(self) -> list[HealthCheck]:
        first = next(iter(self.settings.pipelines.values()))
        redis = None if self.settings.cache.url.scheme == "mem" else self.cache.ping
        tracker = self.tracker.check if self.tracker is not None else None
        provider = self.provider(first.provider).ping if self._serves(first) else None
        return [
            CallCheck(
                name="database",
                call=self.store.database.ping,
                needed=True,
                hint="Start the database, or mend DATABASE_URL.",
            ),
            CallCheck(
                name="redis", call=redis, hint="Set REDIS_URL for a cache that workers share."
            ),
            CallCheck(
                name="mlflow",
                call=tracker,
                hint="Set MLFLOW_TRACKING_URI; until then the outbox keeps everything.",
            ),
            CallCheck(
                name="provider",
                call=provider,
                hint="Check the provider's address and key (tuneproof doctor)."
                if provider
                else "The embedded trainer starts with the service: tuneproof serve",
            ),
            BreakerCheck(name="openai_circuit_breaker", breaker=self.breakers["openai"]),
            BreakerCheck(name="mlflow_circuit_breaker", breaker=self.breakers["mlflow"]),
        ]

    def _serves(self, config: PipelineConfig) -> bool:
        return self._given_provider is not None or self.trains(config.provider)

    tracker: Any = None

    @cached_property
    def _process(self) -> ProcessFigures:
        return ProcessFigures()

    async def _report(self) -> HealthReport:
        return await run_checks(self._checks(), now=self.clock.now)

    @cached_property
    def watchdog(self) -> Watchdog:
        """Who looks after the looks."""
        known = {**self.settings.pipelines, **{c.name: c for c in self.pipelines()}}
        return Watchdog(
            store=self.store,
            engine=self.engine,
            clock=self.clock,
            config_of=known.get,
            alert=self.alert,
        )

    async def _watches(self) -> Sequence[WatchState]:
        """How each watch stands; nothing while the database does not answer."""
        try:
            return await self.watchdog.states()
        except StoreUnavailableError:
            return ()

    async def health(self) -> Mapping[str, Any]:
        """Each component by a real call, with pools and performance figures."""
        report, now = await self._report(), self.supervisor.now()
        figures, watches = self._process.read(), await self._watches()
        return {
            **report.to_dict(),
            "status": self._with_tasks(report.status, watches),
            "tasks": [
                {**asdict(task), "overdue": task.overdue(now)} for task in self.supervisor.tasks
            ],
            "watches": [{**asdict(watch), "kind": watch.kind.value} for watch in watches],
            "routing_age_s": self.board.age_s,
            "connection_pools": self.pools.counts(),
            "performance_metrics": {
                "avg_response_time_ms": self.metrics.response_times.avg_ms,
                "cache_hit_rate": self.cache.hit_rate,
                "memory_usage_mb": figures["memory_usage_mb"],
                "cpu_usage_percent": figures["cpu_usage_percent"],
            },
        }

    def _with_tasks(self, status: Status, watches: Sequence[WatchState]) -> Status:
        """The whole's status: a task or a watch that stands still degrades it."""
        now = self.supervisor.now()
        stands = any(task.stands_still(now) for task in self.supervisor.tasks)
        stands = stands or any(watch.stalled for watch in watches)
        return Status.DEGRADED if stands and status is Status.HEALTHY else status

    async def ready(self) -> Ready:
        """Whether the database answers; all else can be away for a while."""
        report = await self._report()
        bad = [
            f"{name}: {c.detail} {c.hint}".strip()
            for name, c in report.components.items()
            if c.status is Status.UNHEALTHY
        ]
        return Ready(ok=not bad, reasons=tuple(bad))

    async def model_performance(self) -> Mapping[str, Any]:
        """What the newest look of each running or last test says of its arms."""
        page = await self.store.experiments.page(limit=10)
        found = {}
        for test in page.items:
            look = await self.store.experiments.last_look(test.id)
            if look is not None:
                found[test.id] = {
                    "status": str(test.status),
                    "at": look.at.isoformat(),
                    "baseline": {"model_id": test.baseline.model_id, **asdict(look.baseline)},
                    "candidate": {"model_id": test.candidate.model_id, **asdict(look.candidate)},
                    "lift": look.lift,
                    "interval": [look.lower, look.upper],
                }
        return {"experiments": found}

    async def response_time(self) -> Mapping[str, Any]:
        """How long this service takes to answer: mean and quantiles, in ms."""
        return dict(self.metrics.response_times.read())

    async def metrics_text(self, accept: str = "") -> tuple[bytes, str]:
        """The Prometheus exposition and its content type."""
        return self.metrics.render(accept)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request was answered."""
        self.metrics.request_finished(method, route, status, seconds)

    # --- overview -------------------------------------------------------------------

    async def status(self) -> Mapping[str, Any]:
        """Each pipeline: the model in use, what runs, what happens next and when."""
        routing = (await self.board.refresh_if_possible()).routing
        watches = await self.watchdog.states()
        return {
            "pipelines": [
                await self._pipeline_status(config, {r.task: r for r in routing}, watches)
                for config in self.pipelines()
            ],
            "routing": [r.document() for r in routing],
        }

    async def _pipeline_status(
        self,
        config: PipelineConfig,
        routing: Mapping[str, Routing],
        watches: Sequence[WatchState],
    ) -> dict[str, Any]:
        now = self.clock.now()
        active = await self.store.runs.active(config.name)
        run = active[-1] if active else None
        deployments = await self.store.deployments.active(config.name)
        deployment = deployments[-1] if deployments else None
        starts = self.next_start(config, now)
        served = [routing[t] for t in config.tasks if t in routing]
        stalled = [w.sentence() for w in watches if w.stalled and w.pipeline == config.name]
        return {
            "name": config.name,
            "enabled": config.enabled,
            "model_in_use": {
                t: routing[t].baseline.model_id if t in routing else None for t in config.tasks
            },
            "run": {"id": run.id, "status": str(run.status), "current_stage": run.current_stage}
            if run
            else None,
            "experiment_id": run.result.get("ab_test_id") if run else None,
            "deployment_id": deployment.id if deployment else None,
            "traffic": max(
                (r.candidates_share for r in served if r.candidates_share is not None), default=None
            ),
            "next_start_at": starts.isoformat() if starts else None,
            "shutdown": await self._countdown(config, now),
            "next_action": _next_action(run, deployment, starts),
            "stalled_watches": stalled,
            "waits_for_person": [
                *stalled,
                *([f"{run.id}: {needed}"] if run and (needed := _needed(run)) else []),
                *(f"{d.id} is paused: {d.cause}" for d in deployments if str(d.state) == "paused"),
            ],
        }

    async def _countdown(self, config: PipelineConfig, now: datetime) -> dict[str, Any] | None:
        found = await self.shutdown(config)
        if found is None:
            return None
        return {
            "model": found.model,
            "provider": found.provider,
            "at": found.at.isoformat(),
            "days": found.left(now).days,
            "successor": found.follower(config),
        }

    async def activity(self, *, cursor: str | None = None, limit: int = 50) -> Page[Activity]:
        """Who did what and why, newest first."""
        return await self.store.activity.page(cursor=cursor, limit=limit)

    def subscribe(self, *, after: int | None = None) -> AsyncGenerator[LiveEvent, None]:
        """Live events from now on, or from the last one seen."""
        return self.live.subscribe(after=after)

    # --- doctor ---------------------------------------------------------------------

    async def doctor(self) -> Sequence[Finding]:
        """Everything that could keep the loop from turning, each with how to mend it."""
        report = await self._report()
        found = [
            Finding(
                name=name,
                status=_FINDINGS[c.status],
                detail=c.detail or str(c.status).replace("_", " "),
                mend=c.hint if c.status is not Status.HEALTHY else "",
            )
            for name, c in report.components.items()
        ]
        found += [
            Finding(
                name=path,
                status="warning",
                detail=f"set by {self.settings.origins[path]}, and without effect",
                mend=f"Take it out; {WITHOUT_EFFECT[path]}.",
            )
            for path in self.settings.without_effect()
        ]
        found += [_task_finding(task, self.supervisor.now()) for task in self.supervisor.tasks]
        found += [
            Finding(name=f"watch: {w.subject}", status="failed", detail=w.sentence(), mend=_LOOK)
            for w in await self._watches()
            if w.stalled
        ]
        found += await self._tried("alerts", self._alert_findings())
        for name in self.scorers.used():
            found += await self._tried(f"scorer: {name}", self._scorer_findings(name))
        for config in self.pipelines():
            name = config.name
            found += await self._tried(f"{name}: base model", self._model_findings(config))
            found += await self._tried(f"{name}: models in use", self._served_findings(config))
            found += await self._tried(f"{name}: posts", self._posts_findings(config))
        return found

    async def _tried(self, name: str, looking: Awaitable[list[Finding]]) -> list[Finding]:
        """What one look finds; what keeps it from looking is a finding, and ends no other."""
        try:
            return await looking
        except TuneProofError as e:
            return [Finding(name=name, status="failed", detail=e.message, mend=e.mend)]

    async def _alert_findings(self) -> list[Finding]:
        """Whether somebody is told when a person should look."""
        if self.alerts.configured:
            return [Finding(name="alerts", status="ok", detail=await self.alerts.check())]
        hint = "Name a webhook or Prometheus in [alerts], so that somebody is told."
        return [Finding(name="alerts", status="ok", detail="not configured", mend=hint)]

    async def _scorer_findings(self, name: str) -> list[Finding]:
        """Whether the model that judges is known where it is asked."""
        title, config = f"scorer: {name}", self.scorers.config(name)
        if config.model is None or not config.is_judge:
            return [Finding(name=title, status="ok", detail="code of your own")]
        if not self.trains(config.provider) and self._given_provider is None:
            return [Finding(name=title, status="ok", detail="the embedded trainer's own")]
        detail = f"{config.model} at {config.provider}"
        if await find_model(self.provider(config.provider), config.model) is not None:
            return [Finding(name=title, status="ok", detail=detail)]
        return [
            Finding(
                name=title,
                status="warning",
                detail=f"{config.provider} does not list {config.model}, which should judge",
                mend=f"Check scorers.{name}.model and scorers.{name}.provider.",
            )
        ]

    async def _model_findings(self, config: PipelineConfig) -> list[Finding]:
        name = f"{config.name}: base model"
        if not self._serves(config):
            return [Finding(name=name, status="ok", detail="the embedded trainer's own")]
        provider = self.provider(config.provider)
        models = [m.id for m in await provider.models()]
        bases = [m for m in models if not m.startswith("ft:")]
        base = config.base_model or (bases[0] if len(bases) == 1 else None)
        if base is None:
            return [
                Finding(
                    name=name,
                    status="failed",
                    detail=f"training.base_model is not set, and {provider.name} offers "
                    f"{len(bases)} base models.",
                    mend=f"Set training.base_model to one of: {', '.join(bases[:8]) or 'none'}.",
                )
            ]
        return [await self._base_finding(config, base)]

    async def _base_finding(self, config: PipelineConfig, base: str) -> Finding:
        """Whether a run would train on this base, asked as a run asks; and its countdown."""
        now = self.clock.now()
        found = await preflight(self.provider(config.provider), base, config.method, now=now)
        return _countdown(f"{config.name}: base model", base, found.shutdown_at, now)

    async def _served_findings(self, config: PipelineConfig) -> list[Finding]:
        """Models in use that are shut down soon, or whose provider left the settings."""
        found = []
        for task in config.tasks:
            routing = await self.store.routing.get(task)
            if routing is None or self._given_provider is not None:
                continue
            found += await self._answering_finding(task, routing.baseline)
        announced = await self.shutdown(config)
        if announced is not None and announced.model != config.base_model:
            name = f"{config.name}: {announced.model}"
            found.append(_countdown(name, announced.model, announced.at, self.clock.now()))
        return found

    async def _answering_finding(self, task: str, model: ModelRef) -> list[Finding]:
        """Whether who serves the model in use is set, and knows it."""
        name = f"{task}: model in use"
        place, _ = await provider_of(self.store, self.settings, model)
        try:
            config = await self.places.find(place)
            if config.embedded and self.trainer_url is None:
                return [Finding(name=name, status="ok", detail="the embedded trainer's own")]
            known = await find_model(await self.provider_at(place), model.model_id)
        except TuneProofError as e:
            detail = f"{model.model_id} is served by {place}. {e.message}"
            return [Finding(name=name, status="failed", detail=detail, mend=e.mend)]
        if known is None:
            return [
                Finding(
                    name=name,
                    status="warning",
                    detail=f"{place} does not list {model.model_id}, which it should serve",
                    mend=f"Name who serves it: tasks.{task}.model_provider; or deploy it there.",
                )
            ]
        detail = f"{model.model_id} at {place}"
        return [Finding(name=name, status="ok", detail=detail)]

    async def _posts_findings(self, config: PipelineConfig) -> list[Finding]:
        from tuneproof.collection import PostQuery, Window

        name = f"{config.name}: posts"
        now = self.clock.now()
        query = PostQuery(
            window=Window(since=now - timedelta(days=config.days_back), until=now),
            threshold=config.engagement_threshold,
            max_records=config.max_records,
            chunk_size=config.chunk_size,
        )
        source = self.open_source(config)
        try:
            check = await source.check(query)
        finally:
            await source.close()
        if check.advice:
            mend = " ".join(check.advice)
            return [Finding(name=name, status="warning", detail="works", mend=mend)]
        return [Finding(name=name, status="ok", detail="the source has all the columns")]

    # --- tokens and repeated requests -------------------------------------------------

    async def create_token(self, name: str, *, scopes: Sequence[str], actor: str = "system") -> str:
        """A new bearer token, shown once; only its hash is kept."""
        now = self.clock.now()
        async with self.store.database.begin() as tx:
            token = await self.store.tokens.create(name, scopes, now, tx=tx)
            await self.store.activity.add(now, actor, "token create", name, tx=tx)
        return token

    async def verify_token(self, token: str) -> TokenInfo | None:
        """Whose token this is and what it may do; None where nobody's."""
        return await self.store.tokens.find(token)

    async def answered(self, key: str) -> Any:
        """What a request with this idempotency key was answered; None where it is new."""
        return await self.store.idempotency.get(key)

    async def keep_answer(
        self, key: str, *, request_hash: str, status: int, body: Mapping[str, Any]
    ) -> None:
        """Remember an answer, so that the request repeated gets it again."""
        await self.store.idempotency.put(key, request_hash, status, body, self.clock.now())


_FINDINGS = {
    Status.HEALTHY: "ok",
    Status.NOT_CONFIGURED: "ok",
    Status.DEGRADED: "warning",
    Status.UNHEALTHY: "failed",
}


def _countdown(name: str, model: str, shutdown_at: datetime | None, now: datetime) -> Finding:
    if shutdown_at is None:
        return Finding(name=name, status="ok", detail=f"{model}; no shutdown announced")
    left = shutdown_at - now
    status = "ok" if left > SHUTDOWN_WARNING else "warning"
    mend = "" if status == "ok" else "Name what follows it in training.successor_model."
    detail = f"{model} shuts down on {shutdown_at:%Y-%m-%d}, in {left.days} days"
    return Finding(name=name, status=status, detail=detail, mend=mend)


def _needed(run: Run) -> str:
    """What a run that waits needs a person for; empty where it goes on by itself."""
    stage = run.stages.get(run.current_stage or "", {})
    if stage.get("status") != "in_progress":
        return ""
    return str(stage.get("detail", {}).get("needs") or "")


def _next_action(run: Any, deployment: Any, starts: datetime | None) -> str:
    if deployment is not None and deployment.next_at is not None:
        return f"rollout {deployment.id}: next step at {deployment.next_at:%Y-%m-%d %H:%M} UTC"
    if run is not None:
        return f"run {run.id}: {run.current_stage or 'about to begin'}"
    if starts is not None:
        return f"next run at {starts:%Y-%m-%d %H:%M} UTC"
    return "nothing: start a run (tuneproof run start)"


_LOOK = "Nobody judges its candidate: look at the log of the service, or end it by hand."


def _task_finding(task: TaskHealth, now: datetime) -> Finding:
    stands = task.stands_still(now)
    return Finding(
        name=f"task: {task.name}",
        status="warning" if stands else "ok",
        detail=task.sentence(),
        mend="It is started again by itself; its log says what it died of." if stands else "",
    )
