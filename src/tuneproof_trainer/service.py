"""One trainer, put together: its state, its engines and the jobs that they run."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from tuneproof_trainer.access import Access, KeyStore
from tuneproof_trainer.completions import CompletionStore
from tuneproof_trainer.database import TrainerDatabase
from tuneproof_trainer.engines import make_engine
from tuneproof_trainer.engines.protocol import TrainingEngine
from tuneproof_trainer.errors import ServerError
from tuneproof_trainer.files import FileStore
from tuneproof_trainer.jobs import JobStore
from tuneproof_trainer.models import Models
from tuneproof_trainer.runner import Runner
from tuneproof_trainer.settings import TrainerSettings
from tuneproof_trainer.uploads import UploadStore

__all__ = ["TrainerService"]

logger = logging.getLogger(__name__)


class TrainerService:
    """Everything behind the HTTP face; `start` and `stop` belong to the loop that serves it."""

    def __init__(
        self,
        settings: TrainerSettings,
        engines: Sequence[TrainingEngine] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.clock = settings, clock
        settings.dir.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(settings)
        self.database = TrainerDatabase(settings.dir / "trainer.sqlite")
        models_folder = settings.dir / "models"
        self.files = FileStore(self.database, settings.dir / "files", clock)
        self.uploads = UploadStore(self.database, self.files, settings, clock)
        self.jobs = JobStore(self.database, clock)
        self.completions = CompletionStore(self.database, clock)
        self.keys = KeyStore(self.database, clock)
        self.access = Access(settings, self.keys)
        self.engines = list(engines or [make_engine(settings)])
        self.models = Models(self.database, models_folder, self.engines, clock)
        self.runner = Runner(settings, self.files, self.jobs, self.models, models_folder)
        self._collector: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Clean up after the last server, take up its jobs, begin to collect what expires."""
        await asyncio.to_thread(self.files.clear_incoming)
        await asyncio.to_thread(self.uploads.clear_incoming)
        await self.runner.start()
        self._collector = asyncio.create_task(self._collect(), name="collector")

    async def stop(self) -> None:
        """Stop every job with a snapshot and close the database."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        await self.runner.stop()
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        self.database.close()
        self._lock.close()

    async def _collect(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.collect)
            except OSError:
                logger.exception("what has expired could not be collected; trying again later")
            await asyncio.sleep(self.settings.collect_every_s)

    def collect(self) -> None:
        """Delete expired files and uploads."""
        self.uploads.collect()
        self.files.collect(self.settings.file_lifetime_s)
        self.jobs.forget_keys()
        self.completions.collect(self.settings.completion_lifetime_s)
        self.database.take_ballast()


def _locked(settings: TrainerSettings) -> TextIOWrapper:
    """The lock on the folder; it goes with the process, however that ends."""
    handle = (settings.dir / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise ServerError(
            f"Another trainer uses {settings.dir}. Stop it, or give this one another --dir."
        ) from None
    return handle
