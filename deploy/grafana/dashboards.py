"""The dashboards, as code: `python deploy/grafana/dashboards.py` writes the JSON beside it.

"Fine-Tuning Pipeline Performance" and "Fine-Tuning Business KPIs" have the titles, types, units and
thresholds that their first users know; the other two are of this project. Each takes its data
source from a variable, so it can be imported as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    common as build_common,
)
from grafana_foundation_sdk.builders import (
    dashboard as build,
)
from grafana_foundation_sdk.builders import (
    gauge,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")

SECONDS, SHARE, USD = "s", "percentunit", "currencyUSD"

STATES = {"CLOSED": "green", "HALF_OPEN": "yellow", "OPEN": "red"}
"""The colour of each state of a breaker."""

Step = tuple[str, float | None]
Asked = tuple[str, str]
"""An expression, and the legend of its series."""


def written() -> dict[str, str]:
    """The text of each file by its name."""
    made = {
        "performance": performance(),
        "business": business(),
        "rollouts": rollouts(),
        "loop": loop(),
    }
    return {
        f"{name}.json": JSONEncoder(sort_keys=True, indent=2).encode(_built(one)) + "\n"
        for name, one in made.items()
    }


def _built(board: build.Dashboard) -> dashboard.Dashboard:
    """The board without what its builders say for kinds that do not have it."""
    found = board.build()
    assert found.templating is not None
    assert found.panels is not None
    for variable in found.templating.list_val or ():
        variable.auto = variable.auto_min = variable.auto_count = None
    for panel in found.panels:
        if panel.type_val == "table":
            panel.options.footer = None
    return found


# --- as the first users know them ---------------------------------------------------------


def performance() -> build.Dashboard:
    """Execution time, memory, pools, breakers."""
    duration = "fine_tuning_pipeline_execution_duration_seconds"
    pools = [
        (f"fine_tuning_{kind}_connections_{use}", f"{text} {use.title()}")
        for kind, text in (("db", "DB"), ("redis", "Redis"))
        for use in ("active", "idle")
    ]
    return _board("performance", "Fine-Tuning Pipeline Performance").panels(
        _panel(
            stat.Panel(),
            "Pipeline Execution Time",
            [(f"{duration}_sum / {duration}_count", "Execution Time: {{stage}}")],
            unit=SECONDS,
            steps=[("green", 0), ("yellow", 300), ("red", 600)],
        ),
        _panel(
            timeseries.Panel(),
            "Memory Usage",
            [("fine_tuning_pipeline_memory_peak_mb", "Peak Memory (MB)")],
        ),
        _table("Connection Pool Status", pools, reduced=True),
        breakers("Circuit Breaker Status"),
    )


def business() -> build.Dashboard:
    """Engagement, cost, tests."""
    return _board("business", "Fine-Tuning Business KPIs").panels(
        _panel(
            gauge.Panel().min(0).max(0.15),
            "Model Engagement Rate",
            [("fine_tuning_model_engagement_rate", "Engagement Rate")],
            unit=SHARE,
            steps=[("red", 0), ("yellow", 0.06), ("green", 0.08)],
        ),
        _panel(
            timeseries.Panel(),
            "Cost Efficiency Trend",
            [("fine_tuning_model_cost_per_token", "Cost per Token")],
            unit=USD,
        ),
        _table("A/B Test Success Rate", [("fine_tuning_ab_test_success_rate", "{{test_id}}")]),
    )


def breakers(title: str) -> Any:
    """The state of each breaker by its name, which is the label `state` of the series that is 1."""
    panel = _panel(
        stat.Panel().text_mode(common.BigValueTextMode.NAME),
        title,
        [
            (
                f"max by (state) (fine_tuning_{name}_circuit_breaker_state) == 1",
                f"{text} {{{{state}}}}",
            )
            for name, text in (("openai", "OpenAI CB"), ("mlflow", "MLflow CB"))
        ],
    )
    for state, colour in STATES.items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        panel.override_by_regexp(
            f"/ {state}$/", [dashboard.DynamicConfigValue(id_val="color", value=fixed)]
        )
    return panel


# --- of this project ------------------------------------------------------------------------


def rollouts() -> build.Dashboard:
    """What tests and rollouts show, and whether their guardrails can be relied on."""
    late = [("green", None), ("yellow", 0), ("red", 3600)]
    return _board("rollouts", "TuneProof rollouts and guardrails").panels(
        _panel(
            timeseries.Panel().min(0).max(1),
            "Traffic on the rollout's version",
            [("max by (pipeline) (tuneproof_rollout_traffic_share)", "{{pipeline}}")],
            unit=SHARE,
        ),
        _panel(
            timeseries.Panel(),
            "Engagement by arm",
            [_by_arm("engagement_rate")],
            unit=SHARE,
        ),
        _panel(
            timeseries.Panel(),
            "Failed requests by arm",
            [_by_arm("error_share")],
            unit=SHARE,
            steps=[("green", None), ("red", 0.05)],
        ),
        _panel(timeseries.Panel(), "Cost per token by arm", [_by_arm("cost_per_token")], unit=USD),
        _panel(
            stat.Panel(),
            "Overdue looks",
            [("max by (pipeline) (tuneproof_watch_overdue_seconds)", "{{pipeline}}")],
            unit=SECONDS,
            steps=late,
        ),
        _panel(
            stat.Panel(),
            "Broken split",
            [("max by (pipeline) (tuneproof_split_broken)", "{{pipeline}}")],
            steps=[("green", None), ("red", 1)],
            words={"0": ("as set", "green"), "1": ("BROKEN", "red")},
        ),
        _panel(
            stat.Panel(),
            "Outcomes that have come",
            [("min by (pipeline) (tuneproof_outcomes_share)", "{{pipeline}}")],
            unit=SHARE,
            steps=[("red", None), ("green", 0.01)],
        ),
        _panel(
            stat.Panel(),
            "Since the newest rollout was taken back",
            [("min by (pipeline) (tuneproof_rollback_age_seconds)", "{{pipeline}}")],
            unit=SECONDS,
            steps=[("red", None), ("green", 6 * 3600)],
        ),
        _panel(
            timeseries.Panel(),
            "Steps of rollouts, a day",
            [
                (
                    "sum by (pipeline, state) (increase(tuneproof_rollout_steps_total[1d]))",
                    "{{pipeline}}: {{state}}",
                )
            ],
        ),
        _panel(
            timeseries.Panel(),
            "Events a second",
            [("sum by (kind) (rate(tuneproof_events_total[5m]))", "{{kind}}")],
        ),
    )


def loop() -> build.Dashboard:
    """Whether the loop turns: runs, tasks, what waits, what is nearly used up."""
    late = [("green", None), ("red", 0)]
    return _board("loop", "TuneProof loop health").panels(
        _panel(
            stat.Panel(),
            "Workers that answer",
            [('sum(up{job="fine-tuning-pipeline"})', "workers")],
            steps=[("red", None), ("green", 1)],
        ),
        breakers("Circuit breakers"),
        _panel(
            stat.Panel(),
            "Runs over their time",
            [
                (
                    "max by (pipeline, stage) (tuneproof_run_overdue_seconds)",
                    "{{pipeline}}: {{stage}}",
                )
            ],
            unit=SECONDS,
            steps=late,
        ),
        _panel(
            timeseries.Panel(),
            "Runs ended, a week",
            [
                (
                    "sum by (pipeline, status) (increase(tuneproof_runs_total[7d]))",
                    "{{pipeline}}: {{status}}",
                )
            ],
        ),
        _panel(
            timeseries.Panel(),
            "Tasks started again, 15 minutes",
            [("sum by (task) (increase(tuneproof_task_restarts_total[15m]))", "{{task}}")],
        ),
        _panel(
            timeseries.Panel(),
            "Waiting for MLflow",
            [("max(tuneproof_outbox_pending)", "items")],
        ),
        _panel(
            stat.Panel(),
            "Oldest item for MLflow",
            [("max(tuneproof_outbox_oldest_seconds)", "age")],
            unit=SECONDS,
            steps=[("green", None), ("yellow", 600), ("red", 3600)],
        ),
        _panel(
            stat.Panel(),
            "Until a model is shut down",
            [
                (
                    "min by (pipeline, model) (tuneproof_model_shutdown_seconds)",
                    "{{pipeline}}: {{model}}",
                )
            ],
            unit=SECONDS,
            steps=[("red", None), ("yellow", 30 * 86400), ("green", 60 * 86400)],
        ),
        _panel(
            stat.Panel(),
            "Budgets used",
            [("max by (budget, of) (tuneproof_budget_used_share)", "{{budget}}: {{of}}")],
            unit=SHARE,
            steps=[("green", None), ("yellow", 0.75), ("red", 0.9)],
        ),
        _panel(
            timeseries.Panel(),
            "Time to answer, 95th percentile",
            [
                (
                    "histogram_quantile(0.95, sum by (le, route)"
                    " (rate(tuneproof_http_request_duration_seconds_bucket[5m])))",
                    "{{route}}",
                )
            ],
            unit=SECONDS,
        ),
        _panel(
            timeseries.Panel(),
            "Resident memory",
            [("fine_tuning_memory_usage_mb", "{{instance}} (MB)")],
        ),
        _panel(
            timeseries.Panel(),
            "Reads that the cache answered",
            [("fine_tuning_pipeline_cache_hit_rate", "{{instance}}")],
            unit=SHARE,
        ),
    )


# --- how they are made ----------------------------------------------------------------------


class _Board(build.Dashboard):
    """A dashboard to which panels are added in rows of two."""

    def panels(self, *panels: Any) -> build.Dashboard:
        """Add these."""
        for number, panel in enumerate(panels):
            x, y = 12 * (number % 2), 8 * (number // 2)
            self.with_panel(panel.grid_pos(dashboard.GridPos(h=8, w=12, x=x, y=y)))
        return self


def _board(uid: str, title: str) -> _Board:
    board = _Board(title)
    source = build.DatasourceVariable("datasource").label("Data source").type("prometheus")
    board.uid(f"tuneproof-{uid}").tags(["tuneproof"]).timezone("browser")
    board.time("now-24h", "now").refresh("1m").with_variable(source)
    return board


def _panel(
    panel: Any,
    title: str,
    asked: Iterable[Asked],
    *,
    unit: str = "",
    steps: Sequence[Step] = (),
    words: dict[str, tuple[str, str]] | None = None,
) -> Any:
    """A panel that shows what these ask: over time, or now; `words` are shown for values, with a
    colour."""
    panel.title(title).datasource(SOURCE)
    over_time = isinstance(panel, timeseries.Panel)
    for number, (expression, legend) in enumerate(asked):
        query = prometheus.Dataquery().expr(expression).legend_format(legend)
        query = query.range() if over_time else query.instant()
        panel.with_target(query.ref_id("ABCDEFGH"[number]).datasource(SOURCE))
    if over_time:
        panel.legend(build_common.VizLegendOptions().show_legend(True))
    if isinstance(panel, stat.Panel | gauge.Panel):
        panel.reduce_options(build_common.ReduceDataOptions().calcs(["lastNotNull"]))
    if unit:
        panel.unit(unit)
    if steps:
        made = [dashboard.Threshold(color=colour, value=value) for colour, value in steps]
        panel.thresholds(
            build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)
        )
    if words:
        shown = {
            value: dashboard.ValueMappingResult(text=text, color=colour)
            for value, (text, colour) in words.items()
        }
        panel.mappings([dashboard.ValueMap(options=shown)])
    return panel


def _table(title: str, asked: Iterable[Asked], *, reduced: bool = False) -> Any:
    """A table of what is so now; `reduced`: a row for each series, by its legend."""
    panel = _panel(table.Panel(), title, asked)
    for target in panel._internal.targets:
        target.format_val = PromQueryFormat.TIME_SERIES if reduced else PromQueryFormat.TABLE
    if reduced:
        panel.with_transformation(
            dashboard.DataTransformerConfig(
                id_val="reduce", options={"reducers": ["lastNotNull"], "mode": "seriesToRows"}
            )
        )
    return panel


def _by_arm(name: str) -> Asked:
    return f"max by (pipeline, arm) (tuneproof_arm_{name})", "{{pipeline}}: {{arm}}"


def main() -> int:
    """Write the files."""
    for name, text in written().items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
