"""The breaker: a state machine against a model, 50 callers at once, events, leaks."""

from __future__ import annotations

import asyncio
import gc
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.waiting import eventually

from tuneproof.errors import (
    CircuitBreakerError,
    ConfigError,
    CredentialsError,
    DataError,
    ProviderUnavailableError,
)
from tuneproof.resilience import BreakerEvent, CircuitBreaker, State


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def succeed(value: str = "answer") -> str:
    return value


async def fail() -> str:
    raise ProviderUnavailableError("down")


async def break_by(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ProviderUnavailableError):
            await breaker.call(fail)


async def test_opens_after_the_threshold_and_refuses_without_calling() -> None:
    breaker = CircuitBreaker(3, 120, clock=Clock())
    await break_by(breaker, 2)
    assert breaker.state is State.CLOSED
    await break_by(breaker, 1)
    assert breaker.state is State.OPEN
    assert breaker.failure_count == 3
    called = []
    with pytest.raises(CircuitBreakerError) as refused:
        await breaker.call(called.append, 1)
    assert called == []
    assert refused.value.details["retry_after_s"] == 120
    assert "down" in str(refused.value)


async def test_success_forgets_earlier_failures() -> None:
    breaker = CircuitBreaker(3, 120)
    await break_by(breaker, 2)
    assert await breaker.call(succeed) == "answer"
    assert breaker.failure_count == 0
    await break_by(breaker, 2)
    assert breaker.state is State.CLOSED


async def test_probe_closes_the_breaker_after_the_timeout() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 60, clock=clock)
    await break_by(breaker, 1)
    clock.now += 59.9
    with pytest.raises(CircuitBreakerError):
        await breaker.call(succeed)
    clock.now += 0.1
    assert await breaker.call(succeed) == "answer"
    assert breaker.state is State.CLOSED


async def test_a_probe_may_be_allowed_before_the_pause_is_over() -> None:
    breaker = CircuitBreaker(1, 120, clock=Clock())
    breaker.allow_probe()
    await break_by(breaker, 1)
    with pytest.raises(CircuitBreakerError):
        await breaker.call(succeed)
    breaker.allow_probe()
    assert breaker.state is State.OPEN  # who calls next finds out
    assert await breaker.call(succeed) == "answer"
    assert breaker.state is State.CLOSED


async def test_repeated_opening_backs_off_up_to_the_cap_and_closing_resets_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 10, clock=clock, max_timeout=35)
    pauses = []
    for _ in range(4):
        await break_by(breaker, 1)
        pauses.append(breaker.retry_after_s)
        clock.now += breaker.retry_after_s
    assert pauses == [10, 20, 35, 35]
    await breaker.call(succeed)
    await break_by(breaker, 1)
    assert breaker.retry_after_s == 10


@pytest.mark.parametrize("callers", [2, 50])
async def test_exactly_one_of_many_concurrent_callers_probes(callers: int) -> None:
    clock = Clock()
    breaker = CircuitBreaker(3, 120, clock=clock)
    await break_by(breaker, 3)
    clock.now += 120
    let_through = asked = 0

    async def probe() -> str:
        nonlocal let_through
        let_through += 1
        await eventually(lambda: asked == callers)
        return "up"

    async def ask() -> str:
        nonlocal asked
        asked += 1
        return await breaker.call(probe)

    answers = await asyncio.gather(*(ask() for _ in range(callers)), return_exceptions=True)
    refused = [a for a in answers if isinstance(a, CircuitBreakerError)]
    assert let_through == 1
    assert answers.count("up") == 1
    assert len(refused) == callers - 1
    assert all(r.details["retry_after_s"] > 0 for r in refused)
    assert breaker.state is State.CLOSED


async def test_failures_of_calls_from_before_the_opening_do_not_count_again() -> None:
    breaker = CircuitBreaker(3, 120, clock=Clock())

    async def slow_failure() -> None:
        await asyncio.sleep(0)
        raise ProviderUnavailableError("down")

    await asyncio.gather(*(breaker.call(slow_failure) for _ in range(50)), return_exceptions=True)
    assert breaker.failure_count == 3
    assert breaker.diagnose().opened == 1


async def test_late_success_from_before_the_opening_does_not_close_it() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 60, clock=clock)
    gate = asyncio.Event()

    async def slow_success() -> None:
        await gate.wait()

    slow = asyncio.create_task(breaker.call(slow_success))
    await asyncio.sleep(0)
    await break_by(breaker, 1)
    gate.set()
    await slow
    assert breaker.state is State.OPEN


async def test_cancelled_probe_frees_its_place_and_counts_as_nothing() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 60, clock=clock)
    await break_by(breaker, 1)
    clock.now += 60
    probe = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    with pytest.raises(CircuitBreakerError):
        await breaker.call(succeed)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert breaker.state is State.HALF_OPEN
    assert breaker.failure_count == 1
    assert await breaker.call(succeed) == "answer"
    assert breaker.state is State.CLOSED


async def test_cancellation_never_counts_even_where_the_predicate_says_so() -> None:
    breaker = CircuitBreaker(1, 60, counts=lambda error: True)
    task = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert breaker.failure_count == 0


@pytest.mark.parametrize("error", [DataError("no such column"), CredentialsError("no")])
async def test_faults_of_the_input_do_not_count(error: Exception) -> None:
    breaker = CircuitBreaker(1, 60)

    async def refuse() -> None:
        raise error

    with pytest.raises(type(error)):
        await breaker.call(refuse)
    assert breaker.state is State.CLOSED
    assert breaker.failure_count == 0


@pytest.mark.parametrize("counts", [OSError, (OSError, KeyError), lambda e: isinstance(e, OSError)])
async def test_counts_is_an_argument(counts: Any) -> None:
    breaker = CircuitBreaker(1, 60, counts=counts)
    with pytest.raises(ProviderUnavailableError):
        await breaker.call(fail)
    assert breaker.state is State.CLOSED

    def refuse() -> None:
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        await breaker.call(refuse)
    assert breaker.state is State.OPEN


async def test_sync_callables_and_arguments_pass_through() -> None:
    breaker = CircuitBreaker()
    assert await breaker.call(divmod, 7, 2) == (3, 1)
    assert await breaker.call(succeed, value="other") == "other"
    assert await breaker.call(lambda: asyncio.sleep(0, "lambda")) == "lambda"


async def test_emits_opened_half_opened_and_closed() -> None:
    events: list[BreakerEvent] = []
    clock = Clock()
    breaker = CircuitBreaker(1, 60, name="mlflow", clock=clock, on_event=events.append)
    later: list[str] = []
    breaker.subscribe(lambda event: later.append(event.kind))
    await break_by(breaker, 1)
    clock.now += 60
    await break_by(breaker, 1)
    clock.now += 120
    await breaker.call(succeed)
    kinds = ["opened", "half_opened", "opened", "half_opened", "closed"]
    assert [e.kind for e in events] == later == kinds
    assert [e.retry_after_s for e in events if e.kind == "opened"] == [60, 120]
    assert events[0].breaker == "mlflow"
    assert "down" in events[0].cause


async def test_failing_listener_is_logged_and_breaks_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def listener(event: BreakerEvent) -> None:
        raise RuntimeError("no disk")

    breaker = CircuitBreaker(1, 60, on_event=[listener])
    await break_by(breaker, 1)
    assert breaker.state is State.OPEN
    assert "no disk" in caplog.text


async def test_diagnosis_explains_each_state() -> None:
    clock = Clock()
    breaker = CircuitBreaker(2, 60, name="openai", clock=clock)
    assert breaker.diagnose().health_score == 100
    assert breaker.diagnose().issues == ()
    await break_by(breaker, 1)
    assert "1 more" in breaker.diagnose().issues[0]
    await break_by(breaker, 1)
    opened = breaker.diagnose()
    assert opened.health_score == 0.0
    assert any("openai" in text for text in opened.recommendations)
    clock.now += 60
    await break_by(breaker, 1)
    assert any("grown to 120 s" in issue for issue in breaker.diagnose().issues)
    clock.now += 120
    probe = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    clock.now += 7
    assert "7 s" in breaker.diagnose().issues[0]
    assert breaker.diagnose().to_dict()["state"] == "HALF_OPEN"
    probe.cancel()


async def test_reset_closes_and_ignores_the_probe_under_way() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 60, clock=clock)
    await break_by(breaker, 1)
    clock.now += 60

    async def slow_failure() -> None:
        await asyncio.sleep(0)
        raise ProviderUnavailableError("down")

    probe = asyncio.create_task(breaker.call(slow_failure))
    await asyncio.sleep(0)
    breaker.reset()
    with pytest.raises(ProviderUnavailableError):
        await probe
    assert breaker.state is State.CLOSED
    assert breaker.failure_count == 0


async def test_rejections_leave_nothing_behind() -> None:
    breaker = CircuitBreaker(1, 3600)
    await break_by(breaker, 1)

    async def reject(times: int) -> None:
        for _ in range(times):
            try:
                await breaker.call(succeed)
            except CircuitBreakerError:
                continue

    tracemalloc.start()
    try:
        await reject(100)  # what the interpreter keeps of the first ones is not theirs
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await reject(2000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2000  # under a byte a rejection, without the collector's help


async def test_refusal_survives_pickling() -> None:
    breaker = CircuitBreaker(1, 60, name="openai", clock=Clock())
    await break_by(breaker, 1)
    with pytest.raises(CircuitBreakerError) as refused:
        await breaker.call(succeed)
    assert pickle.loads(pickle.dumps(refused.value)) == refused.value


@pytest.mark.parametrize(
    "arguments",
    [{"failure_threshold": 0}, {"timeout": 0}, {"timeout": 10, "max_timeout": 5}],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CircuitBreaker(**arguments)


def test_known_services_have_their_defaults() -> None:
    openai, mlflow = CircuitBreaker.named("openai"), CircuitBreaker.named("mlflow", timeout=1)
    assert (openai.failure_threshold, openai.timeout) == (3, 120)
    assert (mlflow.failure_threshold, mlflow.timeout, mlflow.name) == (5, 1, "mlflow")


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap in any order, against a model that keeps a list of them.

    Every call in flight is a coroutine driven by hand, so any interleaving can occur.
    """

    THRESHOLD, TIMEOUT, CAP = 2, 10.0, 35.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.events: list[str] = []
        self.breaker = CircuitBreaker(
            self.THRESHOLD,
            self.TIMEOUT,
            clock=self.clock,
            max_timeout=self.CAP,
            on_event=lambda event: self.events.append(event.kind),
        )
        self.loop = asyncio.new_event_loop()
        self.in_flight: list[tuple[Any, Any, int]] = []  # coroutine, its future, epoch
        self.state, self.failures, self.epoch = "CLOSED", 0, 0
        self.pause, self.reopen_at, self.probe = self.TIMEOUT, 0.0, False
        self.expected_events: list[str] = []

    def teardown(self) -> None:
        for coroutine, _, _ in self.in_flight:
            coroutine.close()
        self.loop.close()

    def change(self, state: str, kind: str) -> None:
        self.state, self.epoch = state, self.epoch + 1
        self.expected_events.append(kind)

    @rule(callers=st.integers(1, 4))
    def begin(self, callers: int) -> None:
        for _ in range(callers):
            self.begin_one()

    def begin_one(self) -> None:
        admitted = self.state == "CLOSED"
        if self.state == "OPEN" and self.clock.now >= self.reopen_at:
            self.change("HALF_OPEN", "half_opened")
        if self.state == "HALF_OPEN" and not self.probe:
            admitted = self.probe = True
        future = self.loop.create_future()
        coroutine = self.breaker.call(lambda: future)
        if not admitted:
            with pytest.raises(CircuitBreakerError) as refused:
                coroutine.send(None)
            assert refused.value.details["retry_after_s"] > 0
            return
        coroutine.send(None)
        self.in_flight.append((coroutine, future, self.epoch))

    def finish(self, data: st.DataObject, step: Callable[[Any, Any], None]) -> bool:
        """End one call; says whether its result is still of interest."""
        index = data.draw(st.integers(0, len(self.in_flight) - 1))
        coroutine, future, epoch = self.in_flight.pop(index)
        step(coroutine, future)
        return epoch == self.epoch

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def succeeds(self, data: st.DataObject) -> None:
        def step(coroutine: Any, future: Any) -> None:
            future.set_result("answer")
            with pytest.raises(StopIteration):
                coroutine.send(None)

        if self.finish(data, step):
            self.failures = 0
            if self.probe:
                self.probe, self.pause = False, self.TIMEOUT
                self.change("CLOSED", "closed")

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def fails(self, data: st.DataObject) -> None:
        def step(coroutine: Any, future: Any) -> None:
            future.set_exception(ProviderUnavailableError("down"))
            with pytest.raises(ProviderUnavailableError):
                coroutine.send(None)

        if not self.finish(data, step):
            return
        self.failures += 1
        if self.probe or self.failures >= self.THRESHOLD:
            self.pause = min(self.pause * 2, self.CAP) if self.probe else self.TIMEOUT
            self.reopen_at, self.probe = self.clock.now + self.pause, False
            self.change("OPEN", "opened")

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), error=st.sampled_from([asyncio.CancelledError(), DataError("bad")]))
    def ends_without_a_verdict(self, data: st.DataObject, error: BaseException) -> None:
        def step(coroutine: Any, _future: Any) -> None:
            with pytest.raises(type(error)):
                coroutine.throw(error)

        if self.finish(data, step):
            self.probe = False

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def operator_resets(self) -> None:
        self.breaker.reset()
        self.failures = 0
        if self.state != "CLOSED":
            self.probe, self.pause = False, self.TIMEOUT
            self.change("CLOSED", "closed")

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.breaker.state.value == self.state
        assert self.breaker.failure_count == self.failures
        assert self.events == self.expected_events
        assert self.breaker.retry_after_s >= 0
        assert 0 <= self.breaker.diagnose().health_score <= 100

    @invariant()
    def at_most_one_probe_is_out(self) -> None:
        if self.state == "HALF_OPEN":
            assert sum(epoch == self.epoch for _, _, epoch in self.in_flight) <= 1


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_known_services_are_probed_again_after_five_minutes_at_the_latest() -> None:
    for name in ("openai", "mlflow"):
        assert CircuitBreaker.named(name).max_timeout == 300
    like = CircuitBreaker.named("provider:own", like="openai")
    assert (like.name, like.failure_threshold, like.timeout) == ("provider:own", 3, 120)
    assert CircuitBreaker.named("openai", timeout=600).max_timeout == 4800  # the caller's own pause


async def test_what_nobody_else_could_answer_is_called_in_any_case() -> None:
    breaker = CircuitBreaker(3, 120, clock=Clock())
    await break_by(breaker, 3)
    for _ in range(4):
        with pytest.raises(ProviderUnavailableError):
            await breaker.call_anyway(fail)
    assert (breaker.state, breaker.failures_total) == (State.OPEN, 7)
    assert breaker.diagnose().opened == 1  # told once
    assert await breaker.call_anyway(succeed, "back") == "back"
    assert (breaker.state, breaker.failure_count) == (State.CLOSED, 0)


async def test_a_call_in_any_case_is_no_probe() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 10, clock=clock)
    await break_by(breaker, 1)
    clock.now += 10
    under_way, answer = asyncio.Event(), asyncio.Event()

    async def probe() -> str:
        under_way.set()
        await answer.wait()
        return "up"

    probing = asyncio.create_task(breaker.call(probe))
    await under_way.wait()
    with pytest.raises(ProviderUnavailableError):
        await breaker.call_anyway(fail)
    assert breaker.state is State.HALF_OPEN
    with pytest.raises(CircuitBreakerError):  # the probe's place is still taken
        await breaker.call(succeed)
    answer.set()
    assert await probing == "up"
    assert breaker.state is State.CLOSED
