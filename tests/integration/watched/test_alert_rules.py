"""Each alert fires and resolves, by Prometheus's own tool; the documented six are as documented."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tests.alert_rules import BASE, ROOT, RULES, rules
from tests.first_users import MENDED, documents
from tests.first_users import RULES as DOCUMENTED
from tests.servers import binary

HOUR, DAY = 60, 1440
"""In minutes, which series and instants here are counted in."""

OURS = "job='fine-tuning-pipeline',instance='a'"


@dataclass(frozen=True, kw_only=True)
class Story:
    """What Prometheus reads minute by minute, and when an alert does not fire yet, fires, and is
    over. `shown` is what its annotations write for their templates, in their order."""

    series: dict[str, str]
    quiet: int
    fires: int
    over: int
    labels: dict[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()


def gauge(name: str, values: str, **labels: str) -> dict[str, str]:
    told = ",".join(f"{k}='{v}'" for k, v in labels.items())
    return {f"{name}{{{OURS}{',' if told else ''}{told}}}": values}


def breaker(name: str, *states: str) -> dict[str, str]:
    """A breaker in these states, minute by minute."""
    metric = f"fine_tuning_{name}_circuit_breaker_state"
    return {
        key: value
        for state in ("CLOSED", "OPEN", "HALF_OPEN")
        for key, value in gauge(
            metric, " ".join(str(int(s == state)) for s in states), state=state
        ).items()
    }


HERE = {"job": "fine-tuning-pipeline", "instance": "a"}
DEFAULT = {"pipeline": "default"}
AWAY = ["CLOSED", *["OPEN", "OPEN", "HALF_OPEN"] * 6, "CLOSED", "CLOSED"]

STORIES: dict[str, list[Story]] = {
    "FineTuningPipelineDown": [
        Story(series=gauge("up", "1 0x4 1x5"), quiet=2, fires=4, over=6, labels=HERE),
        Story(  # nobody scrapes it any more: there is no `up` that could be 0
            series=gauge("up", "1 stale _x4 1x5"),
            quiet=2,
            fires=4,
            over=7,
            labels={"job": "fine-tuning-pipeline"},
        ),
    ],
    "OpenAICircuitBreakerOpen": [
        Story(series=breaker("openai", *AWAY), quiet=1, fires=n, over=20, labels=HERE)
        for n in (2, 3, 4, 12)  # also while it is tried
    ],
    "HighMemoryUsage": [
        Story(
            series=gauge("fine_tuning_memory_usage_mb", "800 1600x6 900x5")
            | gauge("fine_tuning_pipeline_memory_peak_mb", "800 1600x20"),
            quiet=4,
            fires=6,
            over=8,
            labels=HERE,
            shown=("1600",),
        )
    ],
    "LowCacheHitRate": [
        Story(
            series=gauge("fine_tuning_pipeline_cache_hit_rate", "0.9 0.7x12 0.85x5"),
            quiet=9,
            fires=12,
            over=15,
            labels=HERE,
            shown=("0.7",),
        )
    ],
    "ModelPerformanceDegradation": [
        Story(
            series=gauge("fine_tuning_model_engagement_rate", "0.07 0.05x32 0.07x5")
            | gauge(
                "tuneproof_arm_engagement_rate", "0.01x60", pipeline="default", arm="candidate"
            ),
            quiet=29,
            fires=32,
            over=35,
            labels=HERE,
            shown=("0.05",),
        )
    ],
    "CostEfficiencyDegradation": [
        Story(
            series=gauge("fine_tuning_model_cost_per_token", "0.001x60 0.002x200"),
            quiet=70,
            fires=61 + 30,
            over=61 + 75,
            labels=HERE,
            shown=("0.001",),
        )
    ],
    "TuneProofRolledBack": [
        Story(
            series=gauge("tuneproof_rollback_age_seconds", "_x5 60+60x600", **DEFAULT),
            quiet=3,
            fires=10,
            over=5 + 6 * HOUR + 5,
            labels=DEFAULT,
            shown=("default", "default", "6m 0s"),
        )
    ],
    "TuneProofWatchStalled": [
        Story(
            series=gauge("tuneproof_watch_overdue_seconds", "0+60x80 -3600x10", **DEFAULT),
            quiet=62,
            fires=70,
            over=83,
            labels=DEFAULT,
            shown=("default", "default", "1h 10m 0s"),
        )
    ],
    "TuneProofRunStuck": [
        Story(
            series=gauge(
                "tuneproof_run_overdue_seconds", "-300+60x40 _x20", **DEFAULT, stage="train"
            ),
            quiet=15,
            fires=25,
            over=50,
            labels={**DEFAULT, "stage": "train"},
            shown=("default", "default", "20m 0s", "train"),
        )
    ],
    "TuneProofOutboxBacklog": [
        Story(
            series=gauge("tuneproof_outbox_oldest_seconds", "0+60x100 _x20"),
            quiet=70,
            fires=80,
            over=110,
            shown=("1h 20m 0s",),
        )
    ],
    "TuneProofSplitBroken": [
        Story(
            series=gauge("tuneproof_split_broken", "0x5 1x20 0x5", **DEFAULT),
            quiet=8,
            fires=15,
            over=28,
            labels=DEFAULT,
            shown=("default", "default"),
        )
    ],
    "TuneProofOutcomesMissing": [
        Story(
            series=gauge("tuneproof_outcomes_share", "0.8x200 0x100 0.8x20", **DEFAULT),
            quiet=240,
            fires=280,
            over=305,
            labels=DEFAULT,
            shown=("default", "0%", "default"),
        ),
        Story(
            series=gauge("tuneproof_outcomes_share", "0.8x1000 0.3x100 0.8x20", **DEFAULT),
            quiet=1040,
            fires=1080,
            over=1105,
            labels=DEFAULT,
            shown=("default", "30%", "default"),
        ),
    ],
    "TuneProofProviderShutdownNear": [
        Story(
            series=gauge(
                "tuneproof_model_shutdown_seconds",
                f"{60 * DAY * 60 + 300}-60x100 _x20",
                **DEFAULT,
                model="gpt",
            ),
            quiet=4,
            fires=65,
            over=110,
            labels={**DEFAULT, "model": "gpt"},
            shown=("gpt", "gpt", "default", "59d 23h 0m 0s"),
        )
    ],
    "TuneProofBudgetNear": [
        Story(
            series=gauge(
                "tuneproof_budget_used_share",
                "0.8x5 0.95x20 0.1x5",
                budget="training",
                of="default",
            )
            | gauge("tuneproof_budget_used_share", "1x40", budget="shadow", of="hook"),
            quiet=9,
            fires=15,
            over=28,
            labels={"budget": "training", "of": "default"},
            shown=("training", "default", "95%", "training", "default"),
        )
    ],
    "TuneProofTaskRestarting": [
        Story(
            series=gauge("tuneproof_task_restarts_total", "1x10 2+1x20 22x40", task="tracking"),
            quiet=12,
            fires=30,
            over=55,
            labels={**HERE, "task": "tracking"},
            shown=("tracking", "tracking", "a", "15"),
        )
    ],
    "TuneProofMlflowBreakerOpen": [
        Story(series=breaker("mlflow", *AWAY), quiet=15, fires=18, over=20, labels=HERE)
    ],
}


def said(rule: dict[str, Any], shown: tuple[str, ...]) -> dict[str, str]:
    """The annotations with what is shown for their templates."""
    left = iter(shown)
    found = {
        name: re.sub(r"\{\{.*?\}\}", lambda _: next(left), text)
        for name, text in rule["annotations"].items()
    }
    assert next(left, None) is None, "shown has more than the annotations write"
    return found


def unit_test(alert: str, story: Story, rule: dict[str, Any]) -> dict[str, Any]:
    firing = {
        "exp_labels": {"severity": rule["labels"]["severity"], **story.labels},
        "exp_annotations": said(rule, story.shown),
    }
    return {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in story.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": alerts}
            for minute, alerts in (
                (story.quiet, []),
                (story.fires, [firing]),
                (story.over, []),
            )
        ],
    }


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [binary("promtool", "apt-get install -y prometheus"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_rules_are_without_a_fault() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def told(folder: Path, stories: dict[str, list[Story]]) -> subprocess.CompletedProcess[str]:
    """What Prometheus's tool says of all these stories."""
    known = rules()
    made = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [unit_test(n, one, known[n]) for n, many in stories.items() for one in many],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(made), "utf-8")
    return promtool("test", "rules", str(path))


def test_each_alert_fires_and_resolves(tmp_path: Path) -> None:
    assert STORIES.keys() == rules().keys()
    tested = told(tmp_path, STORIES)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_a_story_that_does_not_come_true_is_found(tmp_path: Path) -> None:
    """The tool compares: an alert that never fires is no test passed."""
    story = Story(series=gauge("up", "1x20"), quiet=1, fires=10, over=15, labels=DEFAULT,
                  shown=("default", "default"))  # fmt: skip
    assert told(tmp_path, {"TuneProofSplitBroken": [story]}).returncode != 0


# --- as documented ------------------------------------------------------------------------


def test_the_documented_alerts_are_as_documented_but_for_what_is_mended() -> None:
    ours = rules()
    for name, (expression, held, severity) in DOCUMENTED.items():
        rule = ours[name]
        assert rule["expr"] == MENDED.get(expression, expression)
        assert (rule["for"], rule["labels"]) == (held, {"severity": severity})
    [group] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    assert group["name"] == "fine-tuning-pipeline.rules"
    assert list(ours)[: len(DOCUMENTED)] == list(DOCUMENTED)
    assert all(n.startswith("TuneProof") for n in list(ours)[len(DOCUMENTED) :])


def test_the_documents_themselves_say_so() -> None:
    found = documents()
    theirs = yaml.safe_load(found["prometheus/rules.yaml"]) if found else {"groups": []}
    for group in theirs["groups"]:
        assert group["name"] == "fine-tuning-pipeline.rules"
        for rule in group["rules"]:
            mine = rules()[rule["alert"]]
            assert (mine["for"], mine["labels"]) == (rule["for"], rule["labels"])
            assert mine["expr"] == MENDED.get(rule["expr"], rule["expr"])
            assert mine["annotations"] == {
                "runbook_url": mine["annotations"]["runbook_url"],
                **rule["annotations"],
            }


def test_each_alert_has_its_runbook_and_its_line_in_the_reference() -> None:
    page = (ROOT / "docs/reference/alert-rules.md").read_text("utf-8")
    for name, rule in rules().items():
        base, _, slug = rule["annotations"]["runbook_url"].rpartition("/")
        assert base == BASE
        runbook = ROOT / f"docs/runbooks/{slug}.md"
        assert runbook.exists(), runbook
        assert name in runbook.read_text("utf-8")
        assert re.search(rf"^\| `{name}` \|.*\(\.\./runbooks/{slug}\.md\)", page, re.M), name
