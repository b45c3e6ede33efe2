"""Where a caller is: only proxies that are trusted are believed, and only about who they saw."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from passerelle.domain.principal import Principal
from passerelle.edge.address import caller_address

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("127.0.0.1/32"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", [b"198.51.100.1"], "203.0.113.9"),  # nobody we trust
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"1.2.3.4, 198.51.100.1"], "198.51.100.1"),  # what the caller wrote stands first
        ("10.0.0.1", [b"1.2.3.4", b"198.51.100.1, 10.9.9.9"], "198.51.100.1"),  # two proxies, two headers
        ("10.0.0.1", [b"1.2.3.4, nonsense, 10.9.9.9"], "10.9.9.9"),
        ("::ffff:10.0.0.1", [b"[2001:db8::7]:4711"], "2001:db8::7"),
        ("fd00::1", [b"198.51.100.1:4711"], "198.51.100.1"),
        ("127.0.0.1", [b"10.0.0.8"], "10.0.0.8"),  # inside all the way
        (None, [b"198.51.100.1"], None),
    ],
)
def test_the_callers_address(peer: str | None, forwarded: list[bytes], expected: str | None) -> None:
    """The last address that is not a trusted proxy's."""
    headers = [(b"x-forwarded-for", value) for value in forwarded]
    assert caller_address(peer, headers, TRUSTED) == expected


def test_without_trusted_proxies_nobody_is_believed() -> None:
    """The header alone moves nobody."""
    assert caller_address("10.0.0.1", [(b"x-forwarded-for", b"1.2.3.4")], ()) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("192.0.2.5", True),
        ("192.0.3.5", False),
        ("::ffff:192.0.2.5", True),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("nonsense", False),
        ("", False),
        (None, False),
    ],
)
def test_networks_of_a_key(address: str | None, allowed: bool) -> None:
    """An address in none of them, or that is not known, is refused; without networks every one is allowed."""
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert Principal("key_1", "k", networks=networks).may_come_from(address) == allowed
    assert Principal("key_1", "k").may_come_from(address)
