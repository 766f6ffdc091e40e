"""`tuneproof experiment …`: list, show, end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.options import NONE, Options
from tuneproof.cli.output import OK
from tuneproof.cli.service import connect


async def list_(*, pipeline: str | None = None, limit: int = 20, options: Options = NONE) -> int:
    """All experiments, newest first."""
    async with connect(options) as service:
        page = await service.get("/evaluation/tests", pipeline=pipeline, limit=limit)
    if options.json:
        output.data(page)
        return OK
    rows = [
        (t["ab_test_id"], t["status"], t["verdict"], t["tasks"], output.moment(t["start_time"]))
        for t in page["items"]
    ]
    if not rows:
        output.say("No experiments yet. Run: tuneproof run start")
        return OK
    output.table(["experiment", "status", "verdict", "tasks", "began"], rows)
    return OK


async def show(experiment_id: str, /, *, options: Options = NONE) -> int:
    """What an experiment shows: its verdict, its arms, the interval of the lift."""
    async with connect(options) as service:
        test = await service.get(f"/evaluation/status/{experiment_id}")
        shown = await service.get(f"/evaluation/metrics/{experiment_id}")
        address = service.address
    if options.json:
        output.data({**test, **shown})
        return OK
    _print(test, shown, address)
    return OK


def _print(test: Mapping[str, Any], shown: Mapping[str, Any], address: str) -> None:
    statistics = shown["statistical_analysis"]
    interval, level = statistics["interval"], statistics["confidence_level"]
    lift = shown["performance_comparison"]["engagement_lift"]
    span = f"{output.signed(interval['lower'])} to {output.signed(interval['upper'])}"
    output.facts(
        [
            ("experiment", test["ab_test_id"]),
            ("verdict", test["verdict"] or shown["recommendation"]),
            ("reason", test["reason"] or shown["reason"]),
            ("lift", None if lift is None else f"{output.signed(lift)} ({level:.0%}: {span})"),
            ("cost gain", output.signed(shown["performance_comparison"]["cost_efficiency_gain"])),
            ("p-value", statistics["p_value"]),
            ("method", statistics["method"]),
            ("looks", shown["looks"]),
            ("ends", output.moment(test["estimated_end_time"])),
            ("last look", output.moment(test["last_look_at"])),
            ("address", f"{address}/evaluation/status/{test['ab_test_id']}"),
        ]
    )
    rows = [
        (
            arm,
            test[f"{arm}_model"]["model_id"],
            output.percent(test["traffic_allocation"][arm]),
            figures["sample_size"],
            output.percent(figures["engagement_rate"]),
            figures["cost_per_engagement"],
            figures["response_time_ms"],
        )
        for arm, figures in shown["metrics"].items()
    ]
    columns = ["arm", "model", "traffic", "units", "engagement", "USD per engagement", "ms"]
    output.table(columns, rows)


async def plan(
    *,
    pipeline: str = "default",
    share: Annotated[float | None, Parameter(help="The candidate's share, 0.1 is 10 %.")] = None,
    hours: Annotated[float | None, Parameter(help="How long the test enrols.")] = None,
    lift: Annotated[float | None, Parameter(help="The true effect to plan for.")] = None,
    days_back: Annotated[float | None, Parameter(help="How far back to read posts.")] = None,
    options: Options = NONE,
) -> int:
    """What a test would find on the traffic of the last days, how soon, and what it costs."""
    async with connect(options) as service:
        found = await service.get(
            "/evaluation/plan",
            pipeline=pipeline,
            share=share,
            hours=hours,
            lift=lift,
            days_back=days_back,
        )
    if options.json:
        output.data(found)
        return OK
    output.say(found["sentence"])
    if found["probability"] is not None:
        output.facts(
            [
                ("posts an hour", f"{found['units_per_hour']:.1f}"),
                ("mean engagement", output.percent(found["mean"])),
                ("spread", f"{found['cv']:.2f} (standard deviation over mean)"),
                ("level", f"{found['alpha']:.3g}, two-sided, as the ledger leaves it"),
                ("found in time", output.percent(found["probability"])),
                ("promoted", output.percent(found["promoted"])),
            ]
        )
    return OK


async def end(
    experiment_id: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; kept in the history.")],
    options: Options = NONE,
) -> int:
    """End an experiment before its time; its candidate is not promoted."""
    async with connect(options, engine=True) as service:
        shown = await service.get(f"/evaluation/metrics/{experiment_id}")
        units = sum(arm["sample_size"] for arm in shown["metrics"].values())
        question = f"End {experiment_id} after {units} units and {shown['looks']} looks?"
        output.confirm(question, yes=options.yes)
        test = await service.post(f"/evaluation/end/{experiment_id}", {"reason": reason})
    if options.json:
        output.data(test)
    else:
        output.say(f"{experiment_id} is {test['status']}.")
    return OK
