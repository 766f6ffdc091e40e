"""What a run would do up to its first example, done without a run: for the doctor.

The same source, query, curation and rules as a run's, on posts of this moment, into a folder that
is gone afterwards.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneproof.collection import Source, Task, TimeSource, TrainingDataBatch
from tuneproof.errors import DataError
from tuneproof.pipeline.collecting import collector
from tuneproof.settings import PipelineConfig

__all__ = ["Rehearsal", "rehearse"]

MOST_POSTS = 10_000
"""How many posts are read at most; a run may read more."""

TIMEOUT_S = 45.0
"""How long that may take: whoever asks waits for it."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was made of the posts, the first example of each task, and what would be faster."""

    batch: TrainingDataBatch
    first: Mapping[str, str]
    selects: str
    """Which posts a run would learn from, in words."""
    advice: Sequence[str] = ()


async def rehearse(
    config: PipelineConfig, source: Source, tasks: Sequence[Task], *, clock: TimeSource
) -> Rehearsal:
    """Collect and curate as a run of this config would now. Raises what the run would raise."""
    most = min(config.max_records or MOST_POSTS, MOST_POSTS)
    config = replace(config, max_records=most)
    with tempfile.TemporaryDirectory(prefix="tuneproof-", ignore_cleanup_errors=True) as folder:
        collecting = collector(config, source, tasks, directory=Path(folder), clock=clock)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                query = collecting.query(config.days_back, clock.now())
                check = await source.check(query)
                query = query if check.missing else await collecting.chosen(source, query)
                batch = await collecting.collect_training_data()
        except TimeoutError as error:
            raise DataError(
                f"{source} gave its posts not within {TIMEOUT_S:g} s.",
                mend=" ".join(check.advice) or "Add an index on the time of the posts.",
            ) from error
        first = await asyncio.to_thread(_first, batch)
    return Rehearsal(batch=batch, first=first, selects=query.selects(), advice=check.advice)


def _first(batch: TrainingDataBatch) -> dict[str, str]:
    """The first line of each task that has any, as a reader is told it."""
    found = {}
    for task, dataset in batch.datasets.items():
        for path in (dataset.train_path, dataset.validation_path):
            lines = Path(path).read_text("utf-8").splitlines()[:1] if path else []
            if lines and task not in found:
                found[task] = _told(lines[0])
    return found


def _told(text: str) -> str:
    """What is asked and what is answered; of a preference also what is not to be answered."""
    line = json.loads(text)
    if "messages" in line:
        return _chat(line["messages"])
    parts = (line["input"]["messages"], line["preferred_output"], line["non_preferred_output"])
    asked, better, worse = (_chat(messages) for messages in parts)
    return f"{asked}; preferred {better}; to {worse}"


def _chat(messages: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{m['role']}: {_short(m['content'])}" for m in messages)


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 120 else f"{words[:119].rstrip()}…"
