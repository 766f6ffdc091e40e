"""Posts as lines of a training file, each column's text looked at once.

A line is put together from bytes, since this is where collecting spends its time: the texts
are escaped one by one, the rest of the JSON is always the same. The bytes are those that
dumping the chat as a whole would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson

from tuneproof.collection import Task
from tuneproof.curation.rules import has_special_token, redact

__all__ = ["Cleaner", "ColumnText", "LineMaker", "TrainingLine", "asked_by", "line_maker"]

NOT_UTF8: Final = "not_utf8"
SPECIAL_TOKEN: Final = "special_token"
PERSONAL_DATA: Final = "personal_data"
NUL: Final = "nul_character"

_MIDDLE: Final = b'"},{"role":"assistant","content":"'
_END: Final = b'"}]}'


class ColumnText(NamedTuple):
    """One column's text, fit to be used, or with the fault that it has; `json` is escaped."""

    text: str
    json: bytes
    fault: str | None = None


class TrainingLine(NamedTuple):
    """An example: its bytes, its answer, and the fault of one of its texts.

    `has_input` is false where the prompt is the same for every post.
    """

    json: bytes
    answer: str
    fault: str | None
    tokens: int
    has_input: bool


class Cleaner:
    """Looks at the text of a column: encoding, special tokens, personal data.

    `rule` says what becomes of personal data: `redact`, `drop` or `keep`. `redacted` counts
    what was replaced.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._findings: Counter[str] = Counter()
        self.redacted: Counter[str] = Counter()

    def __call__(self, text: str) -> ColumnText:
        fault = SPECIAL_TOKEN if has_special_token(text) else None
        fault = NUL if "\0" in text else fault
        if self._rule != "keep":
            clean = redact(text, self._findings)
            if self._findings:
                if self._rule == "drop":
                    fault = fault or PERSONAL_DATA
                else:
                    self.redacted.update(self._findings)
                    text = clean
                self._findings.clear()
        try:
            return ColumnText(text, orjson.dumps(text)[1:-1], fault)
        except TypeError:  # a lone surrogate: bytes that were no UTF-8
            return ColumnText(text, b"", NOT_UTF8)


class LineMaker:
    """Makes the lines of one task from cleaned texts."""

    def __init__(self, task: Task) -> None:
        self.name = task.name
        self._completion = task.completion
        self._columns = task.columns
        self._empty = _escaped(task.empty_prompt)
        self._pieces = tuple((_escaped(text), name) for text, name in task.pieces)
        system = b""
        if task.system:
            system = b'{"role":"system","content":"' + _escaped(task.system) + b'"},'
        self._head = b'{"messages":[' + system + b'{"role":"user","content":"'
        self._about = len(system) // 4

    def line(self, texts: Mapping[str, ColumnText]) -> TrainingLine:
        """The line for a post whose columns' texts are these."""
        answer = texts[self._completion]
        fault = answer.fault
        empty = True
        for column in self._columns:
            found = texts[column]
            fault = found.fault if fault is None or found.fault == NOT_UTF8 else fault
            empty = empty and not found.text.strip()
        if empty and self._columns:
            prompt = self._empty
        else:
            parts = []
            for text, name in self._pieces:
                parts.append(text)
                if name is not None:
                    parts.append(texts[name].json)
            prompt = b"".join(parts)
        line = b"".join((self._head, prompt, _MIDDLE, answer.json, _END))
        tokens = (len(prompt) // 4 or 1) + (len(answer.json) // 4 or 1) + self._about
        return TrainingLine(line, answer.text, fault, tokens, not empty)


class PromptLineMaker(LineMaker):
    """Makes the lines of a task whose prompt is a variant's: each message may have variables."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        assert task.asked_by is not None
        self._asked_by = task.asked_by

    def line(self, texts: Mapping[str, ColumnText]) -> TrainingLine:
        """The line for a post whose columns' texts are these."""
        answer = texts[self._completion]
        found = [texts[column] for column in self._columns]
        faults = [one.fault for one in (answer, *found) if one.fault is not None]
        fault = NOT_UTF8 if NOT_UTF8 in faults else next(iter(faults), None)
        has_input = any(one.text.strip() for one in found)
        if fault == NOT_UTF8:
            return TrainingLine(b"", answer.text, fault, 1, has_input)
        values = {column: texts[column].text for column in self._columns}
        chat = [*self._asked_by.render(values), {"role": "assistant", "content": answer.text}]
        line = orjson.dumps({"messages": chat})
        tokens = sum(len(message["content"].encode()) // 4 or 1 for message in chat)
        return TrainingLine(line, answer.text, fault, tokens, has_input)


def line_maker(task: Task) -> LineMaker:
    """What makes the lines of a task."""
    return LineMaker(task) if task.asked_by is None else PromptLineMaker(task)


def asked_by(task: Task) -> dict[str, object]:
    """What a manifest says of the prompt that a task's examples are made by."""
    return {} if task.asked_by is None else {"asked_by": task.asked_by.document()}


def _escaped(text: str) -> bytes:
    return orjson.dumps(text)[1:-1]
