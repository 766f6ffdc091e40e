"""What a run would do up to its first ten examples, done without a run: for the doctor and for
`tuneproof posts check`.

The same source, query, curation and rules as a run's, on posts of this moment, into a folder that
is gone afterwards.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from tuneproof.collection import Source, Task, TimeSource, TrainingDataBatch
from tuneproof.errors import DataError
from tuneproof.pipeline.collecting import collector
from tuneproof.settings import PipelineConfig

__all__ = ["Rehearsal", "rehearse"]

MOST_POSTS = 10_000
"""How many posts are read at most; a run may read more."""

EXAMPLES = 10
"""How many examples are shown at most."""

TIMEOUT_S = 45.0
"""How long that may take: whoever asks waits for it."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many there are, and one of them in words."""

    count: int
    sample: str


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was made of the posts, the first examples of each task, and what would be faster."""

    batch: TrainingDataBatch
    examples: Mapping[str, Sequence[str]]
    """By task lines as they are sent to a provider, ten in all."""
    columns: Mapping[str, str]
    """By our words the columns that are read, with their types."""
    dropped: Mapping[str, Counted]
    unread: Mapping[str, Counted]
    selects: str
    """Which posts a run would learn from, in words."""
    advice: Sequence[str] = ()

    @property
    def first(self) -> Mapping[str, str]:
        """The first line of each task that has any, as a reader is told it."""
        return {task: _told(lines[0]) for task, lines in self.examples.items() if lines}

    def short_of(self, config: PipelineConfig) -> bool:
        """Whether there are fewer examples than a run needs."""
        return sum(self.batch.examples.values()) < config.training_data_threshold

    def left_out(self) -> list[str]:
        """Why posts were left out or values not read, each reason with its first sample."""
        why = {f"{word} that cannot be read": one for word, one in self.unread.items()}
        return [
            f"{one.count:,} {reason}{f', such as {one.sample}' if one.sample else ''}"
            for reason, one in {**self.dropped, **why}.items()
        ]


async def rehearse(
    config: PipelineConfig,
    source: Source,
    tasks: Sequence[Task],
    *,
    clock: TimeSource,
    until: datetime | None = None,
) -> Rehearsal:
    """Collect and curate as a run of this config would now, or would have at `until`. Raises what
    the run would raise."""
    most = min(config.max_records or MOST_POSTS, MOST_POSTS)
    config = replace(config, max_records=most)
    with tempfile.TemporaryDirectory(prefix="tuneproof-", ignore_cleanup_errors=True) as folder:
        collecting = collector(config, source, tasks, directory=Path(folder), clock=clock)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                query = collecting.query(config.days_back, until or clock.now())
                check = await source.check(query)
                query = query if check.missing else await collecting.chosen(source, query)
                batch = await collecting.collect_training_data(until=until)
        except TimeoutError as error:
            raise DataError(
                f"{source} gave its posts not within {TIMEOUT_S:g} s.",
                mend=" ".join(check.advice) or "Add an index on the time of the posts.",
            ) from error
        examples = await asyncio.to_thread(_examples, batch)
        manifest = json.loads(await asyncio.to_thread(Path(batch.manifest_path).read_text, "utf-8"))
        types = manifest["columns"]
    return Rehearsal(
        batch=batch,
        examples=examples,
        columns={
            word: f"{name} ({types.get(name, 'worked out')})"
            for word, name in manifest["used_columns"].items()
        },
        dropped=_counted(manifest["dropped"]),
        unread=_counted(manifest["unread"]),
        selects=query.selects(),
        advice=check.advice,
    )


def _examples(batch: TrainingDataBatch) -> dict[str, list[str]]:
    """The first lines of each task, ten in all."""
    most = -(-EXAMPLES // max(1, len(batch.datasets)))
    found: dict[str, list[str]] = {}
    for task, dataset in batch.datasets.items():
        lines = found.setdefault(task, [])
        for path in (dataset.train_path, dataset.validation_path):
            with Path(path).open(encoding="utf-8") as file:
                lines += [line.rstrip("\n") for line in islice(file, most - len(lines))]
    return found


def _counted(part: Mapping[str, Mapping[str, object]]) -> dict[str, Counted]:
    return {
        name: Counted(count=int(str(found["count"])), sample=_first_of(found["samples"]))
        for name, found in part.items()
    }


def _first_of(samples: object) -> str:
    return _sample(samples[0]) if isinstance(samples, list) and samples else ""


def _sample(sample: object) -> str:
    if not isinstance(sample, Mapping):
        return str(sample)
    value = f" ({sample['value']})" if "value" in sample else ""
    return f"post {sample['post']}{value}"


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
