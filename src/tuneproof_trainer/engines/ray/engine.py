"""The ray engine behind the `Engine` protocol: the lora engine, trained on a cluster."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import orjson

from tuneproof_trainer.engines.lora.engine import Answers, LoraEngine
from tuneproof_trainer.engines.lora.options import LoraOptions
from tuneproof_trainer.engines.lora.process import train_in_child
from tuneproof_trainer.engines.protocol import Outcome, Reporter, ShouldStop, TrainingTask
from tuneproof_trainer.engines.ray.options import RayOptions

__all__ = ["RayEngine"]

_CHILD = "tuneproof_trainer.engines.ray.child"
_OWNER = "job-folder"


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
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1"}
        if ray.address is None:  # else Ray makes a token by itself, in the user's home
            own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        super().__init__(options, answers, environment=own | dict(environment), created=created)
        self._ray = ray

    def train(self, task: TrainingTask, report: Reporter, should_stop: ShouldStop) -> Outcome:
        """Train an adapter on the cluster, driven by a process of its own."""
        task = dataclasses.replace(task, folder=self._shared(task))
        self._prepare(task)
        (task.folder / "ray.json").write_bytes(orjson.dumps(self._ray.as_dict()))
        return train_in_child(_CHILD, task.folder, report, should_stop, self._environment)

    def _shared(self, task: TrainingTask) -> Path:
        """The job's folder as all nodes see it. Folders of jobs that have ended are removed."""
        if self._ray.storage is None:
            return task.folder.resolve()
        storage = Path(self._ray.storage).resolve()
        for owner in storage.glob(f"*/{_OWNER}"):
            if not Path(owner.read_text()).exists():
                shutil.rmtree(owner.parent)
        folder = storage / task.job_id
        folder.mkdir(exist_ok=True)
        marked = folder / f"{_OWNER}.part"
        marked.write_text(str(task.folder.resolve()))
        os.replace(marked, folder / _OWNER)
        return folder
