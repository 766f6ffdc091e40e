"""Measures one analysis of two arms from their sums and prints JSON.

python measure.py NAME      NAME: tuneproof, tea-tasting, gbstats, gbstats-entry

All start from the same six numbers: units, sum and sum of squares of each arm. `gbstats-entry`
is the entry point that takes the rows of a query (through pandas), `gbstats` its test class.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

BASELINE = (18_000, 1224.0, 160.0)
CANDIDATE = (2_000, 163.2, 24.0)
SECONDS = 1.0
BATCHES = 7


def tuneproof() -> Callable[[], Any]:
    from tuneproof.stats import sequential
    from tuneproof.stats.aggregates import Aggregate, Stratum

    def analyse() -> Any:
        arms = [Aggregate(n=n, sum_y=s, sum_yy=q) for n, s, q in (BASELINE, CANDIDATE)]
        return sequential.lift([Stratum(baseline=arms[0], candidate=arms[1])]).upper

    return analyse


def tea_tasting() -> Callable[[], Any]:
    import tea_tasting as tt
    from tea_tasting.aggr import Aggregates

    metric = tt.Mean("y")

    def aggregates(n: int, total: float, squares: float) -> Aggregates:
        mean = total / n
        variance = (squares - n * mean * mean) / (n - 1)
        return Aggregates(count_=n, mean_={"y": mean}, var_={"y": variance})

    def analyse() -> Any:
        return metric.analyze_aggregates(aggregates(*BASELINE), aggregates(*CANDIDATE)).pvalue

    return analyse


def gbstats() -> Callable[[], Any]:
    from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
    from gbstats.models.statistics import SampleMeanStatistic

    config = SequentialConfig(
        alpha=0.05, difference_type="relative", sequential_tuning_parameter=5000
    )

    def analyse() -> Any:
        arms = [SampleMeanStatistic(n=n, sum=s, sum_squares=q) for n, s, q in (BASELINE, CANDIDATE)]
        return SequentialTwoSidedTTest(*arms, config).compute_result().ci[1]

    return analyse


def gbstats_entry() -> Callable[[], Any]:
    from gbstats.gbstats import process_experiment_results

    rows = [
        {
            "dimension": "", "variation": str(i), "users": n, "m0_id": "y", "m0_count": n,
            "m0_main_sum": s, "m0_main_sum_squares": q,
        }
        for i, (n, s, q) in enumerate((BASELINE, CANDIDATE))
    ]  # fmt: skip
    metric = {"id": "y", "name": "y", "statistic_type": "mean", "main_metric_type": "count"}
    analysis = {
        "var_names": ["baseline", "candidate"], "var_ids": ["0", "1"], "weights": [0.9, 0.1],
        "stats_engine": "frequentist", "sequential_testing_enabled": True,
    }  # fmt: skip
    data = {
        "metrics": {"y": metric},
        "analyses": [analysis],
        "query_results": [{"rows": rows, "metrics": ["y"], "sql": ""}],
    }

    def analyse() -> Any:
        found = process_experiment_results(data)
        return found[0]["analyses"][0]["dimensions"][0]["variations"][1]["ci"][1]

    return analyse


KNOWN = {
    "tuneproof": (tuneproof, "tuneproof"),
    "tea-tasting": (tea_tasting, "tea-tasting"),
    "gbstats": (gbstats, "gbstats"),
    "gbstats-entry": (gbstats_entry, "gbstats"),
}


def seconds(analyse: Callable[[], Any]) -> float:
    """The fastest batch, for one analysis."""
    analyse()
    count, took = 1, 0.0
    while took < SECONDS / BATCHES / 2:
        count *= 2
        took = _batch(analyse, count)
    return min(_batch(analyse, count) for _ in range(BATCHES)) / count


def _batch(analyse: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        analyse()
    return time.perf_counter() - began


if __name__ == "__main__":
    make, package = KNOWN[sys.argv[1]]
    analyse = make()
    answer = {
        "seconds": seconds(analyse),
        "value": float(analyse()),
        "version": version(package),
    }
    print(json.dumps(answer))
