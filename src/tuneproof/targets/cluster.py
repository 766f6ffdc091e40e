"""A Kubernetes API server: the four calls that targets make, with our errors.

The official client comes with the extra `tuneproof[kubernetes]` and is imported when a cluster
is first used. Its calls block, so they run in threads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tuneproof.errors import (
    ConfigError,
    ConflictError,
    DataError,
    DeniedError,
    NotFoundError,
    RetryableError,
    TuneProofError,
)
from tuneproof.outgoing import ANYWHERE, Rules
from tuneproof.outgoing.clients import guard_pools
from tuneproof.resilience import CircuitBreaker

T = TypeVar("T")

MERGE_PATCH = "application/merge-patch+json"
TIMEOUT_S = (5.0, 15.0)
_TRIES = 5

SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds its own namespace."""


class Cluster:
    """How to reach the API server.

    With `server` it is that address (`token` or `token_file`, `ca_file`); else the pod's own
    service account where there is one, else the kubeconfig (`kubeconfig`, `context`).
    Connections are kept for the next call unless `connection_pool` is False; a server that has
    failed several times in a row is left alone for a while unless `circuit_breaker` is False.
    """

    def __init__(
        self,
        *,
        server: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        ca_file: str | None = None,
        kubeconfig: str | None = None,
        context: str | None = None,
        connection_pool: bool = True,
        circuit_breaker: bool = True,
        outgoing: Rules = ANYWHERE,
    ) -> None:
        self._server = server
        self._token = token
        self._token_file = token_file
        self._ca_file = ca_file
        self._kubeconfig = kubeconfig
        self._context = context
        self._pooled = connection_pool
        # Where the cluster itself says how to reach it, that is private, and meant.
        self._outgoing = outgoing if server is not None else ANYWHERE
        self._breaker = CircuitBreaker.named("kubernetes") if circuit_breaker else None
        self._api: Any = None

    async def get(self, path: str) -> dict[str, Any]:
        """The object at this path of the API."""
        return await self._call("GET", path, None)

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object in the collection at this path."""
        return await self._call("POST", path, body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Merge `body` into an object. With its `metadata.resourceVersion` in the body, a change
        by somebody else meanwhile raises `ConflictError`."""
        return await self._call("PATCH", path, body)

    async def change(
        self, path: str, make: Callable[[dict[str, Any]], dict[str, Any] | None]
    ) -> dict[str, Any]:
        """Read an object, make a patch from it, and apply the patch to exactly what was read.

        When somebody else was faster it is all done again; `make` answers None when there is
        nothing to change.
        """
        for _ in range(_TRIES):
            found = await self.get(path)
            body = make(found)
            if body is None:
                return found
            version = found["metadata"]["resourceVersion"]
            metadata = {**body.get("metadata", {}), "resourceVersion": version}
            try:
                return await self.patch(path, {**body, "metadata": metadata})
            except ConflictError:
                continue
        raise RetryableError(
            f"{path} was changed by somebody else {_TRIES} times while it was to be patched.",
            mend="It is tried again; see who else writes it (`kubectl get --show-managed-fields`).",
        )

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        if self._breaker is None:
            return await asyncio.to_thread(self._blocking_call, method, path, body)
        found: dict[str, Any] = await self._breaker.call(
            asyncio.to_thread, self._blocking_call, method, path, body
        )
        return found

    def _blocking_call(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        api = self._connected()
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": kind}
        token = api.configuration.auth_settings().get("BearerToken")
        if token:
            headers[token["key"]] = token["value"]
        try:
            response = api.rest_client.request(
                method,
                f"{api.configuration.host}{path}",
                headers=headers,
                body=body,
                _request_timeout=TIMEOUT_S,
            )
            content = response.read()
            status = int(response.status)
        except ApiException as error:
            status, content = int(error.status or 0), str(error.body or error.reason).encode()
            if status == 0:
                raise _silent(path, str(error.reason)) from error
        except (HTTPError, OSError) as error:
            raise _silent(path, str(error)) from error
        if status >= 300:
            raise _refusal(method, path, status, content)
        found: dict[str, Any] = json.loads(content)
        return found

    def _connected(self) -> Any:
        if self._api is not None and self._pooled:
            return self._api
        if self._api is not None:
            self._api.rest_client.pool_manager.clear()
        self._api = self._connect()
        return self._api

    def _connect(self) -> Any:
        client, config = _library()
        settings = client.Configuration()
        try:
            if self._server is not None:
                self._configure(settings)
            elif self._kubeconfig or self._context or not SERVICE_ACCOUNT_NAMESPACE.exists():
                config.load_kube_config(
                    config_file=self._kubeconfig,
                    context=self._context,
                    client_configuration=settings,
                )
            else:
                config.load_incluster_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise ConfigError(
                f"No Kubernetes cluster can be reached: {error}.",
                mend="Run inside a pod with a service account, or set `kubeconfig` and `context`, "
                "or `server` and `token_file`, in the target's options.",
            ) from error
        settings.retries = False  # one layer of retries only, and it is the caller's
        api = client.ApiClient(settings)
        guard_pools(api.rest_client.pool_manager, self._outgoing)
        return api

    def _configure(self, settings: Any) -> None:
        settings.host = (self._server or "").rstrip("/")
        settings.ssl_ca_cert = self._ca_file
        token = self._token
        if self._token_file is not None:
            token = Path(self._token_file).read_text().strip()
        if token:
            settings.api_key = {"authorization": f"Bearer {token}"}


def _library() -> tuple[Any, Any]:
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ConfigError(
            "Kubernetes targets need the Kubernetes client, which is not installed.",
            mend="pip install 'tuneproof[kubernetes]'",
        ) from error
    return client, config


def namespace_or_own(namespace: str | None) -> str:
    """The namespace as given, else the pod's, else `default`."""
    if namespace is not None:
        return namespace
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
    except OSError:
        return "default"


def _silent(path: str, reason: str) -> RetryableError:
    return RetryableError(
        f"The Kubernetes API server did not answer for {path}: {reason}.",
        mend="It is called again; check that the cluster can be reached.",
    )


def _refusal(method: str, path: str, status: int, content: bytes) -> TuneProofError:
    try:
        reason = str(json.loads(content).get("message") or content.decode(errors="replace"))
    except (ValueError, AttributeError):
        reason = content[:300].decode(errors="replace")
    text = f"The Kubernetes API server refused {method} {path} ({status}: {reason})."
    details = {"status": status}
    match status:
        case 401 | 403:
            return DeniedError(
                text,
                mend=f"Give the service account the right to {_verb(method)} this object "
                "(a Role with `resourceNames`), or check its token.",
                **details,
            )
        case 404:
            return NotFoundError(text, mend="Check its name and namespace.", **details)
        case 409:
            return ConflictError(text, mend="Read it again and repeat the change.", **details)
        case _ if status == 429 or status >= 500:
            return RetryableError(text, mend="It is called again.", **details)
        case _:
            return DataError(text, mend="Mend the object or the target's options.", **details)


def _verb(method: str) -> str:
    return {"GET": "get", "POST": "create", "PATCH": "patch"}[method]
