"""Server-sent events: any split of any bytes gives the same events, and loses no byte."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tuneproof.server.sse import EventSplitter, data_of
from tuneproof.server.upstream import renamed

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.one_of(
    st.sampled_from([b"data", b"data:", b": hi", b"event: x", b"id: 1", b"retry: 5", b"datax: 1"]),
    st.text(st.characters(exclude_characters="\r\n"), max_size=20).map(
        lambda text: b"data: " + text.encode(errors="replace")
    ),
)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    splitter = EventSplitter()
    found, begin = [], 0
    for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        found += splitter.feed(stream[begin:cut])
        begin = cut
    rest = splitter.end()
    return [*found, rest] if rest else found


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_no_byte_is_lost_or_made_up(stream: bytes, cuts: list[int]) -> None:
    assert b"".join(split(stream, cuts)) == stream


@given(
    st.lists(st.tuples(st.lists(LINES, min_size=1, max_size=4), ENDS), max_size=6),
    st.lists(st.integers(0, 1000), max_size=30),
)
def test_any_split_carries_the_same_data(
    events: list[tuple[list[bytes], bytes]], cuts: list[int]
) -> None:
    stream = b"".join(b"".join(line + end for line in lines) + end for lines, end in events)
    found = [data_of(raw) for raw in split(stream, cuts)]
    assert [data for data in found if data is not None] == [
        data for lines, _ in events if (data := _reference(lines)) is not None
    ]


def _reference(lines: list[bytes]) -> bytes | None:
    """By the letter of the specification, a line at a time."""
    parts = []
    for line in lines:
        field, _, value = line.partition(b":")
        if field == b"data":
            parts.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(parts) if parts else None


IDS = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(IDS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(IDS, VALUES, max_size=4), IDS, st.booleans(), st.booleans())
def test_only_the_id_is_another(
    body: dict[str, object], id: str, ascii: bool, compact: bool
) -> None:
    body = {**body, "id": id}
    separators = (",", ":") if compact else None
    raw = json.dumps(body, ensure_ascii=ascii, separators=separators).encode()
    ours = json.loads(renamed(raw, body, "tp-ours"))
    assert ours == {**body, "id": "tp-ours"}
    event = b"data: " + raw + b"\n\n"
    assert json.loads(data_of(renamed(event, body, "tp-ours")) or b"") == ours


EVENTS = st.fixed_dictionaries(
    {"type": st.just("response.created"), "response": st.fixed_dictionaries({"id": st.text()})},
    optional={"id": st.text(), "x": st.text()},
)


@given(EVENTS, st.sampled_from([None, 1]), st.sampled_from([b"\n", b"\r\n"]))
def test_an_id_within_an_event_is_replaced_and_nothing_else(body, indent, end):
    text = json.dumps(body, indent=indent).encode()
    data = b"".join(b"data: " + line + end for line in text.split(b"\n"))
    event = b": hi" + end + b"event: response.created" + end + data + end
    found = renamed(event, body, "tp-ours", "response")
    ours = {**body, "response": {**body["response"], "id": "tp-ours"}}
    assert json.loads(data_of(found) or b"") == ours
    assert b"event: response.created" in found
    assert EventSplitter().feed(found) == [found]


def test_an_event_without_what_holds_an_id_stays_as_it_is():
    event = b'event: ping\ndata: {"type": "ping", "id": "x"}\n\n'
    assert renamed(event, {"type": "ping", "id": "x"}, "tp-ours", "message") is event


OTHERS = st.lists(st.sampled_from([b"event: x", b": hi", b"id: 7", b"datax: 1", b""]), max_size=2)
NO_IDS = st.sampled_from([None, "", 5, "same"])


@given(OTHERS, OTHERS, ENDS, NO_IDS, st.sampled_from([None, 1]), st.booleans())
def test_the_other_lines_of_an_event_stay(
    before: list[bytes], behind: list[bytes], end: bytes, id: object, indent: int | None, bom: bool
) -> None:
    """Seen: `event:` was lost where the provider's id could not be found for certain."""
    before, behind = [line for line in before if line], [line for line in behind if line]
    body = {"id": id, "choices": ["", "same"]}
    lines = [b"data: " + line.encode() for line in json.dumps(body, indent=indent).split("\n")]
    event = b"\xef\xbb\xbf" * bom + b"".join(one + end for one in [*before, *lines, *behind, b""])
    ours = renamed(event, body, "tp-ours")
    assert json.loads(data_of(ours) or b"") == {**body, "id": "tp-ours"}
    kept = [
        one
        for one in ours.split(end)
        if not one.removeprefix(b"\xef\xbb\xbf").startswith(b"data: ")
    ]
    first = b"\xef\xbb\xbf" * (bom and bool(before))
    assert first + b"".join(before + behind) == b"".join(kept)
    assert ours.endswith(end + end)
