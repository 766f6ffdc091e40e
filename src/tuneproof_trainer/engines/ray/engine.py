"""The ray engine behind the `TrainingEngine` protocol: the lora engine, trained on a cluster."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import orjson

from tuneproof_trainer.engines.lora.engine import Answers, LoraEngine
from tuneproof_trainer.engines.lora.options import LoraOptions
from tuneproof_trainer.engines.lora.process import train_in_child
from tuneproof_trainer.engines.protocol import Reporter, ShouldStop, TrainingOutcome, TrainingTask
from tuneproof_trainer.engines.ray.options import RayOptions

__all__ = ["RayEngine"]

_CHILD = "tuneproof_trainer.engines.ray.child"


class RayEngine(LoraEngine):
    """Low-rank adapters, trained by workers of a Ray cluster."""

    name = "ray"

    def __init__(
        self,
        options: LoraOptions,
        ray: RayOptions,
        answers: Answers | None = None,
        *,
        environment: Mapping[str, str],
        created: int | None = None,
    ) -> None:
        own = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_V2_ENABLED": "1",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nothing of ours asks it
        }
        if ray.address is None:  # else Ray makes a token by itself, in the user's home
            own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        super().__init__(options, answers, environment=own | dict(environment), created=created)
        self._ray = ray

    def train(
        self, task: TrainingTask, report: Reporter, should_stop: ShouldStop
    ) -> TrainingOutcome:
        """Train an adapter on the cluster, driven by a process of its own."""
        task = dataclasses.replace(task, folder=self._shared(task))
        self._prepare(task)
        (task.folder / "ray.json").write_bytes(orjson.dumps(self._ray.as_dict()))
        return train_in_child(_CHILD, task.folder, report, should_stop, self._environment)

    def _shared(self, task: TrainingTask) -> Path:
        """The job's folder as all nodes see it. Folders of jobs that have ended are removed."""
        if self._ray.storage is None:
            return task.folder.resolve()
        home = Path(self._ray.storage).resolve() / self._ray.owner
        shared = home / task.job_id
        shared.mkdir(parents=True, exist_ok=True)
        for folder in home.iterdir():
            own = task.folder.parent.parent / folder.name / task.folder.name
            if folder != shared and not own.exists():
                shutil.rmtree(folder, ignore_errors=True)
        return shared
