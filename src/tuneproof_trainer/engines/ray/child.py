"""The process that drives one job: `python -m tuneproof_trainer.engines.ray.child FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from tuneproof_trainer.engines.lora import child
from tuneproof_trainer.engines.protocol import TrainingOutcome
from tuneproof_trainer.engines.ray.options import RayOptions

__all__: list[str] = []


def _train(folder: Path, parent: child.ParentProcess) -> TrainingOutcome:
    from tuneproof_trainer.engines.ray.driver import drive

    options = RayOptions(**orjson.loads((folder / "ray.json").read_bytes()))
    return drive(folder, options, parent)


if __name__ == "__main__":
    child.run(Path(sys.argv[1]), _train)
