"""One set of vectors, `tests/assignment_vectors.json`, for everything that assigns units."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tuneproof import assignment
from tuneproof.app import RoutingSnapshot
from tuneproof.client.state import HeldRouting
from tuneproof.experiments import Variant
from tuneproof.experiments.histories import history_of
from tuneproof.rollout import Lane, Routing
from tuneproof.server.deployment import RoutingAnswer
from tuneproof.server.gateway import decide

VECTORS = json.loads((Path(__file__).parents[1] / "assignment_vectors.json").read_text())
CASES = {case["name"]: case for case in VECTORS["cases"]}

Case = Mapping[str, Any]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


AT = datetime(2026, 11, 29, tzinfo=UTC)


def model(data: Mapping[str, str] | None) -> Variant | None:
    return None if data is None else Variant(**data)


def routing_of(row: Mapping[str, Any]) -> Routing:
    alone = [row] if row["subject"] is not None else []
    return Routing(
        task=row["task"],
        baseline=Variant(**row["baseline"]),
        lanes=tuple(
            Lane(subject=lane["subject"], candidate=model(lane["candidate"]), share=lane["share"])
            for lane in row.get("lanes") or alone
        ),
        salt=row["salt"],
        phase=row["phase"],
        version=row["version"],
        updated_at=datetime.fromisoformat(row["updated_at"]),
        cause=row["cause"],
    )


def decisions(case: Case) -> Iterator[tuple[str, tuple[str, str | None, str, str | None]]]:
    """Each unit with its model, version, arm and subject."""
    for one in case["decisions"]:
        yield one["unit"], (one["model"], one["model_version"], one["arm"], one["subject"])


def test_the_rule_itself(case: Case) -> None:
    row = case["routing"]
    lanes = row.get("lanes") or [row]
    buckets = [assignment.candidate_buckets(lane["share"]) for lane in lanes]
    for one in case["decisions"]:
        found = assignment.bucket(row["salt"], one["unit"])
        assert found == one["bucket"]
        lane, chosen = assignment.lane_and_arm(found, buckets)
        assert lanes[lane]["subject"] == one["subject"]
        assert chosen == (one["arm"] == "candidate")
        assert lane == assignment.lane_of(found, len(lanes))
        among = assignment.arm_among(found, [each["share"] for each in lanes])
        assert among == (lane if chosen else None)


def test_routing_and_gateway(case: Case) -> None:
    routing = routing_of(case["routing"])
    for unit, expected in decisions(case):
        served = routing.serve(unit)
        shown = (served.model.model_id, served.model.version, str(served.arm), served.subject)
        assert shown == expected
        decision = decide(routing, unit, AT, None)
        assert (decision.model, decision.arm) == (served.model, served.arm)
        assert decision.ticket.subject == (served.subject or history_of("hook", AT))


def test_what_decide_answers(case: Case) -> None:
    answers = RoutingSnapshot.of([routing_of(case["routing"])]).answers[False]["hook"]
    for unit, expected in decisions(case):
        found = json.loads(answers.decide(unit))
        names = ("model", "model_version", "arm", "subject")
        assert tuple(found[name] for name in names) == expected
        assert found["unit"] == unit


def test_a_client_that_read_the_routing(case: Case) -> None:
    held = HeldRouting(path=None, defaults={})
    held.update({"version": 1, "routing": [case["routing"]]})
    for unit, expected in decisions(case):
        choice = held.choose("hook", unit)
        assert (choice.model, choice.model_version, choice.arm, choice.subject) == expected


def test_routing_is_sent_as_documented(case: Case) -> None:
    body = RoutingSnapshot.of([routing_of(case["routing"])]).body[False]
    assert json.loads(body) == {"version": 3, "routing": [case["routing"]]}
    assert RoutingAnswer.model_validate_json(body).model_dump_json().encode() == body


def test_each_arm_and_an_empty_lane_are_among_the_vectors() -> None:
    arms = {one["arm"] for case in CASES.values() for one in case["decisions"]}
    assert arms == {"baseline", "candidate"}
    assert {1, 2, 3} <= {one["bucket"] for c in CASES.values() for one in c["decisions"]}
