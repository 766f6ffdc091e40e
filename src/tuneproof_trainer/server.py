"""The trainer as an ASGI application: who calls, which route, and errors in the wire's shape."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

import orjson
from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from tuneproof_trainer.access import ApiCaller
from tuneproof_trainer.chat import Chat
from tuneproof_trainer.embeddings import Embeddings
from tuneproof_trainer.engines.protocol import EngineError, TrainingEngine
from tuneproof_trainer.errors import ApiError, is_disk_full
from tuneproof_trainer.origins import refuse_web_pages
from tuneproof_trainer.polls import Polls
from tuneproof_trainer.routes import make_routes
from tuneproof_trainer.service import TrainerService
from tuneproof_trainer.settings import TrainerSettings
from tuneproof_trainer.turns import Turns
from tuneproof_trainer.wire import BodyReader, BodyRoom

__all__ = ["TrainerApp", "create_app"]

logger = logging.getLogger(__name__)
_POLLED = "/v1/fine_tuning/jobs"
_KEPT = "/v1/chat/completions"
Hot = Callable[[ApiCaller, bytes, Receive, Send], Awaitable[None]]
"""Routes that ask a model, as plain functions."""

_OPEN = frozenset({"/health", "/openapi.json"})


def create_app(
    settings: TrainerSettings,
    engines: Sequence[TrainingEngine] | None = None,
    clock: Callable[[], float] = time.time,
) -> TrainerApp:
    """The application; its lifespan starts and stops the jobs.

    Raises ServerError if another trainer uses the same folder.
    """
    return TrainerApp(TrainerService(settings, engines, clock))


class TrainerApp:
    """ASGI: lifespan and HTTP."""

    def __init__(self, service: TrainerService) -> None:
        self.service = service
        settings = service.settings
        self.turns = Turns(settings.answers_at_once, settings.answers_waiting)
        self._hot: dict[str, Hot] = {
            "/v1/chat/completions": Chat(
                settings, service.models, service.completions, self.turns, service.clock
            ),
            "/v1/embeddings": Embeddings(service.models, self.turns),
        }
        self._router = Router(make_routes(service), redirect_slashes=False)
        self._room = BodyRoom()
        self._polls = Polls(self._router, service.database)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.service.start()
        except Exception as error:
            logger.exception("the trainer could not start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.turns.close()
        await self.service.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Headed(send)
        reader = scope["body"] = BodyReader(self._room)
        try:
            await self._dispatch(scope, receive, answer)
        except ApiError as error:
            await answer.fail(error)
        except EngineError as error:
            status = 404 if error.code == "model_not_found" else 400
            await answer.fail(ApiError(status, error.message, param=error.param, code=error.code))
        except HTTPException as error:
            await answer.fail(_unrouted(scope, error))
        except ConnectionError:
            return
        except OSError as error:
            await answer.fail(_broken(error, answer.request_id))
        except Exception:
            logger.exception("request %s failed", answer.request_id)
            await answer.fail(_unexpected(answer.request_id))
        finally:
            reader.close()

    async def _dispatch(self, scope: Scope, receive: Receive, answer: _Headed) -> None:
        path = scope["path"]
        scope["app"] = self
        refuse_web_pages(scope, self.service.settings)
        if path not in _OPEN:
            caller = self._admitted(scope, answer)
            scope["caller"] = caller
            hot = self._hot.get(path)
            if hot is not None and scope["method"] != "POST":
                self._check_method(path, scope["method"])
            elif hot is not None:
                body = await scope["body"].read(scope, receive)
                await hot(caller, body, receive, answer)
                return
            if path.startswith(_POLLED) and scope["method"] == "GET":
                await self._polls(caller.org, scope, receive, answer)
                return
        await self._router(scope, receive, answer)

    def _check_method(self, path: str, method: str) -> None:
        """Raise HTTPException 405 where `path` knows POST only, or neither that nor GET."""
        lists = path == _KEPT
        if not lists or method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"allow": "GET, POST" if lists else "POST"})

    def _admitted(self, scope: Scope, answer: _Headed) -> ApiCaller:
        authorization = organization = ""
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"openai-organization":
                organization = value.decode("latin-1")
        caller = self.service.access.caller(authorization, organization)
        answer.add("openai-organization", caller.org)
        for name, value in self.service.access.admit(caller).items():
            answer.add(name, value)
        return caller


class _Headed:
    """A `send` that adds the headers every answer has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started_at = time.perf_counter()
        self.request_id = f"req_{secrets.token_hex(16)}"
        self._extra: list[tuple[bytes, bytes]] = [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-version", b"2020-10-01"),
        ]
        self.started = False

    def add(self, name: str, value: str) -> None:
        """One more header."""
        self._extra.append((name.encode("latin-1"), value.encode("latin-1", "replace")))

    async def __call__(self, message: Message) -> None:
        """Send one ASGI message."""
        if message["type"] == "http.response.start":
            self.started = True
            took_ms = int((time.perf_counter() - self._started_at) * 1000)
            headers = list(message.get("headers", ()))
            headers += [*self._extra, (b"openai-processing-ms", str(took_ms).encode())]
            message = {**message, "headers": headers}
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, or end the answer if it has begun."""
        if self.started:
            body = b"data: " + orjson.dumps(error.body()) + b"\n\n"
            await self({"type": "http.response.body", "body": body})
            return
        body = orjson.dumps(error.body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((n.encode(), v.encode()) for n, v in error.headers.items()),
        ]
        await self({"type": "http.response.start", "status": error.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def _unrouted(scope: Scope, error: HTTPException) -> ApiError:
    url = f"{scope['method']} {scope['path']}"
    if error.status_code == 405:
        message = f"Not allowed to {scope['method']} on {scope['path']}."
        headers = dict(error.headers or {})
        return ApiError(405, message, code="method_not_supported", headers=headers)
    return ApiError(error.status_code, f"Invalid URL ({url})", code="unknown_url")


def _broken(error: OSError, request_id: str) -> ApiError:
    if is_disk_full(error):
        return ApiError(
            507,
            "The server's disk is full; nothing of this request was kept.",
            type="server_error",
            code="disk_full",
        )
    logger.error("request %s failed", request_id, exc_info=error)
    return _unexpected(request_id)


def _unexpected(request_id: str) -> ApiError:
    return ApiError(
        500,
        "The server had an error while processing your request. Its log has the cause under "
        f"{request_id}.",
        type="server_error",
        code="internal_error",
    )
