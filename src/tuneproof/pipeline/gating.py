"""The gate: each version is checked offline before any user meets it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, cast

from tuneproof import workflow
from tuneproof.collection import Dataset, TrainingDataBatch
from tuneproof.curation.files import DATASETS
from tuneproof.errors import ConfigError
from tuneproof.evaluation import (
    Asked,
    Embedder,
    Endpoint,
    Form,
    Gate,
    GateReport,
    Kept,
    Messages,
    Moderator,
    OutcomeModel,
    Prediction,
    Prompted,
    Published,
    Scorer,
    examples_of,
    fit_outcomes,
    form_of,
    inputs_of,
    listed,
    predict,
    published_posts,
)
from tuneproof.evaluation.vector_cache import FILE as VECTORS
from tuneproof.experiments import Variant, variant_of
from tuneproof.pipeline.collecting import with_files
from tuneproof.pipeline.context import RunContext
from tuneproof.pipeline.details import VersionDetail
from tuneproof.pipeline.prompting import ensure_all_know, tracked_prompt
from tuneproof.pipeline.records import Stage, StageStatus
from tuneproof.pipeline.routing import base_of, baseline_of, manager_of
from tuneproof.pipeline.steps import StepName
from tuneproof.resilience import end_tasks
from tuneproof.settings import PipelineConfig
from tuneproof.training import (
    Answers,
    Deploys,
    Embeds,
    ModelVersion,
    Moderates,
    Provider,
    VersionStatus,
)
from tuneproof.workflow import Tx

log = logging.getLogger(__name__)

TELL_S = 2.0
"""How often it is recorded how far a check is, seconds."""

COMPARED_ANSWERS = 2
"""How many answers to each input the outcome model compares."""

ANEW = 3
"""How often a gate begins anew at most, since another model came into use meanwhile."""

SHOWN = 5
"""How many of the sampled answers are kept, for people to read."""


class Judged(NamedTuple):
    """A version after the gate, and what the gate said of it."""

    version: ModelVersion
    report: GateReport


class GateStage:
    """From trained versions to checked ones."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._models: dict[str, OutcomeModel] = {}
        self._embedder: Embedder | None = None

    async def check(
        self, versions: Sequence[ModelVersion], batch: TrainingDataBatch
    ) -> tuple[Judged, ...]:
        """Check each version on its own, in their order; those that fail are never served.

        A provider that is away is waited for, and so is a version that must be deployed first; that
        can take days. Where another model came into use meanwhile, which recipes may name, too, all
        are checked anew, against that.
        """
        run = self._run
        await run.begin(Stage.GATE)
        async with run.timed():
            judged = await self._judged(versions, batch)
            for _ in range(ANEW if run.config.recipes else 0):
                in_use = await workflow.step(StepName.GATE_IN_USE, self._in_use, versions[0])
                if all(one.report.against in (None, in_use) for one in judged):
                    break
                log.info("run %s: %s is in use now, so the gate checks anew", run.id, in_use)
                judged = await self._judged(versions, batch)
        await workflow.transaction(StepName.GATE_END, self._write, tuple(judged))
        await forget_kept(run, batch)
        run.changed()
        return tuple(judged)

    async def _judged(
        self, versions: Sequence[ModelVersion], batch: TrainingDataBatch
    ) -> list[Judged]:
        judged = []
        for version in versions:
            report = await self._run.patiently(StepName.GATE_CHECK, self._checked, version, batch)
            judged.append(Judged(_after(version, report), report))
        return judged

    async def _in_use(self, version: ModelVersion) -> str:
        """What a version is compared with now."""
        return str(await baseline_of(self._run, version))

    async def _checked(self, version: ModelVersion, batch: TrainingDataBatch) -> GateReport:
        run = self._run
        batch = await with_files(run, batch)
        provider = await answering(run, variant_of(version))
        if isinstance(provider, Deploys) and version.model_id and version.training_job_id:
            await cast(Deploys, provider).ensure_deployed(version.model_id)
        kept, against = await kept_of(run, batch), await self._in_use(version)
        await self._learn(batch, base_of(run, version), kept)
        gate = Gate(
            await asked_as(run, kept.of(provider), version.prompt, batch),
            min_improvement=run.config.gate_min_improvement,
            samples=run.config.gate_samples,
            scorers={n: kept.scorer(n, s) for n, s in self._scorers().items()},
            min_scores={**run.parts.min_scores, **(run.config.gate_min_scores or {})},
            moderators=self._moderators(),
            max_unsafe=run.config.gate_max_unsafe,
            seed=run.config.seed,
        )
        calls = await gate.calls(batch.heldout)
        async with telling(run, kept, calls):
            report = await gate.check(version, batch.heldout, batch.train_path)
            if report.passed:
                report = after_comparing(
                    report,
                    await self._predicted(version, batch, kept),
                    run.config.gate_min_win_rate,
                )
            if report.passed:
                report = after_forms(
                    report,
                    await self._formed(version, batch, kept, report.predictions),
                    run.config.gate_allow_drift,
                )
        if report.passed:
            await self._ensure_answers(version)
        return replace(report, against=against)

    async def _predicted(
        self, version: ModelVersion, batch: TrainingDataBatch, kept: Kept
    ) -> tuple[Prediction, ...]:
        """How often the version's answers are expected to win, of each task that may be asked."""
        run, config = self._run, self._run.config
        if not config.gate_compared or version.model_id is None or not run.parts.asks(config.tasks):
            return ()
        candidate, rival = await self._both(version, batch, kept)
        return tuple(
            [
                await predict(
                    task,
                    self._models[task],
                    candidate,
                    rival,
                    inputs_of(batch.datasets[task].validation_path, config.gate_compared),
                    answers=COMPARED_ANSWERS,
                    embedder=self._embedder,
                    seed=config.seed,
                )
                for task in batch.datasets
            ]
        )

    async def _formed(
        self,
        version: ModelVersion,
        batch: TrainingDataBatch,
        kept: Kept,
        predictions: Sequence[Prediction],
    ) -> tuple[Form, ...]:
        """How the version writes each task beside the baseline: by the answers that were compared,
        where there are any, else to as many inputs as are sampled."""
        config = self._run.config
        candidate, rival = await self._both(version, batch, kept)
        compared = {one.task for one in predictions if one.win_rate is not None}
        found = []
        for task, dataset in batch.datasets.items():
            examples, answers = self._answered(dataset, task in compared)
            found.append(
                await form_of(task, candidate, rival, examples, answers=answers, seed=config.seed)
            )
        return tuple(found)

    def _answered(self, dataset: Dataset, compared: bool) -> tuple[Sequence[Messages], int]:
        """The held-out chats of a task that both models have answered, or are asked for, and how
        many answers each gives: those that were compared, where they are not fewer."""
        config = self._run.config
        if not self._run.parts.asks(config.tasks):
            return (), 1
        sampled = examples_of(dataset.validation_path, config.gate_samples)
        if compared:
            both = examples_of(dataset.validation_path, config.gate_compared, once=True)
            if len(both) >= len(sampled):
                return both, COMPARED_ANSWERS
        return sampled, 1

    async def _both(
        self, version: ModelVersion, batch: TrainingDataBatch, kept: Kept
    ) -> tuple[Asked, Asked]:
        """The version and the model in use, each at who answers for it, by its own prompt."""
        run = self._run
        baseline = await baseline_of(run, version)
        candidate, rival = [
            Asked(
                provider=await asked_as(
                    run, kept.of(await answering(run, model)), model.prompt, batch
                ),
                model=model.model_id,
            )
            for model in (variant_of(version), baseline)
        ]
        return candidate, rival

    async def _learn(self, batch: TrainingDataBatch, base: str, kept: Kept) -> None:
        """Train a model of the outcomes of each task that needs one, for all versions of the run.

        That of a task whose answers the gateway picks is kept: it sees the words alone, for
        nobody waits there for vectors.
        """
        run, config = self._run, self._run.config
        compares = config.gate_compared and run.parts.asks(config.tasks)
        wanted = [task for task in batch.datasets if compares or task in run.parts.picked]
        if self._models or not wanted:
            return
        posts = await self._published(wanted, batch.window.until)
        for task in [task for task in wanted if task in run.parts.picked]:
            model = await asyncio.to_thread(fit_outcomes, posts[task])
            await run.parts.keep_outcomes(task, model, run.id)
        if compares:
            self._embedder = await embedder_of(
                config,
                base,
                run.parts.provider,
                lambda asked, model: Embedder(
                    kept.embedding(asked), model, run.parts.directory / VECTORS
                ),
            )
            self._models = {task: await self._fitted(posts[task], kept) for task in wanted}

    async def _published(
        self, tasks: Sequence[str], until: datetime
    ) -> Mapping[str, Sequence[Published]]:
        run, config = self._run, self._run.config
        source = run.parts.source(config, run.arguments.posts)
        try:
            return await published_posts(
                source,
                [run.parts.tasks[name] for name in tasks],
                until,
                days=max(config.gate_outcome_days, config.days_back),
                pair_days=config.pair_days,
            )
        finally:
            await source.close()

    async def _fitted(self, posts: Sequence[Published], kept: Kept) -> OutcomeModel:
        embedder = self._embedder
        if embedder is None:
            return await asyncio.to_thread(fit_outcomes, posts)
        texts = [post.text for post in posts]
        await embedder.recall(texts)
        async with telling(self._run, kept, embedder.calls(texts)):
            vectors = await embedder.vectors(texts)
        fit = partial(fit_outcomes, posts, vectors, vectors_of=embedder.model)
        return await asyncio.to_thread(fit)

    async def _ensure_answers(self, version: ModelVersion) -> None:
        """Both models that users are about to meet answer, to every worker as they should."""
        run = self._run
        if version.prompt is not None:
            await ensure_all_know(run.parts.older_workers)
        manager = manager_of(run)
        await manager.ensure_answers(variant_of(version))
        await manager.ensure_answers(await baseline_of(run, version))

    def _scorers(self) -> dict[str, Scorer]:
        """Those that every gate asks, and those that this pipeline names."""
        parts, names = self._run.parts, self._run.config.gate_scorers
        named = {} if parts.scorer is None else {name: parts.scorer(name) for name in names}
        return {**parts.scorers, **named}

    def _moderators(self) -> list[Moderator]:
        """The list of words, and the endpoint that this pipeline names."""
        config = self._run.config
        if config.gate_moderation is None:
            return [listed]
        return [listed, moderation_of(config, self._run.parts.provider(config.gate_moderation))]

    async def _write(self, tx: Tx, judged: tuple[Judged, ...]) -> None:
        """Keep what the gate said of each; the first that passed stands for the run."""
        run = self._run
        for version, _ in judged:
            await run.parts.store.versions.save(version, tx=tx)
        version, report = leading(judged)
        losses = {
            "heldout_loss": report.heldout_loss,
            "base_heldout_loss": report.base_heldout_loss,
        }
        detail = {
            **losses,
            "improvement": report.improvement,
            "heldout_examples": report.heldout_examples,
            "reason": report.reason,
            "samples": _shown(report),
            **({"against": report.against} if run.config.recipes else {}),
            **_pairs(report),
            **_unsafe(report),
            **(
                {"predictions": [_said(one) for one in report.predictions]}
                if report.predictions
                else {}
            ),
            **_forms(report, run.config.gate_allow_drift),
            **({"candidates": self._each(judged)} if len(judged) > 1 else {}),
        }
        status = StageStatus.COMPLETED if report.passed else StageStatus.FAILED
        await run.mark_stage(tx, Stage.GATE, status, detail)
        known = {
            "model_version": VersionDetail.of(version).to_dict(),
            **losses,
            "memory": run.memory,
        }
        await run.mark_run(tx, known)
        numbers = {k: v for k, v in losses.items() if v is not None}
        metrics = {"metrics": numbers, "step": 0, "at": run.now.isoformat()}
        await run.tell(tx, "metrics", metrics, "gate")
        if report.passed:
            alias: dict[str, object] = {
                "name": run.config.name,
                "alias": "candidate",
                "version_id": version.id,
                **({"prompt": tracked_prompt(version)} if version.prompt else {}),
            }
            await run.tell(tx, "alias", alias, "candidate")

    def _each(self, judged: Sequence[Judged]) -> list[dict[str, object]]:
        allowed = self._run.config.gate_allow_drift
        return [{**_of_candidate(one), **_forms(one.report, allowed)} for one in judged]


def leading(judged: Sequence[Judged]) -> Judged:
    """The one that stands for the run: the first that passed, else the first."""
    return next((one for one in judged if one.report.passed), judged[0])


async def asked_as(
    run: RunContext, answers: Answers, prompt: str | None, batch: TrainingDataBatch
) -> Answers:
    """Whoever answers, asked by the prompt with this hash what the dataset's prompt had asked."""
    made_by = batch.prompt
    if prompt is None or made_by is None:
        return answers
    get = run.parts.store.prompts.get
    return Prompted(answers, (await get(prompt)).prompt, (await get(made_by)).prompt)


async def kept_of(run: RunContext, batch: TrainingDataBatch) -> Kept:
    """What the run's models have answered, beside the dataset that they are checked on."""
    return await asyncio.to_thread(Kept, _kept_path(run, batch))


async def forget_kept(run: RunContext, batch: TrainingDataBatch) -> None:
    """Remove it, where it is on this machine."""
    for one in (batch, batch.within(run.parts.directory / DATASETS / batch.hash)):
        with suppress(OSError):
            await asyncio.to_thread(_kept_path(run, one).unlink)


def _kept_path(run: RunContext, batch: TrainingDataBatch) -> Path:
    return Path(batch.validation_path).parent / f"answers-{run.id}.jsonl"


@asynccontextmanager
async def telling(run: RunContext, kept: Kept, calls: int) -> AsyncIterator[None]:
    """Record every few seconds how many answers the stage has, of how many."""
    task = asyncio.create_task(_tell(run, kept, calls))
    try:
        yield
    finally:
        await end_tasks([task])


async def _tell(run: RunContext, kept: Kept, calls: int) -> None:
    began, told = kept.given, 0
    while True:
        await asyncio.sleep(TELL_S)
        if kept.given - began == told:
            continue
        told = kept.given - began
        try:
            await run.progress(run.stage, {"step": told, "total_steps": max(told, calls)})
        except Exception:  # the work goes on, whoever watches
            log.exception("how far the %s stage is could not be kept", run.stage)


async def answering(run: RunContext, model: Variant) -> Provider:
    """Who answers for a model: of a version who trained it, wherever the settings point by now."""
    if run.parts.serves is None:
        return run.parts.provider(run.config.provider)
    return await run.parts.serves(model)


async def embedder_of(
    config: PipelineConfig,
    base_model: str,
    provider: Callable[[str], Provider],
    made: Callable[[Embeds, str], Embedder] = Embedder,
) -> Embedder | None:
    """Who gives vectors of texts; None where `gate.embeddings` is off, or auto and nobody does.

    Raises `ConfigError` where the settings name one that does not.
    """
    if config.gate_embeddings == "off":
        return None
    auto = config.gate_embeddings == "auto"
    asked = provider(config.provider if auto else config.gate_embeddings)
    model = config.gate_embedding_model or base_model
    if isinstance(asked, Embeds):
        found = made(asked, model)
        if await found.answers():
            return found
    if auto and config.gate_embedding_model is None:
        log.info("%s gives no vectors of %s: outcomes are learnt by words.", asked.name, model)
        return None
    raise ConfigError(
        f"{asked.name} gives no vectors of {model!r}, which pipelines.{config.name}.gate asks for.",
        mend="Name a provider and a model that make embeddings as gate.embeddings and "
        "gate.embedding_model, or leave both out.",
        field=f"pipelines.{config.name}.gate_embeddings",
    )


def moderation_of(config: PipelineConfig, provider: Provider) -> Endpoint:
    """The moderation endpoint that a pipeline names. Raises `ConfigError` where there is none."""
    if isinstance(provider, Moderates):
        return Endpoint(cast(Moderates, provider), config.gate_moderation_model)
    raise ConfigError(
        f"pipelines.{config.name}.gate.moderation names {config.gate_moderation!r}, a provider "
        "without a moderation endpoint.",
        mend="Name one that speaks OpenAI's wire and answers POST /moderations.",
        field=f"pipelines.{config.name}.gate_moderation",
    )


def after_comparing(
    report: GateReport, predictions: tuple[Prediction, ...], least: float
) -> GateReport:
    """The report with what is expected of the answers; it fails where too little is."""
    short = [one for one in predictions if one.falls_short(least)]
    said = " ".join(one.sentence() for one in predictions)
    if not short:
        return replace(report, predictions=predictions, reason=f"{report.reason} {said}".rstrip())
    why = (
        f"{' '.join(one.sentence() for one in short)} The lower bound may not be below "
        f"gate.min_win_rate, {least:.0%}."
    )
    return replace(report, passed=False, predictions=predictions, reason=why)


def after_forms(report: GateReport, forms: tuple[Form, ...], allowed: Sequence[str]) -> GateReport:
    """The report with the form of the answers; it fails where one drifted that may not."""
    drifted = [(form, one) for form in forms for one in form.drifted(allowed)]
    report = replace(report, forms=forms)
    if not drifted:
        said = " ".join(form.brief() for form in forms)
        return replace(report, reason=f"{report.reason} {said}".rstrip())
    why = " ".join(f"Form of {form.task}: {one.said}." for form, one in drifted)
    names = ", ".join(sorted({one.name for _, one in drifted}))
    return replace(report, passed=False, reason=f"{why} gate.allow_drift does not name {names}.")


def _after(version: ModelVersion, report: GateReport) -> ModelVersion:
    return replace(
        version,
        status=VersionStatus.CANDIDATE if report.passed else VersionStatus.REJECTED,
        heldout_loss=report.heldout_loss,
        base_heldout_loss=report.base_heldout_loss,
    )


def _pairs(report: GateReport) -> dict[str, object]:
    if report.pair_accuracy is None:
        return {}
    return {"pair_accuracy": report.pair_accuracy, "pair_margin": report.pair_margin}


def _shown(report: GateReport) -> list[dict[str, object]]:
    """Some of the samples, those with faults first, of the tasks in turn."""
    tasks = dict.fromkeys(one.task for one in report.samples)
    by_task = [[one for one in report.samples if one.task == task] for task in tasks]
    in_turn = [one for group in zip_longest(*by_task) for one in group if one is not None]
    found = sorted(in_turn, key=lambda one: not one.faults)[:SHOWN]
    return [asdict(one) for one in found]


def _unsafe(report: GateReport) -> dict[str, object]:
    if report.unsafe_share is None:
        return {}
    return {
        "unsafe_share": report.unsafe_share,
        "learnt_unsafe_share": report.learnt_unsafe_share,
    }


def _forms(report: GateReport, allowed: Sequence[str]) -> dict[str, object]:
    if not report.forms:
        return {}
    told = [
        {
            **asdict(form),
            "sentence": form.sentence(),
            "allowed": [one.name for one in form.figures if one.beyond and one.name in allowed],
        }
        for form in report.forms
    ]
    return {"forms": told}


def _said(prediction: Prediction) -> dict[str, object]:
    return {**asdict(prediction), "sentence": prediction.sentence()}


def _of_candidate(judged: Judged) -> dict[str, object]:
    version, report = judged
    return {
        "version": version.version,
        "model_id": version.model_id,
        "passed": report.passed,
        "heldout_loss": report.heldout_loss,
        "reason": report.reason,
        "samples": _shown(report),
    }
