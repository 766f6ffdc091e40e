"""Personal data is found by pattern and check digit; ordinary numbers are left alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneproof.curation.rules import has_special_token, redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("mail ada.lovelace+x@mail.example.org now", "mail [email] now"),
        ("pay to GB82 WEST 1234 5698 7654 32", "pay to [iban]"),
        ("pay to DE89370400440532013000.", "pay to [iban]."),
        ("card 4111-1111-1111-1111", "card [card]"),
        ("host 203.0.113.9 is down", "host [ip] is down"),
        ("host 2001:db8::8a2e:370:7334 is down", "host [ip] is down"),
        ("ring +49 30 901820 12", "ring [phone]"),
        ("ring +4915112345678", "ring [phone]"),
        ("ring (030) 901820", "ring [phone]"),
        ("ring 555-123-4567", "ring [phone]"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(text: str, clean: str) -> None:
    counts: Counter[str] = Counter()
    assert redact(text, counts) == clean
    assert counts.total() == 1


@pytest.mark.parametrize(
    "text",
    [
        "GB82 WEST 1234 5698 7654 33 has a wrong check digit",
        "order 4111 1111 1111 1112",
        "on 2024-11-30 10:15:00 or 12.11.2024",
        "1999 2000 2001 2002 were good years",
        "1,234,567 users, 99.95 % of them, at 12:30",
        "version 1.2.3.4.5 of 127.0.0.1",
        "a 16:9 screen, a @handle, pi is 3.14159265358979",
        "You Won't Believe These 17 Tricks (Number 9 Is 100% True)",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=200))
def test_redaction_ends_and_is_stable(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


def test_special_tokens_are_found() -> None:
    assert has_special_token("so <|fim_suffix|> it goes")
    assert not has_special_token("a <| b |> c, 1 <|2")
