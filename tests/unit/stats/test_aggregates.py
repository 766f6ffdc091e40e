"""Aggregates add, subtract and travel as JSON without losing a unit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.errors import DataError
from tuneproof.stats.aggregates import (
    ENGAGEMENT_EDGES,
    LATENCY_MS_EDGES,
    SUMS,
    Aggregate,
    Histogram,
    merge,
)

EDGES = (0.0, 0.25, 0.5, 1.0)
EIGHTHS = st.integers(0, 8).map(lambda i: i / 8)  # sums of these are exact in binary
UNIT = st.tuples(EIGHTHS, EIGHTHS, EIGHTHS, EIGHTHS, st.integers(0, 9).map(float))
UNITS = st.lists(UNIT, max_size=20)


def whole(units: list[tuple[float, float, float, float, float]]) -> Aggregate:
    y, x, d, c, m = (list(v) for v in zip(*units, strict=True)) if units else ([],) * 5
    return Aggregate.of(y, x=x, d=d, c=c, m=m, edges=EDGES)


@given(UNITS, UNITS, UNITS)
def test_merging_is_associative_and_order_free(a, b, c):
    A, B, C = whole(a), whole(b), whole(c)
    assert (A + B) + C == A + (B + C) == C + (A + B) == whole(a + b + c)
    assert merge([A, B, C]) == merge([C, A, B]) == A + B + C


@given(UNITS, UNITS)
def test_subtracting_undoes_adding_exactly(a, b):
    assert whole(a) + whole(b) - whole(b) == whole(a)


@given(st.lists(UNIT, min_size=1, max_size=20))
def test_one_unit_at_a_time_gives_the_aggregate_of_all(units):
    total = merge(whole([unit]) for unit in units)
    assert total == whole(units)


@given(st.lists(st.floats(0, 1), max_size=30), st.randoms())
def test_merge_rounds_once_so_that_no_order_shows(values, random):
    parts = [Aggregate.of([v]) for v in values]
    shuffled = parts[:]
    random.shuffle(shuffled)
    assert merge(parts) == merge(shuffled)


@given(UNITS)
def test_json_keeps_every_digit(units):
    aggregate = whole(units)
    assert Aggregate.from_dict(json.loads(json.dumps(aggregate.to_dict()))) == aggregate


@given(st.lists(st.floats(-1e6, 1e6), max_size=20))
def test_json_keeps_arbitrary_floats(values):
    aggregate = Aggregate.of(values, c=values)
    assert Aggregate.from_dict(json.loads(json.dumps(aggregate.to_dict()))) == aggregate


def test_sums_are_what_their_names_say():
    rng = np.random.default_rng(1)
    v = dict(zip("yxdcm", rng.random((5, 50)), strict=True))
    got = Aggregate.of(v["y"], x=v["x"], d=v["d"], c=v["c"], m=v["m"])
    for name in SUMS:
        letters = name.removeprefix("sum_")
        expected = math.fsum(np.prod([v[k] for k in letters], axis=0))
        assert math.isclose(getattr(got, name), expected), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_numbers_are_refused(bad):
    with pytest.raises(DataError, match="NaN or infinite"):
        Aggregate.of([0.1, bad])
    with pytest.raises(DataError, match="not a finite number"):
        Aggregate(n=1, sum_c=bad)
    with pytest.raises(DataError, match="NaN"):
        Histogram.of([math.nan], EDGES)


def test_more_cannot_be_taken_away_than_was_there():
    with pytest.raises(DataError, match="-1 units"):
        Aggregate() - Aggregate.of([0.5])
    with pytest.raises(DataError, match="negative count"):
        Histogram.of([0.1], EDGES) - Histogram.of([0.9], EDGES)


def test_nothing_left_is_exactly_nothing():
    a, b = Aggregate.of([0.1]), Aggregate.of([0.2])
    assert a + b - a - b == Aggregate()


def test_arrays_of_different_length_are_refused():
    with pytest.raises(DataError, match="do not match"):
        Aggregate.of([1.0, 2.0], x=[1.0])


@pytest.mark.parametrize(
    "data", [{"n": "many"}, {"units": 3}, {"n": 1, "histogram": {"edges": [1]}}]
)
def test_malformed_sums_are_refused(data):
    with pytest.raises(DataError):
        Aggregate.from_dict(data)


def test_a_histogram_of_some_of_the_units_is_dropped_rather_than_shown():
    with_shape = Aggregate.of([0.1], edges=EDGES)
    assert (with_shape + Aggregate.of([0.2])).histogram is None
    assert merge([with_shape, Aggregate.of([0.2])]).histogram is None
    assert (Aggregate() + with_shape).histogram == with_shape.histogram
    assert merge([Aggregate(), with_shape]).histogram == with_shape.histogram


def test_histogram_bins_hold_values_up_to_their_edge():
    h = Histogram.of([-1.0, 0.0, 0.1, 0.25, 0.26, 1.0, 7.0], EDGES)
    assert h.counts == (2, 2, 1, 1, 1)
    assert h.above(0.25) == 3
    assert h.above(1.0) == 1


def test_counting_above_something_that_is_no_edge_is_refused():
    with pytest.raises(DataError, match="not an edge"):
        Histogram.empty(EDGES).above(0.3)


@pytest.mark.parametrize("edges", [(), (1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_edges_that_do_not_rise_are_refused(edges):
    with pytest.raises(DataError, match="do not rise"):
        Histogram.empty(edges)


def test_histograms_of_different_edges_do_not_mix():
    with pytest.raises(DataError, match="different edges"):
        Histogram.empty((1.0,)) + Histogram.empty((2.0,))


def test_default_edges_hold_the_default_limits():
    assert 2000 in LATENCY_MS_EDGES
    assert ENGAGEMENT_EDGES[0] == 0.0
    assert ENGAGEMENT_EDGES[-1] == 1.0
    Histogram.empty(ENGAGEMENT_EDGES)
    Histogram.empty(LATENCY_MS_EDGES)
