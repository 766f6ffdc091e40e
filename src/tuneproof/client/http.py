"""The few HTTP calls of a client, by the standard library; imported by background threads only.

`http.client` itself is imported at the first call: an application that only chooses never
pays for it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tuneproof.errors import ConfigError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

HEARTBEAT_S = 15.0
"""How often the service writes to a stream on which nothing happens."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and a body, with the seconds after which the service wants to be asked again."""

    status: int
    body: bytes
    retry_after_s: float | None = None

    @property
    def reason(self) -> str:
        """What a problem document says, else the body's beginning."""
        try:
            problem = json.loads(self.body)
            return str(problem.get("detail") or problem.get("title") or self.status)
        except (ValueError, AttributeError):
            return self.body[:200].decode(errors="replace")


class ServiceAddress:
    """The address of a service; each thread that calls it has a `Line` of its own."""

    def __init__(self, base_url: str, token: str | None, timeout_s: float) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"base_url {base_url!r} is not an http(s) address.",
                mend="Write it like http://127.0.0.1:8686.",
            )
        self.base_url = base_url
        self.timeout_s = timeout_s
        self.secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, parts.port
        self.prefix = parts.path.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def line(self) -> Line:
        """A connection that is made when it is needed, and again after a failure."""
        return Line(self)


class Line:
    """One kept-alive connection. Not for several threads at once, except `hang_up`."""

    def __init__(self, service: ServiceAddress) -> None:
        self._service = service
        self._connection: HTTPConnection | None = None

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One call; raises `OSError` where no whole answer came.

        A kept connection that the service closed meanwhile is replaced once.
        """
        kept = self._connection is not None
        try:
            return self._call(method, path, body, headers or {})
        except ConnectionError:
            self.hang_up()
            if not kept:
                raise
            return self._call(method, path, body, headers or {})

    def _call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        response = self._send(method, path, body, headers, self._service.timeout_s)
        try:
            content = response.read()
        except Exception as error:
            self.hang_up()
            raise _as_os_error(error) from error
        if response.will_close:
            self.hang_up()
        return Reply(response.status, content, _seconds(response.headers.get("retry-after")))

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> HTTPResponse:
        from http.client import HTTPConnection, HTTPSConnection

        service = self._service
        if self._connection is None:
            kind = HTTPSConnection if service.secure else HTTPConnection
            self._connection = kind(service.host, service.port, timeout=timeout_s)
        try:
            all_headers = {"Accept": "application/json", **service.headers, **headers}
            self._connection.request(method, service.prefix + path, body=body, headers=all_headers)
            return self._connection.getresponse()
        except Exception as error:
            self.hang_up()
            raise _as_os_error(error) from error

    def events(self, path: str) -> Iterator[str]:
        """The kinds of server-sent events as they come; "" when the stream has begun.

        Raises `OSError` when the stream breaks, or is silent for three heartbeats.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        self.hang_up()
        response = self._send("GET", path, None, headers, 3 * HEARTBEAT_S)
        try:
            if response.status != 200:
                raise OSError(f"{path} answered {response.status}")
            yield ""
            while line := response.readline():
                if line.startswith(b"event:"):
                    yield line[6:].strip().decode(errors="replace")
            raise OSError(f"{path} ended")
        except (OSError, GeneratorExit):
            raise
        except Exception as error:
            raise _as_os_error(error) from error
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection; a call that waits on it in another thread ends with an error."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.sock is not None:
            with contextlib.suppress(OSError):  # closed by the other side already
                connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()


def _as_os_error(error: Exception) -> OSError:
    """Errors of `http.client` are no `OSError`; to a caller they all mean "no answer"."""
    return error if isinstance(error, OSError) else ConnectionError(f"{error!r}")


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
