"""MLflow's model registry: versions with their lineage, and the aliases on them.

A version is found by its tag `tuneproof_version` before it is made, whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneproof.errors import NotFoundError
from tuneproof.settings import Url
from tuneproof.tracking.server import MLflowServer, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MLflowModelRegistry", "TrackedVersion", "find_version", "put_alias", "put_version"]

VERSION_TAG = "tuneproof_version"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedVersion:
    """A version as MLflow knows it; `number` is MLflow's, `version_id` ours."""

    name: str
    number: str
    version_id: str
    source: str
    mlflow_run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


class MLflowModelRegistry:
    """Reads and writes MLflow's registry directly.

    The pipeline goes through the outbox; this is for users, tests and repairs. Every method
    raises `TrackingUnavailableError`, `CredentialsError` or `DataError` as MLflow answers.
    """

    def __init__(
        self,
        tracking_uri: Url | str,
        *,
        timeout_s: float = 30.0,
        server: MLflowServer | None = None,
    ) -> None:
        self._server = server or MLflowServer(tracking_uri, timeout_s=timeout_s)

    async def register(
        self,
        name: str,
        version_id: str,
        *,
        model_id: str,
        mlflow_run_id: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> TrackedVersion:
        """The version `version_id` of the model `name`, made where it does not exist."""
        return await self._server.call(
            lambda client: put_version(
                client, name, version_id, model_id, mlflow_run_id, dict(tags or {})
            )
        )

    async def find(self, version_id: str) -> TrackedVersion | None:
        """The version with our id, or None."""
        return await self._server.call(lambda client: find_version(client, version_id))

    async def by_alias(self, name: str, alias: str) -> TrackedVersion | None:
        """The version of `name` on which `alias` (`candidate`, `champion`) is, or None."""

        def look(client: MlflowClient) -> TrackedVersion | None:
            models = client.search_registered_models(f"name = {quoted(name)}")
            if not models or alias not in models[0].aliases:
                return None
            return _tracked(client, client.get_model_version_by_alias(name, alias))

        return await self._server.call(look)

    async def set_alias(self, name: str, alias: str, version_id: str) -> None:
        """Move `alias` to our version `version_id`; raises `NotFoundError` where it is absent."""
        await self._server.call(lambda client: put_alias(client, name, alias, version_id))

    def close(self) -> None:
        """Let the worker thread go."""
        self._server.close()


def put_version(
    client: MlflowClient,
    name: str,
    version_id: str,
    model_id: str,
    mlflow_run_id: str | None,
    tags: dict[str, Any],
) -> TrackedVersion:
    """Find the version, or make the model and it."""
    found = find_version(client, version_id)
    if found is not None:
        return found
    if not client.search_registered_models(f"name = {quoted(name)}"):
        _create_model(client, name)
    all_tags = {**tags, VERSION_TAG: version_id, "tuneproof_model_id": model_id}
    made = client.create_model_version(
        name,
        source=f"{tags.get('provider', 'tuneproof')}:/{model_id}",
        run_id=mlflow_run_id,
        tags={key: str(value) for key, value in all_tags.items() if value is not None},
        await_creation_for=0,
    )
    return _tracked(client, made)


def find_version(client: MlflowClient, version_id: str) -> TrackedVersion | None:
    """The version with our tag, or None; the first made, should there ever be two."""
    found = client.search_model_versions(f"tags.{VERSION_TAG} = {quoted(version_id)}")
    return _tracked(client, min(found, key=lambda v: int(v.version))) if found else None


def put_alias(client: MlflowClient, name: str, alias: str, version_id: str) -> None:
    """Move the alias; asking again changes nothing."""
    version = find_version(client, version_id)
    if version is None:
        raise NotFoundError(
            f"MLflow has no version {version_id!r} of {name!r} yet.",
            mend="The outbox delivers it first; nothing to do.",
        )
    client.set_registered_model_alias(name, alias, version.number)


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import RestException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(name)
    except RestException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _tracked(client: MlflowClient, version: Any) -> TrackedVersion:
    """A search leaves aliases out, so they come from the model."""
    aliases = client.get_registered_model(version.name).aliases
    return TrackedVersion(
        name=version.name,
        number=str(version.version),
        version_id=version.tags.get(VERSION_TAG, ""),
        source=version.source,
        mlflow_run_id=version.run_id or "",
        tags=dict(version.tags),
        aliases=tuple(sorted(a for a, number in aliases.items() if number == str(version.version))),
    )
