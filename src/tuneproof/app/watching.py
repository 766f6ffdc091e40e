"""What providers announce: shutdowns of models, which are counted down, and ends of jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from tuneproof import workflow
from tuneproof.app.providing import provider_of
from tuneproof.app.runs import Runs
from tuneproof.errors import ConfigError, DeniedError, StateError, TuneProofError
from tuneproof.providers import JobEnded, read_webhook
from tuneproof.resilience import State
from tuneproof.settings import PipelineConfig
from tuneproof.store import Run
from tuneproof.training import find_model

log = logging.getLogger(__name__)

SHUTDOWN_WARNING = timedelta(days=60)
"""From when on the loop warns that a provider shuts a model down."""

PROBE_EVERY_S = 5.0
"""How often it is looked whether a breaker lets a probe through; the breaker sets the pauses."""

ASK_EVERY = timedelta(hours=24)
"""How often providers are asked for shutdown dates."""


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """The day on which a model of a pipeline stops answering, as its provider announced it.

    `base` is what the model was trained on; of a base model it is itself.
    """

    model: str
    provider: str
    at: datetime
    base: str = ""

    def left(self, now: datetime) -> timedelta:
        """How long it still answers."""
        return self.at - now

    def follower(self, config: PipelineConfig) -> str | None:
        """What to train on instead: the successor, or the base that was changed already."""
        if config.base_model not in (None, self.model, self.base):
            return config.base_model
        successor = config.successor_model
        return None if successor in (self.model, self.base) else successor


class Watching(Runs):
    """What is done about what providers announce."""

    # --- shutdowns ------------------------------------------------------------------

    async def watch_shutdowns(self, now: datetime) -> list[str]:
        """Ask for shutdown dates once a day; warn, and re-train on successors when it is time.

        Returns the ids of the runs that were started.
        """
        started = []
        for config in self.pipelines():
            if not config.enabled:
                continue
            try:
                found = await self._asked(config, now)
                run = await self._acted(config, found, now) if found else None
            except TuneProofError as e:
                log.warning("shutdowns of %s could not be looked at: %s", config.name, e)
                continue
            if run is not None:
                started.append(run.id)
        return started

    async def shutdown(self, config: PipelineConfig) -> Shutdown | None:
        """The shutdown that was last heard of, without asking; None where none is announced."""
        kept: Mapping[str, Any] | None = await self.store.meta.get(f"shutdown:{config.name}")
        if not kept or not kept.get("at"):
            return None
        at = datetime.fromisoformat(kept["at"])
        base = kept.get("base") or kept["model"]
        return Shutdown(model=kept["model"], provider=kept["provider"], at=at, base=base)

    async def _asked(self, config: PipelineConfig, now: datetime) -> Shutdown | None:
        kept = await self.store.meta.get(f"shutdown:{config.name}")
        if kept and now - datetime.fromisoformat(kept["asked_at"]) < ASK_EVERY:
            return await self.shutdown(config)
        found = await self.ask_shutdown(config)
        value = {
            "asked_at": now.isoformat(),
            "model": found.model if found else None,
            "provider": found.provider if found else None,
            "at": found.at.isoformat() if found else None,
            "base": found.base if found else None,
        }
        await self.store.meta.set(f"shutdown:{config.name}", value)
        return found

    async def ask_shutdown(self, config: PipelineConfig) -> Shutdown | None:
        """The first shutdown among the model in use, its base, and the base to train on."""
        places: dict[str, tuple[str, str]] = {}  # model -> who serves it, its base
        if config.base_model is not None:
            places[config.base_model] = config.provider, config.base_model
        for task in config.tasks:
            routing = await self.store.routing.get(task)
            if routing is None:
                continue
            name, base = await provider_of(self.store, self.settings, routing.baseline)
            places |= {base: (name, base), routing.baseline.model_id: (name, base)}
        found = []
        for model, (name, base) in places.items():
            try:
                info = await find_model(await self.provider_at(name), model)
            except TuneProofError as e:  # the others' dates count all the same
                log.warning("%s could not be asked when %s shuts down: %s", name, model, e)
                info = None
            at = info.shutdown_at if info is not None else await self._heard(config, model)
            if at is not None:
                found.append(Shutdown(model=model, provider=name, at=at, base=base))
        return min(found, default=None, key=lambda s: (s.at, s.model))

    async def _heard(self, config: PipelineConfig, model: str) -> datetime | None:
        """When a model shuts down as it was last heard, of a provider that says nothing now."""
        kept = await self.shutdown(config)
        return kept.at if kept is not None and kept.model == model else None

    async def _acted(self, config: PipelineConfig, found: Shutdown, now: datetime) -> Run | None:
        clock = self.clock
        self.metrics.model_shuts_down(
            config.name, found.model, lambda: found.left(clock.now()).total_seconds()
        )
        if found.left(now) > SHUTDOWN_WARNING:
            return None
        await self._warn(config, found, now)
        lead = timedelta(days=config.retrain_lead_days)
        if found.left(now) > lead or found.follower(config) is None:
            return None
        if config.schedule_driver != "internal":
            return None  # the outer scheduler's next run trains on the successor
        return await self._retrained(config, found, now)

    async def _warn(self, config: PipelineConfig, found: Shutdown, now: datetime) -> None:
        key, mark = f"shutdown_warned:{config.name}", f"{found.model} {found.at.isoformat()}"
        if await self.store.meta.get(key) == mark:
            return
        follows = found.follower(config)
        said = (
            f"{found.model} shuts down at {found.provider} on {found.at:%Y-%m-%d}, in "
            f"{found.left(now).days} days; "
            + (
                f"{config.retrain_lead_days:g} days before, the loop trains on {follows}"
                if follows
                else "name a training.successor_model"
            )
        )
        async with self.store.database.begin() as tx:
            await self.store.meta.set(key, mark, tx=tx)
            await self.store.activity.add(
                now, "schedule", "model shutdown", config.name, said, tx=tx
            )
        self.live.publish("activity", config.name)
        self.alert("model_shutdown", config.name, said, once=mark)

    async def _retrained(
        self, config: PipelineConfig, found: Shutdown, now: datetime
    ) -> Run | None:
        key, mark = f"shutdown_retrained:{config.name}", found.model
        if await self.store.meta.get(key) == mark:
            return None
        try:
            run = await self.start_run(config.name, actor="schedule")
        except StateError:
            return None  # a run is under way; this is looked at again after it
        await self.store.meta.set(key, mark)
        follows = found.follower(config)
        said = f"{found.model} shuts down on {found.at:%Y-%m-%d}: {follows} follows"
        await self.store.activity.add(now, "schedule", "successor run", run.id, said)
        return run

    async def effective(self, config: PipelineConfig) -> PipelineConfig:
        """The config with the successor for its base model, once the lead has begun.

        A base model that the team has changed already, to one that is not shut down, stays.
        """
        if config.successor_model is None:
            return config
        found = await self.shutdown(config)
        lead = timedelta(days=config.retrain_lead_days)
        if found is None or found.left(self.clock.now()) > lead:
            return config
        if found.follower(config) != config.successor_model:
            return config
        return replace(
            config,
            base_model=config.successor_model,
            provider=config.successor_provider or config.provider,
        )

    # --- outages --------------------------------------------------------------------

    async def _began(self) -> None:
        await super()._began()
        if self._background:
            self.supervisor.every("probes", PROBE_EVERY_S, self.probe_providers)

    async def probe_providers(self) -> list[str]:
        """Ask each provider whose breaker lets a probe through; those that answered.

        Without it nobody would ask before a run's next try, up to an hour later.
        """
        found = []
        for name in list(self._providers):
            breaker = self.breaker_of(name)
            if breaker.state is State.CLOSED or breaker.retry_after_s > 0:
                continue
            try:
                await self._providers[name].ping()
            except TuneProofError as e:
                log.info("%s is still away: %s", name, e.message)
            else:
                found.append(name)
        return found

    async def provider_is_back(self, name: str) -> list[str]:
        """Wake the runs that wait for a provider; they try again at once."""
        woken = []
        for run in await self.store.runs.active():
            waits = run.stages.get(run.current_stage or "", {}).get("detail", {}).get("note")
            if not waits or run.config.get("provider") != name:
                continue
            if await self.engine.exists(run.id) and not await self.engine.ended(run.id):
                signal = workflow.Signal(kind="wake", actor="breaker", reason=f"{name} is back")
                await self.engine.send(run.id, signal)
                woken.append(run.id)
        return woken

    # --- webhooks -------------------------------------------------------------------

    async def provider_webhook(self, body: bytes, headers: Mapping[str, str]) -> str | None:
        """Take in what a provider sent; the id of the run that was woken, None where none waits.

        The run then asks the provider itself. Raises `ConfigError` where no provider has a
        webhook secret, and `DeniedError` where the signature is none of theirs.
        """
        event = self._verified(body, headers)
        if event is None:
            return None
        versions = await self.store.versions.list(training_job_id=event.job_id, limit=1)
        run_id = versions[0].run_id if versions else None
        if run_id is None or not await self.engine.exists(run_id):
            return None
        signal = workflow.Signal(
            kind="wake", actor="webhook", reason=f"{event.kind} {event.job_id}"
        )
        await self.engine.send(run_id, signal, key=f"webhook:{event.event_id}")
        return run_id

    def _verified(self, body: bytes, headers: Mapping[str, str]) -> JobEnded | None:
        secrets = {
            p.webhook_secret.reveal()
            for p in self.settings.providers.values()
            if p.webhook_secret is not None
        }
        refusal: TuneProofError = ConfigError(
            "No provider has a webhook secret, so nothing that comes is believed.",
            mend="Set OPENAI_WEBHOOK_SECRET to the secret that was shown when the webhook was "
            "made, or webhook_secret_env of the provider.",
            field="webhook_secret",
        )
        for secret in sorted(secrets):
            try:
                return read_webhook(body, headers, secret=secret)
            except DeniedError as e:
                refusal = e
        raise refusal
