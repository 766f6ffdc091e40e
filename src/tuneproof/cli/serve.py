"""`tuneproof serve`: the loop, its API and the gateway in one process; metrics on a port beside.

With `--gateways N` so many processes answer applications beside it, and the one that was started
only keeps all of them alive; `tuneproof gateway` has gateways alone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import FAILED, OK
from tuneproof.cli.processes import Child, Family, Role, notice_vanished, role, shared
from tuneproof.cli.service import Running, announce, private_files, usable, withdraw
from tuneproof.errors import ConfigError
from tuneproof.resilience import end_tasks

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.settings import Settings
    from tuneproof.telemetry import Metrics

log = logging.getLogger(__name__)

Lifespan = Literal["on", "off"]
"""Whether a served application has a beginning and an end of its own: one that fails to begin must
not serve."""

ENDING_S = 30.0
"""How long who ends goes on with answers that are under way: a gateway, or a drained service."""

CLOSING_S = 15.0
"""How long what stands behind a server may take to close, once it answers nobody any more."""

FED_S = 10.0
"""How long a new gateway waits for its service before it counts as serving."""

FEED_AGAIN_S = 5.0
"""How often is looked whether gateways still find the service that feeds them."""

METRICS_AGAIN_S = 2.0
"""How often a port for metrics that is taken is tried."""


async def serve(
    *,
    host: Annotated[str | None, Parameter(help="The address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, Parameter(help="The port; 0 takes a free one [8686].")] = None,
    gateways: Annotated[
        int | None, Parameter(help="Processes that answer applications beside the service [0].")
    ] = None,
    gateway_port: Annotated[
        int | None, Parameter(help="Where those listen; 0 takes a free one [8687].")
    ] = None,
    log_level: Annotated[str, Parameter(help="debug, info, warning, error.")] = "info",
    options: CommonOptions = NONE,
) -> int:
    """Run the service until Ctrl-C. Runs that were under way go on.

    A hangup (SIGHUP) to a service with gateways begins all its processes anew, one after the
    other: to take over changed settings or a new version, while requests are answered.
    """
    _log(log_level)
    settings = options.settings(host=host, port=port, gateways=gateways, gateway_port=gateway_port)
    mine = role()
    if mine is not None and mine.number:
        return await _answer(settings, mine)
    if mine is None and settings.server.gateways:
        return await _family(settings, options, service=True)
    return await _serve(settings, options, mine)


async def gateway(
    *,
    processes: Annotated[int | None, Parameter(help="How many of them [1].")] = None,
    host: Annotated[str | None, Parameter(help="The address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, Parameter(help="The port; 0 takes a free one [8687].")] = None,
    log_level: Annotated[str, Parameter(help="debug, info, warning, error.")] = "info",
    options: CommonOptions = NONE,
) -> int:
    """Answer applications beside a service on the same data directory, until Ctrl-C.

    It goes on while that service is away or restarts; events wait on disk. SIGHUP as for `serve`.
    """
    _log(log_level)
    settings = options.settings(host=host, gateways=processes, gateway_port=port)
    mine = role()
    if mine is not None:
        return await _answer(settings, mine)
    return await _family(settings, options, service=False)


async def _serve(settings: Settings, options: CommonOptions, mine: Role | None) -> int:
    from tuneproof.app import App

    usable(settings.dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(private_files())
        app = await stack.enter_async_context(App.open(settings))
        listening = None if mine is None else mine.socket
        address, server = await stack.enter_async_context(serving(app, settings, listening))
        settle()
        output.say(f"TuneProof serves at {address} (data in {settings.dir}). Ctrl-C stops it.")
        if options.json:
            output.line({"address": address, "pid": os.getpid()})
        if mine is not None:
            mine.is_ready()
        with _stopping(server, mine):
            await server.ended()
            end_within(CLOSING_S)
    return OK


async def _answer(settings: Settings, mine: Role) -> int:
    """Be a gateway process."""
    from tuneproof.server.standing import create_gateway
    from tuneproof.telemetry import Metrics

    usable(settings.dir)
    metrics = Metrics()
    with private_files():
        service = create_gateway(settings, metrics)
        server = RunningServer(service, mine.socket, ending_s=ENDING_S, drain=service.drain)
        await server.started()
        settle()
        with _stopping(server, mine), _metrics(metrics, settings, mine.number):
            await service.fed(FED_S)
            mine.is_ready()
            await server.ended()
            end_within(CLOSING_S)
    return OK


async def _family(settings: Settings, options: CommonOptions, *, service: bool) -> int:
    host, number = settings.server.host, settings.server.gateways or 1
    places = [
        Child(name=f"gateway {n}", number=n, listening=one)
        for n, one in enumerate(shared(host, settings.server.gateway_port, number), 1)
    ]
    port = places[0].listening.getsockname()[1]
    if service:
        own = listen(host, settings.server.port)
        places.insert(0, Child(name="the service", number=0, listening=own))
    address = _at(host, port)
    output.say(f"{number} gateway processes answer applications at {address}/v1.")
    if options.json:
        output.line({"gateway": address, "pid": os.getpid()})
    return await Family(places, argv=sys.argv[1:]).run()


def end_within(seconds: float) -> None:
    """End this process by then, whatever it still waits for.

    A database that accepts connections and answers nothing holds threads for as long as it likes;
    who told us to end would kill us after all. What is not closed is as after a kill: it is taken
    over from what is stored.
    """
    timer = threading.Timer(seconds, _overdue, (seconds,))
    timer.daemon = True
    timer.start()


def _overdue(seconds: float) -> None:
    log.error(
        "Not everything was closed within %g s: a server behind this one does not answer. The "
        "process ends without it; runs go on at the next start.",
        seconds,
    )
    logging.shutdown()
    os._exit(FAILED)


def settle() -> None:
    """Leave what was loaded by now out of later garbage collections: it stays, and is large."""
    gc.collect()
    gc.freeze()


class RunningServer:
    """An HTTP server at work: `task` ends some time after `stop()`."""

    def __init__(
        self,
        service: Any,
        listening: socket.socket,
        *,
        ending_s: float = 2,
        drain: Callable[[], float] = lambda: 0.0,
        lifespan: Lifespan = "on",
        leaving_s: float = 0.0,
        end_streams: Callable[[], None] = lambda: None,
    ) -> None:
        import uvicorn

        self._service = service
        self._drain = drain
        self._stopping = False
        self._leaving_s = leaving_s
        self._end_streams = end_streams

        class Server(uvicorn.Server):
            """Leaves signals to us: uvicorn raises them again, before anything is closed."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self._server = Server(_config(service, ending_s, lifespan))
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

    def leave(self) -> None:
        """Say that this ends, answer all that comes for `leaving_s` more, then `stop`.

        Connections are closed behind each answer: who comes again is led elsewhere. Answers that
        are under way then get `ENDING_S`, streams of events none. Told twice, it stops at once.
        """
        if not self._leaving_s or not self._server.started:
            self.stop()
            return
        asyncio.get_running_loop().call_later(self._leaving_s, self._left)
        self._leaving_s = 0.0
        self._server.config.timeout_graceful_shutdown = int(ENDING_S)
        self._service.state.ending = True
        closing = (b"connection", b"close")
        self._server.config.encoded_headers.append(closing)
        state = self._server.server_state
        state.default_headers = [*state.default_headers, closing]
        log.info("It ends; until then it answers, and says by /ready that it does.")

    def _left(self) -> None:
        self._end_streams()
        self.stop()

    def stop(self) -> None:
        """Answer what is under way, then end; open streams are cut after `ending_s`.

        What `drain` does goes before it, for as many seconds as it says: nobody new is let in.
        """
        wait_s = self._drain()
        if wait_s and self._server.started and not self._stopping:
            self._stopping = True
            for one in self._server.servers:
                one.close()
            asyncio.get_running_loop().call_later(wait_s, self._exit)
        else:
            self._exit()

    def _exit(self) -> None:
        self._server.should_exit = True


@contextmanager
def _stopping(server: RunningServer, mine: Role | None) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and the end of a parent stop the server, so that everything behind it is
    closed in order."""
    loop = asyncio.get_running_loop()
    if mine is not None:
        loop.add_reader(mine.parent, _orphaned, loop, server, mine)
        loop.add_signal_handler(signal.SIGHUP, _hung_up)
    loop.add_signal_handler(signal.SIGINT, server.stop)
    loop.add_signal_handler(signal.SIGTERM, server.leave)
    try:
        yield
    finally:
        for wanted in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(wanted)


def _hung_up() -> None:
    log.info("A hangup is for the process that started this one, which replaces all.")


def _orphaned(loop: asyncio.AbstractEventLoop, server: RunningServer, mine: Role) -> None:
    loop.remove_reader(mine.parent)
    log.error("Whoever started this process has gone; it ends.")
    server.stop()


@asynccontextmanager
async def serving(
    app: App, settings: Settings, listening: socket.socket | None = None
) -> AsyncIterator[tuple[str, RunningServer]]:
    """Serve an App: its address, and the server at work. `listening` is a socket that listens."""
    from tuneproof.server import create_app

    token = secrets.token_urlsafe(32)
    listening = listening or listen(settings.server.host, settings.server.port)
    address = _address(settings, listening.getsockname()[1])
    service = create_app(app, local_token=token)
    server = RunningServer(
        service,
        listening,
        leaving_s=settings.server.drain_seconds,
        end_streams=app.live.close,
    )
    try:
        with _metrics(app.metrics, settings):
            await server.started()
            async with _feeding(service.feed, settings):
                try:
                    announce(settings.dir, Running(url=address, pid=os.getpid(), token=token))
                    yield address, server
                finally:
                    withdraw(settings.dir)
                    server.stop()  # the two end side by side: each takes its time
    finally:
        server.stop()
        await asyncio.gather(server.task, return_exceptions=True)
        listening.close()


@asynccontextmanager
async def _feeding(feed: Any, settings: Settings) -> AsyncIterator[None]:
    """Feed the gateways of this machine. A folder that takes no socket hinders no service that has
    none. Raises `ConfigError`."""
    from tuneproof.server.feed import listen_locally

    try:
        listening = listen_locally(settings.dir)
    except ConfigError as error:
        if settings.server.gateways:
            raise
        log.warning("`tuneproof gateway` would not hear of this service: %s", error)
        yield
        return
    first = RunningServer(feed, listening, lifespan="off")
    await first.started()
    keeping = asyncio.create_task(_keep_feeding(feed, settings, first))
    try:
        yield
    finally:
        await end_tasks([keeping])


async def _keep_feeding(feed: Any, settings: Settings, first: RunningServer) -> None:
    """Until this is cancelled: listen anew where the socket was removed, or is of a service that
    ended. Gateways that are connected stay so."""
    from tuneproof.server.feed import is_served, listen_locally

    servers = [first]
    try:
        while True:
            await asyncio.sleep(FEED_AGAIN_S)
            if is_served(settings.dir):
                continue
            try:
                servers.append(RunningServer(feed, listen_locally(settings.dir), lifespan="off"))
                log.warning("Gateways could not find this service any more: it listens anew.")
            except ConfigError as error:
                log.warning("Gateways do not find this service: %s", error)
    finally:
        for one in servers:
            one.stop()
        await asyncio.gather(*(one.task for one in servers), return_exceptions=True)


def _config(service: Any, ending_s: float, lifespan: Lifespan) -> Any:
    import uvicorn

    from tuneproof.server.framing import Protocol

    return uvicorn.Config(
        service,
        http=Protocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(ending_s),
        timeout_keep_alive=30,  # clients that poll every 5 s keep their connection
        lifespan=lifespan,
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
    notice_vanished(made)
    made.listen(2048)
    return made


def _address(settings: Settings, port: int) -> str:
    if settings.server.public_url:
        return settings.address
    return _at(settings.server.host, port)


def _at(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _metrics(metrics: Metrics, settings: Settings, number: int = 0) -> Iterator[None]:
    """Metrics alone on their own port, for a Prometheus that has no token; `number` above it for
    a gateway. A port that is taken, maybe by a process that is just replaced, is tried again."""
    server = settings.server
    if not server.metrics_enabled:
        yield
        return
    port = server.metrics_port and server.metrics_port + number
    trying = asyncio.create_task(_serve_metrics(metrics, port, server.host))
    try:
        yield
    finally:
        trying.cancel()


async def _serve_metrics(metrics: Metrics, port: int, host: str) -> None:
    told = False
    while True:
        try:
            end = metrics.serve(port, host)
        except OSError as error:
            if not told:
                log.warning("No metrics on port %s yet (%s); /metrics answers too.", port, error)
            told = True
            await asyncio.sleep(METRICS_AGAIN_S)
            continue
        try:
            await asyncio.Event().wait()
        finally:
            end()


def _log(level: str) -> None:
    known = ("debug", "info", "warning", "error")
    if level not in known:
        raise ConfigError(f"--log-level is {level!r}.", mend=f"Use one of {', '.join(known)}.")
    # What speaks to object stores tells at "debug" each path, header and body.
    stores = ("fsspec", "s3fs", "aiobotocore", "botocore")
    for chatty in ("httpx2", "httpcore2", "alembic", "uvicorn", *stores):
        logging.getLogger(chatty).setLevel("WARNING")
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
