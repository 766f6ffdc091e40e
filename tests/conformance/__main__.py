"""Prints the score, writes it into the docs, and fails below 99 % of the fields.

python -m tests.conformance openapi.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from tests.conformance.document import Document, Score
from tests.conformance.life import Life
from tests.trainer.integration.test_engines import Scripted

from tuneproof_trainer.embedded import EmbeddedTrainer
from tuneproof_trainer.engines.ngram.engine import NgramEngine
from tuneproof_trainer.settings import TrainerSettings

REASONS = {
    ("status",): "`pausing` and `paused`, which the original answers and its document leaves out",
    ("data", "[]", "embedding"): "base64, where it is asked for; the document knows numbers only",
    ("data", "[]", "role"): "the roles of what was asked; the document has the answer's only",
}
"""What deviates on purpose, and why."""

LEAST = 0.99
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trainer.md"
BEGIN, END = "<!-- conformance -->\n", "<!-- /conformance -->\n"
OURS = ("/files", "/uploads", "/fine_tuning", "/models", "/chat/completions", "/embeddings")


def scored(document: Document) -> Score:
    """A whole life, checked answer by answer."""
    score = Score()

    def told(method: str, path: str, answer: httpx2.Response) -> None:
        operation = document.template(method, path)
        assert operation is not None, f"{method} {path} is not in the document"
        kind = answer.headers["content-type"].partition(";")[0]
        for one in _answers(answer, kind):
            score.count(operation, one, document.wrong(operation, answer.status_code, kind, one))

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(dir=Path(folder))
        engines: Any = [NgramEngine(), Scripted()]
        with EmbeddedTrainer(settings, engines=engines) as trainer:
            Life(trainer.base_url, told).live()
    return score


def _answers(answer: httpx2.Response, kind: str) -> list[Any]:
    if kind != "text/event-stream":
        return [answer.json()]
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def report(document: Document, score: Score) -> str:
    """The score as the docs have it."""
    good, fields = score.fields - score.wrong_fields, score.fields
    operations = document.operations(*OURS)
    lines = [
        f"{len(score.conforming())} of {len(score.seen)} operations and {good} of {fields} fields "
        f"({good / fields:.2%}) conform; the document has {len(operations)} operations on these "
        "paths. What deviates:",
        "",
    ]
    for operation, wrong in sorted(score.wrong.items()):
        lines += [
            f"- `{operation}`, `{'.'.join(place)}`: {REASONS.get(place, _short(why))}"
            for place, why in sorted(wrong.items())
        ]
    missing = sorted(set(operations) - set(score.seen))
    lines += ["", f"Not served, or not as JSON: {', '.join(f'`{name}`' for name in missing)}.", ""]
    return "\n".join(lines)


def _short(why: str) -> str:
    return why.replace("|", "or").replace("\n", " ")


def main() -> None:
    document = Document(Path(sys.argv[1]))
    score = scored(document)
    told = report(document, score)
    sys.stdout.write(told)
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + told + END + after, "utf-8")
    unexplained = {place for wrong in score.wrong.values() for place in wrong} - set(REASONS)
    if unexplained:
        sys.exit(f"without a reason: {unexplained}")
    if score.wrong_fields > (1 - LEAST) * score.fields:
        sys.exit(f"less than {LEAST:.0%} of the fields conform")


if __name__ == "__main__":
    main()
