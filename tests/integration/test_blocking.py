"""The components whose methods block: one loop in a thread, the same results and errors."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tuneproof import Settings, blocking
from tuneproof.blocking import CircuitBreaker, DataCollector, ModelEvaluator
from tuneproof.errors import NotFoundError, ProviderUnavailableError, StateError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(dir=tmp_path, env={})


def test_calls_block_and_need_no_loop(settings: Settings) -> None:
    test = ModelEvaluator(settings=settings).create_a_b_test("base", "cand", 0.1, 168)
    found = ModelEvaluator(settings=settings).evaluate_performance(test.id, 0.05)
    assert (found.ab_test_id, str(found.recommendation)) == (test.id, "continue")


def test_what_is_kept_open_serves_many_calls(settings: Settings) -> None:
    with ModelEvaluator(settings=settings).opened() as evaluator:
        test = evaluator.create_a_b_test("base", "cand", 0.1, 168)
        assert evaluator.evaluate_performance(test.id).ab_test_id == test.id


def test_errors_are_those_of_the_component(settings: Settings) -> None:
    with pytest.raises(NotFoundError):
        ModelEvaluator(settings=settings).evaluate_performance("ab-test-20000101-001")


def test_what_waits_for_nothing_is_handed_through() -> None:
    breaker = CircuitBreaker(failure_threshold=1, timeout=120)

    def fail() -> None:
        raise ProviderUnavailableError("down")

    with pytest.raises(ProviderUnavailableError):
        breaker.call(fail)
    assert (breaker.state, breaker.failure_count, breaker.timeout) == ("OPEN", 1, 120)
    breaker.reset()
    assert breaker.state == "CLOSED"
    assert CircuitBreaker.named("mlflow").failure_threshold == 5
    with pytest.raises(AttributeError):
        _ = breaker.nonsense


def test_a_call_from_the_loop_itself_is_refused_instead_of_waiting_for_ever() -> None:
    breaker = CircuitBreaker(failure_threshold=1, timeout=120)
    with pytest.raises(StateError, match="from the loop"):
        breaker.call(lambda: breaker.call(lambda: 1))


@pytest.mark.parametrize("name", blocking.__all__)
def test_no_public_method_is_left_to_be_awaited(name: str) -> None:
    found = getattr(blocking, name)
    public = {n: getattr(found, n) for n in dir(found) if not n.startswith("_")}
    assert [n for n, method in public.items() if inspect.iscoroutinefunction(method)] == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = blocking.nonsense
    assert DataCollector.__module__ == "tuneproof.blocking"


PROGRAM = """
import os, signal, sys, asyncio
from tuneproof.blocking import CircuitBreaker

breaker = CircuitBreaker(failure_threshold=1, timeout=120)
assert breaker.call(lambda: 1) == 1
child = os.fork()
if child == 0:
    os._exit(0 if breaker.call(lambda: 2) == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a forked child has no loop"
print("forked", flush=True)

ended = []

async def for_ever():
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("cancelled")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    breaker.call(for_ever)
except KeyboardInterrupt:
    breaker.call(lambda: 3)  # the loop goes on, and has done what came before
    print(*ended, breaker.state)
"""


def test_forks_and_interrupts_are_survived(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["forked", "cancelled", "CLOSED"], done.stderr
