"""How often the breaker for gross failure opens, and how soon.

    python -m tests.simulation.gross_failure

Requests go to candidate and baseline by a share; from one of them on both fail at some rate
(an outage), or the candidate alone. The product's rule reads what the product reads: the
candidate's last 20 and the baseline's since then, of which at least ten where none failed.
"""

from __future__ import annotations

import random
from collections import deque

from tuneproof.stats.guardrails import BESIDE_AT_LEAST, gross_failure

REQUESTS, BEFORE, RUNS = 2_000, 400, 400
WINDOW, MOST = 20, 200
WELL = 0.01
WORLDS = {
    "all of both fail": (1.0, 1.0),
    "half of both fails": (0.5, 0.5),
    "30 % of both fail": (0.3, 0.3),
    "the candidate fails": (WELL, 1.0),
    "60 % of the candidate's fail": (WELL, 0.6),
}


def opened(share: float, baseline: float, candidate: float, chance: random.Random) -> int | None:
    """After how many of the candidate's requests the breaker opens; None where it does not."""
    ours: deque[tuple[int, bool]] = deque(maxlen=WINDOW)
    theirs: deque[tuple[int, bool]] = deque(maxlen=MOST)
    count = 0
    for at in range(-BEFORE, REQUESTS):
        of_candidate = chance.random() < share
        rate = WELL if at < 0 else candidate if of_candidate else baseline
        failed = chance.random() < rate
        (ours if of_candidate else theirs).append((at, failed))
        if not of_candidate or at < 0:
            continue
        count += 1
        beside = [failed for when, failed in theirs if when >= ours[0][0]]
        if len(beside) < BESIDE_AT_LEAST and not any(beside):
            beside = [failed for _, failed in theirs][-BESIDE_AT_LEAST:]
        if failed and gross_failure([one for _, one in ours], baseline=beside).fired:
            return count
    return None


def main() -> None:
    """For each share and world: how often it opens, and after how many at the median."""
    chance = random.Random(1)
    for share in (0.05, 0.5, 0.9, 0.99):
        for name, rates in WORLDS.items():
            found = [opened(share, *rates, chance) for _ in range(RUNS)]
            after = sorted(one for one in found if one is not None)
            median = after[len(after) // 2] if after else "-"
            print(f"{share:5.0%}  {name:30} {len(after) / RUNS:6.1%}  after {median}")  # noqa: T201


if __name__ == "__main__":
    main()
