"""The training stage: what may be spent, then one job or a search, to a trained version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from tuneproof import workflow
from tuneproof.collection import TrainingDataBatch
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.details import VersionDetail
from tuneproof.pipeline.jobs import (
    UNKNOWN_PROGRESS,
    JobKey,
    Jobs,
    Spending,
    cancel,
    find_under_way,
    trainer_of,
)
from tuneproof.pipeline.optimising import OptimiseStage, forget
from tuneproof.pipeline.preflight import Cleared, Preflight
from tuneproof.pipeline.prompting import (
    SETTINGS,
    ensure_asks_for,
    owned_task,
    prompt_in_use,
    tracked_prompt,
)
from tuneproof.pipeline.records import Optimised, Stage, StageStatus
from tuneproof.pipeline.routing import model_in_use
from tuneproof.pipeline.search import Searched, Trained, TrialSearch, shown_trials
from tuneproof.pipeline.steps import StepName
from tuneproof.settings import PipelineConfig
from tuneproof.settings.recipes import PROMPT, TRAIN, Recipe
from tuneproof.training import ModelVersion, Trial, VersionStatus, new_version_id
from tuneproof.workflow import Tx

MENDED_BY_RETRY = (
    "provider",
    "base_model",
    "n_epochs",
    "batch_size",
    "learning_rate_multiplier",
    "timeout_seconds",
    "poll_seconds",
    "max_cost_usd",
    "max_cost_usd_month",
)
"""What a retry of the training takes from the settings as they are then."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What tells untrained candidates apart, and from the model in use."""

    model_id: str
    base_model: str = field(compare=False)
    provider: str
    prompt: str | None

    @classmethod
    def of(cls, version: ModelVersion) -> _Made:
        """What a version is."""
        assert version.model_id is not None
        return cls(
            model_id=version.model_id,
            base_model=version.base_model,
            provider=version.provider,
            prompt=version.prompt,
        )


class TrainStage:
    """From a dataset to trained versions."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._jobs: Jobs | None = None
        self.optimised: tuple[Optimised, ...] = ()
        """What came of recipes that look for a prompt."""

    async def make(self, batch: TrainingDataBatch) -> tuple[ModelVersion, ...]:
        """A version of each recipe, those that are trained first; without recipes, of a training.

        None of a model that is in use already.
        """
        run = self._run
        attempt = await run.begin(Stage.TRAIN)
        trained = await self._train(batch, attempt) if run.config.trains else ()
        if not run.config.untrained:
            return trained
        self.optimised = await OptimiseStage(run).optimise(batch)
        taken = await workflow.transaction(StepName.TRAIN_TAKE, self._take, batch)
        if self.optimised:
            await forget(run)
        run.changed()
        return (*trained, *taken)

    async def _train(self, batch: TrainingDataBatch, attempt: int) -> tuple[ModelVersion, ...]:
        """Ask, upload, create the job, and wait for its end; who is away is waited for.

        The version, or as many as `candidates` asks for where several are searched, best first.
        """
        run = self._run
        if attempt > 1:
            run.config = await workflow.step(StepName.TRAIN_CONFIGURE, self._configured)
        base = await run.patiently(StepName.TRAIN_RESOLVE, trainer_of(run, {}).base)
        cleared = await run.patiently(StepName.TRAIN_CHECK, self._cleared, batch, base)
        declared = await workflow.transaction(StepName.TRAIN_DECLARE, self._declare, batch, base)
        spending = Spending(cleared)
        self._jobs = Jobs(run, spending)
        async with run.timed():
            found = await self._trained(batch, declared, self._jobs, attempt)
        best = found.best[0]
        await workflow.transaction(StepName.TRAIN_END, self._write, best, found.trials, spending)
        others = tuple(one.version for one in found.best[1 : run.config.candidates])
        if others:
            others = await workflow.transaction(
                StepName.TRAIN_DECLARE_OTHERS, self._declare_others, others
            )
        run.changed()
        return (best.version, *others)

    async def _take(self, tx: Tx, batch: TrainingDataBatch) -> tuple[ModelVersion, ...]:
        """Record a version of each model that is to be tested as it is."""
        run, in_use = self._run, await self._in_use(tx)
        found: list[ModelVersion] = []
        for recipe in self._decided():
            made = await self._made(recipe, in_use, tx)
            if recipe.model is not None:
                run.parts.provider(made.provider)  # refuses one that has left the settings since
            twin = replace(made, provider=run.parts.place(made.provider))
            if in_use in (made, twin) or made in [_Made.of(version) for version in found]:
                continue
            if not run.arguments.force and await self._did_harm(made, tx):
                continue
            version = ModelVersion(
                id=new_version_id(run.now),
                pipeline=run.config.name,
                run_id=run.id,
                version="0.0.0",
                model_id=made.model_id,
                base_model=made.base_model,
                provider=made.provider,
                training_job_id=None,
                dataset_hash=None,
                tasks=tuple(batch.examples),
                status=VersionStatus.TRAINED,
                created_at=run.now,
                prompt=made.prompt,
                recipe=recipe.make,
            )
            kept = await run.parts.store.versions.declare(version, tx=tx)
            await self._tell_version(tx, kept, f"model_version:{kept.id}")
            found.append(kept)
        if not run.config.trains:
            spent = sum(one.spent_usd for one in self.optimised)
            detail: dict[str, object] = {"cost_usd": round(spent, 6), **UNKNOWN_PROGRESS}
            if found:
                detail["model_id"] = found[0].model_id
                known = {"model_version": VersionDetail.of(found[0]).to_dict()}
                await run.mark_run(tx, known)
            await run.mark_stage(tx, Stage.TRAIN, StageStatus.COMPLETED, detail)
        if self.optimised:
            told = {"optimised": [asdict(one) for one in self.optimised]}
            await run.mark_stage(tx, Stage.TRAIN, StageStatus.COMPLETED, told)
        return tuple(found)

    def _decided(self) -> list[Recipe]:
        """The recipes for which nothing is trained, with the prompts that were found for them;
        without those for which none was."""
        searched = {one.recipe: one.prompt for one in self.optimised}
        found = []
        for number, recipe in enumerate(self._run.config.untrained, 1):
            if number not in searched:
                found.append(recipe)
            elif searched[number] is not None:
                found.append(replace(recipe, hash=searched[number]))
        return found

    async def _made(self, recipe: Recipe, in_use: _Made, tx: Tx) -> _Made:
        """What a recipe makes of the model in use: what it does not say stays."""
        made = in_use
        if recipe.model is not None:
            provider = recipe.provider or self._run.config.provider
            made = replace(made, model_id=recipe.model, base_model=recipe.model, provider=provider)
        if recipe.make != PROMPT:
            return made
        store, task = self._run.parts.store, owned_task(self._run)
        assert task is not None
        if recipe.hash is not None:
            prompt = (await store.prompts.get(recipe.hash, tx=tx)).prompt
        else:
            prompt = recipe.prompt_from(await prompt_in_use(self._run, task, tx))
            await store.prompts.keep(prompt, origin=SETTINGS, parent=in_use.prompt, tx=tx)
        ensure_asks_for(task, prompt)
        return replace(made, prompt=prompt.hash)

    async def _did_harm(self, made: _Made, tx: Tx) -> bool:
        """Whether the same was taken back before: it is not tried again without a person's word."""
        find = self._run.parts.store.versions.taken_back
        return made in [_Made.of(version) for version in await find(made.model_id, tx=tx)]

    async def _in_use(self, tx: Tx) -> _Made:
        """The model in use, and the provider that serves it: a version is where it was made."""
        run = self._run
        found = await model_in_use(run, run.config.base_model or "", tx)
        version = found.version and await run.parts.store.versions.find(found.version, tx=tx)
        if version:
            return replace(_Made.of(version), prompt=found.prompt)
        own, provider = run.config.provider, found.provider
        if provider in (None, run.parts.place(own)):
            provider = own
        return _Made(
            model_id=found.model_id,
            base_model=found.model_id,
            provider=provider or own,
            prompt=found.prompt,
        )

    async def cancel(self) -> bool:
        """Cancel the job of an aborted run, where it has one that still runs."""
        return await workflow.step(StepName.TRAIN_CANCEL, self._cancel)

    async def _cancel(self) -> bool:
        run, known = self._run, self._jobs and self._jobs.key
        attempt = await run.parts.store.runs.attempt(run.id)
        return await cancel(run, known or JobKey(run_id=run.id, attempt=attempt))

    async def _configured(self) -> PipelineConfig:
        """A retry trains as the settings say now: a provider that closed can be changed."""
        config = self._run.config
        now = await self._run.parts.settings_now(config.name)
        if now is None:
            return config
        mended = replace(config, **{name: getattr(now, name) for name in MENDED_BY_RETRY})
        return mended.trained_as(now)

    async def _cleared(self, batch: TrainingDataBatch, base: str) -> Cleared:
        batch = await with_files(self._run, batch)
        return await Preflight(self._run).check(batch, base)

    async def _declare(self, tx: Tx, batch: TrainingDataBatch, base: str) -> ModelVersion:
        run = self._run
        version = ModelVersion(
            id=new_version_id(run.now),
            pipeline=run.config.name,
            run_id=run.id,
            version="0.0.0",
            model_id=None,
            base_model=base,
            provider=run.config.for_training.provider,
            training_job_id=None,
            dataset_hash=batch.hash,
            tasks=tuple(batch.examples),
            status=VersionStatus.TRAINING,
            created_at=run.now,
            prompt=batch.prompt,
            recipe=TRAIN,
        )
        return await run.parts.store.versions.declare(version, tx=tx)

    async def _trained(
        self, batch: TrainingDataBatch, declared: ModelVersion, jobs: Jobs, attempt: int
    ) -> Searched:
        """One job, or several where hyperparameters are searched."""
        run, key = self._run, JobKey(run_id=self._run.id, attempt=attempt)
        if run.config.search is not None:
            return await TrialSearch(run, jobs).search(batch, declared, key)
        if attempt > 1:
            key = await run.patiently(
                StepName.TRAIN_FIND, find_under_way, run, attempt, declared.base_model
            )
        done = Trained(*await jobs.run(batch, declared, key, {}))
        return Searched((done,), ())

    async def _write(
        self, tx: Tx, trained: Trained, trials: Sequence[Trial], spending: Spending
    ) -> None:
        run, (version, progress) = self._run, trained
        await run.parts.store.versions.save(version, tx=tx)
        spent = round(spending.usd, 6)
        detail = {
            "model_id": version.model_id,
            "job_id": version.training_job_id,
            "trained_tokens": version.trained_tokens,
            "metrics": dict(progress.metrics),
            "hyperparameters": dict(progress.job.hyperparameters),
            "cost_usd": spent,
            **UNKNOWN_PROGRESS,
            **({"trials": shown_trials(trials)} if trials else {}),
        }
        await run.mark_stage(tx, Stage.TRAIN, StageStatus.COMPLETED, detail)
        known = {
            "model_version": VersionDetail.of(version).to_dict(),
            "cost": spending.detail(run.now.isoformat(), ended=True),
            "training_time": spending.time(version, run.config.method),
        }
        await run.mark_run(tx, known)
        numbers = {k: float(v) for k, v in progress.metrics.items() if isinstance(v, (int, float))}
        numbers["training_cost_usd"] = spent
        at = run.now.isoformat()
        await run.tell(tx, "metrics", {"metrics": numbers, "step": 0, "at": at})
        await self._tell_version(tx, version)

    async def _declare_others(
        self, tx: Tx, others: tuple[ModelVersion, ...]
    ) -> tuple[ModelVersion, ...]:
        """Make versions of their own of the trials that are tested beside the best."""
        found, at = [], self._run.now
        for trained in others:
            version = replace(trained, id=new_version_id(at), version="0.0.0", created_at=at)
            kept = await self._run.parts.store.versions.declare(version, tx=tx)
            await self._tell_version(tx, kept, f"model_version:{kept.id}")
            found.append(kept)
        return tuple(found)

    async def _tell_version(self, tx: Tx, version: ModelVersion, key: str | None = None) -> None:
        if version.prompt is not None:
            kept = await self._run.parts.store.prompts.get(version.prompt, tx=tx)
            told = {**tracked_prompt(version), "prompt": kept.prompt.document()}
            await self._run.tell(tx, "prompt", told, f"prompt:{version.prompt}")
        payload = {
            "name": self._run.config.name,
            "version_id": version.id,
            "version": version.version,
            "model_id": version.model_id,
            "tags": {
                "base_model": version.base_model,
                "dataset": version.dataset_hash or "",
                "job": version.training_job_id or "",
                "provider": version.provider,
                "prompt": version.prompt or "",
            },
        }
        await self._run.tell(tx, "model_version", payload, key)
