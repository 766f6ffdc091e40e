"""Which addresses are refused, however they are written: a fact of numbers, known without a call.

`settings.checks` asks it of what is written in the settings, `outgoing` of what is connected to.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

Number = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

METADATA = ("metadata.google.internal", "metadata.goog", "instance-data.ec2.internal")
"""Names under which clouds tell a machine its own keys."""

METADATA_NUMBERS = ("100.100.100.200", "fd00:ec2::254", "168.63.129.16")
"""Where clouds do so beside the link-local address of most."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

GIVES_OUT_KEYS = "is an address of the link or of a cloud's metadata, which gives out keys"


def number_of(host: str) -> Number | None:
    """The number that a host is written as, as the system's resolver reads it; None of a name.

    An IPv4 address within an IPv6 one (mapped, NAT64, 6to4) is the IPv4 address.
    """
    host = host.rstrip(".").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        try:  # 2852039166, 0xa9fea9fe, 0251.0376.0251.0376 and the like
            found = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None
    return _inner(found)


def _inner(number: Number) -> Number:
    if isinstance(number, ipaddress.IPv4Address):
        return number
    if number in _NAT64:
        return ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
    return number.ipv4_mapped or number.sixtofour or number


def gives_out_keys(host: str) -> bool:
    """Whether a host, a name or a number, is of the own link or of a cloud's metadata."""
    if host.rstrip(".").lower() in METADATA:
        return True
    number = number_of(host)
    return number is not None and (number.is_link_local or str(number) in METADATA_NUMBERS)


def is_private(number: Number) -> bool:
    """Whether the Internet does not route it: RFC 1918, RFC 6598, loopback, ULA and the like."""
    return not number.is_global


def is_within(number: Number, networks: Sequence[str]) -> bool:
    """Whether a number is in one of these networks."""
    return any(number in ipaddress.ip_network(network) for network in networks)
