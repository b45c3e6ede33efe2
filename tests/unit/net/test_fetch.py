"""The fetcher of addresses that callers name, against servers and resolvers that mean harm."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.harness.pictures import PictureServer, png

from passerelle.net.address import AddressRefused
from passerelle.net.fetch import Fetcher, FetchRules, NotFetched, Resolve

TLS = Path(__file__).parents[2] / "harness" / "tls"
LOCAL = (ip_network("127.0.0.0/8"),)


@asynccontextmanager
async def fetching(
    server: PictureServer,
    *,
    open_network: bool = True,
    resolve: Resolve | None = None,
    max_bytes: int = 1_000_000,
    timeout_s: float = 10.0,
    idle_s: float = 5.0,
) -> AsyncIterator[Fetcher]:
    """A fetcher that may ask the server's port, and its network too unless that stays closed."""
    rules = FetchRules(LOCAL if open_network else (), (server.port,), max_bytes, timeout_s, idle_s)
    fetcher = Fetcher(rules, resolve=resolve)
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


async def to_here(host: str, port: int) -> Sequence[str]:
    """A resolver: every name is this machine."""
    return ["127.0.0.1"]


async def test_a_picture_comes_whole() -> None:
    """Its bytes; the request holds the name, no credentials, and asks for no compression."""
    async with PictureServer() as server, fetching(server, resolve=to_here) as fetcher:
        assert await fetcher.get(server.url("/ok", "pictures.example")) == png()
        head = server.heads[0].lower()
        assert b"host: pictures.example:%d\r\n" % server.port in head
        assert b"accept-encoding: identity" in head
        assert b"authorization" not in head and b"cookie" not in head


async def test_five_redirects_and_no_more() -> None:
    """Each is followed, with no cookie of the answers before; the sixth is refused, and so is a circle."""
    async with PictureServer() as server, fetching(server) as fetcher:
        assert await fetcher.get(server.url("/hop/4")) == png()
        assert not any(b"cookie" in head.lower() for head in server.heads)
        for path in ("/hop/5", "/loop"):
            before = server.visits
            with pytest.raises(NotFetched, match="more than 5 redirects"):
                await fetcher.get(server.url(path))
            assert server.visits - before == 6
        with pytest.raises(NotFetched, match="leads nowhere"):
            await fetcher.get(server.url("/nowhere"))
        with pytest.raises(NotFetched, match="404"):
            await fetcher.get(server.url("/missing"))


@pytest.mark.parametrize(
    "there",
    [
        "http://10.0.0.1:{port}/x", "http://169.254.169.254/latest/", "http://[::1]:{port}/", "file:///etc/passwd",
        "gopher://127.0.0.1/", "//user@127.0.0.1:{port}/", "http://2130706433:{port}/", "http://localhost:22/",
        "http://[::ffff:10.0.0.1]/",
    ],
)  # fmt: skip
async def test_each_redirect_is_looked_at(there: str) -> None:
    """A server that may be asked leads to places that may not: they are not asked."""
    async with PictureServer() as server, fetching(server) as fetcher:
        with pytest.raises(AddressRefused):
            await fetcher.get(server.url("/to/" + there.format(port=server.port)))
        assert server.visits == 1


async def test_a_name_that_changes_its_mind_leads_nowhere() -> None:
    """The name is asked once, and the connection goes to what was looked at then."""
    async with PictureServer() as server:
        answers = iter([["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1"]])
        asked: list[str] = []

        async def rebinding(host: str, port: int) -> Sequence[str]:
            asked.append(host)
            return next(answers)

        async with fetching(server, resolve=rebinding) as fetcher:
            assert await fetcher.get(server.url("/ok", "rebind.example")) == png()
            assert asked == ["rebind.example"]
            with pytest.raises(AddressRefused):
                await fetcher.get(server.url("/ok", "rebind.example"))
        assert server.visits == 1


@pytest.mark.parametrize(
    "found",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["::1"], ["fe80::1%lo"], ["64:ff9b::7f00:1"]],
)
async def test_one_private_address_of_a_name_is_enough(found: list[str]) -> None:
    """A name with any address inside is refused, and nobody is asked."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return found

    async with PictureServer() as server, fetching(server, open_network=False, resolve=resolve) as fetcher:
        with pytest.raises(AddressRefused, match="private network"):
            await fetcher.get(server.url("/ok", "mixed.example"))
        assert server.visits == 0


async def test_no_redirect_from_https_to_http() -> None:
    """TLS is checked for the name while the connection goes to the address; what it protects is not given up."""
    trust = ssl.create_default_context(cafile=str(TLS / "ca.pem"))
    certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certified.load_cert_chain(TLS / "server.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        location = b"location: http://localhost:%d/ok\r\n" % plain.port if b"/down" in head else b""
        status = b"302 Found" if location else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + location + b"content-length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with PictureServer() as plain:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=certified)
        port = server.sockets[0].getsockname()[1]
        rules = FetchRules(LOCAL, (port, plain.port))
        fetcher = Fetcher(rules, resolve=to_here, tls=trust)
        try:
            assert await fetcher.get(f"https://localhost:{port}/") == b"hi"
            with pytest.raises(AddressRefused, match="from https to http"):
                await fetcher.get(f"https://localhost:{port}/down")
            with pytest.raises(NotFetched, match="certificate"):
                await fetcher.get(f"https://other.example:{port}/")
        finally:
            server.close()
            await fetcher.aclose()
        assert plain.visits == 0


@pytest.mark.parametrize("path", ["/endless", "/lying-length"])
async def test_an_endless_answer_is_cut_at_the_limit(path: str) -> None:
    """10 GB are promised, or nothing; no more than the limit is taken (and what the network holds)."""
    async with PictureServer() as server, fetching(server, max_bytes=200_000) as fetcher:
        with pytest.raises(NotFetched, match="larger than 200000 bytes"):
            await fetcher.get(server.url(path))
        assert server.sent < 20_000_000


async def test_a_dripping_answer_ends_with_the_deadline() -> None:
    """A byte now and then keeps no connection beyond the time for all of it."""
    async with PictureServer() as server, fetching(server, timeout_s=0.4) as fetcher:
        began = time.monotonic()
        with pytest.raises(NotFetched, match=r"within 0\.4 s"):
            await fetcher.get(server.url("/drip"))
        with pytest.raises(NotFetched):
            await fetcher.get(server.url("/silent"))
        assert time.monotonic() - began < 20


async def test_a_compressed_answer_is_not_opened() -> None:
    """A bomb nobody asked for is refused as it is."""
    async with PictureServer() as server, fetching(server) as fetcher:
        with pytest.raises(NotFetched, match="compressed"):
            await fetcher.get(server.url("/gzip"))


async def test_ports_are_the_usual_ones() -> None:
    """Another port is refused before anything is resolved, unless the operator allows it."""
    fetcher = Fetcher(FetchRules(LOCAL))
    with pytest.raises(AddressRefused, match=r"fetch\.allow_ports"):
        await fetcher.get("http://127.0.0.1:22/")
    with pytest.raises(AddressRefused, match=r"fetch\.allow_ports"):
        await fetcher.get("https://127.0.0.1:80/")
    await fetcher.aclose()


async def test_a_second_address_is_tried() -> None:
    """A name whose first address does not answer is asked at the next."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.2", 0))

        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["127.0.0.2", "127.0.0.1"]

        async with PictureServer() as server, fetching(server, resolve=resolve) as fetcher:
            assert await fetcher.get(server.url("/ok", "two.example")) == png()


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name by itself."""
    async with PictureServer() as server, PictureServer() as proxy, fetching(server) as fetcher:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url(""))
        assert await fetcher.get(server.url("/ok")) == png()
        assert proxy.visits == 0


async def test_the_systems_resolver_is_asked() -> None:
    """Without another resolver: localhost is this machine, and a name that is none is said so."""
    async with PictureServer() as server, fetching(server, open_network=False) as fetcher:
        with pytest.raises(AddressRefused):
            await fetcher.get(server.url("/ok", "localhost"))
        with pytest.raises(NotFetched, match="does not resolve"):
            await fetcher.get(server.url("/ok", "no-such-name.invalid"))
        assert server.visits == 0
