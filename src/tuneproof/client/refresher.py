"""The thread that keeps a client's routing fresh: pushed where it can be, polled where not."""

from __future__ import annotations

import json
import logging
import random
import threading
import time

from tuneproof.client.http import ServiceAddress
from tuneproof.client.state import HeldRouting, RoutingTable
from tuneproof.client.threads import lasting

log = logging.getLogger("tuneproof.client")

POLL_S = 5.0
"""How often the routing is asked for where no push arrives."""


class Refresher:
    """Asks for the routing, then listens on the stream and asks again at each change."""

    def __init__(
        self, service: ServiceAddress, state: HeldRouting, *, push: bool, poll_s: float = POLL_S
    ) -> None:
        self._service = service
        self._line = service.line()
        self._stream = service.line()
        self._state = state
        self._push = push
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.connected = False
        self.heard_at: float | None = None
        self.last_error: str | None = None

    def start(self) -> None:
        """Start the thread, once."""
        with self._starting:
            if self._thread is None:
                self._thread = lasting(
                    "tuneproof-refresher", self._run, stop=self._stop, failed=self._lost
                )
                self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._line.hang_up()
        self._stream.hang_up()
        if self._thread is not None:
            self._thread.join(2.0)

    def refresh(self) -> bool:
        """Ask for the routing once; False where no usable answer came."""
        try:
            answer = self._line.call("GET", "/routing?knows=prompts")
            if answer.status != 200:
                raise OSError(f"{answer.status} {answer.reason}")
            table: RoutingTable = json.loads(answer.body)
            self._state.update(table)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._lost(str(error))
            return False
        self._heard()
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            if self.refresh() and self._push:
                self._listen()
            # Not all clients at once: a service that comes back is not run over. The longest
            # wait leaves time for the answer, so that `poll_s` is kept.
            self._stop.wait(self._poll_s * random.uniform(0.75, 0.95))

    def _listen(self) -> None:
        """Follow the stream until it breaks; polling takes over from there."""
        try:
            for kind in self._stream.events("/stream"):
                if self._stop.is_set():
                    return
                # "" is the stream's beginning: what changed before it is asked for too.
                if kind in ("", "routing") and not self.refresh():
                    return
        except OSError as error:
            log.debug("No push from %s, polling: %s", self._service.base_url, error)

    def _heard(self) -> None:
        if not self.connected and self.last_error is not None:
            log.info("The service at %s answers again", self._service.base_url)
        self.connected, self.last_error, self.heard_at = True, None, time.monotonic()

    def _lost(self, reason: str) -> None:
        if self._stop.is_set():
            return
        if self.connected or self.last_error is None:
            log.warning(
                "The service at %s does not answer (%s); choices go on from the last known state",
                self._service.base_url,
                reason,
            )
        self.connected, self.last_error = False, reason
