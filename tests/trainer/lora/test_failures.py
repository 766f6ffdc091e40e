"""What the libraries raise when disk or memory run out, as the job's owner sees it."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.trainer.lora.conftest import Recorder, task
from tests.trainer.lora.tiny import lines

from tuneproof_trainer.engines.lora.child import failure
from tuneproof_trainer.engines.lora.engine import LoraEngine
from tuneproof_trainer.engines.lora.options import LoraOptions, named_bases
from tuneproof_trainer.engines.protocol import EngineError

pytestmark = pytest.mark.lora


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can make a disk that is full")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_known_by_whichever_library_met_it(small_disk: Path, tiny: Path) -> None:
    import torch
    from safetensors.torch import save_file

    many = torch.zeros(1_000_000)
    writes: list[Callable[[], object]] = [
        lambda: torch.save(many, small_disk / "1"),
        lambda: save_file({"x": many}, small_disk / "2"),
        lambda: (small_disk / "3").write_bytes(b"x" * 4_000_000),
    ]
    for write in writes:
        with pytest.raises(Exception) as raised:
            write()
        known = failure(raised.value, small_disk.parent)
        assert known is not None, repr(raised.value)
        assert known.code == "disk_full"
        for file in small_disk.iterdir():
            file.unlink()
    options = LoraOptions(bases=named_bases([str(tiny)]), threads=1, rank=64)
    job = task(small_disk / "work", lines(40, 1), n_epochs=1, batch_size=8)
    recorder = Recorder(small_disk.parent / "kept")
    with pytest.raises(EngineError) as failed:
        LoraEngine(options, environment=os.environ).train(job, recorder, lambda: None)
    assert failed.value.code == "disk_full"
    assert recorder.checkpoints == {}


def test_memory_that_cannot_be_had_is_known(tmp_path: Path) -> None:
    import torch

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, before[1]))
    try:
        with pytest.raises(RuntimeError) as raised:
            torch.empty(1 << 36, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    for error in (raised.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")):
        known = failure(error, tmp_path)
        assert known is not None
        assert known.code == "out_of_memory"


def test_other_errors_are_left_to_the_log(tmp_path: Path) -> None:
    assert failure(ValueError("odd"), tmp_path) is None
