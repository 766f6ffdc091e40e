"""Spans: recorded by a real OpenTelemetry SDK, nothing without one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tuneproof.telemetry import span

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
try:
    with span("train", run_id="r-1"):
        with span("upload"):
            raise ValueError("bad")
except ValueError:
    pass
print(json.dumps([
    [s.name, dict(s.attributes), s.status.status_code.name, s.parent is not None]
    for s in exporter.get_finished_spans()
]))
"""

WITHOUT = """
import sys
from tuneproof.telemetry import span
with span("train", run_id="r-1") as current:
    assert current is None
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_spans_nest_carry_attributes_and_record_errors() -> None:
    pytest.importorskip("opentelemetry.sdk")
    assert json.loads(run(SCRIPT)) == [
        ["upload", {}, "ERROR", True],
        ["train", {"tuneproof.run_id": "r-1"}, "ERROR", False],
    ]


def test_without_opentelemetry_nothing_is_imported() -> None:
    run(WITHOUT)
