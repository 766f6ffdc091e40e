"""`tuneproof experiment …`: create, list, show, plan, shadow, end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tuneproof.cli import output
from tuneproof.cli.declared import (
    NOTHING_DECLARED,
    DeclaredOptions,
    answered_values,
    asked_of,
)
from tuneproof.cli.options import NONE, CommonOptions
from tuneproof.cli.output import OK
from tuneproof.cli.service import connect, path_to
from tuneproof.errors import ConfigError
from tuneproof.settings import declared_rows


async def create(
    baseline: Annotated[str, Parameter(help="The model in use, as its provider names it.")],
    candidate: Annotated[str, Parameter(help="The model that wants its place.")],
    /,
    *more: Annotated[str, Parameter(help="Further candidates, tested at once with it.")],
    pipeline: Annotated[str, Parameter(help="Whose settings hold for the rest.")] = "default",
    task: Annotated[
        list[str] | None, Parameter(help="A task that it serves; again for more.", negative="")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        Parameter(
            help="The hash of the prompt that a candidate is asked by; again for more candidates, "
            "in their order.",
            negative="",
        ),
    ] = None,
    replace_baseline: Annotated[
        bool,
        Parameter(help="Put a baseline into production that is not in use.", negative=""),
    ] = False,
    declared: DeclaredOptions = NOTHING_DECLARED,
    options: CommonOptions = NONE,
) -> int:
    """Declare an experiment of two models or more; what is left out is as the settings say.

    A share of the units gets each candidate at once. It is looked at under `tuneproof serve`.
    """
    asked = {
        "baseline_model": {"model_id": baseline},
        **_candidates([candidate, *more], prompt or []),
        "pipeline": pipeline,
        "tasks": task,
        "replace_baseline": replace_baseline or None,
        **asked_of(declared),
    }
    body = {name: value for name, value in asked.items() if value is not None}
    async with connect(options, engine=True, makes=True) as service:
        made = await service.post("/evaluation/create-ab-test", body)
        first = made["tests"][0] if more else made
        test = await service.get(path_to("/evaluation/status", first["ab_test_id"]))
        waits = service.local
    if options.json:
        output.data(made if more else test)
        return OK
    if more:
        names = ", ".join(t["ab_test_id"] for t in made["tests"])
        output.say(f"Family {made['family']} began: {names}.")
    else:
        output.say(f"Experiment {test['ab_test_id']} began.")
    output.facts([*_declared(test), ("ends", output.moment(test["estimated_end_time"]))])
    if waits:
        output.say("It is looked at while the service runs: tuneproof serve")
    return OK


def _candidates(models: Sequence[str], prompts: Sequence[str]) -> dict[str, Any]:
    if len(prompts) > len(models):
        raise ConfigError(
            f"There are {len(prompts)} prompts for {len(models)} candidates.",
            mend="Give each candidate one at most, in their order.",
        )
    named: list[dict[str, str]] = [{"model_id": model} for model in models]
    for one, hash in zip(named, prompts, strict=False):
        one["prompt"] = hash
    return {"candidate_models": named} if len(named) > 1 else {"candidate_model": named[0]}


async def list_(
    *, pipeline: str | None = None, limit: int = 20, options: CommonOptions = NONE
) -> int:
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


async def show(
    experiment_id: str,
    /,
    *,
    html: Annotated[Path | None, Parameter(help="Write a page with the lift chart here.")] = None,
    options: CommonOptions = NONE,
) -> int:
    """What an experiment shows: its verdict, its criteria, its arms, the interval of the lift.

    Of a family: all its candidates side by side.
    """
    if experiment_id.startswith("family-"):
        return await _show_family(experiment_id, options)
    async with connect(options) as service:
        test = await service.get(path_to("/evaluation/status", experiment_id))
        shown = await service.get(path_to("/evaluation/metrics", experiment_id))
        scores = await service.get(path_to("/evaluation/scores", experiment_id))
        address = service.address
        if html is not None:
            page = await service.text(path_to("/evaluation/report", experiment_id))
            await asyncio.to_thread(html.write_text, page, encoding="utf-8")
            output.say(f"Wrote {html}.")
    if options.json:
        output.data({**test, **shown, "scores": scores})
        return OK
    _print(test, shown, address)
    _print_scores(scores)
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
            ("expected", _expected(statistics["expected_effect"])),
            ("over time", (shown["halves"] or {}).get("reason")),
            ("cost gain", output.signed(shown["performance_comparison"]["cost_efficiency_gain"])),
            ("p-value", statistics["p_value"]),
            ("method", statistics["method"]),
            ("looks", shown["looks"]),
            *_declared(test),
            ("ledger", _ledger(test)),
            ("ends", output.moment(test["estimated_end_time"])),
            ("last look", output.moment(test["last_look_at"])),
            ("address", f"{address}/evaluation/status/{test['ab_test_id']}"),
        ]
    )
    _print_criteria(shown["criteria"])
    rows = [
        (
            arm,
            output.variant(test[f"{arm}_model"]),
            output.percent(test["traffic_allocation"][arm]),
            figures["sample_size"],
            output.percent(figures["engagement_rate"]),
            _cost(figures),
            figures["response_time_ms"],
        )
        for arm, figures in shown["metrics"].items()
    ]
    columns = ["arm", "model", "traffic", "units", "engagement", "USD per engagement", "ms"]
    output.table(columns, rows)
    _print_segments(shown["segments"])
    _print_family(shown["family"])


def _cost(figures: Mapping[str, Any]) -> str | None:
    """What an outcome costs, and of which share of the units that is known where not of all."""
    cost, known = figures["cost_per_engagement"], figures["cost_known"]
    if cost is None:
        return None
    return f"{cost:.4g}" + ("" if known in (None, 1) else f" (known of {known:.0%})")


def _expected(found: Mapping[str, Any] | None) -> str | None:
    """The lift to be expected of everybody, beside the one that was observed."""
    if found is None:
        return None
    past = found["prior_experiments"]
    source = f"{past} past experiments" if past else "an assumed prior"
    span = f"{output.signed(found['lower'])} to {output.signed(found['upper'])}"
    return f"{output.signed(found['lift'])} ({span}), shrunk by {source}"


def _declared(test: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was said of it before it began."""
    guarded = ", guarded" if test["segment_guardrail"] else ""
    texts = {
        "segments": (", ".join(test["segments"]) or "none") + guarded,
        "analysis_unit": _counted(test),
    }
    return declared_rows(answered_values(test), texts)


def _counted(test: Mapping[str, Any]) -> str:
    if test["analysis_unit"] == "item":
        return "items, judged by the units that hold them"
    return "units, adjusted by their covariate" if test["cuped"] else "units"


def _ledger(test: Mapping[str, Any]) -> str | None:
    if test["ledger_alpha"] is None:
        return None
    again = f", tested {test['retest']} times before" if test["retest"] else ""
    return f"may promote at level {test['promotion_alpha']:.3g}, two-sided{again}"


def _print_criteria(criteria: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            c["metric"],
            c["asked"] or "shown only",
            output.signed(c["change"]),
            f"{output.signed(c['lower'])} to {output.signed(c['upper'])}",
            "" if c["asked"] is None else {True: "holds", False: "fails", None: "open"}[c["holds"]],
        )
        for c in criteria
    ]
    if rows:
        output.table(["criterion", "asked", "change, + is better", "interval", ""], rows)


def _print_scores(scores: Mapping[str, Any]) -> None:
    """How answers are scored, where they are."""
    arms = [(arm, scores[arm]) for arm in ("baseline", "candidate")]
    if scores["scorer"] is None and not any(tally["scored"] for _, tally in arms):
        return
    columns = ["answers", "scored", "waiting", "dropped", "mean score"]
    rows = [(a, t["scored"], t["waiting"], t["dropped"], t["mean"]) for a, t in arms]
    output.table(columns, rows)
    if scores["waits"]:
        output.facts([("they wait", scores["waits"])])


def _print_segments(segments: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            f"{s['attribute']} = {s['value']}",
            s["n_baseline"] + s["n_candidate"],
            output.signed(s["lift"]),
            f"{output.signed(s['lower'])} to {output.signed(s['upper'])}",
            "yes" if s["found"] else "no",
        )
        for s in segments
    ]
    if rows:
        output.table(["segment (exploratory)", "units", "lift", "interval", "real"], rows)


def _print_family(family: Mapping[str, Any] | None) -> None:
    """All candidates that were declared at once, side by side."""
    if family is None:
        return
    rows = [
        (
            output.variant(t["candidate_model"]),
            t["ab_test_id"],
            t["verdict"] or t["status"],
            output.signed(t["engagement_lift"]),
            f"{output.signed(t['lower'])} to {output.signed(t['upper'])}",
            output.signed(t["expected_lift"]),
            t["sample_size"],
        )
        for t in family["tests"]
    ]
    columns = ["candidate", "experiment", "verdict", "lift", "interval", "expected", "units"]
    output.say(f"Tested at once, as {family['family']}:")
    output.table(columns, rows)


async def plan(
    *,
    pipeline: str = "default",
    share: Annotated[float | None, Parameter(help="The candidate's share, 0.1 is 10 %.")] = None,
    hours: Annotated[float | None, Parameter(help="How long the test enrols.")] = None,
    lift: Annotated[float | None, Parameter(help="The true effect to plan for.")] = None,
    days_back: Annotated[float | None, Parameter(help="How far back to read posts.")] = None,
    candidates: Annotated[int | None, Parameter(help="How many are tested at once.")] = None,
    task: Annotated[
        str | None, Parameter(help="Plan from what the gateway recorded of it, not from posts.")
    ] = None,
    options: CommonOptions = NONE,
) -> int:
    """What a test would find on the traffic of the last days, how soon, and what it costs."""
    async with connect(options, scratch=True) as service:
        found = await service.get(
            "/evaluation/plan",
            pipeline=pipeline,
            share=share,
            hours=hours,
            lift=lift,
            days_back=days_back,
            candidates=candidates,
            task=task,
        )
    if options.json:
        output.data(found)
        return OK
    output.say(found["sentence"])
    if found["selects"]:
        output.say(f"A run would learn from {found['selects']}.")
    if found["training_s"] is None:
        output.say("How long its training takes is known once one has ended at its provider.")
    if found["probability"] is not None:
        output.facts(
            [
                ("units an hour" if task else "posts an hour", f"{found['units_per_hour']:.1f}"),
                ("mean engagement", output.percent(found["mean"])),
                ("spread", f"{found['cv']:.2f} (standard deviation over mean)"),
                ("level", f"{found['alpha']:.3g}, two-sided, as the ledger leaves it"),
                ("found in time", output.percent(found["probability"])),
                ("promoted", output.percent(found["promoted"])),
            ]
        )
    return OK


async def shadow(task: str, /, *, options: CommonOptions = NONE) -> int:
    """What a model answered to copies of a task's requests, beside what users got."""
    async with connect(options) as service:
        found = await service.get(path_to("/evaluation/shadow", task))
    if options.json:
        output.data(found)
        return OK
    told = found["shadow"]
    if told is None and not found["weeks"]:
        output.say(f"{task} has no shadow. Set shadow_model in [tasks.{task}].")
        return OK
    if told is not None:
        budget = told["budget_usd"]
        output.facts(
            [
                ("shadow", f"{told['model']} at {told['provider']}"),
                ("share of the units", output.percent(told["share"])),
                ("at once in a process", told["concurrency"]),
                ("spent today", f"{found['spent_usd']:.4f} USD"),
                ("budget a day", "unlimited" if budget is None else f"{budget:g} USD"),
            ]
        )
    columns = ["week", "answers of", "requests", "errors", "p50", "p95", "tokens", "USD"]
    output.table(columns, [row for week in found["weeks"] for row in _sides(week)])
    return OK


def _sides(week: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A row for each side of a week of shadow traffic."""
    for side, name in (("baseline", "the baseline, to users"), ("shadow", week["model"])):
        told = week[side]
        latencies = (told["p50_latency_ms"], told["p95_latency_ms"])
        yield (
            output.moment(week["began"]),
            name,
            told["requests"],
            told["errors"],
            *("-" if ms is None else f"{ms:.0f} ms" for ms in latencies),
            told["tokens"],
            f"{told['cost_usd']:.4f}",
        )


async def end(
    experiment_id: str,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; kept in the history.")],
    options: CommonOptions = NONE,
) -> int:
    """End an experiment before its time, or all of a family; no candidate is promoted."""
    if experiment_id.startswith("family-"):
        return await _end_family(experiment_id, reason, options)
    async with connect(options, engine=True) as service:
        shown = await service.get(path_to("/evaluation/metrics", experiment_id))
        units = sum(arm["sample_size"] for arm in shown["metrics"].values())
        question = f"End {experiment_id} after {units} units and {shown['looks']} looks?"
        output.confirm(question, yes=options.yes)
        test = await service.post(path_to("/evaluation/end", experiment_id), {"reason": reason})
    if options.json:
        output.data(test)
    else:
        output.say(f"{experiment_id} is {test['status']}.")
    return OK


async def _show_family(family: str, options: CommonOptions) -> int:
    async with connect(options) as service:
        shown = await service.get(path_to("/evaluation/family", family))
    if options.json:
        output.data(shown)
        return OK
    output.facts(
        [
            ("baseline", output.variant(shown["baseline_model"])),
            ("traffic", output.percent(shown["traffic_allocation"]["baseline"])),
            ("level", f"{shown['promotion_alpha']:.3g} for each, two-sided"),
            ("winner", shown["winner"]),
            ("last look", output.moment(shown["last_look_at"])),
        ]
    )
    _print_family(shown)
    output.facts([(t["ab_test_id"], t["reason"]) for t in shown["tests"] if t["reason"]])
    return OK


async def _end_family(family: str, reason: str, options: CommonOptions) -> int:
    async with connect(options, engine=True) as service:
        shown = await service.get(path_to("/evaluation/family", family))
        running = [t for t in shown["tests"] if t["status"] == "running"]
        question = f"End {len(running)} running tests of {family}?"
        output.confirm(question, yes=options.yes)
        ended = await service.post(path_to("/evaluation/family", family, "end"), {"reason": reason})
    if options.json:
        output.data(ended)
    else:
        output.say(f"All tests of {family} are ended.")
    return OK
