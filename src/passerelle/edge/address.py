"""Where a caller is: the connection's other end, or what a trusted proxy says of it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from passerelle.domain.client import Headers
from passerelle.domain.principal import Network
from passerelle.edge.exchange import header_values


def caller_address(peer: str | None, headers: Headers, trusted: Iterable[Network]) -> str | None:
    """Returns the address of the caller, None when the server does not tell the connection's.

    Behind proxies that ``trusted`` names it is the last address of ``X-Forwarded-For`` that is not such a proxy's:
    each adds the address it saw at the end, so what a caller wrote there stands before it and is not believed.
    """
    found = _parse(peer)
    trusted = tuple(trusted)
    if found is None or not _is_in(found, trusted):
        return peer
    hops = b",".join(header_values(headers, b"x-forwarded-for")).decode("latin-1").split(",")
    for hop in reversed(hops):
        before = _parse(hop)
        if before is None:
            break
        found = before
        if not _is_in(found, trusted):
            break
    return str(found)


def _parse(text: str | None) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: with a port, in brackets, or IPv4 inside IPv6."""
    if text is None:
        return None
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: IPv4Address | IPv6Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
