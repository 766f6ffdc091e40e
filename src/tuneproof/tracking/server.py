"""One MLflow server: its client, made on first use, and its errors in our terms.

mlflow takes seconds to import, so it is imported in the worker thread that first needs it. Its
own retries (minutes) and telemetry are switched off unless the environment sets them: whether
and when to try again is the outbox's affair.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tuneproof.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    TrackingUnavailableError,
    TuneProofError,
)
from tuneproof.settings import Url

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflowServer", "quoted"]

T = TypeVar("T")

_HEALTH_LIMIT = 1
_set_by_us: dict[str, str] = {}


class MLflowServer:
    """Calls MLflow from one worker thread, so that what was begun is never begun twice at once.

    `timeout_s` bounds each HTTP request of a call.
    """

    def __init__(self, uri: Url | str, *, timeout_s: float = 30.0) -> None:
        self.uri = Url(uri)
        self._timeout_s = timeout_s
        self._client: MlflowClient | None = None
        self._checking: asyncio.Future[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")

    async def call(self, fn: Callable[[MlflowClient], T]) -> T:
        """What `fn(client)` returns, run in the worker thread.

        Raises `TrackingUnavailableError` where MLflow does not answer or answers 429 or 5xx,
        `CredentialsError` for 401 and 403, `DataError` for what it refuses otherwise.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, fn)

    async def check(self) -> str:
        """Make a real call; returns what there is to say about it, raises as `call` does.

        MLflow's own `/health` stays green while its host check refuses every call. Who asks while
        a call is under way shares it: one that hangs holds one thread, however often it is asked.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.ensure_future(asyncio.to_thread(self._call, _experiments))
            self._checking.add_done_callback(_seen)
        found = await asyncio.shield(self._checking)
        return f"{self.uri} answers" + ("" if found else ", and has no experiment yet")

    def close(self) -> None:
        """Let the worker thread go once its call is done."""
        self._thread.shutdown(wait=False)

    def _call(self, fn: Callable[[MlflowClient], T]) -> T:
        client = self._client or self._connect()
        from mlflow.exceptions import MlflowException

        try:
            return fn(client)
        except MlflowException as error:
            raise self._in_our_terms(error) from error

    def _connect(self) -> MlflowClient:
        _configure(self._timeout_s)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._client = MlflowClient(tracking_uri=self.uri.reveal())
        except (MlflowException, ImportError) as error:
            raise ConfigError(
                f"MLFLOW_TRACKING_URI is {self.uri!r}, which cannot be opened: "
                f"{str(error).replace(self.uri.reveal(), self.uri.masked)}",
                mend="Name a server (http://host:5000); for a local registry install "
                "tuneproof[mlflow].",
            ) from error
        return self._client

    def _in_our_terms(self, error: Any) -> TuneProofError:
        status = error.get_http_status_code()
        text = str(error).replace(self.uri.reveal(), self.uri.masked)[:500]
        if status in (401, 403):
            host = urlsplit(self.uri.reveal()).netloc.rpartition("@")[2]
            return CredentialsError(
                f"MLflow at {self.uri} refused the call ({status}): {text}",
                mend=f"If it names the Host header, start MLflow with --allowed-hosts '{host}'; "
                "else check MLFLOW_TRACKING_TOKEN.",
            )
        if status == 429 or status >= 500:
            return TrackingUnavailableError(
                f"MLflow at {self.uri} did not answer: {text}",
                mend="Check that it is up, and MLFLOW_TRACKING_URI; the outbox keeps everything.",
            )
        return DataError(f"MLflow at {self.uri} refused: {text}", mend="See MLflow's log.")


def _experiments(client: MlflowClient) -> Any:
    return client.search_experiments(max_results=_HEALTH_LIMIT)


def _seen(check: asyncio.Future[Any]) -> None:
    """Its error was told to those who waited for it, if any still did."""
    if not check.cancelled():
        check.exception()


def quoted(value: str) -> str:
    """A text as a literal in MLflow's search language.

    >>> quoted("ver-1")
    "'ver-1'"
    """
    if "'" in value:
        raise DataError(f"MLflow cannot search for {value!r}.", mend="Leave out the quote.")
    return f"'{value}'"


def _configure(timeout_s: float) -> None:
    """mlflow is configured by the environment alone; what the user set there stays."""
    wanted = {
        "MLFLOW_ALLOW_FILE_STORE": "true",  # who names a folder means it
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(timeout_s))),
    }
    for name, value in wanted.items():
        if os.environ.get(name) in (None, _set_by_us.get(name)):
            os.environ[name] = _set_by_us[name] = value
