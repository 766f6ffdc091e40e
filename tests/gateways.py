"""A service with two gateway processes, all in processes of their own, before a provider.

with placed(folder, settings(provider.url)) as place:
    place.serve()
    with Load(place) as load:
        os.kill(place.service_pid(), signal.SIGKILL)
    load.failed, load.receipts
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx2
from tests.line import clean_env
from tests.servers import die_with_parent, free_port
from tests.waiting import until

__all__ = ["HTTP", "Load", "Place", "alive", "placed", "settings"]

HTTP = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), timeout=30, trust_env=False)
"""A connection for each request, so that each process gets some; `httpx2.get` reads all authorities
of TLS each time as well, which takes ten times as long as the request."""

SETTINGS = """
[providers.fake]
kind = "openai"
base_url = "{provider}"
api_key = "sk-of-the-provider"
base_model = "base"

[pipelines.default]
provider = "fake"

[tasks.hook]
model = "base"

[server]
metrics_enabled = false
"""


@dataclass
class Place:
    """A `tuneproof serve --gateways 2` at work."""

    folder: Path
    port: int
    gateway_port: int
    log: Path
    env: dict[str, str] = field(default_factory=clean_env)
    process: subprocess.Popen[bytes] | None = None
    token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def start(self, *words: str) -> None:
        command = [sys.executable, "-m", "tuneproof", *words, "--dir", str(self.folder / "data")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )

    def serve(self) -> None:
        gateways = ("--gateways", "2", "--gateway-port", str(self.gateway_port))
        self.start("serve", "--port", str(self.port), *gateways)
        until(self.ready, otherwise=self.said)

    def said(self) -> str:
        return self.log.read_text()[-4000:]

    def back(self) -> None:
        """Return once all of them answer again."""
        until(self.ready, 120, otherwise=self.said)

    def ready(self) -> bool:
        return self._answers(self.url) and len(self.pids()) == 2

    def _answers(self, url: str) -> bool:
        try:
            return HTTP.get(f"{url}/ready", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def pids(self) -> set[int]:
        """The gateway processes that answer and have heard of the service."""
        return {pid for _ in range(20) if (pid := self._ready_gateway())}

    def _ready_gateway(self) -> int:
        """Whoever takes a new connection; 0 where nobody does, or it has heard of no service."""
        with closing(HTTPConnection("127.0.0.1", self.gateway_port, timeout=5)) as connection:
            try:
                if _asked(connection, "/ready")[0] != 200:
                    return 0
                return int(json.loads(_asked(connection, "/live")[1])["pid"])
            except (OSError, HTTPException):
                return 0

    def service_pid(self) -> int:
        return until(self._service_pid, 60, otherwise=self.said)

    def _service_pid(self) -> int:
        """0 where it does not answer, as on a machine that has too much to do."""
        try:
            return int(HTTP.get(f"{self.url}/live", timeout=5).json()["pid"])
        except httpx2.HTTPError:
            return 0

    def declare(self) -> str:
        """Begin a test; its id."""
        models = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
        answer = HTTP.post(
            f"{self.url}/evaluation/create-ab-test",
            json={**models, "tasks": ["hook"], "traffic_split": 0.5},
            headers=self.headers,
            timeout=30,
        )
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["ab_test_id"])

    def subject(self) -> str | None:
        """Whose evidence the gateways record."""
        return self.ask("probe").headers.get("x-tuneproof-subject")

    def all_know(self, subject: str) -> bool:
        """Whether whoever is asked records for this subject: each request may reach another."""
        return all(self.subject() == subject for _ in range(20))

    def ask(self, unit: str, **headers: str) -> httpx2.Response:
        body = {"model": "tuneproof/hook", "messages": [], "user": unit}
        return HTTP.post(
            f"{self.gateway}/v1/chat/completions",
            json=body,
            headers={**self.headers, **headers},
            timeout=30,
        )

    def recorded(self) -> set[str]:
        """The ids of the exposures that the service has."""
        database = self.folder / "data" / "tuneproof.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            return {str(row[0]) for row in opened.execute("SELECT id FROM exposures")}

    def counted(self, table: str, unit: str) -> int:
        """How many rows of a unit the service has."""
        database = self.folder / "data" / "tuneproof.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            found = opened.execute(f"SELECT count(*) FROM {table} WHERE unit = ?", (unit,))
            return int(found.fetchone()[0])

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Load:
    """Four applications that ask one after the other over kept connections, until told to end."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._over = threading.Event()
        self.receipts: list[str] = []
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(4)]

    def _ask(self, number: int) -> None:
        connection: HTTPConnection | None = None
        asked = 0
        while not self._over.wait(0.02):
            asked += 1
            body = {"model": "tuneproof/hook", "messages": [], "user": f"load-{number}-{asked}"}
            try:
                connection = connection or HTTPConnection(
                    "127.0.0.1", self._place.gateway_port, timeout=60
                )
                connection.request("POST", "/v1/chat/completions", json.dumps(body))
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
                connection = None
                continue
            if answer.status == 200:
                self.receipts.append(str(answer.headers["x-tuneproof-response"]))
            else:
                self.failed.append(str(answer.status))
            if answer.will_close:
                connection.close()
                connection = None

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def _asked(connection: HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def settings(provider: str) -> str:
    """A file of settings for this provider."""
    return SETTINGS.format(provider=provider)


@contextmanager
def placed(folder: Path, settings: str, **env: str) -> Iterator[Place]:
    """A folder with settings and ports; what runs there at the end is ended."""
    folder.mkdir(exist_ok=True)
    (folder / "tuneproof.toml").write_text(settings)
    place = Place(folder, free_port(), free_port(), folder / "log", clean_env(**env))
    try:
        yield place
    finally:
        if place.process is not None and place.process.poll() is None:
            place.stop()
