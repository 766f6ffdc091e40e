"""Pieces of the service that need no server to be checked."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.errors import (
    CircuitBreakerError,
    DeniedError,
    InputError,
    NotFoundError,
    SafetyCheckError,
    by_name,
)
from tuneproof.experiments import Variant
from tuneproof.rollout import Deployment, DeploymentState, Plan
from tuneproof.server import page, problems
from tuneproof.server.deployment import triggers
from tuneproof.server.fine_tuning import state
from tuneproof.server.models import expected, rfc3339, utc
from tuneproof.server.tickets import Ticket
from tuneproof.settings import PipelineConfig
from tuneproof.store import HistoryEntry, Run, RunStatus

NOW = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "version"), [(None, None), ("*", None), ('"3"', 3), ("3", 3), ('W/"12"', 12)]
)
def test_if_match_is_a_version(header, version):
    assert expected(header) == version


@pytest.mark.parametrize("header", ["", "three", "-1", "3,4", "٣", "9" * 30])
def test_if_match_that_is_no_version_is_refused(header):
    with pytest.raises(InputError, match="If-Match"):
        expected(header)


def test_naive_times_are_utc():
    assert rfc3339(datetime(2026, 11, 20, 9, 0)) == "2026-11-20T09:00:00.000Z"  # noqa: DTZ001
    east = datetime.fromisoformat("2026-11-20T10:00:00+01:00")
    assert utc(east) == NOW
    assert rfc3339(east) == "2026-11-20T09:00:00.000Z"


@pytest.mark.parametrize("cls", by_name().values(), ids=lambda cls: cls.__name__)
def test_every_error_becomes_a_problem_of_its_class(cls):
    error = cls("Something is 3.", mend="Make it 4.", value=float("nan"), at=NOW)
    found = problems.problem(error, "/x")
    assert found.type == f"/problems/{error.slug}"
    assert found.status == cls.status
    assert (found.detail, found.mend, found.instance) == ("Something is 3.", "Make it 4.", "/x")
    body = problems.respond(found).body
    assert json.loads(bytes(body))["type"] == found.type
    assert found.title


def test_details_can_carry_the_status_and_when_to_come_back():
    assert problems.status_of(DeniedError("No.", status=403)) == 403
    assert problems.status_of(NotFoundError("No.", status="strange")) == 404
    assert problems.headers_of(CircuitBreakerError("Open.", retry_after_s=1.2)) == {
        "Retry-After": "2"
    }
    assert "WWW-Authenticate" in problems.headers_of(DeniedError("Who?"))
    assert problems.problem(SafetyCheckError("No.", checks=["a"])).details == {"checks": ["a"]}


@given(st.text(max_size=50), st.text(max_size=50), st.none() | st.text(max_size=50))
def test_any_ticket_survives_its_id(task, unit, subject):
    ticket = Ticket(exposure="e", task=task, subject=subject, unit=unit)
    id = ticket.encode()
    assert id.isascii()
    assert Ticket.decode(id) == ticket


@given(st.text(max_size=80))
def test_any_other_text_is_no_ticket(text):
    try:
        found = Ticket.decode(text)
    except InputError:
        return
    assert Ticket.decode(found.encode()) == found


DEPLOYMENT = Deployment(
    id="deploy-20261120-001",
    run_id=None,
    pipeline="default",
    tasks=("hook",),
    ab_test_id=None,
    version_id=None,
    candidate=Variant(model_id="cand"),
    previous=Variant(model_id="base"),
    plan=Plan(
        strategy="gradual_rollout",
        steps=(0.1, 0.2, 0.95),
        interval_hours=24,
        holdback=0.05,
        holdback_days=14,
    ),
    state=DeploymentState.STEPPING,
    step=0,
    share=0.1,
    salt="s",
    created_at=NOW,
    next_at=NOW + timedelta(hours=16),
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Candidate serves 10 %. Next: 20 % in 16 h if all guardrails hold."),
        ({"step": 2, "share": 0.95}, "The holdback begins in 16 h"),
        (
            {"state": DeploymentState.PAUSED, "cause": "no data"},
            "Paused with the candidate at 10 %",
        ),
        ({"state": DeploymentState.HOLDING, "share": 0.95}, "5 % are held back"),
        ({"state": DeploymentState.COMPLETE}, "Complete"),
        ({"state": DeploymentState.ROLLED_BACK, "cause": "harm"}, "Rolled back: harm."),
        ({"next_at": NOW + timedelta(minutes=3)}, "in 3 min"),
        ({"next_at": NOW + timedelta(days=5)}, "in 5 days"),
    ],
)
def test_the_page_opens_with_one_sentence(changes, said):
    assert said in page.verdict(replace(DEPLOYMENT, **changes), NOW)


def _entry(text: str) -> HistoryEntry:
    return HistoryEntry(
        seq=1, deployment_id="d", at=NOW, kind=text, who=text, reason=text, detail={}
    )


@given(text=st.text(alphabet="<>&\"'abc/", max_size=30))
def test_no_text_becomes_markup(text):
    shown = page.render(
        replace(DEPLOYMENT, candidate=Variant(model_id=text), cause=text, evidence={text: text}),
        [_entry(text)],
        [text],
        now=NOW,
    )
    plain = page.render(
        replace(DEPLOYMENT, candidate=Variant(model_id=""), cause="", evidence={"": ""}),
        [_entry("")],
        [""],
        now=NOW,
    )
    assert shown.count("<") == plain.count("<")
    assert shown.count(">") == plain.count(">")


def test_the_limits_that_roll_back_are_named_by_their_values():
    config = PipelineConfig(max_engagement_drop=0.2, max_error_rate=0.025, max_p95_latency_ms=900)
    assert triggers(config) == [
        "engagement_rate_drop_20_percent",
        "error_rate_above_2.5_percent",
        "response_time_above_900ms",
    ]


@pytest.mark.parametrize(
    ("stages", "data", "training"),
    [
        ({}, "pending", "pending"),
        ({"collect": "in_progress"}, "in_progress", "pending"),
        ({"collect": "completed"}, "in_progress", "pending"),
        ({"collect": "completed", "curate": "completed"}, "completed", "pending"),
        ({"collect": "completed", "curate": "skipped"}, "completed", "pending"),
        ({"collect": "failed"}, "failed", "pending"),
        ({"train": "completed", "gate": "failed"}, "pending", "failed"),
    ],
)
def test_progress_sums_the_stages_up(stages, data, training):
    run = Run(
        id="ft-pipeline-20261120-001",
        pipeline="default",
        status=RunStatus.RUNNING,
        stages={name: {"status": status} for name, status in stages.items()},
        created_at=NOW,
    )
    progress = state(run, NOW).progress
    assert (progress.data_collection, progress.model_training) == (data, training)


def test_the_figures_of_a_run():
    run = Run(
        id="ft-pipeline-20261120-001",
        pipeline="default",
        status=RunStatus.RUNNING,
        stages={
            "train": {
                "status": "completed",
                "started_at": "2026-11-20T09:00:00+00:00",
                "ended_at": "2026-11-20T09:03:00+00:00",
            }
        },
        result={
            "training_data": {"examples": {"hook": 60, "body": 40}, "total_records": 60},
            "memory": {"initial_mb": 100.0, "peak_mb": 150.0, "final_mb": 120.0},
        },
        created_at=NOW,
    )
    metrics = state(run, NOW).metrics
    assert metrics.training_examples == 100
    assert metrics.training_duration_minutes == 3
    assert metrics.memory_efficiency_mb_per_example == 0.5
