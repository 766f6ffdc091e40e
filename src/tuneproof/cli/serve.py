"""`tuneproof serve`: the loop, its API and the gateway in one process; metrics on a port beside."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK
from tuneproof.cli.service import Running, announce, private_files, usable, withdraw
from tuneproof.errors import ConfigError

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.settings import Settings

log = logging.getLogger(__name__)


async def serve(
    *,
    host: Annotated[str | None, Parameter(help="The address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, Parameter(help="The port; 0 takes a free one [8686].")] = None,
    log_level: Annotated[str, Parameter(help="debug, info, warning, error.")] = "info",
    options: CommonOptions = NONE,
) -> int:
    """Run the service until Ctrl-C. Runs that were under way go on."""
    from tuneproof.app import App

    _log(log_level)
    settings = options.settings(host=host, port=port)
    usable(settings.dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(private_files())
        app = await stack.enter_async_context(App.open(settings))
        address, server = await stack.enter_async_context(serving(app, settings))
        settle()
        output.say(f"TuneProof serves at {address} (data in {settings.dir}). Ctrl-C stops it.")
        if options.json:
            output.line({"address": address, "pid": os.getpid()})
        with _stopping(server):
            await server.ended()
    return OK


def settle() -> None:
    """Leave what was loaded by now out of later garbage collections: it stays, and is large."""
    gc.collect()
    gc.freeze()


class RunningServer:
    """An HTTP server at work: `task` ends some time after `stop()`."""

    def __init__(self, service: Any, listening: socket.socket) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            """Leaves signals to us: uvicorn raises them again, before anything is closed."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self._server = Server(_config(service))
        self.task = asyncio.create_task(self._server.serve(sockets=[listening]), name="http")

    async def started(self) -> None:
        """Return once requests are answered."""
        while not self._server.started:
            if self.task.done():
                self.task.result()
                raise ConfigError("The service did not start.", mend="Its log says why.")
            await asyncio.sleep(0.01)

    async def ended(self) -> None:
        """Return once the server has stopped; being cancelled here does not break it off."""
        await asyncio.shield(self.task)

    def stop(self) -> None:
        """Answer what is under way, then end; open streams are cut after two seconds."""
        self._server.should_exit = True


@contextmanager
def _stopping(server: RunningServer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the server, so that everything behind it is closed in order."""
    loop = asyncio.get_running_loop()
    for wanted in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(wanted, server.stop)
    try:
        yield
    finally:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(wanted)


@asynccontextmanager
async def serving(app: App, settings: Settings) -> AsyncIterator[tuple[str, RunningServer]]:
    """Serve an App: its address, and the server at work."""
    from tuneproof.server import create_app

    token = secrets.token_urlsafe(32)
    listening = listen(settings.server.host, settings.server.port)
    address = _address(settings, listening.getsockname()[1])
    service = create_app(app, local_token=token)
    server = RunningServer(service, listening)
    try:
        with _metrics(app, settings):
            await server.started()
            announce(settings.dir, Running(url=address, pid=os.getpid(), token=token))
            yield address, server
    finally:
        withdraw(settings.dir)
        server.stop()
        await asyncio.gather(server.task, return_exceptions=True)
        listening.close()


def _config(service: Any) -> Any:
    import uvicorn

    return uvicorn.Config(
        service,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=30,  # clients that poll every 5 s keep their connection
        lifespan="on",
        server_header=False,
        proxy_headers=False,  # nothing here trusts who a proxy says that the caller is
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `ConfigError` where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise ConfigError(
            f"Nobody can listen on {host}:{port}: {error.strerror or error}.",
            mend="Stop what listens there, or choose another --port (0 takes a free one).",
            field="server.port",
        ) from error
    made.listen(2048)
    return made


def _address(settings: Settings, port: int) -> str:
    if settings.server.public_url:
        return settings.address
    host = settings.server.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _metrics(app: App, settings: Settings) -> Iterator[None]:
    """Metrics alone on their own port, for a Prometheus that has no token."""
    if not settings.server.metrics_enabled:
        yield
        return
    port = settings.server.metrics_port
    try:
        end = app.metrics.serve(port, settings.server.host)
    except OSError as error:
        log.warning("No metrics on port %s (%s); the service answers /metrics itself.", port, error)
        yield
        return
    try:
        yield
    finally:
        end()


def _log(level: str) -> None:
    known = ("debug", "info", "warning", "error")
    if level not in known:
        raise ConfigError(f"--log-level is {level!r}.", mend=f"Use one of {', '.join(known)}.")
    for chatty in ("httpx2", "httpcore2", "alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel("WARNING")
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
