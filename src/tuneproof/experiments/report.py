"""An experiment as one HTML page that needs nothing beside itself: no script, no other file.

Every text is escaped. The chart is SVG: the lift with its interval at each look, at most
`POINTS` of them; declared looks are marked. What is exploratory says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from typing import Final

from tuneproof.experiments.records import AbsentInputs, ABTest, ArmMetrics, Criterion, Look, Verdict
from tuneproof.settings import declared_rows

__all__ = ["POINTS", "STYLE", "report_html", "thinned"]

POINTS: Final = 240
"""The chart shows at most this many looks; declared ones and the last are always among them."""

WIDTH, HEIGHT = 920, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 36

STYLE = """
:root { color-scheme: light dark; --line: #d5dae1; --quiet: #66717f; --cand: #2440b5;
  --band: #2440b526; --good: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --line: #2a313b; --quiet: #9aa5b4;
  --cand: #8ea2ff; --band: #8ea2ff33; --good: #5ad19a; --bad: #ff8a80; } }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 22px; margin-bottom: 0; } h2 { font-size: 17px; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; } .quiet { color: var(--quiet); } .good { color: var(--good); }
.bad { color: var(--bad); } svg { width: 100%; height: auto; } svg text { font-size: 12px;
  fill: var(--quiet); } .grid { stroke: var(--line); } .need { stroke: var(--good);
  stroke-dasharray: 5 4; } .lift { fill: none; stroke: var(--cand); stroke-width: 2; }
.band { fill: var(--band); } .dot { fill: var(--cand); }
"""


Beside = Sequence[tuple[ABTest, Sequence[Look]]]
"""The tests of a family by lane, each with its looks."""


def report_html(test: ABTest, looks: Sequence[Look], family: Beside = ()) -> str:
    """The whole page, UTF-8 text. `family` are all tests that were declared with this one."""
    last = looks[-1] if looks else None
    parts = [
        f"<h1>Experiment {_t(test.id)}</h1>",
        f'<p class="quiet">{_t(str(test.candidate))} against {_t(str(test.baseline))}, '
        f"{_percent(test.declaration.traffic_split)} of the units, from {_at(test.start_at)} to "
        f"{_at(test.end_at)}, last look {_at(test.last_look_at)}</p>",
        _verdict(test, last),
    ]
    if last is None:
        parts += ["<p>There is no look yet.</p>", "<h2>Declared</h2>", _declared(test)]
    else:
        parts += [
            "<h2>Lift of engagement</h2>",
            chart(test, looks),
            _findings(test, last),
            _family(family),
            "<h2>Criteria</h2>",
            _criteria(last),
            "<h2>Arms</h2>",
            _arms(test, last),
            _segments(last),
            "<h2>Declared</h2>",
            _declared(test),
            "<h2>How to read this</h2>",
            _reading(test, last),
        ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_t(test.id)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(p for p in parts if p)
        + "</body></html>\n"
    )


def thinned(looks: Sequence[Look], most: int = POINTS) -> list[Look]:
    """At most `most` looks with an interval, evenly chosen; declared ones and the last stay."""
    known = [x for x in looks if None not in (x.lift, x.lower, x.upper)]
    if len(known) <= most:
        return known
    kept = {i for i, x in enumerate(known) if x.declared} | {len(known) - 1}
    free = most - len(kept)
    rest = [i for i in range(len(known)) if i not in kept]
    kept |= {rest[i * len(rest) // free] for i in range(free)}
    return [known[i] for i in sorted(kept)]


def chart(test: ABTest, looks: Sequence[Look], scale: tuple[float, float] | None = None) -> str:
    """The lift and its interval over time, as SVG; `scale` is the lowest and highest lift."""
    shown = thinned(looks)
    if not shown:
        return "<p>No look has an estimate yet.</p>"
    required = _required(test)
    low, high = scale or _range(shown, required)
    end = max(test.last_look_at, shown[-1].at)
    span = (end - test.start_at).total_seconds() or 1.0

    def x(look: Look) -> float:
        passed = (look.at - test.start_at).total_seconds() / span
        return LEFT + passed * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        kept = min(max(value, low), high)
        return TOP + (high - kept) / (high - low) * (HEIGHT - TOP - BOTTOM)

    upper = " ".join(f"{x(k):.1f},{y(k.upper or 0):.1f}" for k in shown)
    lower = " ".join(f"{x(k):.1f},{y(k.lower or 0):.1f}" for k in reversed(shown))
    line = " ".join(f"{x(k):.1f},{y(k.lift or 0):.1f}" for k in shown)
    dots = "".join(
        f'<circle class="dot" cx="{x(k):.1f}" cy="{y(k.lift or 0):.1f}" r="4">'
        f"<title>{_t(_told(k))}</title></circle>"
        for k in shown
        if k.declared or k is shown[-1]
    )
    needs = "".join(_level(y(r), "need", f"required {_signed(r)}") for r in required)
    ticks = "".join(_level(y(v), "grid", _signed(v)) for v in _ticks(low, high))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="lift over time">'
        f'{ticks}{needs}<polygon class="band" points="{upper} {lower}"/>'
        f'<polyline class="lift" points="{line}"/>{dots}'
        f'<text x="{LEFT}" y="{HEIGHT - 10}">{_at(test.start_at)}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{_at(end)}</text></svg>'
    )


_RISE = ("engagement", "superior")


def _required(test: ABTest) -> list[float]:
    return [c.margin for c in test.all_criteria if (c.metric, c.kind) == _RISE]


def _range(looks: Sequence[Look], required: Sequence[float]) -> tuple[float, float]:
    """What the chart spans: the later three quarters of the looks whole, the wild start cut."""
    tame = looks[len(looks) // 4 :]
    values = [0.0, *required, *(v for k in tame for v in (k.lower, k.upper) if v is not None)]
    low, high = max(min(values), -1.0), min(max(values), 5.0)
    room = (high - low or 0.1) * 0.08
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    sizes = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    step = next((s for s in sizes if (high - low) / s <= 8), 2.0)
    first = int(low / step) - 1
    ticks = [round(step * i, 4) for i in range(first, first + 14)]
    return [t for t in ticks if low <= t <= high]


def _level(at: float, kind: str, label: str) -> str:
    anchor = "end" if kind == "need" else "start"
    where = WIDTH - RIGHT if kind == "need" else 4
    lift = -4 if kind == "need" else 4
    return (
        f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{where}" y="{at + lift:.1f}" text-anchor="{anchor}">{_t(label)}</text>'
    )


def _told(look: Look) -> str:
    kind = "declared look" if look.declared else "look"
    return (
        f"{kind} {look.number}, {_at(look.at)}: {_signed(look.lift)} "
        f"({_signed(look.lower)}, {_signed(look.upper)})"
    )


def _verdict(test: ABTest, last: Look | None) -> str:
    verdict = test.verdict or (last.verdict if last else Verdict.CONTINUE)
    colour = {Verdict.PROMOTE: "good", Verdict.CONTINUE: "quiet"}.get(verdict, "bad")
    reason = test.reason or (last.reason if last else "")
    return f'<p><strong class="{colour}">{_t(str(verdict))}</strong>: {_t(reason)}</p>'


def _family(family: Beside) -> str:
    """All candidates of a family: a table, and a chart of each on one scale."""
    if not family:
        return ""
    first = family[0][0]
    seen = [thinned(looks) for _, looks in family]
    spans = [_range(looks, _required(first)) for looks in seen if looks]
    scale = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
    rows = [_candidate(t, looks[-1] if looks else None) for t, looks in family]
    charts = "".join(
        f"<h3>{_t(str(t.candidate))}</h3>{chart(t, looks, scale)}" for t, looks in family
    )
    note = (
        f'<p class="quiet">{len(family)} candidates of {_t(first.family)} at once, against '
        "one baseline: its units are those of all lanes. Each may be promoted at level "
        f"{first.promotion_alpha:.3g}, its even part of the whole; at most one is, the one to be "
        "expected to do best.</p>"
    )
    columns = ("candidate", "experiment", "verdict", "lift", "to be expected", "units")
    return f"<h2>Side by side</h2>{note}{_table(columns, rows)}{charts}"


def _candidate(test: ABTest, last: Look | None) -> tuple[str, ...]:
    verdict = test.verdict or (last.verdict if last else Verdict.CONTINUE)
    named = (str(test.candidate), test.id, str(verdict))
    if last is None:
        return (*named, "–", "–", "0")
    lift = f"{_signed(last.lift)} ({_signed(last.lower)}, {_signed(last.upper)})"
    expected = _signed(last.expected.lift if last.expected else None)
    return (*named, lift, expected, str(last.candidate.sample_size))


def _findings(test: ABTest, last: Look) -> str:
    level = 1 - test.declaration.significance_threshold
    rows = [
        ("observed lift", f"{_signed(last.lift)} ({_signed(last.lower)}, {_signed(last.upper)})"),
        (f"p-value ({level:.0%} level)", _number(last.p_value)),
        ("significant", "yes" if last.is_significant else "no"),
        ("method", last.method),
        ("looks", str(last.number)),
    ]
    if last.expected is not None:
        e = last.expected
        source = (
            f"the pipeline's {e.prior_experiments} past experiments"
            if e.prior_experiments
            else "an assumed prior, since there is no history yet"
        )
        expected = f"{_signed(e.lift)} ({_signed(e.lower)}, {_signed(e.upper)}), from {source}"
        rows.insert(1, ("lift to be expected", expected))
    saved = last.inputs.get("variance_saved")
    if saved is not None:
        rows.append(("variance that the covariate saved", _percent(saved)))
    absent = last.inputs.get("absent")
    if absent is not None:
        rows.append(("absent outcomes", _absent(absent)))
    if last.halves is not None and last.halves.reason:
        rows.append(("first half, second half (exploratory)", last.halves.reason))
    if test.alpha is not None:
        again = f"; this candidate was tested {test.retest} times before" if test.retest else ""
        level = test.promotion_alpha
        rows.append(("error left by the ledger", f"{level:.3g}, two-sided{again}"))
    return _table(None, rows)


def _absent(absent: AbsentInputs) -> str:
    shares = (
        f"baseline {_percent(absent['baseline'] / absent['baseline_due'])}, "
        f"candidate {_percent(absent['candidate'] / absent['candidate_due'])} of those due"
    )
    bounds = (_signed(absent["lift_highest"]), _signed(absent["lift_lowest"]))
    low = f"{bounds[1]} if all of the candidate's are"
    return f"{shares}; the lift is {bounds[0]} if all of the baseline's are 0, {low}"


def _criteria(last: Look) -> str:
    rows = []
    for r in last.criteria:
        asked = (
            "nothing is asked: shown for the trade-off"
            if r.criterion is None
            else _asked(r.criterion)
        )
        held = {True: "holds", False: "fails", None: "open"}[r.holds]
        change = f"{_signed(r.change)} ({_signed(r.lower)}, {_signed(r.upper)})"
        rows.append((r.metric, asked, change, "" if r.criterion is None else held, r.reason))
    return _table(("metric", "asked", "change, + is better", "", ""), rows)


def _asked(criterion: Criterion) -> str:
    margin = criterion.margin
    if criterion.kind == "superior":
        return f"better by more than {margin:.1%}"
    return f"worse by no more than {margin:.1%}"


def _counted(test: ABTest) -> str:
    if test.metric.denominator is not None:
        return "items (each with its newest outcome), judged by the units that hold them"
    return "units, adjusted by their covariate" if test.metric.adjusted else "units"


def _declared(test: ABTest) -> str:
    """What was said before the test began; nothing of it changes while it runs."""
    guarded = ", one that is harmed ends the test" if test.guards_segments else ""
    texts = {
        "criteria": ", ".join(str(c) for c in test.all_criteria),
        "segments": (", ".join(test.declaration.segments) or "none") + guarded,
        "analysis_unit": _counted(test),
    }
    return _table(None, declared_rows(asdict(test.declaration), texts))


def _arms(test: ABTest, last: Look) -> str:
    rest = 1 - test.declaration.traffic_split * test.lanes
    rows = [
        _arm("baseline", str(test.baseline), rest, last.baseline),
        _arm("candidate", str(test.candidate), test.declaration.traffic_split, last.candidate),
    ]
    figures = ("units", "engagement", "USD per engagement", "ms", "quality")
    return _table(("arm", "model", "traffic", *figures), rows)


def _arm(name: str, model: str, share: float, seen: ArmMetrics) -> tuple[str, ...]:
    return (
        name,
        model,
        _percent(share),
        str(seen.sample_size),
        _percent(seen.engagement_rate),
        _number(seen.cost_per_engagement) + known_of(seen.cost_known),
        _number(seen.response_time_ms),
        _number(seen.quality_score),
    )


def _segments(last: Look) -> str:
    if not last.segments:
        return ""
    rows = [
        (
            f"{s.attribute} = {s.value}",
            f"{s.n_baseline} and {s.n_candidate}",
            f"{_signed(s.lift)} ({_signed(s.lower)}, {_signed(s.upper)})",
            "yes" if s.found else "no",
            s.reason,
        )
        for s in last.segments
    ]
    note = (
        '<p class="quiet">Exploratory: segments decide nothing. Intervals are not adjusted; '
        "“real” is what e-BH over all segments of this look calls.</p>"
    )
    columns = ("segment", "units", "lift", "real", "")
    return f"<h2>Segments</h2>{note}{_table(columns, rows)}"


def _reading(test: ABTest, last: Look) -> str:
    said = [
        "The interval and, outside declared looks, the p-value may be looked at at any time.",
        "The lift to be expected is the observed one shrunk towards what past experiments were "
        "worth: a winner's observed lift is too high, since it was chosen for it.",
    ]
    if test.declaration.decision == "spec":
        said.append(
            "Promotion asks for a significant lift whose observed value is above the required "
            "one, at declared looks (3/7, 5/7 and all of the duration). The rule does not "
            "promise that the true lift is that large: a true lift of exactly the required size "
            "is promoted in about 59 % of tests, one of two thirds of it in 25 % (at 20 posts "
            "an hour, 10 % share, a week)."
        )
    else:
        said.append("Promotion asks for a lower bound above the required lift.")
    items = "".join(f"<li>{_t(s)}</li>" for s in said)
    when = f"Made from look {last.number} of {_at(last.at)}."
    return f'<ul>{items}</ul><p class="quiet">{when}</p>'


def _table(columns: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    head = ""
    if columns is not None:
        head = "<tr>" + "".join(f"<th>{_t(c)}</th>" for c in columns) + "</tr>"
    body = "".join("<tr>" + "".join(f"<td>{_t(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _t(text: str) -> str:
    return escape("".join(c if c.isprintable() else " " for c in text))


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.3g} %"


def _signed(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:+.1f} %".replace("-", "−")


def known_of(share: float | None) -> str:
    """Of which share of the units a figure is, in words; empty where of all."""
    return "" if share is None or share == 1 else f" (known of {share:.0%})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
