"""The service that a command speaks to: one that runs, or one opened in this process.

Either way the command speaks REST: to `--url`, to the service that holds the data directory
(it left its address in `service.json`), or through the same routes to an App opened here,
which does not start the engine unless the command asks for it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2

from tuneproof.errors import ConfigError, NotFoundError, RetryableError, TuneProofError, by_name

if TYPE_CHECKING:
    from tuneproof.app import App
    from tuneproof.cli.options import CommonOptions
    from tuneproof.settings import Settings

FILE = "service.json"
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service that holds a data directory, as it says in `service.json`."""

    url: str
    pid: int
    token: str | None = None


class Service:
    """REST to a service. `address` is where people open it; `local` says it is in this process."""

    def __init__(self, client: httpx2.AsyncClient, address: str, *, app: App | None = None) -> None:
        self._client = client
        self.address = address
        self.app = app

    @property
    def local(self) -> bool:
        """Whether the service lives only as long as this command."""
        return self.app is not None

    async def get(self, path: str, **params: Any) -> Any:
        """What a path answers. Raises the `TuneProofError` that the service answered."""
        kept = {k: v for k, v in params.items() if v is not None}
        return await self._send("GET", path, params=kept)

    async def text(self, path: str) -> str:
        """What a path answers, as it is. Raises as `get` does."""
        response = await self._request("GET", path)
        return response.text

    async def post(
        self, path: str, body: Any = None, *, seen: int | None = None, **params: Any
    ) -> Any:
        """What a path answers to a write, if at the version `seen`. Raises as `get` does."""
        kept = {k: v for k, v in params.items() if v is not None}
        headers = {} if seen is None else {"If-Match": f'"{seen}"'}
        sent = {} if body is None else body
        return await self._send("POST", path, params=kept, json=sent, headers=headers)

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of a stream of events."""
        async with self._client.stream("GET", path, timeout=None) as response:
            if response.status_code >= 400:
                await response.aread()
                raise error_of(response)
            yield response.aiter_lines()

    async def _send(self, method: str, path: str, **given: Any) -> Any:
        return (await self._request(method, path, **given)).json()

    async def _request(self, method: str, path: str, **given: Any) -> httpx2.Response:
        try:
            response = await self._client.request(method, path, **given)
        except httpx2.HTTPError as error:
            raise RetryableError(
                f"The service at {self.address} did not answer: {error or type(error).__name__}.",
                mend="Start it with `tuneproof serve`, or give --url.",
            ) from error
        unready = response.status_code == 503 and "problem" not in response.headers["content-type"]
        if response.status_code >= 400 and not unready:
            raise error_of(response)
        return response


def path_to(route: str, *parts: str) -> str:
    """The path of a route with ids in it, each kept within its own part whatever was typed.

    Raises `NotFoundError` for an id that no part of a path can be: nothing has such an id.
    """
    for part in parts:
        if part in ("", ".", "..") or "/" in part:
            raise NotFoundError(
                f"Nothing has the id {part!r}.",
                mend="Take one that is listed, such as by `tuneproof run list`.",
            )
    return "/".join([route, *(quote(part, safe="") for part in parts)])


def error_of(response: httpx2.Response) -> TuneProofError:
    """The error that a problem response describes, as its own class."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict) or "detail" not in body:
        return RetryableError(
            f"The service answered {response.status_code} to {response.request.url.path}.",
            mend="Check that the address is that of a TuneProof service.",
        )
    slug = str(body.get("type", "")).rpartition("/")[2]
    if slug == "invalid-request":
        return _misused(body.get("errors") or [], body["detail"])
    known = {cls("").slug: cls for cls in by_name().values()}
    details = body.get("details") or {}
    return known.get(slug, TuneProofError)(body["detail"], mend=body.get("mend", ""), **details)


def _misused(fields: Sequence[Mapping[str, str]], detail: str) -> ConfigError:
    """What a request was refused for, by the options of the command line that said it."""
    from tuneproof.cli.declared import flag_of

    told = "; ".join(f"{flag_of(f['field'])}: {f['rule']}" for f in fields) or detail
    return ConfigError(f"{told.rstrip('.')}.", mend="Give another value.")


@asynccontextmanager
async def connect(
    options: CommonOptions,
    *,
    engine: bool = False,
    makes: bool = False,
    needs_store: bool = True,
    scratch: bool = False,
) -> AsyncIterator[Service]:
    """The service that the options mean; one in this process where none runs.

    `engine` starts the durable engine in it, so that runs move on while it is open; `makes` lets
    it make the data directory and the database, which others refuse to do without;
    `needs_store` False opens it also where the database does not answer, `scratch` on an empty one
    that is gone afterwards where it is still to be made.
    """
    from tuneproof.settings import Url

    settings = options.settings()
    async with AsyncExitStack() as stack:
        remote = await _remote(settings)
        if remote is not None:
            url, token = remote
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            client = httpx2.AsyncClient(
                base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False
            )
            shown = Url(url).without_user
            yield Service(await stack.enter_async_context(client), shown)
        else:
            if scratch and not stored(settings):
                settings, makes = stack.enter_context(_elsewhere(settings)), True
            opened = embedded(settings, engine=engine, makes=makes, needs_store=needs_store)
            yield await stack.enter_async_context(opened)


def stored(settings: Settings) -> bool:
    """Whether the database is there, as far as a look at the files tells."""
    from tuneproof.store import refuse_absent

    try:
        refuse_absent(settings.store.url.reveal())
    except RetryableError:
        return False
    return True


@contextmanager
def _elsewhere(settings: Settings) -> Iterator[Settings]:
    """The settings with a data directory that is gone afterwards."""
    from tuneproof.settings import StoreConfig

    with tempfile.TemporaryDirectory(prefix="tuneproof-") as folder:
        yield replace(settings, dir=Path(folder), store=StoreConfig())


async def _remote(settings: Settings) -> tuple[str, str | None] | None:
    from tuneproof.settings import revealed

    token = revealed(settings.remote.token)
    if settings.remote.url:
        return settings.remote.url.reveal().rstrip("/"), token
    running = await find(settings.dir)
    return None if running is None else (running.url, token or running.token)


@asynccontextmanager
async def embedded(
    settings: Settings, *, engine: bool, makes: bool = True, needs_store: bool = True
) -> AsyncIterator[Service]:
    """A service in this process, reached through its own routes without a socket."""
    from tuneproof.app import App
    from tuneproof.server import create_app
    from tuneproof.store import refuse_absent

    if makes or settings.dir.exists():
        usable(settings.dir)
    if needs_store and not makes:
        refuse_absent(settings.store.url.reveal())
    async with AsyncExitStack() as stack:
        stack.enter_context(private_files())
        opened = App.open(settings, engine=engine, makes_store=makes, needs_store=needs_store)
        app = await stack.enter_async_context(opened)
        token = secrets.token_urlsafe(32)  # whoever opens the database itself needs none else
        served = create_app(app, local_token=token)
        await stack.enter_async_context(served.router.lifespan_context(served))
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=served),
            base_url="http://127.0.0.1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
        )
        yield Service(await stack.enter_async_context(client), settings.address, app=app)


@contextmanager
def private_files() -> Iterator[None]:
    """Within, files that this process makes are its owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def usable(directory: Path) -> None:
    """Make the data directory where it is absent.

    Raises `ConfigError` where it is none, cannot be made, or must not be written to.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unusable(directory, error) from error


def _unusable(directory: Path, error: OSError) -> ConfigError:
    why = "it is a file" if directory.is_file() else error.strerror or type(error).__name__
    return ConfigError(
        f"The data directory {directory} cannot be used: {why}.",
        mend="Name a directory that you may write to: --dir PATH, or TUNEPROOF_DIR.",
        field="dir",
    )


async def find(directory: Path) -> Running | None:
    """The service that holds a data directory, or the demo below it, and answers; or None."""
    return await _find(directory) or await _find(directory / "demo")


async def _find(directory: Path) -> Running | None:
    try:
        left = json.loads((directory / FILE).read_text("utf-8"))
        running = Running(url=left["url"], pid=left["pid"], token=left.get("token"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(directory, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{directory / FILE} is not what a service writes: {error}.",
            mend="Remove it if no service runs.",
        ) from error
    try:
        async with httpx2.AsyncClient(timeout=2, trust_env=False) as client:
            alive = (await client.get(f"{running.url}/live")).json()
    except (httpx2.HTTPError, ValueError):
        return None
    same = isinstance(alive, Mapping) and alive.get("pid") == running.pid
    return running if same else None


def announce(directory: Path, running: Running) -> None:
    """Leave the address of this service for other commands; readable by its owner only."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = directory / f"{FILE}.{os.getpid()}"
    body = {"url": running.url, "pid": running.pid, "token": running.token}
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(body, file)
    fresh.replace(directory / FILE)


def withdraw(directory: Path) -> None:
    """Take the address away again, if it is still this process's."""
    path = directory / FILE
    try:
        mine = json.loads(path.read_text("utf-8")).get("pid") == os.getpid()
    except (FileNotFoundError, ValueError):
        return
    if mine:
        path.unlink(missing_ok=True)
