"""Who picks among answers at a gateway process: by models that its service keeps on this disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneproof.app import Picker, read_picker
from tuneproof.errors import DataError
from tuneproof.resilience import Supervisor

__all__ = ["FedPickers"]

log = logging.getLogger(__name__)

TASK = "outcome-models"


class FedPickers:
    """The pickers that the service named, once their models are read."""

    def __init__(self, folder: Path, supervisor: Supervisor) -> None:
        self._folder = folder
        self._supervisor = supervisor
        self._told: Mapping[str, Sequence[int | str]] = {}
        self._known: dict[str, Picker] = {}

    def of(self, task: str) -> Picker | None:
        """Who picks among answers of this task; None where one answer is asked for."""
        return self._known.get(task)

    def told(self, pickers: Mapping[str, Sequence[int | str]]) -> None:
        """Use these from now on, each once it is read; until then the one before."""
        self._told = pickers
        for task in self._known.keys() - pickers.keys():
            del self._known[task]
        if self._unread():
            self._supervisor.soon(TASK, self.read)

    async def read(self) -> None:
        """Read what is not read yet; one that cannot be read is told, and is not used."""
        for task, (answers, hash) in self._unread().items():
            try:
                found = await asyncio.to_thread(read_picker, self._folder, int(answers), str(hash))
            except DataError as error:
                log.warning("No answers of %s are picked: %s", task, error)
                self._known.pop(task, None)
                continue
            if list(self._told.get(task, ())) == [answers, hash]:
                self._known[task] = found

    def _unread(self) -> dict[str, Sequence[int | str]]:
        known = {task: [one.answers, one.hash] for task, one in self._known.items()}
        return {task: told for task, told in self._told.items() if list(told) != known.get(task)}
