"""An Istio VirtualService whose weights follow a rollout's share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tuneproof.errors import DataError
from tuneproof.rollout import Routing
from tuneproof.targets.cluster import Cluster, namespace_or_own


class IstioTarget:
    """Sets the weights of two destinations of a task's HTTP route, 0–100 each, 100 together.

    The route is found by its `name` (the task's, unless `routes` maps the task to another), the
    destinations by subset or host: `baseline` and `candidate`. Istio splits by request, not by
    unit: use it where a whole model deployment stands behind each destination.
    """

    def __init__(
        self,
        virtual_service: str,
        *,
        namespace: str | None = None,
        name: str = "istio",
        baseline: str = "baseline",
        candidate: str = "candidate",
        routes: Mapping[str, str] | None = None,
        version: str = "v1",
        cluster: Cluster | None = None,
    ) -> None:
        self.name = name
        self._virtual_service = virtual_service
        self._namespace = namespace_or_own(namespace)
        self._sides = (baseline, candidate)
        self._routes = dict(routes or {})
        self._version = version
        self._cluster = cluster or Cluster()

    @property
    def _path(self) -> str:
        group = f"/apis/networking.istio.io/{self._version}"
        return f"{group}/namespaces/{self._namespace}/virtualservices/{self._virtual_service}"

    async def apply(self, routing: Routing) -> None:
        """Set the weights by the routing's share, rounded to whole percent.

        Raises `DataError` where the VirtualService has no such route or destinations, and the
        errors of `Cluster`.
        """
        lane = routing.only
        share = lane.share if lane is not None and lane.candidate is not None else 0.0
        percent = round(share * 100)
        weights = (100 - percent, percent)

        def make(found: dict[str, Any]) -> dict[str, Any] | None:
            http = copy.deepcopy(found["spec"].get("http") or [])
            destinations = self._destinations(http, routing.task)
            if tuple(d.get("weight", 0) for d in destinations) == weights:
                return None
            for destination, weight in zip(destinations, weights, strict=True):
                destination["weight"] = weight
            return {"spec": {"http": http}}

        await self._cluster.change(self._path, make)

    async def observe(self, task: str) -> Mapping[str, Any] | None:
        """The weights that are set now, as a share; None where the route is absent."""
        found = await self._cluster.get(self._path)
        try:
            sides = self._destinations(found["spec"].get("http") or [], task)
        except DataError:
            return None
        baseline, candidate = (int(side.get("weight", 0)) for side in sides)
        total = baseline + candidate
        share = candidate / total if total else None
        return {"share": share, "weights": {"baseline": baseline, "candidate": candidate}}

    def _destinations(self, http: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
        """The two weighted destinations of the task's route; other ones must not be there."""
        name = self._routes.get(task, task)
        route = next((r for r in http if r.get("name") == name), None)
        where = f"HTTP route {name!r} of VirtualService {self._virtual_service}"
        if route is None:
            known = ", ".join(str(r.get("name")) for r in http) or "none"
            raise DataError(
                f"There is no {where} (found: {known}).",
                mend="Name the route after the task, or map it by `routes`.",
            )
        by_name = {_name(entry): entry for entry in route.get("route") or []}
        if set(by_name) != set(self._sides):
            raise DataError(
                f"The {where} goes to {', '.join(sorted(by_name)) or 'nothing'}, "
                f"not to {' and '.join(self._sides)} alone: weights could not sum to 100.",
                mend="Set `baseline` and `candidate` to the subsets or hosts of its destinations.",
            )
        return [by_name[side] for side in self._sides]


def _name(entry: Mapping[str, Any]) -> str:
    destination = entry.get("destination") or {}
    return str(destination.get("subset") or destination.get("host"))
