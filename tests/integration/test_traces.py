"""Traces of the loop: each stage and look under ids that any process finds again by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.integration.loop import open_loop

from tuneproof.errors import ConfigError
from tuneproof.store import RunStatus
from tuneproof.telemetry import Tracing
from tuneproof.telemetry.tracing import provider_of


class Told:
    """A tracer of its own, and the spans that it was given."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = provider_of(self._exporter, "tuneproof")
        self.tracing = Tracing(self._provider.get_tracer("tuneproof"))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        self._provider.force_flush()
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> Sequence[ReadableSpan]:
        return [span for span in self.spans if span.name == name]


def ids(context: Any) -> tuple[int, int]:
    return context.trace_id, context.span_id


def said(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


async def test_a_run_is_told_of_by_stages_that_are_linked_over_weeks(
    tmp_path: Path, database_url: str
):
    told = Told()
    async with open_loop(tmp_path, database_url, tracing=told.tracing) as loop:
        run = await loop.turn()
        assert run.status is RunStatus.SUCCESS, run.reason
    [whole] = told.named("run")
    assert said(whole)["tuneproof.run"] == run.id
    assert said(whole)["tuneproof.status"] == "success"
    stages = {
        name: told.named(f"stage {name}")
        for name in ("collect", "train", "gate", "experiment", "rollout")
    }
    assert {name: len(found) for name, found in stages.items()} == dict.fromkeys(stages, 1)
    before = None
    for [stage] in stages.values():
        linked = [ids(link.context) for link in stage.links]
        assert ids(whole.context) in linked
        assert before is None or ids(before.context) in linked
        assert stage.start_time <= stage.end_time <= whole.end_time
        before = stage
    [train], [experiment] = stages["train"], stages["experiment"]
    [start] = told.named("train.start")
    assert ids(start.parent) == ids(train.context)
    looks = told.named("experiment.look")
    assert len({span.context.trace_id for span in looks}) == len(looks) > 1
    for look in looks:
        assert [ids(link.context) for link in look.links] == [ids(experiment.context)]
    assert max(Counter(ids(span.context) for span in told.spans).values()) == 1


async def test_events_and_looks_are_linked_to_their_test(tmp_path: Path, database_url: str):
    told = Told()
    async with open_loop(tmp_path, database_url, tracing=told.tracing) as loop:
        run = await loop.turn()
        [test] = (await loop.app.store.experiments.page()).items
        assert test.run_id == run.id
        taken = await loop.app.experiments.looks(test.id)
    subjects = {said(span)["tuneproof.subject"]: span for span in told.named("subject")}
    subject = subjects[test.id]
    looks = [span for span in told.named("look") if said(span)["tuneproof.subject"] == test.id]
    assert [said(span)["tuneproof.look"] for span in looks] == [look.number for look in taken]
    assert said(looks[-1])["tuneproof.verdict"] == str(taken[-1].verdict)
    for span in looks:
        assert [ids(link.context) for link in span.links] == [ids(subject.context)]
    batches = [
        span
        for span in told.named("events.record")
        if ids(subject.context) in [ids(link.context) for link in span.links]
    ]
    assert sum(said(span)["tuneproof.exposures"] for span in batches) > 100


def test_tracing_is_off_unless_the_variables_ask_for_it():
    endpoint = "http://127.0.0.1:4318"
    for env in (
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
    ):
        assert not Tracing.from_env(env, service="tuneproof").on


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin'; otlp, console and none are known"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; traces are sent by http/protobuf",
        ),
    ],
)
def test_what_cannot_be_done_is_said_at_the_start(env: dict[str, str], expected: str):
    with pytest.raises(ConfigError, match=expected):
        Tracing.from_env(env, service="tuneproof")
