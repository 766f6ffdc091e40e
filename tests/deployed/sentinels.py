"""A Redis primary, its replica, and three Sentinels who make the one the other when it is gone.

with watched_redis() as redis:
    redis.url                     # redis+sentinel://127.0.0.1:…,…,…/primary/0
    redis.primary.stop(kill=True)
    redis.client()                # of whoever is the primary now
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError
from redis.sentinel import MasterNotFoundError, Sentinel
from tests.servers import Server, binary, free_port, listens, redis_server
from tests.waiting import until

__all__ = ["WatchedRedis", "encrypted_redis", "watched_redis"]

NAME = "primary"
WATCHING = """\
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor {name} 127.0.0.1 {primary} 2
sentinel down-after-milliseconds {name} 1000
sentinel failover-timeout {name} 5000
"""


@dataclass(frozen=True, kw_only=True)
class WatchedRedis:
    """The servers, and how a client finds the primary."""

    primary: Server
    replica: Server
    sentinels: tuple[Server, ...]

    @property
    def url(self) -> str:
        """The address of all Sentinels, as a setting."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    @property
    def watch(self) -> Sentinel:
        """A client of the Sentinels."""
        return Sentinel([("127.0.0.1", s.port) for s in self.sentinels], socket_timeout=1)

    @property
    def port(self) -> int | None:
        """Where the primary is, as the Sentinels know it; None while they know none."""
        try:
            found: int = self.watch.discover_master(NAME)[1]
        except MasterNotFoundError:
            return None
        return found

    def client(self) -> Redis:
        """A client of whoever is the primary."""
        found: Redis = self.watch.master_for(NAME)
        return found

    def hand_over(self) -> None:
        """Ask for a failover while nothing is wrong."""
        self.watch.sentinels[0].execute_command("SENTINEL", "FAILOVER", NAME)


@contextmanager
def encrypted_redis(folder: Path) -> Iterator[str]:
    """A primary and one Sentinel that speak TLS alone, by a certificate of `folder`/tls.crt."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    asked = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis"]
    asked += ["-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", *asked, "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(made, check=True, capture_output=True)
    told = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": certificate}
    told |= {"tls-auth-clients": "no", "tls-replication": "yes", "port": 0, "bind": "127.0.0.1"}
    primary, sentinel = free_port(), free_port()
    with ExitStack() as stack:
        for name, port, more in (
            ("redis", primary, ["save ''"]),
            ("sentinel", sentinel, [f"sentinel monitor {NAME} 127.0.0.1 {primary} 1"]),
        ):
            place = folder / name
            place.mkdir()
            settings = {**told, "tls-port": port, "dir": place}
            lines = [*(f"{key} {value}" for key, value in settings.items()), *more]
            (place / "redis.conf").write_text("\n".join(lines) + "\n")
            command = [binary("redis-server", "apt-get install -y redis-server"), "redis.conf"]
            server = Server(
                name=name,
                url=f"rediss://127.0.0.1:{port}",
                port=port,
                command=[*command, *(["--sentinel"] if name == "sentinel" else [])],
                folder=place,
                ready=partial(listens, port),
            )
            server.start()
            stack.callback(server.stop)
        yield f"rediss+sentinel://127.0.0.1:{sentinel}/{NAME}/0"


@contextmanager
def watched_redis() -> Iterator[WatchedRedis]:
    """Serve until the block ends."""
    with ExitStack() as stack:
        primary = stack.enter_context(redis_server())
        follows = ("--replicaof", "127.0.0.1", str(primary.port))
        replica = stack.enter_context(redis_server(*follows))
        until(lambda: _follows(replica.port))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuneproof-redis-")))
        sentinels = [_sentinel(folder / str(n), primary.port) for n in range(3)]
        for sentinel in sentinels:
            sentinel.start()
            stack.callback(sentinel.stop)
        until(lambda: all(_knows(s.port) for s in sentinels))
        yield WatchedRedis(primary=primary, replica=replica, sentinels=tuple(sentinels))


def _sentinel(folder: Path, primary: int) -> Server:
    folder.mkdir()
    port = free_port()
    told = WATCHING.format(port=port, folder=folder, name=NAME, primary=primary)
    (folder / "sentinel.conf").write_text(told)
    program = binary("redis-server", "apt-get install -y redis-server")
    return Server(
        name="Sentinel",
        url=f"redis://127.0.0.1:{port}",
        port=port,
        command=[program, str(folder / "sentinel.conf"), "--sentinel"],
        folder=folder,
        ready=lambda: _pings(port),
    )


def _pings(port: int) -> bool:
    with Redis(port=port, socket_timeout=1) as client:
        try:
            return bool(client.ping())
        except ConnectionError:
            return False


def _follows(port: int) -> bool:
    with Redis(port=port) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def _knows(port: int) -> bool:
    """Whether a Sentinel knows the replica and the two other Sentinels."""
    with Redis(port=port) as client:
        state = client.sentinel_master(NAME)
    return state["num-slaves"] == 1 and state["num-other-sentinels"] == 2
