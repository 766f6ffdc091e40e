"""Real servers for tests: PostgreSQL, Redis, MLflow, Prometheus and Alertmanager on free loopback
ports.

Each is a context manager that yields a `Server` with its address, and ends what it started.
`stop()` and `start()` make an outage on the same port with the same data. A missing binary
fails with the command that installs it: a test that needs a server never passes without one.

    with postgres_server() as server:
        url = server.create_database()      # postgresql+psycopg://…/db_1
    with redis_server() as server:
        server.url                          # redis://127.0.0.1:PORT/0
    with mlflow_server() as server:
        server.url                          # http://127.0.0.1:PORT
    with alertmanager_server(webhook=url) as manager:
        with prometheus_server("127.0.0.1:9090", rules=path, alertmanager=manager) as server:
            query(server, "up")             # the series that the expression gives now

Start them from the main thread: they are then ended by the kernel too should pytest be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psycopg
from tests.waiting import until

__all__ = [
    "MLFLOW",
    "POSTGRES",
    "PostgresServer",
    "Server",
    "alertmanager_server",
    "binary",
    "die_with_parent",
    "free_port",
    "listens",
    "memory",
    "mlflow_server",
    "postgres_binary",
    "postgres_server",
    "prometheus_server",
    "query",
    "redis_server",
]

POSTGRES = "TUNEPROOF_POSTGRES"
"""Names the folder of another PostgreSQL's programs: how `make matrix` has the tests start it."""

MLFLOW = "TUNEPROOF_MLFLOW"
"""Names the Python of another MLflow's environment."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED: list[IO[str]] = []
"""The locks of the ports given out here; the kernel frees them when this process ends."""
_INITDB_OPTIONS = ["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--no-locale"]
_ROOM = 2 << 30
_REDIS_OPTIONS = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]


def free_port() -> int:
    """A TCP port on loopback that nothing listens on, and that is this process's until it ends.

    It can be told to a server that starts later, or again after an outage. Nobody takes it in
    between: it is outside the range from which the kernel gives out ports by itself, to
    listeners on port 0 and to connections, and a locked file keeps other test processes away.
    """
    folder = Path(tempfile.gettempdir()) / f"tuneproof-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    ports = _own_ports()
    for port in random.SystemRandom().sample(ports, len(ports)):
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if _bindable(port):
            _RESERVED.append(lock)
            return port
        lock.close()
    raise RuntimeError("Every port for tests is taken.")


def _own_ports() -> range:
    """Some thousand ports that the kernel gives to nobody by itself."""
    first, last = 32768, 60999
    with contextlib.suppress(OSError):  # where this is not Linux
        first, last = map(int, _EPHEMERAL.read_text().split())
    return range(max(1024, first - 12_000), first) if first > 4096 else range(last + 1, 65_536)


def _bindable(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listens(port: int) -> bool:
    """Whether something takes connections on a port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass(kw_only=True)
class Server:
    """One server process; `url` is its address, also while it is stopped."""

    name: str
    url: str
    port: int
    command: list[str]
    folder: Path
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    end_signal: signal.Signals = signal.SIGTERM
    start_timeout_s: float = 60.0
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        path = self.folder / "server.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-30:])

    def start(self) -> None:
        """Start the process and wait until it answers; raises with its log if it does not."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                start_new_session=True,
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
                preexec_fn=die_with_parent(self.end_signal),
            )
        self._wait_until_ready(self.process)

    def stop(self, *, kill: bool = False, by: signal.Signals | None = None) -> None:
        """End the process and those it started; `kill` gives it no chance to tidy up.

        `by` is another signal than its usual one (SIGQUIT is PostgreSQL's immediate shutdown).
        """
        process, self.process = self.process, None
        if process is None:
            return
        if kill:
            _signal_group(process, signal.SIGKILL)
        else:
            process.send_signal(by or self.end_signal)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        def why() -> str:
            code = process.poll()
            said = "is silent" if code is None else f"ended with {code}"
            return f"{self.name} did not start, it {said}. Its log:\n{self.log}"

        try:
            until(
                lambda: process.poll() is not None or self.ready(),
                self.start_timeout_s,
                every_s=0.05,
                otherwise=why,
            )
            if process.poll() is not None:
                raise RuntimeError(why())
        except BaseException:
            self.stop(kill=True)
            raise


@dataclass(kw_only=True)
class PostgresServer(Server):
    """A PostgreSQL server whose superuser is `postgres`, without a password."""

    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def dsn(self) -> str:
        """The address of the maintenance database for psycopg and asyncpg."""
        return self.url.replace("postgresql+psycopg", "postgresql")

    def create_database(self, name: str = "", *, template: str = "template1") -> str:
        """Make a database, empty or a copy of `template`; its SQLAlchemy URL (psycopg 3)."""
        name = name or f"db_{next(self._numbers)}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url.rsplit("/", 1)[0] + f"/{name}"

    def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made, ending its connections."""
        name = url.rsplit("/", 1)[1].split("?")[0]
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def postgres_server(
    *, inside: Path | None = None, **settings: str | int
) -> Iterator[PostgresServer]:
    """A PostgreSQL server; `settings` are postgresql.conf parameters (`max_connections=…`).

    `inside` is the folder for its data; left out, that of temporary files.
    """
    user = "postgres" if os.geteuid() == 0 else None
    binaries = _postgres_binaries()
    with _folder("pg", owner=user, inside=inside) as folder:
        data = folder / "data"
        subprocess.run(
            [str(binaries / "initdb"), "-D", str(data), *_INITDB_OPTIONS],
            check=True,
            capture_output=True,
            cwd=folder,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        port = free_port()
        options: dict[str, str | int] = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "64MB",
            "max_connections": 200,
            **settings,
        }
        dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        server = PostgresServer(
            name="PostgreSQL",
            url=dsn.replace("postgresql:", "postgresql+psycopg:"),
            port=port,
            command=[str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
            + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
            folder=folder,
            user=user,
            end_signal=signal.SIGINT,  # its fast shutdown
            ready=lambda: _postgres_answers(dsn),
        )
        with _running(server):
            yield server


def memory() -> Path | None:
    """A folder in memory that has room for some hundred databases, one after the other; None where
    there is none. Each is a few hundred files: on a disk they take as long as a test."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and shutil.disk_usage(folder).free > _ROOM
    return folder if roomy else None


@contextmanager
def redis_server(*arguments: str) -> Iterator[Server]:
    """A Redis server that keeps nothing on disk; `arguments` go to redis-server."""
    program = binary("redis-server", "apt-get install -y redis-server")
    port = free_port()
    with _folder("redis") as folder:
        server = Server(
            name="Redis",
            url=f"redis://127.0.0.1:{port}/0",
            port=port,
            command=[program, "--port", str(port), *_REDIS_OPTIONS, *arguments],
            folder=folder,
            ready=lambda: _redis_answers(port),
        )
        with _running(server):
            yield server


@contextmanager
def mlflow_server(*, allowed_hosts: str = "") -> Iterator[Server]:
    """An MLflow tracking server on SQLite; up in about 10 s, so one for a whole test session.

    `allowed_hosts` goes to its host check; left out, MLflow allows loopback and private ones.
    """
    port = free_port()
    with _folder("mlflow") as folder:
        python = os.environ.get(MLFLOW, sys.executable)
        command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        command += ["--allowed-hosts", allowed_hosts] if allowed_hosts else []
        server = Server(
            name="MLflow",
            url=f"http://127.0.0.1:{port}",
            port=port,
            command=command,
            folder=folder,
            environment={
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            },
            start_timeout_s=120.0,
            ready=lambda: _http_answers(f"http://127.0.0.1:{port}/health"),
        )
        with _running(server):
            yield server


@contextmanager
def prometheus_server(
    *scraped: str,
    job: str = "fine-tuning-pipeline",
    rules: Path | None = None,
    alertmanager: Server | None = None,
) -> Iterator[Server]:
    """A Prometheus that looks each second at `/metrics` of these addresses ("127.0.0.1:9090"),
    and at these rules."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": list(scraped)}]}],
    }
    if alertmanager is not None:
        targets = [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]
        config["alerting"] = {"alertmanagers": [{"static_configs": targets}]}
    with _folder("prometheus") as folder:
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        server = Server(
            name="Prometheus",
            url=f"http://127.0.0.1:{port}",
            port=port,
            command=[
                binary("prometheus", "apt-get install -y prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            folder=folder,
            ready=lambda: _http_answers(f"http://127.0.0.1:{port}/-/ready"),
        )
        with _running(server):
            yield server


def query(prometheus: Server, expression: str) -> list[dict[str, Any]]:
    """The series that an expression gives now: `metric` and `value` of each."""
    asked = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{prometheus.url}/api/v1/query?{asked}", timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


@contextmanager
def alertmanager_server(*, webhook: str) -> Iterator[Server]:
    """An Alertmanager that tells a webhook of each alert within a second or two."""
    port = free_port()
    config = {
        "route": {
            "receiver": "test",
            "group_by": ["alertname"],
            "group_wait": "0s",
            "group_interval": "1s",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "test", "webhook_configs": [{"url": webhook}]}],
    }
    with _folder("alertmanager") as folder:
        (folder / "alertmanager.yml").write_text(json.dumps(config))
        debian = shutil.which("prometheus-alertmanager") is not None
        name = "prometheus-alertmanager" if debian else "alertmanager"
        server = Server(
            name="Alertmanager",
            url=f"http://127.0.0.1:{port}",
            port=port,
            command=[
                binary(name, "apt-get install -y prometheus-alertmanager"),
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
                "--log.level=warn",
            ],
            folder=folder,
            ready=lambda: _http_answers(f"http://127.0.0.1:{port}/-/ready"),
        )
        with _running(server):
            yield server


@contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


@contextmanager
def _folder(kind: str, *, owner: str | None = None, inside: Path | None = None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"tuneproof-{kind}-", dir=inside))
    if owner is not None:
        shutil.chown(path, user=owner)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def die_with_parent(how: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before its program, so that the kernel signals it when this one ends."""
    # The kernel watches the thread that forked, so this is right for the main thread alone.
    if threading.current_thread() is not threading.main_thread() or sys.platform != "linux":
        return None
    number = int(how)
    return lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) and None


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def binary(name: str, install: str) -> str:
    """Where a program is. Fails with how it is installed where it is not."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"This test needs `{name}`, which is not on PATH: `{install}`.")
    return found


def postgres_binary(name: str) -> str:
    """One of PostgreSQL's own programs, such as `pg_dump`."""
    return str(_postgres_binaries() / name)


def _postgres_binaries() -> Path:
    if chosen := os.environ.get(POSTGRES):
        return Path(chosen)
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name)
    )
    for folder in folders:
        if (folder / "postgres").exists():
            return folder
    found = shutil.which("postgres")
    if found is None:
        raise RuntimeError(
            "This test needs a PostgreSQL server, and none is in /usr/lib/postgresql or on PATH: "
            "`apt-get install -y postgresql`."
        )
    return Path(found).resolve().parent


def _postgres_answers(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn, connect_timeout=2) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _http_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
