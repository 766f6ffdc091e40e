"""A trainer inside another process: a real HTTP server on a loopback port of its own.

async with serve(Path("state")) as trainer:
    client = AsyncOpenAI(base_url=trainer.base_url, api_key="any")
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tuneproof_trainer.engines.protocol import TrainingEngine
from tuneproof_trainer.errors import ServerError
from tuneproof_trainer.listening import await_all, http_config, listening
from tuneproof_trainer.server import TrainerApp, create_app
from tuneproof_trainer.settings import TrainerSettings

__all__ = ["EmbeddedTrainer", "serve"]

_START_S = 30.0


class EmbeddedTrainer:
    """A server in a thread with an event loop of its own. `start` before use, `stop` after."""

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        engines: Sequence[TrainingEngine] | None = None,
    ) -> None:
        self._settings, self._host, self._port, self._engines = settings, host, port, engines
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.app: TrainerApp | None = None
        self.base_url = ""
        """Where clients find it, e.g. `http://127.0.0.1:43117/v1`."""

    def start(self) -> EmbeddedTrainer:
        """Listen; returns when requests are answered. Raises ServerError if it cannot."""
        listener = listening(self._host, self._port)
        self._port = listener.getsockname()[1]
        self.base_url = f"http://{self._host}:{self._port}/v1"
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="embedded-trainer", daemon=True
        )
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise ServerError(f"The trainer did not start within {_START_S:g} s.")
        if self._failed is not None:
            raise self._failed
        return self

    def _run(self, listener: socket.socket) -> None:
        try:
            with listener:
                asyncio.run(self._serve(listener))
        except BaseException as error:
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self, listener: socket.socket) -> None:
        self.app = create_app(self._settings, self._engines)
        config = http_config(self.app, self._settings, log_config=None, timeout_graceful_shutdown=2)
        self._server = _Server(config, self._ready)
        await self._server.serve(sockets=[listener])
        if not self._server.started:
            raise ServerError("The trainer could not start; its log says why.")

    def stop(self) -> None:
        """Stop jobs with a snapshot, close everything, and wait for it."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> EmbeddedTrainer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """A server that leaves signals to its process and tells when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then tell."""
        await super().startup(sockets)
        if self.started:
            await_all(sockets)
            self._ready.set()

    def install_signal_handlers(self) -> None:
        """Signals belong to the process around this server."""


@asynccontextmanager
async def serve(
    dir: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    engines: Sequence[TrainingEngine] | None = None,
    **settings: Any,
) -> AsyncIterator[EmbeddedTrainer]:
    """A trainer on a loopback port for as long as the block; `settings` as in `TrainerSettings`."""
    trainer = EmbeddedTrainer(
        TrainerSettings(dir=Path(dir), **settings), host=host, port=port, engines=engines
    )
    await asyncio.to_thread(trainer.start)
    try:
        yield trainer
    finally:
        await asyncio.to_thread(trainer.stop)
