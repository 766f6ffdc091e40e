"""The best of several answers: by which outcome model the gateway picks, and why it does not.

Each run's gate trains a model of each such task's outcomes; the last one is kept in the database,
for all workers, and as a file in the data directory, for this machine's gateways. Where there is
none, or it is known to do no better than a coin, one answer is asked for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from tuneproof.app.board import Board
from tuneproof.errors import DataError, StoreUnavailableError, TuneProofError
from tuneproof.evaluation import OutcomeModel, OutcomeReport, packed, unpacked
from tuneproof.resilience import Supervisor
from tuneproof.settings import Settings
from tuneproof.store import Store
from tuneproof.workflow import Clock

__all__ = ["BestOf", "Picker", "Standing", "read_picker"]

log = logging.getLogger(__name__)

REFRESH_EVERY_S = 10.0
"""How often is looked for a model that another worker trained."""

LONGEST = 8_000
"""How many characters of an answer are looked at: scoring takes time by their number."""

FOLDER = "outcome-models"
KEPT_S = 3600.0
"""How long the file of a model is kept that another has replaced: a gateway may be about to
read it."""

_FACTS, _CONTENT, _TOLD = "outcome-model:", "outcome-model-content:", "best-of-told"


class Facts(TypedDict):
    """What is kept beside a model; `hash` is empty where there is nothing to pick by."""

    hash: str
    run_id: str
    at: str
    report: dict[str, float | int | str | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picker:
    """Picks one of `answers` answers to a request. `hash` is the model's."""

    answers: int
    model: OutcomeModel
    hash: str

    def pick(self, texts: Sequence[str]) -> int:
        """The place of the text that readers are expected to take to; an empty one if all are.

        Of equal ones the first. Takes milliseconds for each text: call it in a thread.
        """
        places = [place for place, text in enumerate(texts) if text.strip()]
        if len(places) < 2:
            return places[0] if places else 0
        scores = self.model.scores([texts[place][:LONGEST] for place in places])
        return places[int(scores.argmax())]


def read_picker(folder: Path, answers: int, hash: str) -> Picker:
    """By the model of this hash, as it lies in a data directory.

    Raises `DataError` where it does not, or cannot be read.
    """
    path = folder / FOLDER / f"{hash}.npz"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The outcome model {path} cannot be read: {error}.",
            mend="`tuneproof serve` on this data directory writes it again.",
        ) from error
    return Picker(answers=answers, model=unpacked(content), hash=hash)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How many answers a task's settings want, how many are asked for, and why."""

    task: str
    wanted: int
    asked: int
    why: str

    def sentence(self) -> str:
        """What a person is told of it."""
        if self.asked > 1:
            return f"of {self.asked} answers the best is picked; {self.why}"
        return f"one answer is asked for, not {self.wanted}: {self.why}"


class BestOf:
    """Keeps the outcome models of tasks, and says for which of them answers are picked."""

    def __init__(self, *, settings: Settings, store: Store, clock: Clock, board: Board) -> None:
        self._folder = settings.dir
        self._store = store
        self._clock = clock
        self._board = board
        self._wanted = {t.name: t.best_of for t in settings.tasks.values() if t.best_of > 1}
        self._pickers: dict[str, Picker] = {}

    @property
    def tasks(self) -> frozenset[str]:
        """Those whose settings want several answers."""
        return frozenset(self._wanted)

    def of(self, task: str) -> Picker | None:
        """Who picks among answers of this task; None where one answer is asked for."""
        return self._pickers.get(task)

    async def watch(self, supervisor: Supervisor) -> None:
        """Know the models from now on, before anybody asks, and tell of changes."""
        if self._wanted:
            with contextlib.suppress(StoreUnavailableError):
                await self.refresh()
            supervisor.every("best-of", REFRESH_EVERY_S, self.refresh)
        supervisor.every("best-of-told", REFRESH_EVERY_S, self.tell, leader="best-of")

    # --- models -----------------------------------------------------------------------------

    async def keep(self, task: str, model: OutcomeModel, run_id: str) -> None:
        """Keep a task's newest model, in the place of the one before.

        Raises `StoreUnavailableError`.
        """
        content = await asyncio.to_thread(packed, model) if model.report.usable else b""
        facts: Facts = {
            "hash": hashlib.sha256(content).hexdigest() if content else "",
            "run_id": run_id,
            "at": self._clock.now().isoformat(),
            "report": asdict(model.report),
        }
        meta = self._store.meta
        async with self._store.database.begin() as tx:
            await meta.set(_FACTS + task, facts, tx=tx)
            await meta.set(_CONTENT + task, base64.b64encode(content).decode(), tx=tx)

    async def refresh(self) -> None:
        """Know the models that are kept now. Raises `StoreUnavailableError`."""
        facts = await self._facts()
        for task, wanted in self._wanted.items():
            known, hash = self._pickers.get(task), _usable(facts.get(task))
            if not hash:
                self._pickers.pop(task, None)
            elif known is None or known.hash != hash:
                await self._take(task, wanted, hash)
        await asyncio.to_thread(self._forget)

    async def _take(self, task: str, answers: int, hash: str) -> None:
        """Pick by another model; one that cannot be read leaves the one before in force."""
        try:
            found = await asyncio.to_thread(read_picker, self._folder, answers, hash)
        except DataError:
            content = base64.b64decode(await self._store.meta.get(_CONTENT + task) or "")
            if hashlib.sha256(content).hexdigest() != hash:
                return  # another one is kept by now: the next look finds its facts
            try:
                found = await asyncio.to_thread(self._written, content, answers, hash)
            except (TuneProofError, OSError) as error:
                log.warning("No answers of %s are picked by model %.12s: %s", task, hash, error)
                return
        self._pickers[task] = found
        log.info("%s: the best of %d answers is picked by model %.12s", task, answers, hash)

    def _written(self, content: bytes, answers: int, hash: str) -> Picker:
        folder = self._folder / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        temporary = folder / f"{hash}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.chmod(0o600)
        temporary.replace(folder / f"{hash}.npz")
        return read_picker(self._folder, answers, hash)

    def _forget(self) -> None:
        """Remove the files of models that were replaced a while ago."""
        used, before = {one.hash for one in self._pickers.values()}, time.time() - KEPT_S
        for path in (self._folder / FOLDER).glob("*"):
            with contextlib.suppress(OSError):
                if path.stem not in used and path.stat().st_mtime < before:
                    path.unlink()

    # --- how it stands ------------------------------------------------------------------------

    async def standings(self) -> Sequence[Standing]:
        """Of each task that wants several answers. Raises `StoreUnavailableError`."""
        facts = await self._facts()
        return [_standing(task, n, facts.get(task)) for task, n in self._wanted.items()]

    async def _facts(self) -> Mapping[str, Facts]:
        return await self._store.meta.under(_FACTS)

    async def tell(self) -> None:
        """Note where another number of answers is asked for, or another model picks.

        Both arms of a test change alike, so its comparison stays fair; what it says is of both
        times. Raises `StoreUnavailableError`.
        """
        facts = await self._facts()
        asked: dict[str, dict[str, int | str]] = {
            task: {"answers": wanted, "model": hash}
            for task, wanted in self._wanted.items()
            if (hash := _usable(facts.get(task)))
        }
        told: Mapping[str, Mapping[str, int | str]] = await self._store.meta.get(_TOLD) or {}
        changed = [task for task in {**told, **asked} if told.get(task) != asked.get(task)]
        if not changed:
            return
        async with self._store.database.begin() as tx:
            for task in changed:
                reason = _change(task, told.get(task), asked.get(task))
                for object_id in (task, *self._subjects(task)):
                    await self._store.activity.add(
                        self._clock.now(), "loop", "best_of", object_id, reason, tx=tx
                    )
            await self._store.meta.set(_TOLD, asked, tx=tx)

    def _subjects(self, task: str) -> Sequence[str]:
        """The tests and rollouts of a task that run now."""
        routing = self._board.snapshot.by_task.get(task)
        return [lane.subject for lane in routing.lanes if lane.subject] if routing else []


def _usable(facts: Facts | None) -> str:
    """The hash of the model to pick by; empty where there is none."""
    return "" if facts is None else facts["hash"]


def _standing(task: str, wanted: int, facts: Facts | None) -> Standing:
    if facts is None:
        why = "no run has trained an outcome model of this task yet"
        return Standing(task=task, wanted=wanted, asked=1, why=why)
    report = OutcomeReport(**facts["report"])  # type: ignore[arg-type]
    asked = wanted if facts["hash"] else 1
    why = f"{report.sentence()} ({facts['run_id']}, {facts['at'][:10]})"
    return Standing(task=task, wanted=wanted, asked=asked, why=why)


def _change(
    task: str, before: Mapping[str, int | str] | None, now: Mapping[str, int | str] | None
) -> str:
    if now is None:
        return f"One answer of {task} is asked for from now on: none is picked."
    said = f"Of {now['answers']} answers of {task} the outcome model {now['model']!s:.12} picks one"
    if before is None:
        return f"{said} from now on; before, one was asked for."
    return f"{said} from now on; before, model {before['model']!s:.12} of {before['answers']}."
