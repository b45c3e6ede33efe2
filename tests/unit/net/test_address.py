"""URLs that callers name: what is read from them, and which addresses are public."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.net.address import AddressRefused, Place, is_reachable, read_url

READ = {
    "http://example.org": ("http", "example.org", 80, "/", "example.org"),
    "HTTPS://Example.ORG:443/a/b.png?c=d#e": ("https", "example.org", 443, "/a/b.png?c=d", "example.org"),
    "http://example.org:8080?x": ("http", "example.org", 8080, "/?x", "example.org:8080"),
    "https://bücher.example/é.png": ("https", "xn--bcher-kva.example", 443, "/%C3%A9.png", "xn--bcher-kva.example"),
    "http://[2606:4700::6810:84e5]:81/": ("http", "2606:4700::6810:84e5", 81, "/", "[2606:4700::6810:84e5]:81"),
    "http://my_bucket.s3.example/%20?a=%2F&b=@:": ("http", "my_bucket.s3.example", 80, "/%20?a=%2F&b=@:", None),
    "http://93.184.215.14/x": ("http", "93.184.215.14", 80, "/x", "93.184.215.14"),
    "http://\uff11\uff12\uff17.0.0.1/": ("http", "127.0.0.1", 80, "/", "127.0.0.1"),
}


@pytest.mark.parametrize("url", READ)
def test_a_url_is_read(url: str) -> None:
    """Scheme, host in ASCII and lower case, port, path with query, and the Host header."""
    place = read_url(url)
    scheme, host, port, target, authority = READ[url]
    assert (place.scheme, place.host, place.port, place.target) == (scheme, host, port, target)
    assert authority is None or place.authority == authority
    assert read_url(place.url) == place


REFUSED = [
    "", "x", "//example.org/", "http:", "http://", "http:///x", "http:/example.org", "http:example.org", "ftp://a/",
    "file:///etc/passwd", "gopher://a/", "data:image/png;base64,AAAA", "javascript:1", "http://a@b/", "http://a:b@c/",
    "http://@b/", "http://ok\\@evil/", "http:\\\\a\\", "http://a b/", " http://a/", "http://a/\t", "http://a/\r\nx: y",
    "http://a\x00b/", "http://a/\x7f", "http://a/<b>", "http://a/\"b", "http://127.1/", "http://0/", "http://2130706433/",
    "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.0.0.1./", "http://1.2.3.4.5/",
    "http://256.1.1.1/", "http://a.0x/", "http://[::1", "http://[::1]x/", "http://[fe80::1%25lo]/", "http://[fe80::1%lo]/",
    "http://[1.2.3.4]/", "http://[v1.x]/", "http://a:/", "http://a:x/", "http://a:0/", "http://a:65536/",
    "http://a:\uff18\uff10/", "http://a:80:80/", "http://a%2eb/", "http://a%00.b/", "http://a..b/", "http://.a/", "http://a./",
    "http://-a/", "http://" + "a" * 64 + "/", "http://" + "a." * 130 + "a/", "http://a/" + "x" * 4096, "http://\ud800/",
    "http://a/\ud800", "http://a!b/", "http://a;b/", "http://127\u30020\u30020\u30021%00/", "http://\u2100.example/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: repr(url[:40]))
def test_anything_else_is_refused(url: str) -> None:
    """Every URL that programs might read in two ways, or that leads elsewhere than it seems."""
    with pytest.raises(AddressRefused):
        read_url(url)


@given(st.text(alphabet="htps:/\\@?#[]%.-_ax01\uff17\u3002\t é", max_size=40))
def test_what_is_read_means_the_same_to_others(tail: str) -> None:
    """Whatever is accepted, written out, names the same host and port to another parser."""
    try:
        place: Place = read_url("http://" + tail)
    except AddressRefused:
        return
    other = urlsplit(place.url)
    assert (other.scheme, other.hostname, other.port or 80) == (place.scheme, place.host, place.port)
    assert other.username is None
    assert place.url.isascii()


INSIDE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "168.63.129.16", "100.100.100.200", "::",
    "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b::127.0.0.1",
    "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1",
    "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1", "2606:4700::1%eth0",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_not_public_is_not_reachable(address: str) -> None:
    """Every special range of IPv4 and IPv6, and every way to write an IPv4 address within an IPv6 one."""
    assert not is_reachable(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700::6810:84e5", "2a00:1450:4007::1"])
def test_public_addresses_are_reachable(address: str) -> None:
    """Ordinary addresses of the Internet."""
    assert is_reachable(ip_address(address))


def test_an_operator_opens_networks_and_never_metadata() -> None:
    """A network that is allowed counts; where a cloud keeps credentials does not, in no spelling."""
    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    for address in ("10.1.2.3", "127.0.0.1", "fd00::1", "::1", "::ffff:10.1.2.3", "64:ff9b::8.8.8.8"):
        assert is_reachable(ip_address(address), everything)
    for address in (
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "fd00:ec2::254",
    ):
        assert not is_reachable(ip_address(address), everything)
    nat64 = (ip_network("64:ff9b::/96"),)
    assert is_reachable(ip_address("64:ff9b::8.8.8.8"), nat64)
    assert not is_reachable(ip_address("64:ff9b::10.0.0.1"), nat64)
    assert not is_reachable(ip_address("10.0.0.1"), (ip_network("10.1.0.0/16"),))
