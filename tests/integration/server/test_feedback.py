"""Feedback as applications have it: numbers, thumbs, words, objects; of one answer or several."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.server.conftest import Service

from tuneproof.app import ReceiptKey
from tuneproof.app.receipts import receipt_key
from tuneproof.server.tickets import Ticket

CREATE = "/evaluation/create-ab-test"
MODELS = {"baseline_model": {"model_id": "base"}, "candidate_model": {"model_id": "cand"}}
ASKED = {"model": "tuneproof/hook", "messages": [{"role": "user", "content": "Begin"}]}
NEW, KNOWN = {"accepted": 1, "duplicates": 0}, {"accepted": 0, "duplicates": 1}


@pytest.fixture
async def tested(on_either: Service) -> Service:
    """A service, on both databases, that tests `cand` with half of the traffic."""
    answer = await on_either.post(CREATE, {**MODELS, "traffic_split": 0.5})
    assert answer.status_code == 201, answer.text
    return on_either


async def receipt(service: Service, unit: str) -> str:
    answer = await service.post("/v1/chat/completions", {**ASKED, "user": unit})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-tuneproof-response"]


async def told(service: Service, body: Any) -> Any:
    answer = await service.post("/v1/feedback", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def outcomes(service: Service, given: str) -> tuple[float, int, float | None]:
    """The sum of the outcomes of the answer's subject, of how many units, and their quality."""
    subject = Ticket.decode(given).subject
    assert subject is not None

    async def recorded() -> bool:
        return bool(await service.app.store.events.exposed(subject))

    await service.until("/events", lambda found: len(found) > 0)
    assert await recorded()
    strata = await service.app.store.events.strata(subject)
    n = sum(one.units.n for one in strata)
    quality = [one.quality for one in strata if one.quality is not None]
    return sum(one.units.sum_y for one in strata), n, quality[0] if quality else None


async def comments(service: Service, given: str) -> list[tuple[str, str, str | None]]:
    subject = Ticket.decode(given).subject
    found = (await service.http.get("/events/comments", params={"subject": subject})).json()
    return [(one["unit"], one["text"], one["arm"]) for one in found]


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({"value": 0.07}, (0.07, 1, None)),
        ({"value": True}, (1.0, 1, None)),
        ({"value": False}, (0.0, 1, None)),
        ({"value": "0.07"}, (0.07, 1, None)),
        ({"value": {"value": 0.07, "quality": 0.9}}, (0.07, 1, 0.9)),
        ({"value": 0.07, "quality": True}, (0.07, 1, 1.0)),
    ],
)
async def test_a_number_is_the_outcome_of_the_unit(
    tested: Service, said: dict[str, Any], counted: Any
) -> None:
    """Seen: an object as the value was a 422; a boolean in it has to count as 1 or 0."""
    given = await receipt(tested, "u")
    body = {"response_id": given, **said}
    assert [await told(tested, body) for _ in range(2)] == [NEW, KNOWN]
    assert await outcomes(tested, given) == counted
    assert await comments(tested, given) == []


async def test_words_are_kept_as_they_came_and_are_no_outcome(tested: Service) -> None:
    """Seen: "value": "good answer" was refused with 422, and its words were lost."""
    given = await receipt(tested, "größe-漢字")
    body = {"response_id": given, "value": "good answer 🙂\n"}
    assert [await told(tested, body) for _ in range(2)] == [NEW, KNOWN]
    assert (await outcomes(tested, given))[1] == 0
    [(unit, text, arm)] = await comments(tested, given)
    assert (unit, text) == ("größe-漢字", "good answer 🙂\n")
    assert arm in ("baseline", "candidate")


async def test_an_object_keeps_number_and_words(tested: Service) -> None:
    given = await receipt(tested, "u")
    said = {"value": 0.07, "quality": 0.9, "comment": "fine"}
    body = {"response_id": given, "value": said}
    assert [await told(tested, body) for _ in range(2)] == [NEW, KNOWN]
    assert (await outcomes(tested, given))[0] == pytest.approx(0.07)
    assert [text for _, text, _ in await comments(tested, given)] == ["fine"]


async def test_one_report_on_several_answers_tells_of_each(tested: Service) -> None:
    receipts = [await receipt(tested, f"u{i}") for i in range(3)]
    body = {"response_ids": [receipts[0], "tp-nothing", *receipts[1:]], "value": 0.5}
    found = await told(tested, body)
    assert (found["accepted"], found["duplicates"]) == (3, 0)
    assert [one["response_id"] for one in found["results"]] == body["response_ids"]
    assert [one["accepted"] for one in found["results"]] == [1, 0, 1, 1]
    assert found["results"][1]["error"]["code"] == "response_not_found"
    again = await told(tested, body)
    assert (again["accepted"], again["duplicates"]) == (0, 3)
    assert (await outcomes(tested, receipts[0]))[:2] == (1.5, 3)


async def test_a_list_of_reports_keeps_those_that_can_be_kept(tested: Service) -> None:
    one, other = await receipt(tested, "u1"), await receipt(tested, "u2")
    found = await told(
        tested,
        [
            {"response_id": one, "value": 0.1},
            {"response_id": one},
            {"value": 0.2},
            "words",
            {"response_id": one, "response_ids": [other], "value": 0.3},
            {"response_id": other, "value": 1e-9},
            {"response_id": other, "value": {"comment": "slow"}},
        ],
    )
    assert [entry["accepted"] for entry in found["results"]] == [1, 0, 0, 0, 0, 0, 1]
    errors = [entry.get("error", {}).get("message", "") for entry in found["results"]]
    assert "neither a value nor a comment" in errors[1]
    assert errors[2].startswith("response_id: ")
    assert errors[3].startswith("body: ")
    assert "names them twice" in errors[4]
    assert "measure in a smaller unit" in found["results"][5]["reason"]
    assert [text for _, text, _ in await comments(tested, other)] == ["slow"]


def forged(task: str, subject: str | None, unit: str = "u") -> str:
    return Ticket(exposure="e", task=task, subject=subject, unit=unit).encode()


@pytest.mark.parametrize(
    "unknown",
    [
        "chatcmpl-1",
        "tp-",
        "tp-WyJh",
        "ü",
        forged("hook", "ab-test-20000101-001"),
        forged("poem", None),
        forged("hook", None, "nul\0"),
        forged("hook", "x\0"),
        Ticket(exposure="e", task="hook", subject=[], unit="u").encode(),  # type: ignore[arg-type]
        Ticket(exposure="e", task="hook", subject=None, unit=3).encode(),  # type: ignore[arg-type]
    ],
)
async def test_an_unknown_receipt_is_404_in_openai_s_shape(tested: Service, unknown: str) -> None:
    """Seen: 422 for what is no receipt; 200 and `accepted: 0` for a test that never was."""
    for body in ({"response_id": unknown, "value": 1}, {"response_ids": [unknown], "value": 1}):
        answer = await tested.post("/v1/feedback", body)
        assert answer.status_code == 404, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "response_not_found")
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("task", "subject", "unit"),
    [
        ("hook", "ab-test-20000101-001", "u"),
        ("poem", None, "u"),
        ("hook", None, "nul\0"),
        ("hook", "x\0", "u"),
    ],
)
async def test_a_signed_receipt_of_what_never_was_is_404(
    tested: Service, task: str, subject: str | None, unit: str
) -> None:
    ticket = Ticket.new(tested.app.receipts, task=task, subject=subject, unit=unit)
    answer = await tested.post("/v1/feedback", {"response_id": ticket.encode(), "value": 1})
    assert answer.status_code == 404, answer.text


async def test_nobody_speaks_for_another_unit(tested: Service) -> None:
    """Seen: a receipt was base64 of its unit's name, so whoever read one could write all."""
    given = Ticket.decode(await receipt(tested, "mine"))
    other = Ticket.decode(await receipt(tested, "yours"))
    assert given.subject == other.subject
    made_up = [
        replace(given, unit="yours"),
        replace(given, exposure=other.exposure),
        replace(given, exposure=uuid.uuid4().hex),
        replace(given, exposure=given.exposure[:-1] + "\ud800"),
        replace(given, exposure=given.exposure + "0"),
        replace(given, exposure=""),
        replace(given, subject=None),
        replace(given, task="body"),
        Ticket.new(ReceiptKey(key=b"guessed"), task="hook", subject=given.subject, unit="yours"),
    ]
    for ticket in made_up:
        body = {"response_id": ticket.encode(), "value": 9}
        assert (await tested.post("/v1/feedback", body)).status_code == 404, ticket
    assert await told(tested, {"response_id": given.encode(), "value": 0.5}) == NEW
    assert await outcomes(tested, given.encode()) == (0.5, 1, None)


async def test_workers_that_begin_at_once_have_one_key(on_either: Service) -> None:
    store, clock = on_either.app.store, on_either.app.clock
    await store.meta.drop("receipt_key")
    keys = await asyncio.gather(*(receipt_key(store, clock) for _ in range(8)))
    assert {one.key for one in keys} == {keys[0].key}
    assert keys[0].key.hex() not in repr(keys[0])


async def test_receipts_of_before_an_upgrade_are_taken_for_a_month(on_either: Service) -> None:
    service = on_either
    store, clock = service.app.store, service.app.clock
    assert service.app.receipts.unsigned_until is None  # a new database: none were given before
    assert await receipt_key(store, clock) == service.app.receipts
    made = await service.post(CREATE, {**MODELS, "traffic_split": 0.5})
    assert made.status_code == 201, made.text
    given = Ticket.decode(await receipt(service, "u"))
    await outcomes(service, given.encode())  # its exposure is kept
    before = replace(given, exposure=uuid.uuid4().hex)
    await store.meta.drop("receipt_key")  # as a database of before has it
    anew = await receipt_key(store, clock)
    assert anew.key != service.app.receipts.key
    until = anew.unsigned_until
    assert until is not None
    assert until > clock.now() + timedelta(days=29)
    assert before.genuine(anew, clock.now())
    assert not before.genuine(anew, until)
    service.app.receipts = anew
    assert await told(service, {"response_id": before.encode(), "value": 0.5}) == NEW
    answer = await service.post("/v1/feedback", {"response_id": given.encode(), "value": 1})
    assert answer.status_code == 404  # another key signed it


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "value: It says neither"),
        ({"value": 10**400}, "value: "),
        ({"value": {}}, "value: It says neither"),
        ({"value": ""}, "value: It says neither"),
        ({"value": {"stars": 5}}, "value: "),
        ({"value": [1]}, "value: "),
        ({"value": "nul\0"}, "value: "),
        ({"value": {"comment": "nul\0"}}, "value: "),
        ({"quality": 0.5}, "value: It says neither"),
        ({"value": {"comment": "a"}, "quality": 0.5}, "quality: A quality comes beside"),
        ({"value": {"comment": "a"}, "comment": "b"}, "comment: comment is said twice"),
        ({"value": "a", "comment": "b"}, "comment: comment is said twice"),
        ({"value": 1, "response_ids": ["tp-a"]}, "response_id: It names no answer, or names them"),
        ({"value": 1, "at": "yesterday"}, "at: "),
        ({"value": 1, "at": "9999-12-31T23:59:59-05:00"}, "outside the years 1 to 9999"),
        ({"value": 1e300}, "between -9e9 and 9e9"),
        ({"value": 1, "colour": "red"}, "colour: "),
    ],
)
async def test_what_cannot_be_kept_is_refused_by_name(
    service: Service, test_id: str, body: dict[str, Any], named: str
) -> None:
    answer = await service.post(
        "/v1/feedback", {"response_id": await receipt(service, "u"), **body}
    )
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["error"]["message"]


async def test_a_text_is_a_number_where_json_would_have_it_so(tested: Service) -> None:
    """Seen: "1_000" was the outcome 1000, and Arabic digits were one, too."""
    given = await receipt(tested, "u")
    for text in ("1_000", "١٢", "0x10", "nan", "Infinity", "1e999", "1 0"):
        await told(tested, {"response_id": given, "value": text})
    assert len(await comments(tested, given)) == 7
    for text in ("1", " 0.5 ", "+5e-1", ".5", "1."):
        await told(tested, {"response_id": given, "value": text})
    assert len(await comments(tested, given)) == 7
    assert (await outcomes(tested, given))[1] == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[" * 100_000, b"[]", b"[1]", b"3", b"NaN"])
async def test_a_body_that_is_no_feedback_is_refused(service: Service, content: bytes) -> None:
    answer = await service.http.post("/v1/feedback", content=content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_more_answers_than_a_request_may_name_are_refused(service: Service) -> None:
    bodies: list[Any] = [
        [{"response_id": "tp-a", "value": 1}] * 101,
        {"response_ids": ["tp-a"] * 101, "value": 1},
        [{"response_ids": ["tp-a"] * 60, "value": 1}] * 2,
    ]
    for body in bodies:
        answer = await service.post("/v1/feedback", body)
        assert answer.status_code == 422, answer.text
        assert "100" in answer.json()["error"]["message"]


async def test_words_go_with_the_raw_events_of_their_test(tested: Service) -> None:
    given = await receipt(tested, "u")
    await told(tested, {"response_id": given, "value": "a secret"})
    app, subject = tested.app, Ticket.decode(given).subject
    assert subject is not None
    await app.store.retention.purge(subject, app.clock.now())
    assert await comments(tested, given) == []
    late = await told(tested, {"response_id": given, "value": "another"})
    assert late["accepted"] == 0
    assert await comments(tested, given) == []


async def test_comments_of_a_test_that_never_was_are_404(service: Service) -> None:
    answer = await service.http.get("/events/comments", params={"subject": "ab-test-0"})
    assert answer.status_code == 404
