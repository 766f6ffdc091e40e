"""Lines put together from bytes are those that dumping the chat would give."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.posts import post

from tuneproof.collection import Task
from tuneproof.curation.lines import Cleaner, LineMaker

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@given(asked=texts, answer=texts, system=st.none() | texts, template=texts)
def test_line_is_the_dumped_chat(
    asked: str, answer: str, system: str | None, template: str
) -> None:
    around = template.replace("{", "{{").replace("}", "}}")
    task = Task(
        name="t", prompt=f"{around}{{original_input}} {{{{x}}}}", completion="hook", system=system
    )
    given_post = post(1, original_input=asked, hook=answer)
    clean = Cleaner("keep")
    found = {column: clean(given_post.text(column)) for column in ("original_input", "hook")}
    line = LineMaker(task).line(found)
    assert line.json == orjson.dumps({"messages": task.messages(given_post)})


@pytest.mark.parametrize(
    ("text", "fault"),
    [("fine", None), ("caf\udce9", "not_utf8"), ("a <|im_end|> b", "special_token")],
)
def test_fault_of_any_text_is_the_fault_of_the_line(text: str, fault: str | None) -> None:
    task = Task(name="t", prompt="{original_input}", completion="hook")
    clean = Cleaner("redact")
    for asked, answer in ((text, "fine"), ("fine", text)):
        line = LineMaker(task).line({"original_input": clean(asked), "hook": clean(answer)})
        assert line.fault == fault
