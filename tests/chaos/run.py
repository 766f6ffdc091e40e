"""Puts servers, service, load and faults together, and recounts what is left of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from tests.chaos.faults import Faults, Proxy
from tests.chaos.load import Books, Load, quantile, statuses
from tests.gateways import Place, placed
from tests.servers import free_port, listens, mlflow_server, postgres_server, redis_server
from tests.waiting import until

from tuneproof.client import Client

PROVIDER = Path(__file__).parents[2] / "benchmarks" / "peers" / "gateway" / "provider.py"
OURS = ("kill", "stall", "replace")

SETTINGS = """
[store]
url = "{store}"

[cache]
url = "{cache}"
enabled = true

[tracking]
uri = "{tracking}"

[providers.fake]
kind = "openai"
base_url = "{provider}"
api_key = "sk-of-the-provider"
base_model = "base"
timeout_seconds = 3

[pipelines.default]
provider = "fake"

[tasks.hook]
model = "base"

[server]
metrics_enabled = false
"""


@dataclass(frozen=True)
class Result:
    """What is left of it. `failed` failed for our sake; `strange` were answered by whom they may
    not; `lost` and `doubled` are events that were acknowledged; `test` is how the test stands."""

    seed: int
    seconds: float
    faults: int
    asked: int
    chosen: int
    statuses: dict[str, int]
    failed: list[str]
    strange: list[str]
    recorded: int
    lost: int
    doubled: int
    p50_ms: float
    p99_ms: float
    slowest_choice_ms: float
    test: str

    @property
    def good(self) -> bool:
        """Whether it is as promised."""
        harmed = self.failed or self.strange or self.lost or self.doubled
        return not harmed and self.test == "running"


@contextmanager
def _provider() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, str(PROVIDER), str(port)], stdout=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: listens(port))
            yield port
        finally:
            process.kill()


async def run(*, seconds: float, seed: int, rate: float) -> Result:
    """All of it."""
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server(max_connections=60, synchronous_commit="on"))
        servers = {"redis": stack.enter_context(redis_server())}
        tracking = stack.enter_context(mlflow_server())
        url = postgres.create_database()
        proxies = {
            "provider": Proxy(stack.enter_context(_provider())),
            "postgres": Proxy(postgres.port),
            "redis": Proxy(servers["redis"].port),
            "mlflow": Proxy(tracking.port),
        }
        for proxy in proxies.values():
            await proxy.start()
        addresses = {
            "store": url.replace(str(postgres.port), str(proxies["postgres"].port)),
            "cache": f"redis://127.0.0.1:{proxies['redis'].port}/0",
            "tracking": f"http://127.0.0.1:{proxies['mlflow'].port}",
            "provider": f"http://127.0.0.1:{proxies['provider'].port}/v1",
        }
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuneproof-chaos-")))
        place = stack.enter_context(placed(folder / "place", SETTINGS.format(**addresses)))
        await asyncio.to_thread(place.serve)
        await asyncio.to_thread(_declare, place)
        books = Books()
        faults = Faults(place, proxies, {"postgres": postgres, **servers}, seed)
        client = Client(place.url, state_dir=folder / "client")
        try:
            ends = time.monotonic() + seconds
            load = Load(place.gateway, client, rate=rate, books=books)
            await asyncio.gather(load.run(ends), faults.go_on(ends - 5.0))
            await asyncio.to_thread(_drain, place, client)
        finally:
            client.close()
        kept, test = _kept(url), _stands(url)
        await asyncio.to_thread(place.stop)
        for proxy in proxies.values():
            await proxy.stop()
        return _result(books, faults, kept, seconds=seconds, seed=seed, test=test)


def _declare(place: Place) -> None:
    subject = place.declare()
    until(lambda: place.all_know(subject))


def _drain(place: Place, client: Client) -> None:
    """Until everybody has delivered what they measured."""
    until(lambda: client.flush(5.0), 120, otherwise=lambda: repr(client.status()))
    spool = place.folder / "data" / "spool"
    until(lambda: not list(spool.glob("*/*.jsonl")), 120, otherwise=place.said)


def _kept(url: str) -> tuple[dict[str, int], int]:
    """How often each exposure is stored, and how many the rollups count."""
    with psycopg.connect(url.replace("+psycopg", "")) as opened:
        rows = opened.execute("SELECT id, count(*) FROM exposures GROUP BY id").fetchall()
        counted = opened.execute(
            "SELECT coalesce(sum(n), 0) FROM requests WHERE hour >= 0"
        ).fetchone()
    return {str(id): int(times) for id, times in rows}, int(counted[0]) if counted else 0


def _stands(url: str) -> str:
    """The test's status; of one that was ended, why."""
    with psycopg.connect(url.replace("+psycopg", "")) as opened:
        [(status, reason)] = opened.execute("SELECT status, reason FROM experiments").fetchall()
    return status if status == "running" else f"{status}: {reason}"


def _result(
    books: Books,
    faults: Faults,
    kept: tuple[dict[str, int], int],
    *,
    seconds: float,
    seed: int,
    test: str,
) -> Result:
    stored, counted = kept
    acknowledged = {one.exposure for one in books.answered if one.exposure} | set(books.recorded)
    failed = [
        f"{one.status} {one.error} for {one.unit}, {one.ended - one.began:.2f} s"
        for one in books.answered
        if one.status != 200 and not _excused(one.error, faults.at_fault, one.began, one.ended)
    ]
    doubled = sum(times - 1 for times in stored.values()) + max(0, counted - len(stored))
    return Result(
        seed=seed,
        seconds=seconds,
        faults=len(faults.done),
        asked=len(books.answered),
        chosen=len(books.recorded),
        statuses=statuses(books),
        failed=[*failed, *books.client_failed],
        strange=_strange(books),
        recorded=len(acknowledged),
        lost=len(acknowledged - stored.keys()) + max(0, len(stored) - counted),
        doubled=doubled,
        p50_ms=1e3 * quantile([one.ended - one.began for one in books.answered], 0.5),
        p99_ms=1e3 * quantile([one.ended - one.began for one in books.answered], 0.99),
        slowest_choice_ms=1e3 * books.slowest_choice_s,
        test=test,
    )


def _excused(code: str, at_fault: Any, began: float, ended: float) -> bool:
    """Whether it is the provider that was away, and the answer says so."""
    return code == "provider_unavailable" and at_fault("provider", began, ended)


def _strange(books: Books) -> list[str]:
    """Answers by a model that nobody promoted or tests, or that one unit got one after another."""
    found = [f"{o.model} for {o.unit}" for o in books.answered if o.status == 200 and not _due(o)]
    arms: dict[str, set[str]] = {}
    for one in books.answered:
        if one.status == 200:
            arms.setdefault(one.unit, set()).add(one.arm)
    found += [f"both arms for {unit}" for unit, seen in arms.items() if len(seen) > 1]
    known = {"base", "cand"}
    found += [f"{model} by the client" for model in set(books.client_arms.values()) - known]
    return found


def _due(one: Any) -> bool:
    expected = "cand" if one.arm == "candidate" and not one.fallback else "base"
    return bool(one.model == expected)


def main() -> int:
    """From the command line; exit code 1 where anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=float, default=200.0)
    asked = parser.parse_args()
    result = asyncio.run(run(seconds=asked.seconds, seed=asked.seed, rate=asked.rate))
    shown = asdict(result)
    shown["failed"], shown["strange"] = result.failed[:20], result.strange[:20]
    shown["failed_count"], shown["strange_count"] = len(result.failed), len(result.strange)
    print(json.dumps(shown, indent=2))  # noqa: T201
    return 0 if result.good else 1
