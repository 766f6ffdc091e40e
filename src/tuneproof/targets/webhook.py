"""Any HTTP endpoint that wants to know the routing."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from tuneproof.errors import (
    ConfigError,
    ConflictError,
    DataError,
    DeniedError,
    NotFoundError,
    RetryableError,
    TuneProofError,
)
from tuneproof.experiments import Variant
from tuneproof.outgoing import ANYWHERE, Rules
from tuneproof.outgoing.clients import http_client
from tuneproof.prompts import Prompt
from tuneproof.rollout import Lane, Routing
from tuneproof.settings import Url


class WebhookTarget:
    """Posts each routing as JSON to `url`.

    The same routing carries the same `Idempotency-Key`, so a repeated call can be told from a
    new one. With a `secret` the body is signed: `X-TuneProof-Signature: sha256=HEX` is its
    HMAC. `observe_url` (`{task}` is filled in) is asked by GET for what is served; without it
    `observe` cannot say. With `prompts` each model has the hash of its prompt, which
    `GET /prompts/HASH` of the service tells.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "webhook",
        secret: str | None = None,
        headers: Mapping[str, str] | None = None,
        observe_url: str | None = None,
        timeout_s: float = 10.0,
        prompts: bool = False,
        outgoing: Rules = ANYWHERE,
    ) -> None:
        self.name = name
        self.prompts = prompts
        self._url = _checked(url)
        self._observe_url = None if observe_url is None else _checked(observe_url)
        self._secret = secret
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._outgoing = outgoing

    async def apply(self, routing: Routing) -> None:
        """Post this routing. Raises `RetryableError` where no answer came, it was 5xx or 429;
        `DeniedError`, `NotFoundError`, `ConflictError` or `DataError` for other refusals."""
        body = json.dumps(_document(routing, prompts=self.prompts), sort_keys=True).encode()
        headers = {
            **self._headers,
            "Content-Type": "application/json",
            "Idempotency-Key": f"{routing.task}:{routing.version}",
        }
        if self._secret is not None:
            digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
            headers["X-TuneProof-Signature"] = f"sha256={digest}"
        await self._send("POST", self._url, content=body, headers=headers)

    async def keep(self, prompts: Mapping[str, Prompt]) -> None:
        """Whoever is told a prompt's hash asks the service for it."""

    async def observe(self, task: str) -> Mapping[str, Any] | None:
        """What the endpoint says that it serves; None without an `observe_url`."""
        if self._observe_url is None:
            return None
        url = self._observe_url.replace("{task}", quote(task, safe=""))
        content = await self._send("GET", url, headers=self._headers)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DataError(
                f"{Url(url)} did not answer with JSON.", mend="Let it answer an object."
            )
        return found

    async def _send(self, method: str, url: str, **options: Any) -> bytes:
        """The answer's bytes. A redirect is an answer, too: a redirected POST becomes a GET."""
        try:
            async with http_client(
                self._outgoing, trust_env=True, timeout=self._timeout_s
            ) as client:
                answer = await client.request(method, url, **options)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RetryableError(
                f"Webhook {self.name!r} at {Url(url)} did not answer: {error}.",
                mend="It is called again; check that the endpoint runs.",
            ) from error
        if answer.status_code >= 300:
            raise _refusal(self.name, url, answer.status_code)
        return answer.content


def _document(routing: Routing, *, prompts: bool) -> dict[str, object]:
    fields = routing.document()
    document: dict[str, object] = {
        **fields,
        "type": "routing",
        "baseline": _model(routing.baseline, prompts),
        "candidate": _model(fields["candidate"], prompts),
        "updated_at": routing.updated_at.isoformat() if routing.updated_at else None,
        "lanes": [_lane(lane, prompts) for lane in fields["lanes"]],
    }
    if not fields["lanes"]:
        del document["lanes"]
    return document


def _lane(lane: Lane, prompts: bool) -> dict[str, Any]:
    candidate = _model(lane.candidate, prompts)
    return {"subject": lane.subject, "candidate": candidate, "share": lane.share}


def _model(model: Variant | None, prompts: bool) -> dict[str, str | None] | None:
    if model is None:
        return None
    found = {"model_id": model.model_id, "version": model.version}
    return {**found, "prompt": model.prompt} if prompts else found


def _refusal(name: str, url: str, status: int) -> TuneProofError:
    text = f"Webhook {name!r} at {Url(url)} answered {status}."
    if status == 429 or status >= 500:
        return RetryableError(text, mend="It is called again; see the endpoint's own log.")
    kinds = {401: DeniedError, 403: DeniedError, 404: NotFoundError, 409: ConflictError}
    mend = "Check the address, its headers and its secret in the settings."
    return kinds.get(status, DataError)(text, mend=mend, status=status)


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"Webhook address {Url(url)!r} is not http(s).", mend="Write it like https://host/path."
        )
    return url
