"""Applications are answered by processes beside the service: whatever of it ends, they go on."""

from __future__ import annotations

import os
import resource
import signal
import socket

import pytest
from tests.gateways import HTTP, Load, Place, alive, placed, settings
from tests.waiting import until

from tuneproof.server.tickets import Ticket


@pytest.fixture(scope="module")
def subject(place: Place) -> str:
    """A test that is under way, as the gateways know."""
    made = place.declare()
    until(lambda: place.all_know(made))
    return made


def all_kept(place: Place, load: Load) -> bool:
    return exposures(load) <= place.recorded()


def exposures(load: Load) -> set[str]:
    return {Ticket.decode(receipt).exposure for receipt in load.receipts}


def test_two_processes_answer_and_what_they_saw_arrives(place, subject):
    with Load(place) as load:
        until(lambda: len(load.receipts) > 50)
    assert load.failed == []
    assert len(place.pids() | {place.service_pid()}) == 3
    until(lambda: all_kept(place, load))


def test_feedback_by_a_gateway_process_is_kept_by_the_service(place, subject):
    def told(body):
        return HTTP.post(f"{place.gateway}/v1/feedback", json=body, timeout=30)

    receipt = place.ask("u").headers["x-tuneproof-response"]
    body = {"response_id": receipt, "value": {"value": 0.5, "comment": "fine"}}
    answers = [told(body).json() for _ in range(2)]
    assert answers == [{"accepted": 1, "duplicates": 0}, {"accepted": 0, "duplicates": 1}]
    said = HTTP.get(f"{place.url}/events/comments", params={"subject": subject}, timeout=30)
    assert [one["text"] for one in said.json()] == ["fine"]
    unknown = Ticket(exposure="e", task="hook", subject="ab-test-20000101-001", unit="u").encode()
    for receipt in ("chatcmpl-1", unknown):
        refused = told({"response_id": receipt, "value": 1})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "response_not_found"


def test_a_killed_service_touches_no_request_and_loses_no_event(place, subject):
    before = place.service_pid()
    with Load(place) as load:
        os.kill(before, signal.SIGKILL)
        asked = len(load.receipts)
        until(lambda: len(load.receipts) > asked + 100)
        until(place.ready)
    assert load.failed == []
    assert place.service_pid() != before
    until(lambda: all_kept(place, load))


def test_feedback_waits_for_a_service_that_is_away(place, subject):
    receipt = place.ask("who-said-it").headers["x-tuneproof-response"]
    os.kill(place.service_pid(), signal.SIGKILL)
    told = {"response_id": receipt, "value": {"value": 0.25, "comment": "better"}}
    answer = HTTP.post(f"{place.gateway}/v1/feedback", json=told, timeout=30)
    assert (answer.status_code, answer.json()) == (
        200,
        {"accepted": 1, "duplicates": 0, "waiting": True},
    )
    until(place.ready)
    again = HTTP.post(f"{place.gateway}/v1/feedback", json=told, timeout=30)
    assert again.json()["accepted"] + again.json()["duplicates"] == 1
    until(lambda: place.counted("outcomes", "who-said-it") == 1)
    assert place.counted("comments", "who-said-it") == 1


def test_a_killed_gateway_loses_no_event_and_another_takes_its_place(place, subject):
    victim = min(place.pids())
    with Load(place) as load:
        until(lambda: len(load.receipts) > 50)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(place.pids() - {victim}) == 2)
    assert len(load.failed) <= 4, "no more than was under way in that process"
    until(lambda: all_kept(place, load))


def test_a_hangup_replaces_every_process_and_no_request_hears_of_it(place, subject):
    before = place.pids() | {place.service_pid()}
    with Load(place) as load:
        place.process.send_signal(signal.SIGHUP)
        until(lambda: not any(map(alive, before)), within_s=120)
        until(place.ready)
    assert load.failed == []
    assert len(load.receipts) > 100
    assert before.isdisjoint(place.pids() | {place.service_pid()})
    until(lambda: all_kept(place, load))


def test_the_routing_reaches_gateways_at_once_and_is_kept_for_a_start_without_the_service(
    provider, tmp_path
):
    with placed(tmp_path / "place", settings(provider.url)) as place:
        place.serve()
        subject = place.declare()
        until(lambda: place.subject() == subject, within_s=2)
        assert place.stop() == 0
        kept = place.folder / "data" / "gateway.json"
        assert oct(kept.stat().st_mode & 0o777) == "0o600"
        assert "sk-of-the-provider" not in kept.read_text()
        place.start("gateway", "--port", str(place.gateway_port))
        until(lambda: place.pids(), otherwise=place.said)
        assert place.subject() == subject
        assert provider.headers[-1]["authorization"] == "Bearer sk-of-the-provider"
        assert list((place.folder / "data" / "spool").glob("*/*.jsonl"))
        assert place.stop() == 0


def test_processes_end_with_whoever_started_them(provider, tmp_path):
    with placed(tmp_path / "place", settings(provider.url)) as place:
        place.serve()
        children = place.pids() | {place.service_pid()}
        place.process.kill()
        until(lambda: not any(map(alive, children)))


def test_settings_that_cannot_be_served_end_all_with_their_reason(provider, tmp_path):
    with placed(tmp_path / "place", settings(provider.url)) as place, socket.socket() as taken:
        taken.bind(("127.0.0.1", place.gateway_port))
        taken.listen()
        ports = ("--port", str(place.port), "--gateway-port", str(place.gateway_port))
        place.start("serve", "--gateways", "2", *ports)
        assert place.process.wait(60) == 2
        assert "choose another --gateway-port" in place.said()
    with placed(tmp_path / "second", settings(provider.url)) as place, socket.socket():
        (place.folder / "data").write_text("a file")
        place.start("gateway", "--port", str(place.gateway_port))
        assert place.process.wait(60) == 2
        assert "The data directory" in place.said()


def test_where_a_token_is_needed_gateways_take_those_of_the_service(provider, tmp_path):
    with placed(tmp_path / "place", settings(provider.url)) as place:
        file = place.folder / "tuneproof.toml"
        file.write_text(file.read_text() + "require_token = true\n")
        place.start("token", "create", "app", "--scope", "write")
        assert place.process.wait(60) == 0
        place.token = next(word for word in place.said().split() if word.startswith("tp_"))
        place.serve()
        assert {place.ask("u").status_code for _ in range(20)} == {200}  # so both know it
        assert place.ask("u", Authorization="Bearer tp_unknown").status_code == 401
        assert HTTP.get(f"{place.gateway}/metrics").status_code == 401
        os.kill(place.process.pid, signal.SIGSTOP)  # so that nobody begins the service again
        os.kill(place.service_pid(), signal.SIGKILL)
        assert {place.ask("u").status_code for _ in range(20)} == {200}
        refused = place.ask("u", Authorization="Bearer tp_other")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        os.kill(place.process.pid, signal.SIGCONT)


def test_a_hangup_with_settings_that_cannot_be_served_replaces_nobody(provider, tmp_path):
    """Seen: a slip in the settings, a hangup, and every gateway that worked had been ended."""
    with placed(tmp_path / "place", settings(provider.url)) as place:
        place.serve()
        before = place.pids() | {place.service_pid()}
        file = place.folder / "tuneproof.toml"
        good = file.read_text()
        file.write_text(good + "[nonsense\n")
        with Load(place) as load:
            place.process.send_signal(signal.SIGHUP)
            until(lambda: "what was not replaced stays" in place.said(), otherwise=place.said)
            asked = len(load.receipts)
            until(lambda: len(load.receipts) > asked + 50)
        assert load.failed == []
        assert place.pids() | {place.service_pid()} == before
        file.write_text(good)
        place.process.send_signal(signal.SIGHUP)
        until(lambda: not any(map(alive, before)), within_s=120)
        until(place.ready)


def test_a_gateway_that_cannot_begin_does_so_once_there_is_room(provider, tmp_path):
    """Seen: the system had no room for a process for a moment, and its place stayed empty."""
    with placed(tmp_path / "place", settings(provider.url)) as place:
        place.serve()
        victim = min(place.pids())
        limits = resource.prlimit(place.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(place.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(victim, signal.SIGKILL)
        until(lambda: "cannot begin" in place.said(), otherwise=place.said)
        resource.prlimit(place.process.pid, resource.RLIMIT_NOFILE, limits)
        until(lambda: len(place.pids() - {victim}) == 2, otherwise=place.said)
        assert place.stop() == 0


def test_gateways_find_their_service_again_where_its_socket_was_removed(place, subject):
    """Seen: whoever removed the socket, a gateway that began afterwards was never fed."""
    (place.folder / "data" / "gateway.sock").unlink()
    victim = min(place.pids())
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(place.pids() - {victim}) == 2)
    with Load(place) as load:
        until(lambda: len(load.receipts) > 50)
    until(lambda: all_kept(place, load))


def test_a_hangup_that_reaches_a_gateway_ends_it_not(place, subject):
    one = min(place.pids())
    os.kill(one, signal.SIGHUP)
    until(lambda: "A hangup is for the process" in place.log.read_text())
    assert one in place.pids()


def test_a_service_without_gateways_needs_no_socket(provider, tmp_path):
    """Some file systems take none."""
    with placed(tmp_path / "place", settings(provider.url)) as place:
        (place.folder / "data" / "gateway.sock" / "in-the-way").mkdir(parents=True)
        place.start("serve", "--port", str(place.port))
        until(lambda: place._answers(place.url), otherwise=place.said)
        assert "would not hear of this service" in place.said()
        assert place.stop() == 0


def test_a_task_whose_model_another_provider_serves_is_answered(provider, tmp_path):
    """Seen: 404, at gateways alone."""
    task = '[tasks.hook]\nmodel = "base"\n'
    second = f"""
[providers.second]
kind = "openai"
base_url = "{provider.url}"
api_key = "sk-of-the-second"
"""
    made = settings(provider.url).replace(task, f'{task}model_provider = "second"\n') + second
    with placed(tmp_path / "place", made) as place:
        place.serve()
        assert place.ask("u").status_code == 200, place.said()
        assert provider.headers[-1]["authorization"] == "Bearer sk-of-the-second"
