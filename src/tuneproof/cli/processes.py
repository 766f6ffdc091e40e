"""Processes that belong together: the service and its gateways, each begun again where it dies.

Whoever starts them holds the gateways' sockets, one each for the same port (SO_REUSEPORT): what
arrives while one is replaced waits in its queue. Each process hears by a pipe that its parent has
gone, and ends in order. A hangup (SIGHUP) replaces all of them, one after the other, the gateways
first: where the first new one does not serve, nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuneproof.errors import ConfigError
from tuneproof.resilience import end_tasks

__all__ = ["Child", "Family", "Role", "notice_vanished", "role", "shared"]

log = logging.getLogger(__name__)

VARIABLE = "TUNEPROOF_PROCESS"
"""Tells a process what it is, as `Role.text` writes it."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
STEADY_S = 30.0
"""A process that lived so long is begun again at once."""

ENDING_S = 55.0
"""How long a process may take to end: a gateway finishes the answers that are under way."""

STARTING_S = 120.0
"""How long a process that replaces another may take until it serves."""

REFUSED = 2
"""The exit code of a process that finds its settings wrong."""

KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A connection whose other end has vanished without a word ends after two minutes; where the system
knows these options."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a process is. `number` is 0 for the service; the others are files: `parent` ends when
    the parent does, and a byte in `ready` says that this process serves."""

    number: int
    listening: int
    parent: int
    ready: int

    def text(self) -> str:
        """As its variable has it."""
        return f"{self.number}:{self.listening}:{self.parent}:{self.ready}"

    @property
    def socket(self) -> socket.socket:
        """The socket that listens."""
        return socket.socket(fileno=self.listening)

    def is_ready(self) -> None:
        """Tell the parent that this process serves."""
        with contextlib.suppress(OSError):
            os.write(self.ready, b"1")


def role() -> Role | None:
    """What this process is; None where nobody began it. The variable is gone afterwards."""
    given = os.environ.pop(VARIABLE, None)
    if given is None:
        return None
    number, listening, parent, ready = map(int, given.split(":"))
    return Role(number=number, listening=listening, parent=parent, ready=ready)


@dataclass(kw_only=True)
class Child:
    """A place for a process: its name, number and socket, and who has it now.

    `answered` is set once that process serves (`serves`), or has ended; `served` once any has
    served here. `leaves` says that it is asked to end, to be begun anew.
    """

    name: str
    number: int
    listening: socket.socket
    process: asyncio.subprocess.Process | None = None
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    serves: bool = False
    served: bool = False
    leaves: bool = False


class Family:
    """The processes of one `tuneproof serve --gateways N`, or of one `tuneproof gateway`."""

    def __init__(self, children: Sequence[Child], *, argv: Sequence[str]) -> None:
        self._children = children
        self._argv = argv
        self._stopping = asyncio.Event()
        self._replacing = asyncio.Event()
        self._pipe, self._held = os.pipe()
        self._begun: dict[asyncio.subprocess.Process, int] = {}  # all that may live, by number
        self._exit = 0

    async def run(self) -> int:
        """Keep all of them alive until SIGTERM or Ctrl-C; the exit code.

        A process that finds its settings wrong before it ever served takes the others with it; it
        has said why.
        """
        loop = asyncio.get_running_loop()
        for wanted in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(wanted, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._replacing.set)
        tasks = [asyncio.create_task(self._keep(child)) for child in self._children]
        tasks.append(asyncio.create_task(self._replace()))
        for task in tasks:
            task.add_done_callback(self._died)
        try:
            await self._stopping.wait()
        finally:
            await end_tasks(tasks)  # so that nobody is begun any more
            await self._end_all()
            os.close(self._held)
            os.close(self._pipe)
        return self._exit

    def _died(self, task: asyncio.Task[None]) -> None:
        """Whoever watches us begins all anew, rather than that a place stays empty unnoticed."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("A process is not watched any more; all end.", exc_info=error)
            self._exit = 1
            self._stopping.set()

    async def _keep(self, child: Child) -> None:
        """Have somebody in this place; begin again where it ends by itself."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        process = await self._begin_at_last(child)
        while True:
            began = loop.time()
            code = await process.wait()
            if self._stopping.is_set():
                return
            if child.process is process:
                if not child.served and code == REFUSED:
                    self._exit = code
                    self._stopping.set()
                    return
                if not child.leaves:
                    lived_s = loop.time() - began
                    steady = lived_s >= STEADY_S
                    pause_s = FIRST_PAUSE_S if steady else min(2 * pause_s, LONGEST_PAUSE_S)
                    log.error(
                        "%s (pid %d) ended with %d after %.0f s; it begins again in %.1f s.",
                        *(child.name, process.pid, code, lived_s, pause_s),
                    )
                    await asyncio.sleep(pause_s)
                child.leaves = False
                async with child.beginning:
                    if child.process is process:  # a hangup has put nobody here meanwhile
                        await self._begin_at_last(child)
            assert child.process is not None
            process = child.process

    async def _begin_at_last(self, child: Child) -> asyncio.subprocess.Process:
        """Begin a process in this place, as soon as the system has room for one."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._begin(child)
            except OSError as error:
                log.error(
                    "%s cannot begin (%s); it is tried again in %.1f s.",
                    *(child.name, error, pause_s),
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _replace(self) -> None:
        """At each hangup begin all anew, one after the other."""
        while True:
            await self._replacing.wait()
            self._replacing.clear()
            for child in sorted(self._children, key=lambda child: not child.number):
                before = child.process
                if before is None or before.returncode is not None:
                    continue
                log.info("Replacing %s (pid %d).", child.name, before.pid)
                anew = self._relieve if child.number else self._restart
                if not await anew(child):
                    log.error("%s does not serve anew; what was not replaced stays.", child.name)
                    break

    async def _relieve(self, child: Child) -> bool:
        """Have a new process answer beside the one that is here, and then alone; whether it does.

        The old one stays where the new one does not serve.
        """
        async with child.beginning:
            before = child.process
            assert before is not None
            try:
                new = await self._begin(child)
            except OSError as error:
                log.error("%s cannot begin: %s", child.name, error)
                return False
        await _set(child.answered)
        if child.serves:
            await _end(before)
            return True
        if child.process is new and before.returncode is None:
            child.process, child.serves = before, True
            await _end(new)
        return False

    async def _restart(self, child: Child) -> bool:
        """End the process that is here and begin a new one: one service at a time holds a data
        directory. Its callers wait. Whether the new one serves."""
        before = child.process
        assert before is not None
        child.leaves, child.serves = True, False
        child.answered.clear()
        await _end(before)
        await _set(child.answered)
        return child.serves

    async def _begin(self, child: Child) -> asyncio.subprocess.Process:
        """Begin a process in this place."""
        listening = child.listening.fileno()
        reading, writing = os.pipe()
        given = Role(number=child.number, listening=listening, parent=self._pipe, ready=writing)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tuneproof", *self._argv),
                env={**os.environ, VARIABLE: given.text()},
                pass_fds=(listening, self._pipe, writing),
                start_new_session=True,  # Ctrl-C goes to us alone: the order of ending is ours
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._begun = {one: n for one, n in self._begun.items() if one.returncode is None}
        self._begun[process] = child.number
        child.process, child.serves = process, False
        child.answered.clear()
        asyncio.get_running_loop().add_reader(reading, self._heard, child, process, reading)
        return process

    @staticmethod
    def _heard(child: Child, process: asyncio.subprocess.Process, reading: int) -> None:
        """The process serves, or has ended."""
        serves = bool(os.read(reading, 1))
        child.served = child.served or serves
        if child.process is process and (serves or not child.leaves):
            child.serves = serves
            child.answered.set()
        asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)

    async def _end_all(self) -> None:
        """End the gateways, which still bring their events to the service; then the service."""
        for gateways in (True, False):
            ending = [one for one, number in self._begun.items() if bool(number) is gateways]
            await asyncio.gather(*map(_end, ending))


async def _set(answered: asyncio.Event) -> None:
    """Wait until a process has answered, for as long as it may take."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STARTING_S):
            await answered.wait()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(ENDING_S):
            await process.wait()
    except TimeoutError:
        log.error("Process %d did not end within %.0f s and is killed.", process.pid, ENDING_S)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def shared(host: str, port: int, number: int) -> list[socket.socket]:
    """So many sockets that listen on one port; the system spreads connections over them.

    Raises `ConfigError` where the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for _ in range(number):
            one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            made.append(one)
            if not made[1:] and port:
                _refuse_taken(family, host, port)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            notice_vanished(one)
            one.bind((host, port))
            port = one.getsockname()[1]
            one.listen(2048)
    except OSError as error:
        for one in made:
            one.close()
        raise ConfigError(
            f"Gateways cannot listen on {host}:{port}: {error.strerror or error}.",
            mend="Stop what listens there, or choose another --gateway-port (0 takes a free one).",
            field="server.gateway_port",
        ) from error
    return made


def notice_vanished(listening: socket.socket) -> None:
    """Let connections that are accepted here end once nobody is at their other end any more."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _refuse_taken(family: int, host: str, port: int) -> None:
    """Raise `OSError` where another program of ours listens there, whose requests we would get."""
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
