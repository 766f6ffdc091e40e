"""The doctor: everything that could keep the loop from turning, each with how to mend it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuneproof.app.alerting import Alerting
from tuneproof.app.best_of import BestOf
from tuneproof.app.connections import Need
from tuneproof.app.health import HealthService
from tuneproof.app.pipelines import Pipelines
from tuneproof.app.places import Places
from tuneproof.app.private import readable_by_others
from tuneproof.app.prompts import ensure_kept
from tuneproof.app.providers import Providers
from tuneproof.app.providing import provider_of
from tuneproof.app.rehearsal import Rehearsal, rehearse
from tuneproof.app.routing import RoutingService
from tuneproof.app.scorers import Scorers
from tuneproof.app.shutdowns import SHUTDOWN_WARNING, Shutdown, Shutdowns
from tuneproof.app.sources import Sources
from tuneproof.app.unready import unready
from tuneproof.collection import Task
from tuneproof.errors import FilesUnavailableError, StoreUnavailableError, TuneProofError
from tuneproof.evaluation import ensure_gepa
from tuneproof.experiments import Variant
from tuneproof.pipeline.gating import embedder_of, moderation_of
from tuneproof.resilience import Supervisor, TaskHealth, aside, in_daemon_thread
from tuneproof.rollout import Routing
from tuneproof.settings import WITHOUT_EFFECT, PipelineConfig, Settings
from tuneproof.settings.recipes import AS_IS
from tuneproof.shelf import Shelf
from tuneproof.store import KeptAlert, Store, server_connections
from tuneproof.telemetry import Alerts, HealthStatus
from tuneproof.training import find_model, preflight
from tuneproof.workflow import Clock

__all__ = ["Doctor", "Finding", "posts_finding"]

log = logging.getLogger(__name__)

BASE, BASE_LATER = "base model", "base model of successors"
"""What a run trains on, and a run does once the model in use is to go."""

FILES_S = 30.0
"""How long the object store is waited for; a run waits for longer, and tries again."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `doctor` found about one thing, and how to mend it."""

    name: str
    status: str
    detail: str
    mend: str = ""


class Doctor:
    """Looks at everything, and goes on where one look fails.

    `refused` is why the database could not be opened: what is kept in it is then not looked at.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        clock: Clock,
        supervisor: Supervisor,
        alerts: Alerts,
        alerting: Alerting,
        pipelines: Pipelines,
        places: Places,
        providers: Providers,
        scorers: Scorers,
        routing: RoutingService,
        shutdowns: Shutdowns,
        sources: Sources,
        health: HealthService,
        best_of: BestOf,
        shelf: Shelf | None,
        refused: StoreUnavailableError | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._supervisor = supervisor
        self._alerts = alerts
        self._alerting = alerting
        self._pipelines = pipelines
        self._places = places
        self._providers = providers
        self._scorers = scorers
        self._routing = routing
        self._shutdowns = shutdowns
        self._sources = sources
        self._health = health
        self._best_of = best_of
        self._shelf = shelf
        self._refused = refused

    async def examine(self) -> Sequence[Finding]:
        """Everything that could keep the loop from turning, each with how to mend it.

        Its calls go past the breakers: looking changes nothing.
        """
        with aside():
            return await self._examined()

    async def _examined(self) -> Sequence[Finding]:
        report = await self._health.components()
        found = [
            Finding(
                name=name,
                status=_FINDINGS[c.status],
                detail=c.detail or str(c.status).replace("_", " "),
                mend=c.hint if c.status is not HealthStatus.HEALTHY else "",
            )
            for name, c in report.components.items()
        ]
        if self._refused is not None:
            found[0] = self._store_finding(self._refused)
        found += [
            Finding(
                name=path,
                status="warning",
                detail=f"set by {self._settings.origins[path]}, and without effect",
                mend=f"Take it out; {WITHOUT_EFFECT[path]}.",
            )
            for path in self._settings.without_effect()
        ]
        found += [_task_finding(task, self._supervisor.now()) for task in self._supervisor.tasks]
        found += [
            Finding(name=f"watch: {w.subject}", status="failed", detail=w.sentence(), mend=_LOOK)
            for w in (() if self._absent else await self._health.watches())
            if w.blind
        ]
        found += [
            Finding(
                name=str(lack.details["field"]),
                status="failed",
                detail=lack.message,
                mend=lack.mend,
            )
            for lack in unready(self._settings)
        ]
        if readable_by_others(self._settings.dir):
            found.append(_open_directory(self._settings.dir))
        if not self._absent:
            found += await self._tried("commits", self._commit_findings())
            found += await self._tried("connections", self._connection_findings())
        if self._shelf is not None:
            found += await self._tried("files", self._files_findings(self._shelf))
        found += await self._tried("alerts", self._alert_findings())
        if not self._absent:
            found += await self._tried("alerts that wait", self._waiting_findings())
        if not self._absent:
            found += await self._tried("best of several answers", self._best_of_findings())
        for name in self._scorers.used():
            found += await self._tried(f"scorer: {name}", self._scorer_findings(name))
        for config in self._pipelines.running:
            name = config.name
            if config.trains:
                found += await self._tried(f"{name}: {BASE}", self._model_findings(config))
            found += await self._tried(f"{name}: recipes", self._recipe_findings(config))
            if (later := config.succeeding) is not None:
                if later.trains:
                    asking = self._model_findings(later, BASE_LATER)
                    found += await self._tried(f"{name}: {BASE_LATER}", asking)
                asking = self._untrained_findings(later)
                found += await self._tried(f"{name}: successors", asking)
            if not self._absent:
                found += await self._tried(f"{name}: models in use", self._served_findings(config))
                found += await self._tried(f"{name}: one model in use", self._one_finding(config))
            if config.gate_moderation is not None:
                asking = self._moderation_findings(config, config.gate_moderation)
                found += await self._tried(f"{name}: moderation", asking)
            if config.gate_embedding_model is not None and config.gate_embeddings != "off":
                found += await self._tried(f"{name}: embeddings", self._embeddings_findings(config))
            found += await self._tried(f"{name}: posts", self._posts_findings(config))
        return found

    @property
    def _absent(self) -> bool:
        """Whether the database, or what is in it, is still to be made."""
        return self._refused is not None and self._refused.details.get("reason") == "absent"

    def _store_finding(self, refused: StoreUnavailableError) -> Finding:
        """Why the database could not be opened; that nothing has run yet is no failure."""
        status = "warning" if self._absent else "failed"
        return Finding(name="database", status=status, detail=refused.message, mend=refused.mend)

    async def _tried(self, name: str, looking: Awaitable[list[Finding]]) -> list[Finding]:
        """What one look finds; what keeps it from looking is a finding, and ends no other."""
        try:
            return await looking
        except TuneProofError as e:
            return [Finding(name=name, status="failed", detail=e.message, mend=e.mend)]
        except Exception as e:  # of an adapter of the user's own, say
            log.warning("the doctor could not look at %s", name, exc_info=True)
            return [Finding(name=name, status="failed", detail=f"{type(e).__name__}: {e}")]

    async def _commit_findings(self) -> list[Finding]:
        """Whether what the database acknowledged outlives its crash: runs are resumed by it."""
        unsafe = await self._store.database.unsafe_settings()
        if not unsafe:
            return []
        detail = f"off: {', '.join(unsafe)}; a run that goes on after a crash may fail"
        mend = "Turn it on: commits are lost when the database, or its machine, crashes."
        return [Finding(name="commits", status="warning", detail=detail, mend=mend)]

    async def _connection_findings(self) -> list[Finding]:
        """Whether the database lets in what our workers may open; it is asked."""
        server = await server_connections(self._store.database)
        if server is None:
            return []
        need = Need(config=self._settings.store, server=server)
        return [
            Finding(
                name="connections", status=need.status, detail=need.sentence(), mend=need.mend()
            )
        ]

    async def _files_findings(self, shelf: Shelf) -> list[Finding]:
        """Whether the object store takes, gives back and deletes a file, as it must for a run."""
        try:
            await in_daemon_thread(shelf.check, timeout_s=FILES_S)
        except TimeoutError as error:
            raise FilesUnavailableError(
                f"{shelf.url} did not take, give and delete a file within {FILES_S:g} s.",
                mend="Check that it is up, and that it can be reached from here.",
            ) from error
        detail = f"{shelf.url} took a file, gave it back and deleted it"
        return [Finding(name="files", status="ok", detail=detail)]

    async def _alert_findings(self) -> list[Finding]:
        """Whether somebody is told when a person should look."""
        if self._alerts.configured:
            return [
                Finding(name=f"alerts: {way}", status="ok", detail="answers")
                if refusal is None
                else Finding(
                    name=f"alerts: {way}",
                    status="failed",
                    detail=refusal.message,
                    mend=refusal.mend,
                )
                for way, refusal in (await self._alerts.ways()).items()
            ]
        hint = "Name a webhook or Prometheus in [alerts], so that somebody is told."
        return [Finding(name="alerts", status="ok", detail="not configured", mend=hint)]

    async def _waiting_findings(self) -> list[Finding]:
        """What nobody was told yet, and what nobody was told for a day."""
        mend = "Check [alerts] in the settings, and that the webhook is up."
        return [
            Finding(
                name="alerts given up" if given_up else "alerts that wait",
                status="failed" if given_up else "warning",
                detail=_alerts_in_words(alerts),
                mend=mend,
            )
            for given_up, alerts in (await self._alerting.waiting()).items()
            if alerts
        ]

    async def _best_of_findings(self) -> list[Finding]:
        """Whether the answers that the settings want picked are, and by what."""
        return [
            Finding(
                name=f"{one.task}: best of {one.wanted}",
                status="ok" if one.asked > 1 else "warning",
                detail=one.sentence(),
                mend="" if one.asked > 1 else _LEARN,
            )
            for one in await self._best_of.standings()
        ]

    async def _scorer_findings(self, name: str) -> list[Finding]:
        """Whether the model that judges is known where it is asked."""
        title, config = f"scorer: {name}", self._scorers.config(name)
        if config.model is None or not config.is_judge:
            return [Finding(name=title, status="ok", detail="code of your own")]
        if not self._providers.serves_now(config.provider):
            return [Finding(name=title, status="ok", detail="the embedded trainer's own")]
        detail = f"{config.model} at {config.provider}"
        if await find_model(self._providers.get(config.provider), config.model) is not None:
            return [Finding(name=title, status="ok", detail=detail)]
        return [
            Finding(
                name=title,
                status="warning",
                detail=f"{config.provider} does not list {config.model}, which should judge",
                mend=f"Check scorers.{name}.model and scorers.{name}.provider.",
            )
        ]

    async def _moderation_findings(self, config: PipelineConfig, name: str) -> list[Finding]:
        """Whether the endpoint that says what is unsafe answers; it is asked."""
        endpoint = moderation_of(config, self._providers.get(name))
        await endpoint(["Hello"])
        detail = f"{config.gate_moderation_model} at {name}"
        return [Finding(name=f"{config.name}: moderation", status="ok", detail=detail)]

    async def _embeddings_findings(self, config: PipelineConfig) -> list[Finding]:
        """Whether the model gives vectors that outcomes are to be learnt by; it is asked."""
        await embedder_of(config, config.base_model or "", self._providers.get)
        detail = f"{config.gate_embedding_model} answers"
        return [Finding(name=f"{config.name}: embeddings", status="ok", detail=detail)]

    async def _model_findings(self, config: PipelineConfig, whose: str = BASE) -> list[Finding]:
        name, config = f"{config.name}: {whose}", config.for_training
        if not self._providers.serves_now(config.provider):
            return [Finding(name=name, status="ok", detail="the embedded trainer's own")]
        provider = self._providers.get(config.provider)
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
        return [await self._base_finding(name, config, base)]

    async def _base_finding(self, name: str, config: PipelineConfig, base: str) -> Finding:
        """Whether a run would train on this base, asked as a run asks; and its countdown."""
        now = self._clock.now()
        found = await preflight(self._providers.get(config.provider), base, config.method, now=now)
        if found.shutdown_at is None:
            return Finding(name=name, status="ok", detail=f"{base}; no shutdown announced")
        shutdown = Shutdown(model=base, provider=config.provider, at=found.shutdown_at, base=base)
        return _countdown(name, shutdown, config, now)

    async def _one_finding(self, config: PipelineConfig) -> list[Finding]:
        """Whether a run would be refused since its tasks have several models in use."""
        await self._routing.ensure_one(config)
        return []

    async def _served_findings(self, config: PipelineConfig) -> list[Finding]:
        """Models in use that are shut down soon, or whose provider left the settings."""
        found = []
        for task in config.tasks:
            routing, declared = await self._store.routing.get(task), self._settings.tasks[task]
            if routing is not None and routing.prompts and not declared.owned_by_variants:
                found.append(_disowned(routing))
            if self._providers.given is not None:
                continue
            if routing is not None:
                found += await self._answering_finding(f"{task}: model in use", routing.baseline)
            elif declared.model:
                model = Variant(model_id=declared.model, provider=declared.model_provider)
                found += await self._answering_finding(f"{task}: model in use", model)
        announced = await self._shutdowns.known(config)
        if announced is not None and announced.model != config.base_model:
            name = f"{config.name}: {announced.model}"
            found.append(_countdown(name, announced, config, self._clock.now()))
        return found

    async def _recipe_findings(self, config: PipelineConfig) -> list[Finding]:
        """The models and the kept prompts that a run would test, and the prompt in use."""
        return [*await self._prompt_findings(config), *await self._untrained_findings(config)]

    async def _untrained_findings(self, config: PipelineConfig) -> list[Finding]:
        """The models and the kept prompts that a run would test."""
        found = []
        for recipe in config.untrained:
            if recipe.model is not None and self._providers.given is None:
                how, place = "as it is" if recipe.make == AS_IS else "by a prompt", recipe.provider
                name = f"{config.name}: {recipe.model} {how}"
                place = place or config.provider
                found.append(await self._place_finding(name, recipe.model, place))
            if recipe.hash is not None and not self._absent:
                found.append(await self._prompt_finding(config, recipe.hash))
            if recipe.search is not None:
                ensure_gepa()
                name = f"{config.name}: {recipe.search.model}, which proposes prompts"
                if self._providers.given is None:
                    model, place = recipe.search.model, recipe.search.provider
                    found.append(await self._place_finding(name, model, place))
        return found

    async def _prompt_findings(self, config: PipelineConfig) -> list[Finding]:
        """By which prompt the model in use is asked, where variants own that."""
        found = []
        for task in config.tasks:
            declared = self._settings.tasks[task]
            if not declared.owned_by_variants:
                continue
            routing = None
            with contextlib.suppress(StoreUnavailableError):  # said of the database itself
                routing = await self._store.routing.get(task)
            first = Task.of(declared).first_prompt.hash
            in_use = routing.baseline.prompt if routing is not None else None
            detail = f"the settings' ({first})"
            if in_use not in (None, first):
                detail = (
                    f"{in_use}, not that of the settings any more: they say the first one only "
                    f"(tuneproof prompt show {in_use})"
                )
            found.append(Finding(name=f"{task}: prompt in use", status="ok", detail=detail))
        return found

    async def _prompt_finding(self, config: PipelineConfig, hash: str) -> Finding:
        """Whether a prompt that a run would test was kept, for this task."""
        name = f"{config.name}: prompt {hash}"
        try:
            await ensure_kept(self._store, self._settings, config.tasks[0], hash)
        except TuneProofError as e:
            return Finding(name=name, status="failed", detail=e.message, mend=e.mend)
        return Finding(name=name, status="ok", detail="kept")

    async def _answering_finding(self, name: str, model: Variant) -> list[Finding]:
        """Whether who serves the model in use is set, and knows it."""
        place, _ = await provider_of(self._store, self._settings, model)
        return [await self._place_finding(name, model.model_id, place)]

    async def _place_finding(self, name: str, model_id: str, place: str) -> Finding:
        """Whether a provider knows a model that it is to serve."""
        try:
            config = await self._places.find(place)
            if config.embedded and self._providers.trainer_url is None:
                return Finding(name=name, status="ok", detail="the embedded trainer's own")
            known = await find_model(await self._providers.at(place), model_id)
        except TuneProofError as e:
            detail = f"{model_id} is served by {place}. {e.message}"
            return Finding(name=name, status="failed", detail=detail, mend=e.mend)
        if known is None:
            return Finding(
                name=name,
                status="warning",
                detail=f"{place} does not list {model_id}, which it should serve",
                mend="Name who serves it (model_provider of the task, provider of the recipe), or "
                "deploy it there.",
            )
        return Finding(name=name, status="ok", detail=f"{model_id} at {place}")

    async def _posts_findings(self, config: PipelineConfig) -> list[Finding]:
        """What a run of now would make of the posts, and the first example of each task."""
        if self._absent and self._settings.sources[config.source].url is None:
            detail = "they are looked for in our own database, which is not there yet"
            return [
                Finding(name=f"{config.name}: posts", status="failed", detail=detail, mend=_LOAD)
            ]
        tasks = [Task.of(self._settings.tasks[name]) for name in config.tasks]
        source = self._sources.open(config)
        try:
            found = await rehearse(config, source, tasks, clock=self._clock)
        finally:
            await source.close()
        return [posts_finding(config, found), *_first_examples(config, found)]


def _open_directory(path: Path) -> Finding:
    return Finding(
        name="data directory",
        status="warning",
        detail=f"others than its owner may look into {path}",
        mend=f"chmod 700 {path}",
    )


def posts_finding(config: PipelineConfig, found: Rehearsal) -> Finding:
    """Whether a run of now would be made of these posts, and what is wrong with them."""
    batch, name = found.batch, f"{config.name}: posts"
    more = "lower engagement_threshold" if config.top_share is None else "raise top_share"
    made = sum(batch.examples.values())
    kept = ", ".join(f"{count:,} {task}" for task, count in batch.examples.items())
    dropped = ", ".join(f"{count:,} {why}" for why, count in batch.dropped.items() if count)
    detail = f"{batch.posts:,} posts give examples: {kept}; dropped: {dropped or 'none'}"
    detail += f"; chosen are {found.selects}"
    if batch.note:
        return Finding(name=name, status="failed", detail="a run would be skipped", mend=batch.note)
    if made < config.training_data_threshold:
        return Finding(
            name=name,
            status="warning" if made else "failed",
            detail=f"{detail}; a run needs {config.training_data_threshold} in all, and is skipped",
            mend=f"Widen days_back, {more}, or lower training_data_threshold.",
        )
    mend = " ".join((*found.advice, *_unread(found)))
    return Finding(name=name, status="warning" if mend else "ok", detail=detail, mend=mend)


def _unread(found: Rehearsal) -> list[str]:
    """What could not be read of the columns that are used."""
    return [
        f"{one.count:,} values of {word} cannot be read, such as {one.sample}: look at them by "
        "`tuneproof posts check`."
        for word, one in found.unread.items()
    ]


def _first_examples(config: PipelineConfig, found: Rehearsal) -> list[Finding]:
    """The first example of each task; one that has none while others have is told."""
    shown = []
    for task in config.tasks:
        name = f"{config.name}: first {task}"
        if task in found.first:
            shown.append(Finding(name=name, status="ok", detail=found.first[task]))
        elif found.first:
            mend = f"Check the columns of tasks.{task} and the posts that were dropped."
            shown.append(Finding(name=name, status="warning", detail="no example", mend=mend))
    return shown


_FINDINGS = {
    HealthStatus.HEALTHY: "ok",
    HealthStatus.NOT_CONFIGURED: "ok",
    HealthStatus.DEGRADED: "warning",
    HealthStatus.UNHEALTHY: "failed",
}


def _disowned(routing: Routing) -> Finding:
    """Variants have prompts that nobody is asked by."""
    idle = ", ".join(lane.subject for lane in routing.lanes if lane.subject)
    nobody = f", and nobody is in {idle}" if idle else ""
    return Finding(
        name=f"{routing.task}: prompt",
        status="warning",
        detail=f"The application owns it, so that of the model in use is left out{nobody}.",
        mend=f'Set prompt_owner = "variant" in [tasks.{routing.task}]'
        + (", or end what is tested or rolled out." if idle else "."),
    )


def _countdown(name: str, found: Shutdown, config: PipelineConfig, now: datetime) -> Finding:
    left = found.left(now)
    near, mend = left <= SHUTDOWN_WARNING, found.mend(config, now)
    return Finding(
        name=name,
        status="warning" if near else "ok",
        detail=f"{found.model} shuts down on {found.at:%Y-%m-%d}, in {left.days} days",
        mend=f"{mend[0].upper()}{mend[1:]}." if near else "",
    )


def _alerts_in_words(alerts: Sequence[KeptAlert]) -> str:
    first = alerts[0]
    said = f"{first.kind} of {first.subject} since {first.since:%Y-%m-%d %H:%M} UTC"
    said += f", tried {first.attempts} times" if first.attempts else ""
    said += f" ({first.error})" if first.error else ""
    return said if len(alerts) == 1 else f"{len(alerts)}, the oldest: {said}"


_LOAD = "Load some: tuneproof posts import FILE; or say where yours are in [sources.posts]."
_LEARN = (
    "Each run's gate trains it anew from posts that competed: start one, or give it more posts "
    "(gate.outcome_days, a `group` column)."
)
_LOOK = "Nobody judges its candidate: look at the log of the service, or end it by hand."


def _task_finding(task: TaskHealth, now: datetime) -> Finding:
    stands = task.stands_still(now)
    return Finding(
        name=f"task: {task.name}",
        status="warning" if stands else "ok",
        detail=task.sentence(),
        mend="It is started again by itself; its log says what it died of." if stands else "",
    )
