"""A canary in every place that takes a secret is in no output of a whole run."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from tests.line import EXECUTABLE, clean_env, write_posts
from tests.servers import PostgresServer, free_port
from tests.unit.test_secrets import SECRET_PATHS
from tests.waiting import until

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.settings import TrainerSettings

CANARY = "canary-7f3a"

SETTINGS = """
[store]
url = "{database}"
[cache]
url = "redis://:{canary}@127.0.0.1:{dead}/0"
[files]
url = "memory://me:{canary}@store"
[tracking]
uri = "http://me:{canary}@127.0.0.1:{dead}"
[server]
public_url = "http://me:{canary}@127.0.0.1:{port}"
port = {port}
metrics_enabled = false
[alerts]
webhook_url = "http://127.0.0.1:{dead}/services/{canary}"
webhook_secret_env = "MY_ALERTS"
prometheus_url = "http://me:{canary}@127.0.0.1:{dead}"
[providers.default]
kind = "trainer"
base_url = "{trainer}?api_key={canary}"
api_key_env = "MY_KEY"
webhook_secret_env = "MY_HOOK"
[providers.other]
kind = "nebius"
base_url = "http://me:{canary}@127.0.0.1:{dead}/v1"
api_key = "{canary}"
webhook_secret = "{canary}"
[sources.posts]
url = "{database}"
[outcome_sources.x]
url = "{database}"
query = "SELECT 'u' AS unit, 1 AS value, now() AS at WHERE :since < :until AND false"
[scorers.own]
kind = "textwrap:shorten"
api_key = "{canary}"
[targets.x]
kind = "webhook"
url = "http://127.0.0.1:{dead}/{canary}?token={canary}"
secret = "{canary}"
[pipelines.default.training]
poll_seconds = 0.5
[pipelines.default.evaluation]
outcome_source = "x"
"""
"""Where a provider, a database or a webhook of these is dead, what is said of that is looked at."""


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[str]:
    with EmbeddedTrainer(TrainerSettings(dir=tmp_path / "trainer")) as served:
        yield served.base_url


class Told:
    """Everything that was said, by who said it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.texts: dict[str, str] = {}

    def run(self, *tokens: str) -> subprocess.CompletedProcess[str]:
        """A command; what it says is kept."""
        done = subprocess.run(
            [*EXECUTABLE, *tokens, "--dir", "data"],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        self.texts[" ".join(tokens)] = done.stdout + done.stderr
        return done

    def routes(self, address: str, run_id: str) -> None:
        """What each route that can be read answers."""
        headers = {"Authorization": f"Bearer {self.environment['LOCAL_TOKEN']}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            paths = client.get("/openapi.json").json()["paths"]
            assert len(paths) > 40
            for path, operations in paths.items():
                if "get" in operations:
                    filled = path.replace("{pipeline_id}", run_id).replace("{task}", "hook")
                    self.texts[f"GET {path}"] = _first(client, filled)

    def files(self) -> None:
        """What lies in the data directory."""
        for path in (self.folder / "data").rglob("*"):
            if path.is_file():
                self.texts[str(path)] = path.read_bytes().decode("utf-8", "replace")

    def database(self, url: str) -> None:
        """What is kept in each table of each schema."""
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables "
                "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            assert {schema for schema, _ in tables} == {"public", "dbos"}
            for schema, table in tables:
                rows = connection.execute(f'SELECT t::text FROM "{schema}"."{table}" t')
                self.texts[f"{schema}.{table}"] = "\n".join(str(row[0]) for row in rows)

    @property
    def telling(self) -> list[str]:
        """Who told the canary, with what stands around it."""
        return [
            f"{who}: {text[max(0, at - 200) : at + 60]}"
            for who, text in self.texts.items()
            if (at := text.find(CANARY)) >= 0
        ]


def _first(client: httpx2.Client, path: str) -> str:
    """What a path answers; of a stream the first of it, since it never ends."""
    with client.stream("GET", path) as answer:
        if "event-stream" in answer.headers["content-type"]:
            return next(answer.iter_text())
        return answer.read().decode()


def secret_settings(text: str) -> set[str]:
    """The places that these settings put a canary in, as the list of all such places has them."""
    known = {path.partition(".")[0] for path in SECRET_PATHS}
    return {table for table in known if f"[{table}" in text or table == "remote"}


@pytest.mark.postgres
def test_no_output_of_a_whole_run_tells_a_secret(
    tmp_path: Path, postgres: PostgresServer, trainer: str
) -> None:
    """`config check` printed webhook secrets and tokens, `/doctor` and the log a webhook's path."""
    url = postgres.create_database().replace("+psycopg", "")
    database = url.replace("postgres@", f"postgres:{CANARY}@")
    assert CANARY in database
    text = SETTINGS.format(
        database=database, trainer=trainer, canary=CANARY, dead=free_port(), port=free_port()
    )
    assert secret_settings(text) == {path.partition(".")[0] for path in SECRET_PATHS}
    (tmp_path / "tuneproof.toml").write_text(text)
    write_posts(tmp_path / "posts.csv")
    secrets = dict.fromkeys(("MY_KEY", "MY_HOOK", "MY_ALERTS"), CANARY)
    told = Told(tmp_path, clean_env(**secrets, LOCAL_TOKEN=""))
    assert told.run("config", "check").returncode == 0
    assert "***" in told.texts["config check"]
    assert told.run("posts", "import", "posts.csv").returncode == 0, told.texts
    made = told.run("token", "create", "reader", "--scope", "admin", "--json")
    told.environment = {**told.environment, "LOCAL_TOKEN": json.loads(made.stdout)["token"]}
    with served(told) as log:
        started = told.run(
            *("run", "start", "--as-of", "2025-01-28", "--days-back", "30", "--no-wait"),
            *("--training-data-threshold", "50", "--json"),
        )
        run_id = json.loads(started.stdout)["pipeline_id"]

        def over() -> bool:
            run = json.loads(told.run("run", "show", run_id, "--json").stdout)
            return run["status"] == "failed" or "ab_test_id" in run["result"]

        until(over, 120)
        told.run("run", "show", run_id)
        told.run("run", "logs", run_id)
        told.run("doctor")
        told.run("status")
        told.routes(json.loads((tmp_path / "data/service.json").read_text())["url"], run_id)
        told.run("status", "--token", CANARY)
        told.run("status", "--url", f"http://me:{CANARY}@127.0.0.1:{free_port()}")
        told.run("run", "abort", run_id, "--yes")
    told.texts["serve"] = log.read_text()
    told.files()
    told.database(url)
    assert "is up" in told.texts["doctor"]  # the dead ones were looked at
    assert len(told.texts["serve"].splitlines()) > 5
    assert told.telling == []


@contextlib.contextmanager
def served(told: Told) -> Iterator[Path]:
    """The service, with all that it logs in a file."""
    path = told.folder / "serve.log"
    command = [*EXECUTABLE, "serve", "--log-level", "debug", "--dir", "data"]
    arguments: dict[str, Any] = {"cwd": told.folder, "env": told.environment}
    with (
        path.open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **arguments) as process,
    ):
        until(lambda: (told.folder / "data" / "service.json").exists(), 60)
        try:
            yield path
        finally:
            process.terminate()
            process.wait(60)
