"""The webhook target against a real HTTP endpoint."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from tests.servers import free_port
from tests.wire import serving

from tuneproof import errors
from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.targets import WebhookTarget

ROUTING = Routing(
    task="hook",
    baseline=Variant(model_id="base"),
    lanes=(
        Lane(subject="deploy-1", candidate=Variant(model_id="ft", version="ver-1"), share=0.25),
    ),
    salt="s",
    phase=2,
    version=7,
)


class Endpoint:
    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hooks"
        self.status = 200
        self.received: list[tuple[dict[str, str], bytes]] = []

    def app(self) -> Any:
        return Starlette(
            routes=[
                Route("/hooks", self._take, methods=["POST"]),
                Route("/served/{task}", self._served),
                Route("/moved", lambda _: RedirectResponse("/hooks"), methods=["POST"]),
            ]
        )

    async def _take(self, request: Request) -> Response:
        self.received.append((dict(request.headers), await request.body()))
        return JSONResponse({}, self.status)

    async def _served(self, request: Request) -> Response:
        body = json.loads(self.received[-1][1])
        return JSONResponse({"task": request.path_params["task"], "share": body["share"]})


@contextmanager
def _serving() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    with serving(endpoint.app(), endpoint.port):
        yield endpoint


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with _serving() as found:
        yield found


async def test_whole_routing_is_posted_and_signed(endpoint: Endpoint) -> None:
    target = WebhookTarget(endpoint.url, secret="key", headers={"X-Team": "growth"})
    await target.apply(ROUTING)
    ((headers, body),) = endpoint.received
    assert json.loads(body) == {
        "type": "routing",
        "task": "hook",
        "baseline": {"model_id": "base", "version": None},
        "candidate": {"model_id": "ft", "version": "ver-1"},
        "share": 0.25,
        "salt": "s",
        "subject": "deploy-1",
        "phase": 2,
        "version": 7,
        "updated_at": None,
        "cause": "",
    }
    digest = hmac.new(b"key", body, hashlib.sha256).hexdigest()
    assert headers["x-tuneproof-signature"] == f"sha256={digest}"
    assert (headers["idempotency-key"], headers["x-team"]) == ("hook:7", "growth")


async def test_same_routing_has_the_same_key_and_a_new_one_another(endpoint: Endpoint) -> None:
    target = WebhookTarget(endpoint.url)
    for routing in (ROUTING, ROUTING, replace(ROUTING, version=8)):
        await target.apply(routing)
    keys = [headers["idempotency-key"] for headers, _ in endpoint.received]
    assert keys == ["hook:7", "hook:7", "hook:8"]


async def test_what_is_served_is_asked_for_where_it_can_be(endpoint: Endpoint) -> None:
    assert await WebhookTarget(endpoint.url).observe("hook") is None
    address = f"http://127.0.0.1:{endpoint.port}/served/{{task}}"
    target = WebhookTarget(endpoint.url, observe_url=address)
    await target.apply(ROUTING)
    assert await target.observe("hook") == {"task": "hook", "share": 0.25}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, errors.DataError),
        (401, errors.DeniedError),
        (403, errors.DeniedError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (429, errors.RetryableError),
        (500, errors.RetryableError),
    ],
)
async def test_each_refusal_says_what_to_do(
    endpoint: Endpoint, status: int, expected: type[errors.TuneProofError]
) -> None:
    endpoint.status = status
    with pytest.raises(errors.TuneProofError, match=str(status)) as caught:
        await WebhookTarget(endpoint.url).apply(ROUTING)
    assert type(caught.value) is expected


async def test_redirect_is_reported_and_not_followed(endpoint: Endpoint) -> None:
    with pytest.raises(errors.DataError, match="307"):
        await WebhookTarget(endpoint.url.replace("hooks", "moved")).apply(ROUTING)
    assert endpoint.received == []


async def test_absent_endpoint_is_called_again_later() -> None:
    with pytest.raises(errors.RetryableError, match="did not answer"):
        await WebhookTarget(f"http://127.0.0.1:{free_port()}/").apply(ROUTING)


def test_malformed_address_is_refused() -> None:
    with pytest.raises(errors.ConfigError):
        WebhookTarget("ftp://example.org/x")


async def test_lanes_are_told_where_several_candidates_are_tested(endpoint: Endpoint) -> None:
    lanes = (
        Lane(subject="ab-test-1", candidate=Variant(model_id="one"), share=0.2),
        Lane(subject="ab-test-2"),
    )
    several = replace(ROUTING, lanes=lanes)
    await WebhookTarget(endpoint.url).apply(several)
    await WebhookTarget(endpoint.url).apply(ROUTING)
    told, alone = [json.loads(body) for _, body in endpoint.received]
    assert told["lanes"] == [
        {"subject": "ab-test-1", "candidate": {"model_id": "one", "version": None}, "share": 0.2},
        {"subject": "ab-test-2", "candidate": None, "share": 0.0},
    ]
    assert "lanes" not in alone
