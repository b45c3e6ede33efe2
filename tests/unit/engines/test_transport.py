"""Tests of what the engine contract does not reach: origins, the pool, connecting, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.harness.upstreamd import Upstream, body, close, end, headers, never, raw, reset, stall, status

from passerelle.domain.model import Timeouts
from passerelle.engines.base import EngineBroke, EngineRefused
from passerelle.engines.transport import MAX_BUFFERED_BYTES, Answer, Origin, Transport

TLS = Path(__file__).parents[2] / "harness" / "tls"
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENT = Timeouts(connect_s=20, first_byte_s=20, idle_s=20)
SHORT = Timeouts(connect_s=0.3, first_byte_s=0.3, idle_s=0.3)


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.aclose()


async def get(transport: Transport, url: str, *, ca_file: str | None = None, timeouts: Timeouts = PATIENT) -> Answer:
    pool = transport.pool(Origin.of(url, ca_file=ca_file))
    return await transport.request(pool, GET, timeouts=timeouts, timeout_s=30)


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    return context


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://gpu-1:8000/v1", ("http", "gpu-1", 8000, "gpu-1:8000")),
        ("http://GPU-1/v1", ("http", "gpu-1", 80, "gpu-1")),
        ("https://a.example/v1", ("https", "a.example", 443, "a.example")),
        ("https://a.example:80/v1", ("https", "a.example", 80, "a.example:80")),
        ("http://[::1]:8000/v1", ("http", "::1", 8000, "[::1]:8000")),
        ("http://bücher.example", ("http", "xn--bcher-kva.example", 80, "xn--bcher-kva.example")),
    ],
)
def test_origin(url: str, origin: tuple[str, str, int, str]) -> None:
    """An origin is read from a URL, with the Host header that belongs to it."""
    found = Origin.of(url)
    assert (found.scheme, found.host, found.port, found.authority) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu-1:8000",
        "ftp://a",
        "http://",
        "http://:80",
        "http://a:99999",
        "http://a:x",
        "http://[::1",
        "http://u:p@a",
        "http://" + "a" * 70,
        "http://a..b",
    ],
)
def test_bad_origin(url: str) -> None:
    """What is no http or https URL is refused, with words for a person."""
    with pytest.raises(EngineRefused, match=r"target's"):
        Origin.of(url)


async def test_idle_connections_expire(transport: Transport) -> None:
    """A connection waits so long for its next request, and is then closed."""
    transport = Transport(keep_alive_s=0.1)
    async with Upstream() as upstream:
        await (await get(transport, upstream.url)).read(1000)
        assert upstream.open_connections == 1
        assert await upstream.drained(5) > 0.05
        assert transport.pool(Origin.of(upstream.url)).open_count == 0


async def test_last_used_is_used_next(transport: Transport) -> None:
    """Of several idle connections the one that was used last is taken."""
    async with Upstream(scenario=[stall(0.02), status(200)]) as upstream:
        await asyncio.gather(*[_whole(transport, upstream.url) for _ in range(3)])
        pool = transport.pool(Origin.of(upstream.url))
        assert pool.idle_count == 3
        for _ in range(4):
            await _whole(transport, upstream.url)
        assert sorted(peer.requests for peer in upstream.peers) == [1, 1, 5]


async def _whole(transport: Transport, url: str) -> bytes:
    return await (await get(transport, url)).read(1000)


@pytest.mark.parametrize("ending", [close(), reset()])
async def test_closed_while_idle(transport: Transport, ending: object) -> None:
    """A connection that the server closed while it was idle leaves the pool by itself."""
    async with Upstream(scenario=[status(200), stall(0.05), ending]) as upstream:  # type: ignore[list-item]
        await _whole(transport, upstream.url)
        pool = transport.pool(Origin.of(upstream.url))
        assert pool.idle_count == 1
        await upstream.until(lambda: pool.idle_count == 0, 10)
        assert pool.open_count == 0


async def test_stale_twice(transport: Transport) -> None:
    """The second try is on a new connection and is the last, even if that one closes too."""
    async with Upstream(scenario=[status(200)]) as upstream:
        await _whole(transport, upstream.url)
        upstream.scenario = [close()]
        with pytest.raises(EngineBroke):
            await _whole(transport, upstream.url)
        assert [peer.requests for peer in upstream.peers] == [2, 1]


async def test_no_second_try_after_a_byte(transport: Transport) -> None:
    """A reused connection that breaks after one byte of answer is an unknown state."""
    async with Upstream(scenario=[status(200)]) as upstream:
        await _whole(transport, upstream.url)
        upstream.scenario = [raw(b"H"), stall(0.05), close()]
        with pytest.raises(EngineBroke):
            await _whole(transport, upstream.url)
        assert len(upstream.requests) == 2


async def test_no_second_try_after_a_deadline(transport: Transport) -> None:
    """A reused connection on which nothing comes in time is not tried again."""
    async with Upstream(scenario=[status(200)]) as upstream:
        await _whole(transport, upstream.url)
        upstream.scenario = [never()]
        with pytest.raises(EngineBroke) as caught:
            await get(transport, upstream.url, timeouts=SHORT)
        assert caught.value.timeout
        assert len(upstream.requests) == 2


async def test_feed_may_end_the_answer(transport: Transport) -> None:
    """EngineBroke raised by ``feed`` comes out of ``pump``, and the connection is closed."""
    async with Upstream(scenario=[headers(), body(b"1"), stall(0.05), body(b"2"), never()]) as upstream:
        for bad in (b"1", b"2"):
            answer = await get(transport, upstream.url)
            await answer.first()

            def feed(chunk: bytes, bad: bytes = bad) -> None:
                if chunk == bad:
                    raise EngineBroke("not wanted")

            with pytest.raises(EngineBroke, match="not wanted"):
                await answer.pump(feed)
        await upstream.drained(5)


async def test_pause_before_pump(transport: Transport) -> None:
    """A reply paused by its first bytes stays paused, and resumes."""
    async with Upstream(scenario=[headers(), body(b"1"), stall(0.05), body(b"2"), end()]) as upstream:
        answer = await get(transport, upstream.url)
        await answer.first()
        got: list[bytes] = []

        def feed(chunk: bytes) -> None:
            got.append(chunk)
            answer.pause()

        pumping = asyncio.create_task(answer.pump(feed))
        await upstream.until(lambda: upstream.bytes_sent > 100, 10)
        await asyncio.sleep(0.1)
        assert got == [b"1"]
        answer.resume()
        await pumping
        assert got == [b"1", b"2"]
        assert transport.pool(Origin.of(upstream.url)).idle_count == 1


async def test_pause_stops_the_idle_clock(transport: Transport) -> None:
    """The idle deadline does not run while we do not read, and starts anew when we read on."""
    script = [headers(), body(b"1"), stall(1.5), body(b"2"), end()]
    async with Upstream(scenario=script) as upstream:
        answer = await get(transport, upstream.url, timeouts=Timeouts(idle_s=1.0))
        await answer.first()
        answer.pause()
        got: list[bytes] = []
        pumping = asyncio.create_task(answer.pump(got.append))
        await asyncio.sleep(1.2)
        answer.resume()
        await pumping
        assert got == [b"1", b"2"]


async def test_idle_deadline_shorter_than_the_first(transport: Transport) -> None:
    """Silence within a body ends it after the idle deadline, however long the head was allowed to take."""
    async with Upstream(scenario=[headers(), body(b"1"), never()]) as upstream:
        answer = await get(transport, upstream.url, timeouts=Timeouts(first_byte_s=60.0, idle_s=0.1))
        with pytest.raises(EngineBroke) as caught:
            await asyncio.wait_for(answer.read(1000), 20)
        assert caught.value.timeout


async def test_good_chunks_before_a_bad_one(transport: Transport) -> None:
    """What was well framed before the framing broke is pushed, also from the same packet."""
    wire = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\nzz\r\n"
    async with Upstream(scenario=[raw(wire), never()]) as upstream:
        answer = await get(transport, upstream.url)
        got: list[bytes] = []
        with pytest.raises(EngineBroke, match="malformed"):
            await answer.pump(got.append)
        assert b"".join(got) == b"ab"


async def test_framing_of_a_long_stream(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk sizes in packets of their own never add up to an oversized head."""
    monkeypatch.setattr("passerelle.engines.transport.MAX_HEAD_BYTES", 100)
    chunks = [step for _ in range(60) for step in (raw(b"1\r\n"), stall(0.001), raw(b"x\r\n"), stall(0.001))]
    head = raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    async with Upstream(scenario=[head, *chunks, raw(b"0\r\n\r\n")]) as upstream:
        assert await _whole(transport, upstream.url) == b"x" * 60


async def test_read_after_waiting(transport: Transport) -> None:
    """A body larger than the buffer that waited for its reader is read whole, and its connection is reused."""
    size = 20 * MAX_BUFFERED_BYTES
    async with Upstream(scenario=[headers(), *[body(b"x" * 65536)] * 20, end()]) as upstream:
        for _ in range(2):
            answer = await get(transport, upstream.url)
            await answer.first()
            await asyncio.sleep(0.02)
            assert await answer.read(size) == b"x" * size
        assert len(upstream.peers) == 1


async def test_large_request(transport: Transport) -> None:
    """A request larger than the socket's buffer goes out whole."""
    content = b"x" * 5_000_000
    async with Upstream() as upstream:
        payload = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)
        pool = transport.pool(Origin.of(upstream.url))
        answer = await transport.request(pool, payload, timeouts=Timeouts(), timeout_s=30)
        assert answer.status == 400
        assert upstream.requests[0].body == content


async def test_tls(transport: Transport) -> None:
    """A TLS target works with its CA file, streams and reuse included."""
    async with Upstream(
        tls=server_context(), scenario=[headers(), body(b"1"), stall(0.01), body(b"2"), end()]
    ) as upstream:
        ca_file = str(TLS / "ca.pem")
        for _ in range(2):
            answer = await get(transport, upstream.url.replace("127.0.0.1", "localhost"), ca_file=ca_file)
            got: list[bytes] = []
            await answer.pump(got.append)
            assert b"".join(got) == b"12"
        assert len(upstream.peers) == 1
        upstream.scenario = [headers(), body(b"1"), never()]
        answer = await get(transport, upstream.url, ca_file=ca_file)
        answer.abort()
        await upstream.until(lambda: upstream.peers[-1].left_at is not None, 10)


async def test_tls_refused(transport: Transport) -> None:
    """An untrusted certificate, one for another name, no TLS and a missing CA file are refused, with reasons."""
    ca_file = str(TLS / "ca.pem")
    other = Upstream(tls=server_context(), host="127.0.0.2")
    async with Upstream(tls=server_context()) as upstream, Upstream() as clear, other:
        with pytest.raises(EngineRefused, match="certificate is not trusted"):
            await get(transport, upstream.url)
        with pytest.raises(EngineRefused, match="certificate is not trusted"):
            await get(transport, other.url, ca_file=ca_file)
        with pytest.raises(EngineRefused, match="ca_file cannot be read"):
            await get(transport, upstream.url, ca_file="/nowhere/ca.pem")
        with pytest.raises(EngineRefused):
            await get(transport, clear.url.replace("http:", "https:"), ca_file=ca_file, timeouts=SHORT)
        assert not upstream.requests


async def test_tls_handshake_deadline(transport: Transport) -> None:
    """A server that accepts and never shakes hands costs the connect deadline."""
    async with Upstream(scenario=[never()]) as upstream:
        with pytest.raises(EngineRefused, match=r"no connection within 0\.3 s"):
            await get(transport, upstream.url.replace("http:", "https:"), timeouts=SHORT)
        await upstream.drained(5)


async def test_ipv6(transport: Transport) -> None:
    """An IPv6 literal is a target like any other."""
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    async with Upstream(host="::1") as upstream:
        assert (await get(transport, upstream.url)).status == 404
        assert upstream.requests[0].headers["host"] == "x"


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_unknown_host(transport: Transport) -> None:
    """J7: a name that does not resolve is refused in words that tell it from a closed port."""
    with pytest.raises(EngineRefused, match="does not resolve"):
        await get(transport, "http://does-not-exist.invalid", timeouts=Timeouts(connect_s=20))
    with pytest.raises(EngineRefused, match="connection refused"):
        await get(transport, f"http://127.0.0.1:{_closed_port()}")


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_proxy_variables_are_ignored(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """J7: variables that name a proxy change nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Upstream(scenario=[status(200, content=b"{}")]) as upstream:
        assert await _whole(transport, upstream.url) == b"{}"


async def test_connect_deadline(transport: Transport) -> None:
    """A port whose queue of connections is full costs the connect deadline."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        with pytest.raises(EngineRefused, match="no connection within"):
            await get(transport, f"http://127.0.0.1:{port}", timeouts=SHORT)
        for filler in fillers:
            filler.close()


async def test_close_leaves_nothing(transport: Transport) -> None:
    """Closing the transport closes idle and busy connections before it returns."""
    async with Upstream(scenario=[headers(), body(b"1"), never()]) as upstream:
        busy = await get(transport, upstream.url)
        upstream.scenario = [status(200)]
        await _whole(transport, upstream.url)
        pool = transport.pool(Origin.of(upstream.url))
        assert pool.open_count == 2
        await transport.aclose()
        assert pool.open_count == 0
        with pytest.raises(EngineBroke):
            await busy.read(1000)
        await upstream.drained(5)
