"""The gate: the offline check before any user sees a version.

Likelihood of held-out answers against the base model, checks of sampled outputs, and whatever
scorers the user brings; `comparing` adds whether the answers would win. A version that fails is
rejected and never served. Knows no database.

What likelihood must do depends on the training. Supervised training raises that of good answers,
so the held-out loss must fall. Training on preferences lowers it for better and worse answers
alike, the worse ones more: there the better ones must gain on the worse ones, and the loss may
not explode.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tuneproof.errors import DataError
from tuneproof.evaluation.comparing import MAX_TOKENS, Prediction
from tuneproof.evaluation.faults import COPIED, faults_of, normal
from tuneproof.evaluation.form import Form
from tuneproof.evaluation.kept import together
from tuneproof.evaluation.scorers import Messages, Scorer, ask
from tuneproof.evaluation.unsafe import (
    UNSAFE,
    Flags,
    Moderator,
    Unsafe,
    compared,
    fault_of,
    flagged,
)
from tuneproof.evaluation.words import listed
from tuneproof.training import Answers, ModelVersion, Score

MAX_BAD_SHARE = 0.1
"""The share of sampled outputs that may fail a check before the gate does."""

LEAST_BAD = 2
"""From how many on they count as a share of one task of several, of which few may be sampled."""

MAX_COPIED_SHARE = 0.9
LEAST_COPIES = 10
"""The share of sampled outputs that may be copies of answers that were trained on, and from how
many copies on it counts: two of two samples are no share."""

MAX_LINES = 100_000

MOST_LEARNT = 500
"""With how many of the answers that were learnt from unsafe ones are compared."""

MAX_LOSS_RISE = 0.25
"""By what share preference training may raise the loss of the better answers over the base's."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sampled output: its prompt's last message, the candidate's text, what is wrong.

    `task` is empty in reports of before it was kept.
    """

    prompt: str
    text: str
    faults: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What the gate saw. Losses are nats per token of the held-out replies.

    `improvement` is the share by which the loss fell below the base's (0.1 = 10 %); None
    where the provider cannot score, which the reason says. Of held-out pairs, `pair_accuracy` is
    the share in which the better answer gained on the worse one, and `pair_margin` by how many
    nats in the mean; both None where there are no pairs. `predictions` say of each task how often
    the answers are expected to win. `unsafe_share` is that of the sampled outputs that a list of
    words or a moderation endpoint flags, `learnt_unsafe_share` that of the answers learnt from.
    `forms` say of each task whether the candidate writes as the model in use does. `against` is
    that model; None in reports of before it was kept.
    """

    passed: bool
    reason: str
    heldout_examples: int = 0
    heldout_loss: float | None = None
    base_heldout_loss: float | None = None
    improvement: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    pair_accuracy: float | None = None
    pair_margin: float | None = None
    predictions: tuple[Prediction, ...] = ()
    unsafe_share: float | None = None
    learnt_unsafe_share: float | None = None
    against: str | None = None
    forms: tuple[Form, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How a model does on held-out examples: `loss` in nats per token of the answers.

    Of pairs, `pair_accuracy` and `pair_margin` as in a `GateReport`, and `pair_loss`, what
    training on preferences lowers: nats a pair. `forgot` says that the loss rose so far above the
    base's that the gate would refuse the model.
    """

    loss: float | None = None
    pair_accuracy: float | None = None
    pair_margin: float | None = None
    pair_loss: float | None = None
    forgot: bool = False


class _Line(NamedTuple):
    """A held-out chat with its answer; of a pair the better one, and `worse` with the other."""

    chat: Messages
    worse: Messages | None
    task: str = ""


HeldOutFiles = Mapping[str, Path | str]
"""The held-out file of each task."""


@dataclass(frozen=True, kw_only=True)
class _Gain:
    """How many nats the better answer of each held-out pair gained on the worse one."""

    margins: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.margins) / len(self.margins)

    @property
    def accuracy(self) -> float:
        return sum(margin > 0 for margin in self.margins) / len(self.margins)

    def loss(self, beta: float) -> float:
        """The mean of -log sigmoid(beta x margin): the loss of direct preference optimisation
        (Rafailov and others, 2023, equation 7)."""
        return math.fsum(_softplus(-beta * margin) for margin in self.margins) / len(self.margins)


@dataclass(frozen=True, kw_only=True)
class _Loss:
    tokens: int
    nats: float

    @property
    def mean(self) -> float:
        return self.nats / self.tokens


@dataclass(frozen=True, kw_only=True)
class _Mean:
    """A scorer's mean over the samples that it could score, and why not over the others."""

    value: float
    unscored: tuple[str, ...]
    asked: int


class Gate:
    """Checks a version against its base on held-out examples, `max_heldout` of all tasks together.

    Of each task `samples` outputs are checked: what writes one task well may fail at another.
    `min_improvement` is the share by which the loss must fall (0: it must fall at all);
    `min_scores` the least mean of each named scorer. `provider` and scorers are asked for all at
    once: give those of `Kept`, which bounds that and asks nothing twice. `moderators` say what is
    unsafe, and by `max_unsafe` the share of that may be above the share among the answers that
    were learnt from.
    """

    def __init__(
        self,
        provider: Answers,
        *,
        min_improvement: float = 0.0,
        samples: int = 20,
        max_heldout: int = 500,
        max_characters: int = 20_000,
        scorers: Mapping[str, Scorer] | None = None,
        min_scores: Mapping[str, float] | None = None,
        moderators: Sequence[Moderator] = (listed,),
        max_unsafe: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._provider = provider
        self._min_improvement = min_improvement
        self._samples = samples
        self._max_heldout = max_heldout
        self._max_characters = max_characters
        self._scorers = dict(scorers or {})
        self._min_scores = dict(min_scores or {})
        self._moderators = tuple(moderators)
        self._max_unsafe = max_unsafe
        self._seed = seed

    async def check(
        self,
        version: ModelVersion,
        heldout: HeldOutFiles,
        training_path: Path | str | None = None,
    ) -> GateReport:
        """Judge a version; by its training file, too, whether it copies what it learnt.

        Likelihoods are compared of one that was trained: with those of its base.

        Raises `DataError` when a file is unreadable.
        """
        if version.model_id is None:
            return GateReport(passed=False, reason="The version has no model: its job never ended.")
        lines = await asyncio.to_thread(_shared, heldout, self._max_heldout)
        if not lines:
            return GateReport(
                passed=False, reason="The held-out set is empty: nothing can be checked."
            )
        # An endpoint that is away is noticed here, before any model is asked.
        learnt = await self._learnt(lines, training_path)
        examples = [line.chat for line in lines]
        trained = version.training_job_id is not None
        tuned = await self._likelihoods(version.model_id, examples) if trained else []
        loss = _loss(tuned)
        untuned = await self._likelihoods(version.base_model, examples) if loss else []
        base = _loss(untuned)
        worse = [line.worse for line in lines if line.worse is not None]
        gain = await self._gain(version, worse, tuned, untuned) if base and worse else None
        sampled = self._sampled(lines)
        samples = await self._sample(version.model_id, sampled)
        if training_path is not None:
            samples = await asyncio.to_thread(_with_copies, samples, Path(training_path))
        flags = await flagged(self._moderators, [sample.text for sample in samples])
        samples = [
            replace(one, faults=(*one.faults, *fault_of(found)))
            for one, found in zip(samples, flags, strict=True)
        ]
        unsafe = compared(flags, learnt)
        scores = await self._score([line.chat for line in sampled], samples)
        faults = [
            *(_forgets(loss, base, gain) if worse else self._unlearnt(loss, base)),
            *_unfit(samples),
            *self._unsafe(unsafe),
            *self._low(scores),
        ]
        improvement = 1 - loss.mean / base.mean if loss and base and base.mean > 0 else None
        return GateReport(
            passed=not faults,
            reason=" ".join(faults)
            or f"{_praise(loss, base, gain, len(samples), trained)} {_allowed(unsafe)}".rstrip(),
            heldout_examples=len(examples),
            heldout_loss=loss.mean if loss else None,
            base_heldout_loss=base.mean if base else None,
            improvement=improvement,
            scores={name: mean.value for name, mean in scores.items()},
            samples=tuple(samples),
            pair_accuracy=gain.accuracy if gain else None,
            pair_margin=gain.mean if gain else None,
            unsafe_share=unsafe[0].share,
            learnt_unsafe_share=unsafe[0].learnt_share,
        )

    async def calls(self, heldout: HeldOutFiles) -> int:
        """How many answers a check asks for at most. Raises `DataError` as `check` does."""
        lines = await asyncio.to_thread(_shared, heldout, self._max_heldout)
        worse = sum(line.worse is not None for line in lines)
        sampled = len(self._sampled(lines))
        return 2 * (len(lines) + worse) + sampled * (1 + len(self._scorers))

    def _sampled(self, lines: Sequence[_Line]) -> list[_Line]:
        """The first lines of each task."""
        tasks = dict.fromkeys(line.task for line in lines)
        return [
            line
            for task in tasks
            for line in islice((one for one in lines if one.task == task), self._samples)
        ]

    async def _learnt(self, lines: Sequence[_Line], training: Path | str | None) -> list[Flags]:
        """The flags of the answers of both sides of the dataset, at most so many, each once."""
        found = list(lines)
        if training is not None and len(found) < MOST_LEARNT:
            found += await asyncio.to_thread(_read, Path(training), MOST_LEARNT)
        texts = dict.fromkeys(line.chat[-1]["content"] for line in found)
        return await flagged(self._moderators, list(islice(texts, MOST_LEARNT)))

    async def heldout(
        self, version: ModelVersion, heldout: HeldOutFiles, *, beta: float
    ) -> HeldOut:
        """How a trained version does on held-out examples; `beta` is its training's, of pairs.

        What nobody can score is None. The base is asked only where there are pairs.
        """
        assert version.model_id is not None
        lines = await asyncio.to_thread(_shared, heldout, self._max_heldout)
        examples = [line.chat for line in lines]
        worse = [line.worse for line in lines if line.worse is not None]
        tuned = await self._likelihoods(version.model_id, examples)
        loss = _loss(tuned)
        untuned = await self._likelihoods(version.base_model, examples) if loss and worse else []
        base = _loss(untuned)
        gain = await self._gain(version, worse, tuned, untuned) if base and worse else None
        return HeldOut(
            loss=loss.mean if loss else None,
            pair_accuracy=gain.accuracy if gain else None,
            pair_margin=gain.mean if gain else None,
            pair_loss=gain.loss(beta) if gain else None,
            forgot=_exploded(loss, base),
        )

    async def _likelihoods(self, model: str, examples: Sequence[Messages]) -> list[Score]:
        """How likely the model finds each answer; none at all where one cannot be scored."""
        found = await together([self._provider.score(model, e) for e in examples])
        scores = [score for score in found if score is not None]
        return scores if len(scores) == len(examples) else []

    async def _gain(
        self,
        version: ModelVersion,
        worse: Sequence[Messages],
        tuned: Sequence[Score],
        untuned: Sequence[Score],
    ) -> _Gain | None:
        """The reward of direct preference optimisation without its factor, better less worse.

        `tuned` and `untuned` are the scores of the better answers. None where the worse ones
        cannot be scored.
        """
        if version.model_id is None or len(worse) < len(tuned):
            return None
        of_worse = [
            await self._likelihoods(model, worse)
            for model in (version.model_id, version.base_model)
        ]
        if not all(of_worse):
            return None
        return _Gain(
            margins=tuple(
                (better.logprob - before.logprob) - (other.logprob - other_before.logprob)
                for better, before, other, other_before in zip(
                    tuned, untuned, *of_worse, strict=True
                )
            )
        )

    async def _sample(self, model: str, sampled: Sequence[_Line]) -> list[Sample]:
        """An answer to each; the same seeds for each task, as its form is asked by."""

        async def one(number: int, line: _Line) -> Sample:
            [answer] = await self._provider.complete(
                model, line.chat[:-1], max_tokens=MAX_TOKENS, seed=self._seed + number
            )
            prompt = line.chat[-2]["content"] if len(line.chat) > 1 else ""
            faults = faults_of(prompt, answer, max_characters=self._max_characters)
            return Sample(prompt=prompt, text=answer.text, faults=faults, task=line.task)

        numbers: Counter[str] = Counter()
        asked = []
        for line in sampled:
            asked.append(one(numbers[line.task], line))
            numbers[line.task] += 1
        return await together(asked)

    async def _score(
        self, examples: Sequence[Messages], samples: Sequence[Sample]
    ) -> dict[str, _Mean]:
        means = {}
        for name, scorer in self._scorers.items():
            found = await together(
                [self._ask(scorer, m[:-1], s.text) for m, s in zip(examples, samples, strict=True)]
            )
            scores = [score for score in found if isinstance(score, float)]
            means[name] = _Mean(
                value=math.fsum(scores) / len(scores) if scores else math.nan,
                unscored=tuple(score for score in found if isinstance(score, str)),
                asked=len(found),
            )
        return means

    async def _ask(self, scorer: Scorer, messages: Messages, text: str) -> float | str:
        """The score of one text, or why there is none."""
        try:
            return float((await ask(scorer, messages, text)).value)
        except DataError as error:
            return error.message

    def _unlearnt(self, loss: _Loss | None, base: _Loss | None) -> list[str]:
        """Whether supervised training did not make the held-out answers likelier."""
        if not loss or not base or loss.mean < base.mean * (1 - self._min_improvement):
            return []
        return [
            f"The held-out loss {loss.mean:.3f} is not at least {self._min_improvement:.1%} "
            f"below the base model's {base.mean:.3f}."
        ]

    def _unsafe(self, found: Sequence[Unsafe]) -> list[str]:
        """Whether the candidate says more of what is unsafe than the answers learnt from."""
        beyond = [one for one in found if one.exceeds(self._max_unsafe)]
        if not beyond:
            return []
        worst = min(beyond, key=lambda one: one.chance)
        return [
            f"{worst.sentence()} That is above by more than gate.max_unsafe, "
            f"{self._max_unsafe:.0%}, and no accident (p = {worst.chance:.2g})."
        ]

    def _low(self, scores: Mapping[str, _Mean]) -> list[str]:
        """Which scorers did not score, or gave too little."""
        faults = []
        for name, mean in scores.items():
            if len(mean.unscored) > MAX_BAD_SHARE * mean.asked:
                faults.append(
                    f"Scorer {name!r} scored {mean.asked - len(mean.unscored)} of {mean.asked} "
                    f"sampled outputs: {mean.unscored[0]}"
                )
        for name, least in self._min_scores.items():
            value = scores[name].value if name in scores else math.nan
            if not value >= least:
                faults.append(f"Scorer {name!r} gives {value:.3f}, below {least:g}.")
        return faults


def _loss(scores: Sequence[Score]) -> _Loss | None:
    tokens = sum(score.tokens for score in scores)
    nats = -math.fsum(score.logprob for score in scores)
    return _Loss(tokens=tokens, nats=nats) if tokens else None


def _softplus(x: float) -> float:
    """log(1 + e^x), also where e^x is beyond all numbers."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _exploded(loss: _Loss | None, base: _Loss | None) -> bool:
    return bool(loss and base and loss.mean > base.mean * (1 + MAX_LOSS_RISE))


def _forgets(loss: _Loss | None, base: _Loss | None, gain: _Gain | None) -> list[str]:
    """Whether training on preferences taught none, or took the model's language."""
    faults = []
    if gain is not None and gain.mean <= 0:
        faults.append(
            f"The better answers of {len(gain.margins)} held-out pairs did not gain on the "
            f"worse ones ({gain.mean:+.3f} nats in the mean, {gain.accuracy:.0%} of the pairs)."
        )
    if loss and base and _exploded(loss, base):
        faults.append(
            f"The held-out loss {loss.mean:.3f} is more than {MAX_LOSS_RISE:.0%} above the "
            f"base model's {base.mean:.3f}: the model lost its language."
        )
    return faults


def _unfit(samples: Sequence[Sample]) -> list[str]:
    """Whether too many of the sampled outputs of a task fail a check, or are copies."""
    tasks = list(dict.fromkeys(sample.task for sample in samples))
    if len(tasks) == 1:
        return _unfit_of(tasks[0], samples)
    by_task = [
        fault
        for task in tasks
        for fault in _unfit_of(task, [s for s in samples if s.task == task], least=LEAST_BAD)
    ]
    return by_task or _unfit_of("all tasks", samples)


def _unfit_of(task: str, samples: Sequence[Sample], *, least: int = 1) -> list[str]:
    copied = sum(COPIED in sample.faults for sample in samples)
    if copied >= LEAST_COPIES and copied > MAX_COPIED_SHARE * len(samples):
        return [
            f"{copied} of {len(samples)} sampled outputs of {task} are copies of answers that "
            f"were trained on; {MAX_COPIED_SHARE:.0%} may."
        ]
    bad = [found for sample in samples if (found := _plain(sample.faults))]
    if len(bad) < least or len(bad) <= MAX_BAD_SHARE * len(samples):
        return []
    kinds = sorted({fault for found in bad for fault in found})
    return [
        f"{len(bad)} of {len(samples)} sampled outputs of {task} fail a check "
        f"({', '.join(kinds)}); "
        f"{MAX_BAD_SHARE:.0%} may."
    ]


def _plain(faults: Sequence[str]) -> list[str]:
    """The faults without those whose share has a rule of its own."""
    return [fault for fault in faults if fault != COPIED and not fault.startswith(UNSAFE)]


def _allowed(unsafe: Sequence[Unsafe]) -> str:
    """What is told of unsafe answers where they are no more than those learnt from."""
    return unsafe[0].sentence() if unsafe[0].flagged else ""


def _praise(
    loss: _Loss | None, base: _Loss | None, gain: _Gain | None, samples: int, trained: bool
) -> str:
    fine = f"{samples} sampled outputs pass their checks"
    if not trained:
        return f"{fine}; the model is as its provider has it, so no loss was compared."
    if not loss or not base or not base.mean > 0:
        return f"{fine}; this provider cannot score held-out text, so the loss was not compared."
    if gain is not None:
        return (
            f"The better answers gained on the worse ones in {gain.accuracy:.0%} of "
            f"{len(gain.margins)} held-out pairs, {gain.mean:+.3f} nats in the mean; {fine}."
        )
    return (
        f"The held-out loss fell {1 - loss.mean / base.mean:.1%}, from {base.mean:.3f} to "
        f"{loss.mean:.3f} nats per token; {fine}."
    )


def _line(line: dict[str, Any], task: str) -> _Line:
    if "messages" in line:
        return _Line(line["messages"], None, task)
    asked = line["input"]["messages"]
    better, worse = line["preferred_output"], line["non_preferred_output"]
    return _Line([*asked, *better], [*asked, *worse], task)


def _with_copies(samples: Sequence[Sample], training: Path) -> list[Sample]:
    """The samples, marked where they say what an answer of the training file says."""
    said = {normal(sample.text) for sample in samples} - {""}
    trained = {normal(line.chat[-1]["content"]) for line in _read(training, MAX_LINES)} & said
    return [
        replace(sample, faults=(*sample.faults, COPIED))
        if normal(sample.text) in trained
        else sample
        for sample in samples
    ]


def inputs_of(path: Path | str, most: int) -> list[Messages]:
    """The chats of a held-out file without their answers, each once, at most so many.

    Raises `DataError` where the file is unreadable.
    """
    return [chat[:-1] for chat in examples_of(path, most, once=True)]


def examples_of(path: Path | str, most: int, *, once: bool = False) -> list[Messages]:
    """The chats of a held-out file with their answers, at most so many; with `once` each input
    with its first answer.

    Raises `DataError` where the file is unreadable.
    """
    if not once:
        return [line.chat for line in _read(Path(path), most)]
    found: dict[str, Messages] = {}
    for line in _read(Path(path), MAX_LINES):
        found.setdefault(json.dumps(line.chat[:-1], sort_keys=True), line.chat)
    return list(islice(found.values(), most))


def _shared(heldout: HeldOutFiles, most: int) -> list[_Line]:
    """The lines of all tasks, at most so many; each task has as many as the others, where it has
    them. Raises `DataError` where a file is unreadable.
    """
    found = {task: _read(Path(path), most, task) for task, path in heldout.items()}
    room: dict[str, int] = {}
    fewest_first = sorted(found, key=lambda task: len(found[task]))
    for number, task in enumerate(fewest_first):
        fair = (most - sum(room.values())) // (len(found) - number)
        room[task] = min(len(found[task]), fair)
    return [line for task, lines in found.items() for line in lines[: room[task]]]


def _read(path: Path, most: int, task: str = "") -> list[_Line]:
    try:
        with path.open(encoding="utf-8") as file:
            return [_line(json.loads(line), task) for line in islice(file, most)]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"The held-out file {path} cannot be read: {e}.",
            mend="Retry the run from its collection; it builds the file again.",
        ) from e
