"""Which headers go on when a request or an answer is passed on, and which are one connection's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from multidict import CIMultiDict

__all__ = ["of_answer", "of_request"]

Raw = Iterable[tuple[bytes, bytes]]

_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""What is said to the next hop alone (RFC 9110); beside these, what `Connection` names."""

_ASKED = _HOP | {
    b"accept-encoding",  # usage is read from the answer's bytes
    b"api-key",
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"openai-organization",  # of the caller's key, and the provider's is ours
    b"openai-project",
    b"origin",
    b"referer",
    b"via",
    b"x-api-key",
    b"x-goog-api-key",
    b"x-real-ip",
}
_ASKED_PREFIXES = (b"sec-", b"x-forwarded-", b"x-tuneproof-")

_ANSWERED = _HOP | {
    b"alt-svc",  # these speak of the provider's host, and would be believed of ours
    b"set-cookie",
    b"strict-transport-security",
    b"date",  # these are ours to say
    b"x-content-type-options",
}


def of_request(headers: Raw, credentials: Mapping[str, str]) -> CIMultiDict[str]:
    """The caller's headers for the provider, whose key stands in place of the caller's."""
    given = list(headers)
    dropped = _ASKED | _named_by_connection(given)
    found = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in given
        if name not in dropped and not name.startswith(_ASKED_PREFIXES)
    )
    found["Accept-Encoding"] = "identity"
    for name, value in credentials.items():
        found.setdefault(name, value)
    return found


def of_answer(headers: Raw) -> Sequence[tuple[bytes, bytes]]:
    """The provider's headers for the caller."""
    given = [(name.lower(), value) for name, value in headers]
    dropped = _ANSWERED | _named_by_connection(given)
    return [
        (name, value)
        for name, value in given
        if name not in dropped and not name.startswith(b"x-tuneproof-")
    ]


def _named_by_connection(headers: Raw) -> frozenset[bytes]:
    return frozenset(
        named.strip().lower()
        for name, value in headers
        if name == b"connection"
        for named in value.split(b",")
    )
