"""A Kubernetes ConfigMap from which applications read their models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuneproof.errors import NotFoundError
from tuneproof.prompts import Prompt
from tuneproof.rollout import Routing
from tuneproof.targets.cluster import Cluster, namespace_or_own
from tuneproof.targets.variables import SWITCH_AT, check_switch, observed, stem, variables

ANNOTATION = "tuneproof.io/"
"""Each task's applied routing version, and the hash that restarts deployments, stand here."""


class ConfigMapTarget:
    """Keeps a task's variables in a ConfigMap; its other keys stay as they are.

    The patch carries the `resourceVersion` that was read, so a change by somebody else is never
    written over: it is read again first. `create` makes an absent ConfigMap. `restart` names
    deployments whose pods are to be replaced when the variables changed: they get the
    variables' hash as a pod annotation, so the same values restart nothing twice. With `prompts`
    the variables name prompts too; what they say is in the ConfigMap `NAME-prompts`, one key each.
    """

    def __init__(
        self,
        config_map: str,
        *,
        namespace: str | None = None,
        name: str = "configmap",
        switch_at: float = SWITCH_AT,
        create: bool = False,
        restart: Sequence[str] = (),
        prompts: bool = False,
        cluster: Cluster | None = None,
    ) -> None:
        self.name = name
        self._config_map = config_map
        self._namespace = namespace_or_own(namespace)
        self._switch_at = check_switch(switch_at)
        self._create = create
        self._restart = tuple(restart)
        self.prompts = prompts
        self._cluster = cluster or Cluster()

    @property
    def _folder(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}/configmaps"

    async def apply(self, routing: Routing) -> None:
        """Patch the ConfigMap, then restart what is to be restarted.

        Raises `DeniedError` without the right, `NotFoundError` for an absent ConfigMap (unless
        `create`) or deployment, `RetryableError` where the API server does not answer.
        """
        wanted = variables(routing, switch_at=self._switch_at, prompts=self.prompts)
        annotation = {f"{ANNOTATION}{stem(routing.task).lower()}-version": str(routing.version)}

        def make(found: dict[str, Any]) -> dict[str, Any] | None:
            data = found.get("data") or {}
            if all(data.get(key) == value for key, value in wanted.items()):
                return None
            return {"metadata": {"annotations": annotation}, "data": wanted}

        try:
            found = await self._cluster.change(f"{self._folder}/{self._config_map}", make)
        except NotFoundError:
            if not self._create:
                raise
            found = await self._make(wanted, annotation)
        for deployment in self._restart:
            await self._restarted(deployment, found.get("data") or {})

    async def keep(self, prompts: Mapping[str, Prompt]) -> None:
        """Put each prompt into its ConfigMap, which is made where it is absent.

        Raises as `apply` does.
        """
        wanted = {f"{hash}.json": prompt.canonical for hash, prompt in prompts.items()}
        if not wanted:
            return

        def make(found: dict[str, Any]) -> dict[str, Any] | None:
            data = found.get("data") or {}
            return None if wanted.keys() <= data.keys() else {"data": wanted}

        name = f"{self._config_map}-prompts"
        try:
            await self._cluster.change(f"{self._folder}/{name}", make)
        except NotFoundError:
            await self._make(wanted, {}, name)

    async def _make(
        self, wanted: Mapping[str, str], annotation: Mapping[str, str], name: str | None = None
    ) -> dict[str, Any]:
        return await self._cluster.create(
            self._folder,
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name or self._config_map, "annotations": dict(annotation)},
                "data": dict(wanted),
            },
        )

    async def _restarted(self, deployment: str, data: Mapping[str, str]) -> None:
        """Replace a deployment's pods unless they were made for these values already."""
        name = f"{ANNOTATION}{self._config_map}"
        mark = {name: _hash(data)}

        def make(found: dict[str, Any]) -> dict[str, Any] | None:
            template = found["spec"]["template"].get("metadata") or {}
            if (template.get("annotations") or {}).get(name) == mark[name]:
                return None
            return {"spec": {"template": {"metadata": {"annotations": mark}}}}

        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{deployment}"
        await self._cluster.change(path, make)

    async def observe(self, task: str) -> Mapping[str, Any] | None:
        """What the ConfigMap says about the task; None where it, or the task in it, is absent."""
        try:
            found = await self._cluster.get(f"{self._folder}/{self._config_map}")
        except NotFoundError:
            return None
        return observed(found.get("data") or {}, task)


def _hash(data: Mapping[str, str]) -> str:
    """A hash of what applications read; versions and salts alone restart nothing."""
    read = {key: value for key, value in data.items() if not key.endswith("_ROUTING_VERSION")}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]
