"""The examples of a dataset as objects, read back from its files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tuneproof.collection import ExampleObject, TrainingDataBatch
from tuneproof.curation.files import LINEAGE
from tuneproof.curation.sift import TRAIN, VALIDATION
from tuneproof.errors import DataError

__all__ = ["read_examples"]


def read_examples(batch: TrainingDataBatch, task: str) -> list[ExampleObject]:
    """The examples of one of a batch's tasks, those to train on first; none of any other task.

    Raises `DataError` where the files are not on this machine.
    """
    dataset = batch.datasets.get(task)
    if dataset is None:
        return []
    try:
        rates = _rates(Path(batch.manifest_path).with_name(LINEAGE), task)
        lines = {TRAIN: _lines(dataset.train_path), VALIDATION: _lines(dataset.validation_path)}
    except FileNotFoundError as error:
        raise DataError(
            f"Dataset {batch.hash} is not on this machine: {error.filename} does not exist.",
            mend="Collect again, or look on the worker that collected it.",
        ) from error
    return [
        ExampleObject(messages=_messages(line), engagement_rate=rate)
        for side, found in lines.items()
        for line, rate in zip(found, _of_lines(rates[side], found), strict=True)
    ]


def _lines(path: str) -> list[dict[str, Any]]:
    with Path(path).open("rb") as file:
        return [orjson.loads(line) for line in file]


def _messages(line: Mapping[str, Any]) -> list[dict[str, str]]:
    """The chat of a line; of a pair, with the answer that did better."""
    if "messages" in line:
        return list(line["messages"])
    return [*line["input"]["messages"], *line["preferred_output"]]


def _rates(lineage: Path, task: str) -> dict[str, list[float | None]]:
    """The rates of the posts of a task by side, in the order of its lines."""
    found: dict[str, list[float | None]] = {TRAIN: [], VALIDATION: []}
    with lineage.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["task"] == task:
                rate = row.get("engagement_rate")  # datasets of version 0.2 have no such column
                found[row["side"]].append(float(rate) if rate else None)
    return found


def _of_lines(
    rates: Sequence[float | None], lines: Sequence[Mapping[str, Any]]
) -> Sequence[float | None]:
    """A rate for each line: a pair has two posts, the better one first."""
    return rates[::2] if lines and "preferred_output" in lines[0] else rates
