"""Rules that look at one text or one example, and need to remember nothing.

Personal data is found by pattern and, where there is one, by check digit: card numbers must
pass Luhn (ISO/IEC 7812-1), IBANs modulo 97 (ISO 13616), so that an order number is left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import Final

__all__ = ["has_special_token", "redact"]

_SPECIAL: Final = re.compile(r"<\|[A-Za-z_]{2,40}\|>")
_EMAIL: Final = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_IBAN: Final = re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD: Final = re.compile(r"(?<![\w.+-])[0-9](?:[ -]?[0-9]){12,18}(?![\w-])")
_IPV4: Final = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w.]*[0-9])")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?![\w:])")
_PHONE: Final = re.compile(r"(?<![\w.+-])\+?\(?[0-9][0-9 ()./-]{5,18}[0-9](?![\w-])")
_NATIONAL: Final = re.compile(r"[0-9]{3}[ .-][0-9]{3}[ .-][0-9]{4}")
# What every card, phone number and IPv4 address has in it, or every IBAN, and little else.
_DIGITS: Final = re.compile(r"[0-9][0-9 ()./-]{5,18}[0-9]")
_COUNTRY: Final = re.compile(r"[A-Z]{2}[0-9]{2}")


def has_special_token(text: str) -> bool:
    """Whether a token of a model's control language is in the text, such as `<|im_end|>`.

    Providers refuse a file with one.
    """
    return "<|" in text and _SPECIAL.search(text) is not None


def redact(text: str, counts: Counter[str] | None = None) -> str:
    """The text with personal data replaced by its kind: `[email]`, `[iban]`, `[card]`, `[ip]`,
    `[phone]`.

    `counts` counts by kind what was replaced.

    >>> redact("Write to ada@example.org or call +49 30 901820.")
    'Write to [email] or call [phone].'
    >>> redact("Card 4111 1111 1111 1111, order 4111 1111 1111 1112.")
    'Card [card], order 4111 1111 1111 1112.'
    """
    counts = Counter() if counts is None else counts
    if "@" in text:
        text = _replace(text, _EMAIL, "email", counts)
    if ":" in text and text.count(":") > 1:
        text = _replace(text, _IPV6, "ip", counts)
    if not _DIGITS.search(text) and not _COUNTRY.search(text):
        return text
    for kind, pattern in (("iban", _IBAN), ("card", _CARD), ("ip", _IPV4), ("phone", _PHONE)):
        text = _replace(text, pattern, kind, counts)
    return text


def _replace(text: str, pattern: re.Pattern[str], kind: str, counts: Counter[str]) -> str:
    def put(match: re.Match[str]) -> str:
        if not _CHECKS[kind](match.group()):
            return match.group()
        counts[kind] += 1
        return f"[{kind}]"

    return pattern.sub(put, text)


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    if len(set(digits)) == 1:
        return False
    doubled = [d if i % 2 == 0 else (d * 2 - 9 if d > 4 else d * 2) for i, d in _rightmost(digits)]
    return sum(doubled) % 10 == 0


def _rightmost(digits: list[int]) -> list[tuple[int, int]]:
    return list(enumerate(reversed(digits)))


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_ip(text: str) -> bool:
    if ":" in text and text.count(":") < 2:
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def _is_phone(text: str) -> bool:
    # International, national with its leading 0 or area code, or grouped as in North America:
    # any other digits are years, prices and scores more often than phone numbers.
    digits = sum(c.isdigit() for c in text)
    marked = text[0] in "+(" or (text[0] == "0" and text[1].isdigit())
    return (marked and 7 <= digits <= 15) or _NATIONAL.fullmatch(text) is not None


_CHECKS: Final = {
    "email": lambda text: True,
    "iban": _is_iban,
    "card": _is_card,
    "ip": _is_ip,
    "phone": _is_phone,
}
