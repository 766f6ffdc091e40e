"""What gateways are told says all that the routing does."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.experiments import Variant
from tuneproof.rollout import Lane, Routing
from tuneproof.server.feed import _row, hashed, routing_of, socket_path

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
models = st.builds(Variant, model_id=texts, version=st.none() | texts)
lanes = st.builds(
    Lane, subject=texts, candidate=st.none() | models, share=st.floats(0, 1, allow_nan=False)
)
routings = st.builds(
    Routing,
    task=texts,
    baseline=models,
    lanes=st.lists(lanes, max_size=3).map(tuple),
    salt=texts,
    phase=st.integers(0, 100),
    version=st.integers(0, 10**9),
    updated_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    cause=st.text(max_size=20, alphabet=st.characters(exclude_categories=["Cs"])),
    previous=st.none() | models,
)


@given(routings)
def test_a_routing_arrives_as_it_was(routing):
    assert routing_of(orjson.loads(orjson.dumps(_row(routing)))) == routing


@given(routings, texts)
def test_it_serves_every_unit_alike(routing, unit):
    told = routing_of(orjson.loads(orjson.dumps(_row(routing))))
    assert told.serve(unit) == routing.serve(unit)


def test_a_token_is_told_by_its_hash_alone():
    assert "secret" not in hashed("tp_secret")
    assert hashed("tp_secret") == hashed("tp_secret") != hashed("tp_other")


def test_a_data_directory_with_a_long_name_has_a_socket_that_the_system_takes():
    short, long = Path("/var/lib/tuneproof"), Path("/" + "very-long-name/" * 20)
    assert socket_path(short) == short / "gateway.sock"
    assert len(str(socket_path(long))) < 100
    assert socket_path(long) == socket_path(long) != socket_path(long / "other")


def test_the_time_of_a_routing_keeps_its_zone():
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    routing = Routing(task="t", baseline=Variant(model_id="m"), updated_at=at)
    assert routing_of(orjson.loads(orjson.dumps(_row(routing)))).updated_at == at
