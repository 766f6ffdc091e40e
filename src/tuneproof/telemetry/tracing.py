"""Traces for OpenTelemetry, where its standard variables ask for them.

A turn of the loop lasts weeks, and a backend puts a trace together within minutes. So each stage of
a run is a trace of its own, and so is each step of a stage that waits for days; links lead from it
to the stage, to the stage before and to the run. Requests, batches of events and looks are linked
to the test or rollout that they belong to. The ids behind those links follow from the names of
what they mean, so that every process, also after a restart, finds the same ones.

A step that a kill cut off is repeated, and so is its span.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from hashlib import blake2b
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from tuneproof.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext, Tracer

__all__ = ["Tracing", "provider_of"]

log = logging.getLogger(__name__)

WAITING: Final = ("experiment", "rollout")
"""The stages that last for days."""

FIRST: Final = "collect"
"""The first stage of a run."""

MOST_LINKS: Final = 16

_GIVEN: ContextVar[tuple[int, int] | None] = ContextVar("given", default=None)
"""The ids of the next span, where they follow from a name."""


class Tracing:
    """Makes spans; none where no `tracer` is given."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @classmethod
    def from_env(cls, env: Mapping[str, str], *, service: str) -> Tracing:
        """As OpenTelemetry's variables say: on where they name an exporter or an endpoint.

        A process that has set OpenTelemetry up itself (`opentelemetry-instrument`) is left as it
        is. Raises `ConfigError` for an exporter that is not known or not installed.
        """
        if not _wanted(env):
            return cls()
        from opentelemetry import trace

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            named = env.get("OTEL_SERVICE_NAME", "").strip() or service
            trace.set_tracer_provider(provider_of(_exporter(env), named))
        return cls(trace.get_tracer("tuneproof", metadata.version("tuneproof")))

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self._tracer is not None

    @contextmanager
    def step(self, name: str, run_id: str) -> Iterator[None]:
        """A step of a run as it is carried out; `name` is `stage.verb`."""
        stage, dot, _ = name.partition(".")
        if self._tracer is None or not dot:
            yield
            return
        waits = stage in WAITING
        with self._tracer.start_as_current_span(
            name,
            context=_within(None if waits else _context("stage", run_id, stage)),
            links=[_link(_context("stage", run_id, stage))] if waits else [],
            attributes={"tuneproof.run": run_id, "tuneproof.step": name},
        ):
            yield

    def stage_ended(
        self, run_id: str, stage: str, began: datetime, ended: datetime, status: str, before: str
    ) -> None:
        """A whole stage of a run; `before` is the one before it, if there was one."""
        if self._tracer is None:
            return
        linked = [_context("run", run_id)]
        if before:
            linked.append(_context("stage", run_id, before))
        said = {"tuneproof.run": run_id, "tuneproof.stage": stage, "tuneproof.status": status}
        self._whole(_context("stage", run_id, stage), f"stage {stage}", began, ended, said, linked)

    def run_ended(
        self, run_id: str, pipeline: str, began: datetime, ended: datetime, status: str
    ) -> None:
        """A whole run."""
        if self._tracer is None:
            return
        said = {
            "tuneproof.run": run_id,
            "tuneproof.pipeline": pipeline,
            "tuneproof.status": status,
        }
        first = [_context("stage", run_id, FIRST)]
        self._whole(_context("run", run_id), "run", began, ended, said, first)

    def looked(
        self, subject: str, number: int, began: datetime, at: datetime, verdict: str
    ) -> None:
        """A look at a test or rollout that began at `began`: the first one also tells of that."""
        if self._tracer is None:
            return
        said: dict[str, Any] = {"tuneproof.subject": subject}
        context = _context("subject", subject)
        if number == 1:
            self._whole(context, "subject", began, at, said, [])
        said |= {"tuneproof.look": number, "tuneproof.verdict": verdict}
        self._whole(_context("look", subject, str(number)), "look", at, at, said, [context])

    @contextmanager
    def events(self, subjects: Collection[str], exposures: int, outcomes: int) -> Iterator[None]:
        """A batch of events as it is taken in."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(
            "events.record",
            links=[_link(_context("subject", one)) for one in sorted(subjects)[:MOST_LINKS]],
            attributes={"tuneproof.exposures": exposures, "tuneproof.outcomes": outcomes},
        ):
            yield

    @contextmanager
    def request(
        self, headers: Mapping[bytes, bytes], task: str, subject: str | None, arm: str
    ) -> Iterator[Span | None]:
        """A request for a task, within the caller's trace where its headers name one."""
        if self._tracer is None:
            yield None
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        named = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers.items()}
        said = {"tuneproof.task": task, "tuneproof.arm": arm}
        if subject is not None:
            said["tuneproof.subject"] = subject
        with self._tracer.start_as_current_span(
            f"chat {task}",
            context=extract(named),
            kind=SpanKind.SERVER,
            links=[] if subject is None else [_link(_context("subject", subject))],
            attributes=said,
        ) as span:
            yield span

    @contextmanager
    def asking(self, provider: str, model: str) -> Iterator[Mapping[str, str]]:
        """A model as it is asked; yields the headers by which its own spans join this trace."""
        if self._tracer is None:
            yield {}
            return
        from opentelemetry.propagate import inject
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(
            f"chat {model}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": provider,
                "gen_ai.request.model": model,
            },
        ):
            carried: dict[str, str] = {}
            inject(carried)
            yield carried

    def _whole(
        self,
        context: SpanContext,
        name: str,
        began: datetime,
        ended: datetime,
        attributes: Mapping[str, Any],
        linked: Sequence[SpanContext],
    ) -> None:
        """A span that is over already, under the ids that follow from its name."""
        assert self._tracer is not None
        given = _GIVEN.set((context.trace_id, context.span_id))
        try:
            span = self._tracer.start_span(
                name,
                context=_within(None),
                links=[_link(one) for one in linked],
                attributes=dict(attributes),
                start_time=_ns(began),
            )
            span.end(end_time=_ns(max(began, ended)))
        finally:
            _GIVEN.reset(given)


def _wanted(env: Mapping[str, str]) -> bool:
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(env.get(name, "").strip() for name in names)


def provider_of(exporter: Any, service: str) -> Any:
    """A provider of tracers whose spans go to `exporter`, in batches."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        """Ids that follow from a name where one is given, and chance elsewhere."""

        def generate_trace_id(self) -> int:
            given = _GIVEN.get()
            return super().generate_trace_id() if given is None else given[0]

        def generate_span_id(self) -> int:
            given = _GIVEN.get()
            return super().generate_span_id() if given is None else given[1]

    provider = TracerProvider(
        id_generator=Ids(), resource=Resource.create({"service.name": service})
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(env: Mapping[str, str]) -> Any:
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if exporter == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if exporter != "otlp":
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER is {exporter!r}; otlp, console and none are known.",
            mend="Send OTLP to a collector, which passes it on to what you have.",
        )
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if env.get(name, "http/protobuf").strip() not in ("http/protobuf", ""):
            raise ConfigError(
                f"{name} is {env[name]!r}; traces are sent by http/protobuf.",
                mend="Leave it out, and name the collector's HTTP port (4318 by default).",
            )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            "Traces are asked for by OTEL_… variables, and what sends them is not installed.",
            mend="pip install 'tuneproof[otel]', or OTEL_TRACES_EXPORTER=none",
        ) from error
    return OTLPSpanExporter()


def _context(*name: str) -> SpanContext:
    """Where a span is that is named so, in whichever process it is made."""
    from opentelemetry.trace import SpanContext, TraceFlags

    digest = blake2b("\n".join(name).encode(), digest_size=24).digest()
    return SpanContext(
        trace_id=int.from_bytes(digest[:16], "big") or 1,
        span_id=int.from_bytes(digest[16:], "big") or 1,
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


def _within(parent: SpanContext | None) -> Any:
    """A context with this parent; without one whatever is current is left out."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())


def _link(context: SpanContext) -> Link:
    from opentelemetry.trace import Link

    return Link(context)


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
