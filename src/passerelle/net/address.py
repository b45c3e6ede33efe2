"""Addresses that callers name: the one parser of their URLs, and which IP addresses are public.

Two parsers that read one URL differently are how requests get into a private network (CVE-2026-24779, CVE-2026-45400).
So a URL is read here, once, by rules narrower than those of RFC 3986, and what connects uses nothing but the result.
Sources: the IANA registries of special-purpose addresses; WHATWG URL for hosts that end in a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 4096
"""Upper bound of a URL's characters."""
DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"(https?)://([^/?]+)([/?].*)?\Z", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\\"<>^`{|}]")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_\-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"([0-9]+|0x[0-9a-f]*)\Z")
_KEPT = "".join(chr(code) for code in range(0x21, 0x7F))

_SPECIAL_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_UNICAST_6 = IPv6Network("2000::/3")
_SPECIAL_6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_EMBEDDING = (
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::ffff:0:0:0/96"), 0),
    (IPv6Network("::/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("64:ff9b:1::/48"), 0),
    (IPv6Network("2002::/16"), 80),
)
"""IPv6 networks whose addresses lead to an IPv4 address, and how far right of its end that stands (bits)."""
_METADATA = frozenset(
    {
        IPv4Address("169.254.169.254"), IPv4Address("169.254.170.2"), IPv4Address("169.254.170.23"),
        IPv4Address("100.100.100.200"), IPv4Address("168.63.129.16"), IPv4Address("192.0.0.192"),
        IPv6Address("fd00:ec2::254"), IPv6Address("fd00:ec2::23"), IPv6Address("fd20:ce::254"),
    }
)  # fmt: skip
"""Where clouds hand credentials to whoever asks from within: no setting opens these."""


class AddressRefused(ValueError):
    """The address may not be asked; the message, a sentence, says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL names. ``host`` is ASCII: a name, or an IP address without brackets; ``target`` is path and query."""

    scheme: str
    host: str
    port: int
    target: str
    literal: Address | None
    """The host as an address, None for a name."""

    @property
    def authority(self) -> str:
        """Returns the value of the Host header."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return shown if self.port == DEFAULT_PORTS[self.scheme] else f"{shown}:{self.port}"

    @property
    def url(self) -> str:
        """Returns it written out; reading that gives this place again."""
        return f"{self.scheme}://{self.authority}{self.target}"


def read_url(url: str) -> Place:
    """Reads an http or https URL without credentials. Raises AddressRefused."""
    if len(url) > MAX_URL:
        raise AddressRefused(f"The address is longer than {MAX_URL} characters.")
    if _UNSAFE.search(url):
        raise AddressRefused("The address holds characters that a URL does not.")
    found = _URL.match(url.partition("#")[0])
    if found is None:
        raise AddressRefused("The address is not an http or https URL.")
    scheme, authority, target = found[1].lower(), found[2], found[3] or "/"
    if "@" in authority:
        raise AddressRefused("The address holds a user name or password.")
    host, port = _split(authority, DEFAULT_PORTS[scheme])
    literal = _literal(host)
    if target.startswith("?"):
        target = "/" + target
    try:
        target = quote(target, safe=_KEPT)
    except UnicodeEncodeError:
        raise AddressRefused("The address holds characters that a URL does not.") from None
    return Place(scheme, _name(host) if literal is None else str(literal), port, target, literal)


def _split(authority: str, default: int) -> tuple[str, int]:
    """Returns the host in lower case, IPv6 in its brackets, and the port."""
    if authority.startswith("["):
        host, closing, rest = authority.partition("]")
        host += closing
    else:
        host, colon, rest = authority.partition(":")
        rest = colon + rest
        try:
            host = host.lower() if host.isascii() else host.encode("idna").decode("ascii").lower()
        except UnicodeError:
            raise AddressRefused("The address names no valid host.") from None
    if not rest:
        return host, default
    if not rest.startswith(":") or not _PORT.match(rest[1:]) or not 0 < int(rest[1:]) < 65_536:
        raise AddressRefused("The address has no valid port.")
    return host, int(rest[1:])


def _literal(host: str) -> Address | None:
    """Returns a host that is an IP address, written the one usual way. Raises AddressRefused for other ways."""
    try:
        if host.startswith("["):
            if "%" in host or not host.endswith("]"):
                raise ValueError
            return IPv6Address(host[1:-1])
        if _NUMBER.match(host.removesuffix(".").rpartition(".")[2]):
            return IPv4Address(host)
    except ValueError:
        raise AddressRefused("The address names no valid host.") from None
    return None


def _name(host: str) -> str:
    if len(host) > 253 or not all(_LABEL.match(label) for label in host.split(".")):
        raise AddressRefused("The address names no valid host.")
    return host


def is_reachable(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether a caller may have this address asked: it is public, or within networks that an operator allows.

    An IPv6 address that leads to an IPv4 one (mapped, 6to4, NAT64) is never public, and allowed only when the operator
    allows its network and the IPv4 address may be asked as well. Addresses of cloud metadata never may.
    """
    if address in _METADATA or getattr(address, "scope_id", None) is not None:
        return False
    inner = _embedded(address)
    if inner is not None:
        return any(address in network for network in allowed) and is_reachable(inner, allowed)
    return _is_public(address) or any(address in network for network in allowed)


def _embedded(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv6Address):
        for network, shift in _EMBEDDING:
            if address in network and int(address) > 1:
                return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return None


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_4)
    return address in _UNICAST_6 and not any(address in network for network in _SPECIAL_6)
