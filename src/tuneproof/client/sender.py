"""The threads that bring events to the disk and to the service, until they are taken."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import deque

from tuneproof.client.http import Line, Reply, ServiceAddress
from tuneproof.client.journal import Journal, JournalSegment
from tuneproof.client.threads import lasting

log = logging.getLogger("tuneproof.client")

GATHER_S = 0.02
"""How long events may wait in memory for others before they are journalled."""

FLUSH_S = 1.0
"""How long events may wait in the journal for others before they are sent."""

ADOPT_S = 60.0
"""How often the journals of dead processes are looked for."""

BACKOFF_S = (0.5, 60.0)
"""The shortest and the longest pause after the service did not take a batch."""

_UNSENDABLE = (400, 413, 422)
_BROKEN = 500
"""What a service answers that fails: for want of health, or at one event."""


class Sender:
    """A queue that never blocks, and two threads that empty it.

    The keeper writes events to the journal as they come; the sender brings the journal to the
    service. A service that hangs therefore keeps no event from the disk.
    """

    def __init__(
        self, service: ServiceAddress, journal: Journal, *, flush_s: float = FLUSH_S
    ) -> None:
        self._line: Line = service.line()
        self._service = service
        self._journal = journal
        self._guard = threading.Lock()  # of the journal
        self._flush_s = flush_s
        self._queue: deque[dict[str, object]] = deque()
        self._queued = threading.Event()  # the keeper
        self._journaled = threading.Event()  # the sender
        self._urgent = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._stop = threading.Event()
        self._threads: tuple[threading.Thread, ...] = ()
        self._starting = threading.Lock()
        self._backoff_s = BACKOFF_S[0]
        self.sent = self.duplicates = self.refused = 0
        self.failures = 0
        self.last_error: str | None = None
        self.last_refused: str | None = None

    @property
    def waiting(self) -> bool:
        """Whether events wait to be taken by the service."""
        return not self._idle.is_set() or bool(self._queue)

    @property
    def lost(self) -> int:
        """Events given up because neither the service nor a disk took them for too long."""
        return self._journal.lost

    def put(self, event: dict[str, object]) -> None:
        """Queue one event; returns at once, whatever the service and the disk do."""
        self._queue.append(event)
        self._idle.clear()
        if not self._queued.is_set():
            self._queued.set()
        if not self._threads:
            self.start()

    def start(self) -> None:
        """Start the threads, once; they also send what dead processes left."""
        with self._starting:
            if self._threads:
                return
            self._threads = (
                lasting("tuneproof-keeper", self._keep, stop=self._stop, failed=self._died),
                lasting("tuneproof-sender", self._run, stop=self._stop, failed=self._died),
            )
            for thread in self._threads:
                thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything was taken; False when time ran out before."""
        if not self._threads:
            return not self.waiting
        self._urgent.set()
        self._journaled.set()
        return self._idle.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what can be sent in `timeout_s`; the rest stays in the journal."""
        if not self._threads:
            return
        self.flush(timeout_s)
        self._stop.set()
        for event in (self._urgent, self._queued, self._journaled):
            event.set()
        self._line.hang_up()
        for thread in self._threads:
            thread.join(timeout_s + 1.0)
        self._drain()
        with self._guard:
            self._journal.close()

    # The keeper's thread

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._queued.wait()
            self._urgent.wait(GATHER_S)
            self._drain()

    def _drain(self) -> None:
        """Write what is queued to the journal."""
        with self._guard:
            self._queued.clear()
            lines = []
            while self._queue:
                event = self._queue.popleft()
                try:
                    lines.append(json.dumps(event, allow_nan=False, separators=(",", ":")))
                except (TypeError, ValueError) as error:
                    self._refuse(repr(event), str(error))
            if lines:
                self._journal.append(lines)
                self._journaled.set()

    # The sender's thread

    def _run(self) -> None:
        self._adopt()
        adopt_at = time.monotonic() + ADOPT_S
        send_at = time.monotonic()
        while not self._stop.is_set():
            self._rest(send_at)
            if time.monotonic() >= adopt_at:
                self._adopt()
                adopt_at = time.monotonic() + ADOPT_S
            if time.monotonic() >= send_at or self._urgent.is_set():
                send_at = time.monotonic() + self._deliver()

    def _adopt(self) -> None:
        with self._guard:
            if self._journal.adopt():
                self._idle.clear()

    def _rest(self, send_at: float) -> None:
        """Wait for something to send, then until it is time to send it."""
        if self._idle.is_set():
            self._journaled.wait(ADOPT_S)
        left_s = send_at - time.monotonic()
        if left_s > 0:
            self._urgent.wait(left_s)

    def _deliver(self) -> float:
        """Send what is there, oldest first; returns for how long to rest."""
        self._urgent.clear()
        self._journaled.clear()
        self._drain()
        while not self._stop.is_set():
            with self._guard:
                if not self._journal.closed:  # so an outage leaves a few full files
                    self._journal.cut()
                segment = self._journal.closed[0] if self._journal.closed else None
            if segment is None:
                self._rest_easy()
                break
            rest_s = self._send(segment)
            if rest_s:
                self._urgent.clear()
                return rest_s
            with self._guard:
                self._journal.done(segment)
        return self._flush_s

    def _rest_easy(self) -> None:
        """Say that all is taken, unless something came meanwhile."""
        with self._guard:
            if self._journal.empty:
                self._idle.set()
                if self._queue:  # put() came between
                    self._idle.clear()

    def _send(self, segment: JournalSegment) -> float:
        """Send one segment; a number of seconds means "not taken, rest"."""
        try:
            lines = segment.lines()
        except OSError as error:
            log.error("A segment of events cannot be read: %s", error)
            return 0.0 if isinstance(error, FileNotFoundError) else BACKOFF_S[1]
        return self._post(lines)

    def _post(self, lines: list[str]) -> float:
        if not lines:
            return 0.0
        try:
            answer = self._line.call(
                "POST", "/events", body=_body(lines), headers={"Content-Type": "application/json"}
            )
        except OSError as error:
            return self._failed(str(error), None)
        at_fault = answer.status == _BROKEN and (len(lines) > 1 or self._takes_others())
        if answer.status in _UNSENDABLE or at_fault:
            return self._halve(lines, answer)
        if answer.status >= 300:
            return self._failed(f"{answer.status} {answer.reason}", answer.retry_after_s)
        self._taken(answer, lines)
        return 0.0

    def _takes_others(self) -> bool:
        """Whether the service takes a batch without events, so that it is the event that fails."""
        try:
            answer = self._line.call(
                "POST", "/events", body=_body([]), headers={"Content-Type": "application/json"}
            )
        except OSError:
            return False
        return answer.status < 300

    def _halve(self, lines: list[str], answer: Reply) -> float:
        """One bad event must not hold back the others: find it by halves."""
        if len(lines) == 1:
            self._refuse(lines[0], f"{answer.status} {answer.reason}")
            return 0.0
        middle = len(lines) // 2
        # The halves may be sent again after a failure: the service takes each event once.
        return self._post(lines[:middle]) or self._post(lines[middle:])

    def _taken(self, answer: Reply, lines: list[str]) -> None:
        try:
            body = json.loads(answer.body)
            reasons = {str(event["id"]): str(event["reason"]) for event in body["rejected"]}
            duplicates = int(body["duplicates"])
        except (ValueError, LookupError, TypeError):
            reasons, duplicates = {}, 0
        self._refuse_some(lines, reasons)
        self.sent += len(lines) - len(reasons)
        self.duplicates += duplicates
        if self.failures:
            log.info("The service at %s takes events again", self._service.base_url)
        self.failures, self.last_error, self._backoff_s = 0, None, BACKOFF_S[0]

    def _failed(self, reason: str, retry_after_s: float | None) -> float:
        self.failures += 1
        self.last_error = reason
        if self.failures == 1 or self.failures % 100 == 0:
            log.warning(
                "The service at %s does not take events (%s); they are kept and sent later",
                self._service.base_url,
                reason,
            )
        pause_s = self._backoff_s * random.uniform(0.5, 1.0)
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S[1])
        return max(pause_s, min(retry_after_s or 0.0, BACKOFF_S[1]))

    def _died(self, reason: str) -> None:
        self.failures += 1
        self.last_error = reason

    def _refuse_some(self, lines: list[str], reasons: dict[str, str]) -> None:
        """Put aside those that the service named, with one word in the log for all of them."""
        if not reasons:
            return
        for line in lines:
            reason = reasons.get(str(json.loads(line)["id"]))
            if reason is not None:
                self._put_aside(line, reason)
        log.error("%d events were refused; the last: %s", len(reasons), self.last_refused)

    def _refuse(self, line: str, reason: str) -> None:
        self._put_aside(line, reason)
        log.error("An event was refused and is not sent: %s", self.last_refused)

    def _put_aside(self, line: str, reason: str) -> None:
        self.refused += 1
        self.last_refused = f"{reason} ({line[:300]})"
        self._journal.refuse(line)


def _body(lines: list[str]) -> bytes:
    """The lines as one batch; outcomes are those with a value."""
    events = [json.loads(line) for line in lines]
    outcomes = [event for event in events if "value" in event]
    exposures = [event for event in events if "value" not in event]
    return json.dumps({"exposures": exposures, "outcomes": outcomes}).encode()
