"""Calls to providers, webhooks and targets: which addresses they may have, by which clients.

`rules` says what may be called; `clients` makes the clients that keep to it, for httpx, aiohttp and
urllib3, and is imported by who needs one.
"""

from tuneproof.outgoing.rules import ANYWHERE, AddressRefused, Rules, told

__all__ = ["ANYWHERE", "AddressRefused", "Rules", "told"]
