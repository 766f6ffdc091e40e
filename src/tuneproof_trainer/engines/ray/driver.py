"""The driver of one job: starts the worker group, passes on what it tells, stops it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)

from tuneproof_trainer.engines.lora.child import ParentProcess
from tuneproof_trainer.engines.lora.options import Device
from tuneproof_trainer.engines.protocol import EngineError, StopReason, TrainingOutcome
from tuneproof_trainer.engines.ray.cluster import beside_driver, connected, device_for, shortage
from tuneproof_trainer.engines.ray.desk import Desk
from tuneproof_trainer.engines.ray.failures import meaning
from tuneproof_trainer.engines.ray.member import train_member
from tuneproof_trainer.engines.ray.options import RayOptions

__all__ = ["drive"]

_POLL_S = 0.2
_STOP_S = 60.0
"""How long a worker group that was told to stop may take to save a snapshot. After that it is
ended; the job goes on from the snapshot before."""


def drive(folder: Path, options: RayOptions, parent: ParentProcess) -> TrainingOutcome:
    """Train the job that was prepared in `folder` on the cluster.

    Raises EngineError for a job that cannot succeed, and for a cluster that cannot be reached or
    loses workers more often than `options` allow.
    """
    with connected(options):
        reservation = _Reservation(folder)
        reservation.give_back()
        try:
            return _Drive(folder, options, parent, reservation).run()
        except EngineError as error:
            # First: who hears of the failure ends this process, and an elastic job that follows
            # would start with fewer workers.
            reservation.give_back()
            # Now: leaving Ray while a worker group is at work may end this process.
            parent.failed(error)
            raise
        finally:
            reservation.give_back()


class _Reservation:
    """What the cluster keeps for a job's worker group, also for three minutes after the group was
    ended hard: an elastic job that starts meanwhile would get what is left, or nothing. The job's
    folder has its name, so that a driver gives back what a killed one before it had."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ray-reservation"

    def taken(self, name: str) -> None:
        """Remember the name, before it is asked for."""
        self._file.write_text(name)

    def give_back(self) -> None:
        """Let others have it. Nothing is known: nothing is done."""
        if self._file.exists():
            TrainAutoscalingCoordinatorClient(self._file.read_text()).cancel_resource_request()
            self._file.unlink()


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without Ray Train's detached watcher of placement groups. It is there for controllers that
    die before their driver; ours end with the driver, which ends with the job. And where the
    cluster has no dashboard, it would never notice that and stay for ever."""

    def _create_default_callbacks(self) -> list[Any]:
        every = super()._create_default_callbacks()
        return [one for one in every if type(one).__name__ != "PlacementGroupCleanerCallback"]


class _Drive:
    """One worker group, and what is heard of it."""

    def __init__(
        self, folder: Path, options: RayOptions, parent: ParentProcess, reservation: _Reservation
    ) -> None:
        self._folder, self._options, self._parent = folder, options, parent
        self._reservation = reservation
        self._desk: Any = ray.remote(Desk).options(num_cpus=0, **beside_driver()).remote()
        self._thread = threading.Thread(target=self._fit, name="fit", daemon=True)
        self._error: Exception | None = None
        self._groups = 0
        self._stop_sent_at: float | None = None

    def run(self) -> TrainingOutcome:
        """Hear to the end."""
        lacking = shortage(self._options, self._device())
        if lacking is not None:
            self._parent.message(lacking, "warn")
        self._thread.start()
        hearing = self._desk.hear.remote()
        while True:
            ready, _ = ray.wait([hearing], timeout=_POLL_S)
            if ready:
                number, kind, content = ray.get(hearing)
                if kind == "done":
                    return self._done(number, content["outcome"])
                self._pass_on(kind, content)
                self._desk.acknowledge.remote(number)
                hearing = self._desk.hear.remote()
            elif not self._thread.is_alive():
                raise self._reason_for_end()
            stopped = self._stop()
            if stopped is not None:
                return TrainingOutcome(stopped=stopped, trained_tokens=0, steps=0)

    def _device(self) -> Device:
        return device_for(self._folder, self._options)

    def _fit(self) -> None:
        try:
            trainer = self._trainer()
            self._reservation.taken(f"train-{trainer.train_run_context.run_id}")
            trainer.fit()
        except Exception as error:
            self._error = error

    def _trainer(self) -> Any:
        options, device = self._options, self._device()
        fewest = options.fewest_workers or options.workers
        threads = {"OMP_NUM_THREADS": str(options.cpus), "OMP_WAIT_POLICY": "PASSIVE"}
        return _Trainer(
            train_member,
            train_loop_config={
                "folder": str(self._folder),
                "device": device,
                "desk": self._desk,
            },
            scaling_config=ScalingConfig(
                num_workers=(
                    options.workers if fewest == options.workers else (fewest, options.workers)
                ),
                use_gpu=device == "cuda",
                resources_per_worker={
                    "CPU": options.cpus,
                    **({"GPU": 1} if device == "cuda" else {}),
                },
            ),
            run_config=RunConfig(
                name="run",
                storage_path=str(self._folder / "ray"),
                failure_config=FailureConfig(max_failures=options.losses),
                worker_runtime_env={"env_vars": threads | {"TOKENIZERS_PARALLELISM": "false"}},
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )

    def _pass_on(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "failed":
            raise content["error"]
        if kind == "begun":
            self._begun(content["places"])
        elif kind == "chosen":
            self._parent.chosen(content["hyperparameters"])
        elif kind == "metrics":
            self._parent.metrics(content["metrics"])
        elif kind == "checkpoint":
            self._parent.checkpoint(content["metrics"], content["folder"])
        elif kind == "message":
            self._parent.message(content["text"], content["level"])
        else:
            raise ValueError(f"a worker said {kind!r}, which nobody knows")

    def _begun(self, places: list[str]) -> None:
        where = ", ".join(f"{rank} on {place}" for rank, place in enumerate(places))
        self._groups += 1
        if self._groups == 1:
            self._parent.message(f"Workers of the Ray cluster: {where}.")
            return
        self._parent.message(
            f"The workers were started anew; training goes on from its last snapshot. "
            f"Workers now: {where}.",
            "warn",
        )

    def _done(self, number: int, outcome: TrainingOutcome) -> TrainingOutcome:
        """Let the group end in order."""
        ray.get(self._desk.acknowledge.remote(number))
        self._thread.join(_STOP_S)
        return outcome

    def _stop(self) -> StopReason | None:
        """Pass a wish to stop on, once; the reason where the group has to be ended hard."""
        reason = self._parent.stop()
        if reason is None:
            return None
        if self._stop_sent_at is None:
            self._stop_sent_at = time.monotonic()
            self._desk.stop.remote(reason)
        late = time.monotonic() - self._stop_sent_at > _STOP_S
        return reason if late or not self._groups else None

    def _reason_for_end(self) -> EngineError:
        """Why there is nothing more to hear."""
        if self._error is None:
            return EngineError("server_error", "The workers ended without a result.")
        return meaning(self._error, self._folder, self._options)
