"""What must be remembered across examples: duplicates, caps, and on which side each falls."""

from __future__ import annotations

from array import array
from collections import Counter
from functools import lru_cache
from typing import Any, Final

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from tuneproof.collection import Post, Task

__all__ = ["KEPT_BACK", "TRAIN", "VALIDATION", "Dropped", "Placed", "Seen", "side_of", "split_key"]

TRAIN: Final = "train"
VALIDATION: Final = "validation"
KEPT_BACK: Final = "kept_back"
"""The side of units that are never used at all, to measure selection bias by."""

SAMPLES: Final = 3
"""How many posts are named for each reason."""

_RANGE: Final = 2**64


class Dropped:
    """Counts of what was left out, by reason, with the first few posts of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: dict[str, list[dict[str, Any]]] = {}

    def add(self, reason: str, post: Post, value: object = None, task: str | None = None) -> None:
        """Count one drop. `value` is what broke the rule, shown shortened."""
        self.counts[reason] += 1
        samples = self.samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            sample: dict[str, Any] = {"post": _abbreviated(post.id)}
            sample |= {} if task is None else {"task": task}
            sample |= {} if value is None else {"value": _abbreviated(value)}
            samples.append(sample)


class Seen:
    """The examples met so far, 16 bytes each: exact duplicates are told by their content."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def new(self, line: bytes) -> bool:
        """Whether this line was not met before; it is from now on."""
        digest = xxh3_128_digest(line)
        if digest in self._digests:
            return False
        self._digests.add(digest)
        return True


class Placed:
    """Where each line was put, to take some out again once all have come.

    Kept back until the end since only then it is known what was held out, and how much there
    is that others wrote. 16 bytes a line, 60 more for one that is held out.
    """

    def __init__(self) -> None:
        self._lineage: dict[tuple[str, str], array[int]] = {}
        self._answers: dict[tuple[str, str], array[int]] = {}
        self._own: list[tuple[tuple[str, str], int]] = []
        self.lines = 0

    def add(self, task: str, side: str, answer: str, *, own: bool) -> None:
        """Note the next line of one side of a task, in the order in which they are written."""
        place = (task, side)
        answers = self._answers.setdefault(place, array("Q"))
        if own:
            self._own.append((place, len(answers)))
        answers.append(xxh3_64_intdigest(answer.strip().casefold().encode()))
        self._lineage.setdefault(place, array("Q")).append(self.lines)
        self.lines += 1

    def held_out_too(self) -> dict[tuple[str, str], set[int]]:
        """Training lines whose answer is held out as the answer to another input."""
        found: dict[tuple[str, str], set[int]] = {}
        for (task, side), answers in self._answers.items():
            if side == TRAIN:
                held = set(self._answers.get((task, VALIDATION), ()))
                found[task, side] = {i for i, a in enumerate(answers) if a in held}
        return found

    def own_surplus(
        self, share: float, removed: dict[tuple[str, str], set[int]]
    ) -> dict[tuple[str, str], set[int]]:
        """The worst of our own versions' lines, where they make up more than `share`.

        Lines that are `gone` already do not count.
        """
        left = self.lines - sum(len(numbers) for numbers in removed.values())
        own = [(p, number) for p, number in self._own if number not in removed.get(p, ())]
        others = left - len(own)
        allowed = len(own) if share >= 1 else int(others * share / (1 - share))
        found: dict[tuple[str, str], set[int]] = {}
        for place, number in own[allowed:]:
            found.setdefault(place, set()).add(number)
        return found

    def lineage_of(self, place: tuple[str, str], numbers: set[int]) -> set[int]:
        """The numbers of these lines in the lineage."""
        return {self._lineage[place][number] for number in numbers}


def side_of(
    split_key: str, unit: str, *, validation_share: float = 0.1, kept_back_share: float = 0.05
) -> str:
    """The side of an example: `train`, `validation` or `kept_back`.

    The key decides between training and validation, by hash, the same in every cycle: what was
    held out once is never trained on. The unit decides, likewise, whether it is used at all.
    """
    if kept_back_share and _share("kept back\x1f", unit) < kept_back_share:
        return KEPT_BACK
    return VALIDATION if _share("split\x1f", split_key) < validation_share else TRAIN


@lru_cache(maxsize=64)
def root_columns(tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """The columns that tasks ask with and no task answers."""
    written = {task.completion for task in tasks}
    return tuple(dict.fromkeys(c for t in tasks for c in t.columns if c not in written))


def split_key(post: Post, tasks: tuple[Task, ...]) -> str:
    """What the split goes by: the group in which the post competed, else its inputs.

    Of the inputs those that no task writes count, whatever their case. A `body` is asked for by its
    `hook`, which itself is an answer to `original_input`: so all examples of a post fall on one
    side, and with them those of all posts with the same input. A post without any input goes by
    what it answered. Posts of one group fall on one side whatever they answer; an input that
    many groups share, such as a house prompt, stands on both.
    """
    if post.group:
        return f"group\x1f{post.group}"
    text = "\x1f".join([post.text(column) for column in root_columns(tasks)]).strip("\x1f \n\t")
    if not text:
        text = "\x1f".join(post.text(task.completion) for task in tasks)
    return " ".join(text.casefold().split())


def _share(salt: str, key: str) -> float:
    return xxh3_64_intdigest((salt + key).encode("utf-8", "surrogatepass")) / _RANGE


def _abbreviated(value: object) -> str:
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:80]}… ({len(text)} characters)"
