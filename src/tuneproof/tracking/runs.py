"""What each kind of outbox item does at MLflow. Every one may be done again without harm.

A run is found by its tag `tuneproof_run`. Parameters and metrics are the same on a second
delivery (metrics carry their own time), so MLflow keeps one of each.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tuneproof.errors import DataError
from tuneproof.tracking.prompts import put_prompt, put_prompt_alias
from tuneproof.tracking.registry import put_alias, put_version
from tuneproof.tracking.server import quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["KINDS", "find_run", "flat"]

RUN_TAG = "tuneproof_run"
_BATCH = 100
_DESCRIPTION = "mlflow.note.content"
_DIGEST_LENGTH, _KEY_LENGTH, _VALUE_LENGTH = 36, 250, 5000
_MLFLOW_STATUS = {"failed": "FAILED", "aborted": "KILLED"}
_NOT_IN_KEYS = re.compile(r"[^\w\-. /]")


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """MLflow's run with our tag, in any experiment; the first made, should there be two."""
    experiments = [e.experiment_id for e in _all_experiments(client)]
    found = client.search_runs(
        experiments, f"tags.{RUN_TAG} = {quoted(run_id)}", order_by=["attributes.start_time ASC"]
    )
    return found[0] if found else None


def run_started(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Find or make the run, with its parameters and tags; a run that is retried goes on.

    MLflow never changes a parameter: one that differs in a retry becomes the tag `retried.NAME`.
    """
    from mlflow.entities import Param, RunTag

    run = client.get_run(_run(client, payload))
    run_id, before = run.info.run_id, run.data.params
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    given = dict(flat(payload.get("params") or {}))
    changed = {f"retried.{k}": v for k, v in given.items() if before.get(k, v) != v}
    params = [Param(key, text) for key, text in given.items() if key not in before]
    tags = [RunTag(k, v) for k, v in [*flat(payload.get("tags") or {}), *changed.items()]]
    for start in range(0, max(len(params), len(tags)), _BATCH):
        part = slice(start, start + _BATCH)
        client.log_batch(run_id, params=params[part], tags=tags[part])


def metrics(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Log numbers at a step; what is None, text or endless is left out."""
    from mlflow.entities import Metric

    at, step = _milliseconds(payload.get("at")) or 0, int(payload.get("step") or 0)
    found = [
        Metric(_key(name), float(value), at, step)
        for name, value in _leaves(payload["metrics"])
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    run_id = _run(client, payload)
    for start in range(0, len(found), _BATCH):
        client.log_batch(run_id, metrics=found[start : start + _BATCH])


def dataset(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Attach the dataset's manifest as an input of the run; its digest is its content's hash."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag

    manifest = payload["manifest"]
    digest = str(manifest.get("hash") or "unknown")
    run_id = _run(client, payload)
    entity = Dataset(
        name=str(manifest.get("name") or payload["run_id"]),
        digest=digest[:_DIGEST_LENGTH],
        source_type="tuneproof",
        source=json.dumps({"source": manifest.get("source")}),
        profile=json.dumps(manifest, sort_keys=True),
    )
    tags = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(run_id, [DatasetInput(entity, tags)])
    client.log_batch(run_id, tags=[RunTag("tuneproof_dataset", digest)])


def model_version(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Register the version with its lineage: our ids and the run that made it."""
    run_id = _run(client, payload)
    tags = {**dict(flat(payload.get("tags") or {})), "version": payload.get("version")}
    put_version(
        client,
        payload["name"],
        payload["version_id"],
        str(payload.get("model_id") or payload["version_id"]),
        run_id,
        {**tags, RUN_TAG: payload["run_id"]},
    )
    client.set_tag(run_id, "tuneproof_version", payload["version_id"])


def prompt(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Register the prompt in the prompt registry, once: it is found by the tag of its hash."""
    put_prompt(client, payload["name"], payload["hash"], payload["prompt"])


def alias(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Move `candidate` or `champion` to a version, and to the prompt that it is asked by."""
    put_alias(client, payload["name"], payload["alias"], payload["version_id"])
    asked_by = payload.get("prompt")
    if asked_by:
        put_prompt_alias(client, asked_by["name"], payload["alias"], asked_by["hash"])


def note(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """Add a line to the run's description, once."""
    run_id, text = _run(client, payload), " ".join(str(payload["text"]).split())
    lines = client.get_run(run_id).data.tags.get(_DESCRIPTION, "").splitlines()
    if text not in lines:
        newest = "\n".join([*lines, text])[-_VALUE_LENGTH:]
        client.set_tag(run_id, _DESCRIPTION, newest)


def run_ended(client: MlflowClient, payload: Mapping[str, Any]) -> None:
    """End the run; our own word for how it ended is its tag `tuneproof_status`."""
    run_id, status = _run(client, payload), str(payload["status"])
    client.set_tag(run_id, "tuneproof_status", status)
    client.set_terminated(
        run_id, _MLFLOW_STATUS.get(status, "FINISHED"), _milliseconds(payload.get("at"))
    )


KINDS: dict[str, Callable[[MlflowClient, Mapping[str, Any]], None]] = {
    "run_started": run_started,
    "metrics": metrics,
    "dataset": dataset,
    "model_version": model_version,
    "prompt": prompt,
    "alias": alias,
    "note": note,
    "run_ended": run_ended,
}


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Nested values as MLflow's flat texts; None is left out.

    >>> dict(flat({"training": {"n_epochs": 3}, "steps": [0.1, 1], "seed": None}))
    {'training.n_epochs': '3', 'steps': '[0.1, 1]'}
    """
    for key, value in _leaves(values):
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield _key(key), text[:_VALUE_LENGTH]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _key(name: str) -> str:
    """A name that MLflow takes: its characters, a clean relative path, its length."""
    path = posixpath.normpath(_NOT_IN_KEYS.sub("_", name)[:_KEY_LENGTH].strip("/ ") or "_")
    return path if not path.startswith(".") else path.replace(".", "_").replace("/", "_")


def _run(client: MlflowClient, payload: Mapping[str, Any]) -> str:
    """The id of MLflow's run for this item; made if it was never made or is gone."""
    run_id = payload["run_id"]
    found = find_run(client, run_id)
    if found is None:
        found = client.create_run(
            _experiment(client, payload["experiment"]),
            start_time=_milliseconds(payload.get("at")),
            tags={RUN_TAG: run_id},
            run_name=run_id,
        )
    return str(found.info.run_id)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name))
    if found.lifecycle_stage != "active":
        raise DataError(
            f"MLflow's experiment {name!r} was deleted.",
            mend=f"Restore it: `mlflow experiments restore -x {found.experiment_id}`, "
            "or set MLFLOW_EXPERIMENT_NAME to another.",
        )
    return str(found.experiment_id)


def _all_experiments(client: MlflowClient) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _milliseconds(at: str | datetime | None) -> int | None:
    if at is None:
        return None
    instant = datetime.fromisoformat(at) if isinstance(at, str) else at
    return round(instant.timestamp() * 1000)
