"""One decision "which variation serves this unit", by ours or by GrowthBook's SDK, timed.

Both decide in the process from an experiment that they hold, by a hash of the unit, at 10 / 90.
GrowthBook is used as its documentation says for servers: an object for each user.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from statistics import median

COUNT = 20_000
ROUNDS = 7


def ours() -> Callable[[str], str]:
    from tuneproof.client import Client

    client = Client("http://127.0.0.1:9", push=False, poll_s=3600.0)  # nobody answers there
    row = {
        "task": "hook",
        "baseline": {"model_id": "base", "version": None},
        "candidate": {"model_id": "tuned", "version": "ver-1"},
        "share": 0.1,
        "salt": "salt",
        "subject": "ab-test-1",
        "phase": 1,
        "version": 1,
    }
    client._state.update({"version": 1, "routing": [row]})
    client.start()
    return lambda unit: client.choose("hook", unit).model


def growthbook() -> Callable[[str], str]:
    from growthbook import Experiment, GrowthBook

    def choose(unit: str) -> str:
        book = GrowthBook(attributes={"id": unit})
        experiment = Experiment(key="hook", variations=["base", "tuned"], weights=[0.9, 0.1])
        return book.run(experiment).value

    return choose


def xxhash() -> Callable[[str], str]:
    """The limit: the hash that ours uses and one comparison; no routing, no record."""
    from xxhash import xxh3_64_intdigest

    def choose(unit: str) -> str:
        return "tuned" if xxh3_64_intdigest(f"salt{unit}".encode()) % 10_000 < 1000 else "base"

    return choose


WAYS = {"tuneproof": ours, "growthbook": growthbook, "xxhash": xxhash}


def main() -> None:
    name = sys.argv[1]
    choose = WAYS[name]()
    units = [f"post-{i}" for i in range(COUNT)]
    share = sum(choose(unit) == "tuned" for unit in units) / COUNT
    assert 0.09 < share < 0.11, share
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for unit in units:
            choose(unit)
        rounds.append((time.perf_counter() - began) / COUNT)
    version = importlib.metadata.version(name)
    print(json.dumps({"seconds": median(rounds), "version": version}))


if __name__ == "__main__":
    main()
