"""Requests to addresses that callers name: which are refused, and that a name is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from passerelle.net.public import AddressRefused, PublicPost

LOCAL = (ip_network("127.0.0.0/8"),)


class Receiver:
    """A server that answers each request with one status, and keeps what it was sent."""

    def __init__(self, status: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> None:
        self.status = status
        self.requests: list[bytes] = []
        self.port = 0

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        writer.write(self.status)
        await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
    ],
)
async def test_private_addresses_are_refused(address: str) -> None:
    """Whatever a name leads to that is not public is not connected to; one such address among public ones suffices."""

    async def resolved(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34", address]

    with pytest.raises(AddressRefused, match="private network"):
        await PublicPost(resolve=resolved)("http://example.org/", {}, b"")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://user:pw@example.org/",
        "http://",
        "http://exa\\mple.org/",
        "http://example.org\\@127.0.0.1/",
        "http://a b/",
        "http://example.org:99999/",
        "http://a;b.example/",
        "http://example.org/\r\nx: y",
    ],
)
async def test_odd_addresses_are_refused(url: str) -> None:
    """What is not a plain http or https URL is refused before a name is asked."""

    async def never(host: str, port: int) -> Sequence[str]:
        raise AssertionError("no name is asked")

    with pytest.raises(AddressRefused):
        await PublicPost(resolve=never)(url, {}, b"")


async def test_the_address_that_was_looked_at_is_the_one_connected_to() -> None:
    """A name is resolved once for a request: a second, different answer is never asked for."""
    asked: list[str] = []

    async def resolved(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with Receiver() as receiver:
        url = f"http://hooks.example.org:{receiver.port}/a?b=1"
        status = await PublicPost(LOCAL, resolve=resolved)(url, {"webhook-id": "msg_1"}, b"{}")
    assert (status, asked) == (204, ["hooks.example.org"])
    (request,) = receiver.requests
    assert request.startswith(b"POST /a?b=1 HTTP/1.1\r\nhost: hooks.example.org:")
    assert b"webhook-id: msg_1\r\n" in request
    assert request.endswith(b"\r\n\r\n{}")


async def test_redirects_are_not_followed_and_other_answers_are_errors() -> None:
    """A redirect is a status like any other; what is not HTTP, or never comes, is an OSError."""
    async with Receiver(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n\r\n") as receiver:
        assert await PublicPost(LOCAL)(f"http://127.0.0.1:{receiver.port}/", {}, b"") == 302
        receiver.status = b"SSH-2.0-x\r\n"
        with pytest.raises(OSError, match="not HTTP"):
            await PublicPost(LOCAL)(f"http://127.0.0.1:{receiver.port}/", {}, b"")
        receiver.status = b"a" * 20_000
        with pytest.raises(OSError, match="not HTTP"):
            await PublicPost(LOCAL)(f"http://127.0.0.1:{receiver.port}/", {}, b"")

    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        await PublicPost(timeout_s=0.05, resolve=silent)("http://example.org/", {}, b"")
