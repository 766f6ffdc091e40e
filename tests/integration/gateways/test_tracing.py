"""A request as a trace has it: the caller's, the gateway process's, and the provider's after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.gateways import placed, settings
from tests.servers import free_port
from tests.waiting import until
from tests.wire import serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector:
    """What was sent over OTLP, by the service that said it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Span]] = []

    async def take(self, request: Request) -> Response:
        sent = ExportTraceServiceRequest.FromString(await request.body())
        with self._lock:
            for group in sent.resource_spans:
                names = {one.key: one.value.string_value for one in group.resource.attributes}
                for scope in group.scope_spans:
                    self._spans += [(names["service.name"], span) for span in scope.spans]
        return Response(media_type="application/x-protobuf")

    def of_trace(self, trace: str) -> list[tuple[str, Span]]:
        with self._lock:
            return [(name, span) for name, span in self._spans if span.trace_id.hex() == trace]


@contextmanager
def collector() -> Iterator[Collector]:
    port = free_port()
    made = Collector(f"http://127.0.0.1:{port}")
    routes = [Route("/v1/traces", made.take, methods=["POST"])]
    with serving(Starlette(routes=routes), port):
        yield made


def said(span: Span) -> dict[str, str]:
    return {one.key: one.value.string_value for one in span.attributes}


def test_a_request_goes_on_in_its_callers_trace_to_the_provider(provider, tmp_path):
    with collector() as told:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": told.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with placed(tmp_path / "place", settings(provider.url), **env) as place:
            place.serve()
            test = place.declare()
            until(lambda: place.all_know(test))
            answer = place.ask("u-1", traceparent=f"00-{TRACE}-{CALLER}-01")
            assert answer.status_code == 200
            until(lambda: len(told.of_trace(TRACE)) == 2)
        by_name = {span.name: (service, span) for service, span in told.of_trace(TRACE)}
    model = provider.bodies[-1]["model"]
    service, served = by_name["chat hook"]
    assert service == "tuneproof-gateway"
    assert served.kind == Span.SPAN_KIND_SERVER
    assert served.parent_span_id.hex() == CALLER
    assert said(served)["tuneproof.subject"] == test
    assert said(served)["tuneproof.exposure"]
    assert len(served.links) == 1
    _, asked = by_name[f"chat {model}"]
    assert asked.kind == Span.SPAN_KIND_CLIENT
    assert asked.parent_span_id == served.span_id
    assert said(asked)["gen_ai.request.model"] == model
    sent = provider.headers[-1]["traceparent"]
    assert sent == f"00-{TRACE}-{asked.span_id.hex()}-01"
