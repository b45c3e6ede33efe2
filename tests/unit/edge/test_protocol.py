"""The edge on real sockets: framing, limits, deadlines, and both ways to the same endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from passerelle.domain.principal import Principal, Scope
from passerelle.edge.application import AsgiApplication
from passerelle.edge.dispatch import Context, Dispatcher, Route, RouteTable
from passerelle.edge.protocol import DirectPath, EdgeLimits
from passerelle.edge.server import Server, bind
from passerelle.faces.openai import errors

LIMITS = EdgeLimits(
    max_body_bytes=10_000,
    max_head_bytes=4_000,
    max_headers=40,
    max_url_bytes=500,
    head_timeout_s=0.5,
    body_grace_s=0.5,
    body_min_rate_bytes_s=100_000,
    keep_alive_s=5,
)


class Endpoints:
    """What the edge is tried with."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    async def echo(self, context: Context) -> None:
        body = await context.exchange.body()
        self.bodies.append(body)
        await context.exchange.client.respond(200, [(b"content-type", b"text/plain")], body)

    async def stream(self, context: Context) -> None:
        await context.exchange.body()
        client = context.exchange.client
        client.begin(200, [(b"content-type", b"text/event-stream")])
        for number in range(3):
            client.write(b"data: %d\n\n" % number)
        await client.end()

    async def hang(self, context: Context) -> None:
        await context.exchange.body()
        task = asyncio.current_task()
        assert task is not None
        context.exchange.client.on_gone(task.cancel)
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task.uncancel()
            self.cancelled.set()

    async def flood(self, context: Context) -> None:
        await context.exchange.body()
        client = context.exchange.client
        client.on_flow(self.paused.set, self.resumed.set)
        client.begin(200, [])
        while not self.paused.is_set() and not client.gone:
            client.write(b"x" * 65_536)
            await asyncio.sleep(0)
        await self.resumed.wait()
        await client.end()

    async def broken(self, context: Context) -> None:
        raise ZeroDivisionError("a defect")


@asynccontextmanager
async def serving(*, direct: bool, limits: EdgeLimits = LIMITS) -> AsyncIterator[tuple[int, Endpoints]]:
    """Runs the edge with every endpoint on the direct path, or none of them."""
    endpoints = Endpoints()
    table = RouteTable(
        [
            Route("POST", "/echo", None, endpoints.echo),
            Route("POST", "/stream", None, endpoints.stream),
            Route("POST", "/hang", None, endpoints.hang),
            Route("POST", "/flood", None, endpoints.flood),
            Route("POST", "/broken", None, endpoints.broken),
            Route("POST", "/private", Scope.INFERENCE, endpoints.echo),
            Route("POST", "/admin", Scope.ADMIN, endpoints.echo),
            Route("GET", "/get", None, endpoints.echo),
        ]
    )
    caller = Principal("key_1", "test", scopes=frozenset({Scope.INFERENCE}))
    dispatcher = Dispatcher(table, lambda headers, peer: caller, errors.render, now=time.monotonic)

    async def nothing() -> None:
        return

    application = AsgiApplication(dispatcher, max_body_bytes=limits.max_body_bytes, start=nothing, stop=nothing)
    paths = frozenset(route.path for route in table.routes) if direct else frozenset[str]()
    listener = bind("127.0.0.1", 0)
    started = asyncio.Event()
    server = Server(
        application,
        DirectPath(paths, dispatcher, limits),
        grace_s=1,
        on_started=started.set,
        on_draining=lambda: None,
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.wait_for(started.wait(), 30)
    try:
        yield listener.getsockname()[1], endpoints
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 30)


both = pytest.mark.parametrize("direct", [True, False], ids=["direct", "asgi"])


async def raw(port: int, data: bytes, *, close_write: bool = False) -> bytes:
    """Sends bytes and returns all that comes back until the server closes, or half a minute of silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if close_write:
            writer.write_eof()
        answer = b""
        try:
            while chunk := await asyncio.wait_for(reader.read(65_536), 30):
                answer += chunk
        except TimeoutError:
            pass
        return answer
    finally:
        writer.close()


def post(path: str, body: bytes = b"", *, close: bool = True, extra: bytes = b"") -> bytes:
    """Returns a request as bytes."""
    end = b"connection: close\r\n" if close else b""
    return b"POST %b HTTP/1.1\r\nhost: x\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        path.encode(), end, extra, len(body), body,
    )  # fmt: skip


@both
async def test_a_body_comes_back(direct: bool) -> None:
    """A request is answered with length and body, on both ways."""
    async with serving(direct=direct) as (port, _):
        answer = await raw(port, post("/echo", b"hello"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nhello")


@both
async def test_a_chunked_body_is_put_together(direct: bool) -> None:
    """Chunked request bodies arrive whole."""
    async with serving(direct=direct) as (port, endpoints):
        head = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        await raw(port, head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert endpoints.bodies == [b"abcde"]


@both
async def test_a_stream_is_chunked_and_ends(direct: bool) -> None:
    """A streamed answer ends with its last chunk."""
    async with serving(direct=direct) as (port, _):
        answer = await raw(port, post("/stream"))
        assert b"transfer-encoding: chunked" in answer
        assert answer.endswith(b"0\r\n\r\n")
        assert b"data: 0" in answer and b"data: 2" in answer


async def test_http_1_0_gets_an_unchunked_stream() -> None:
    """An HTTP/1.0 client gets plain bytes and the end of the connection."""
    async with serving(direct=True) as (port, _):
        answer = await raw(port, b"POST /stream HTTP/1.0\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert b"chunked" not in answer
        assert answer.endswith(b"data: 0\n\ndata: 1\n\ndata: 2\n\n")


@both
async def test_a_connection_serves_several_requests(direct: bool) -> None:
    """Keep-alive: one connection, two requests, the second one closes."""
    async with serving(direct=direct) as (port, endpoints):
        answer = await raw(port, post("/echo", b"one", close=False) + post("/echo", b"two"))
        assert endpoints.bodies == [b"one", b"two"]
        assert answer.count(b"HTTP/1.1 200") == 2


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Ten requests in one packet get ten answers, in order."""
    async with serving(direct=True) as (port, endpoints):
        requests = [post("/echo", b"%d" % number, close=number == 9) for number in range(10)]
        answer = await raw(port, b"".join(requests))
        assert answer.count(b"HTTP/1.1 200") == 10
        assert endpoints.bodies == [b"%d" % number for number in range(10)]


async def test_pipelining_without_end_is_refused_cleanly() -> None:
    """A hundred pipelined requests get the answers we keep in order, then the connection closes."""
    async with serving(direct=True) as (port, endpoints):
        answer = await raw(port, b"".join(post("/echo", b"x", close=False) for _ in range(100)))
        assert 1 <= answer.count(b"HTTP/1.1 200") <= 100
        assert answer.count(b"HTTP/1.1 200") == len(endpoints.bodies)


@both
async def test_a_body_over_the_limit_is_refused_early(direct: bool) -> None:
    """413 comes without the body having been read, for a stated length and for endless chunks."""
    async with serving(direct=direct) as (port, endpoints):
        head = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10001\r\n\r\n"
        assert (await raw(port, head)).startswith(b"HTTP/1.1 413")
        chunks = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"400\r\n" + b"y" * 1024
        answer = await raw(port, chunks + b"\r\n400\r\n" * 0 + (b"\r\n400\r\n" + b"y" * 1024) * 12)
        assert answer.startswith(b"HTTP/1.1 413")
        assert endpoints.bodies == []


@both
async def test_a_compressed_body_is_refused(direct: bool) -> None:
    """A gzip body gets 415: it is never decompressed."""
    async with serving(direct=direct) as (port, _):
        answer = await raw(port, post("/echo", b"zz", extra=b"content-encoding: gzip\r\n"))
        assert answer.startswith(b"HTTP/1.1 415")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3, 3\r\n\r\nabc", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1.5\r\n\r\nab", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nabcde", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, x\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked ,x\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\n" + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\nhost: x\ncontent-length: 0\n\n", b"400"),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\n folded: y\r\ncontent-length: 0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\na: b\x00c\r\ncontent-length: 0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost : x\r\ncontent-length: 0\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x/health?\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: a#b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b"400"),
        (b"POST /" + b"a" * 600 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"414"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\n" + b"x-y: z\r\n" * 50 + b"\r\n", b"431"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\nbig: " + b"z" * 5000 + b"\r\n\r\n", b"431"),
        (b"TRACE /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"405"),
        (b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"404"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    ],
)  # fmt: skip
@both
async def test_malformed_requests_are_refused(direct: bool, request_bytes: bytes, status: bytes) -> None:
    """Bad framing gets one answer with an error status, and the connection closes."""
    async with serving(direct=direct) as (port, endpoints):
        answer = await raw(port, request_bytes)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b'"error"' in answer
        assert endpoints.bodies == []


@both
async def test_a_slow_head_is_cut(direct: bool) -> None:
    """A head that does not arrive within its deadline is answered with 408."""
    async with serving(direct=direct) as (port, _):
        started = time.monotonic()
        answer = await raw(port, b"POST /echo HTTP/1.1\r\nhost:")
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 20


@both
async def test_a_silent_connection_is_closed(direct: bool) -> None:
    """A connection that sends nothing is closed without an answer."""
    async with serving(direct=direct) as (port, _):
        assert await raw(port, b"") == b""


async def test_a_slow_body_is_cut() -> None:
    """A body below the minimum rate is answered with 408."""
    async with serving(direct=True) as (port, endpoints):
        answer = await raw(port, b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 408")
        assert endpoints.bodies == []


@both
async def test_a_caller_who_leaves_cancels_the_work(direct: bool) -> None:
    """Closing the connection reaches the endpoint as a cancellation."""
    async with serving(direct=direct) as (port, endpoints):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/hang", b"x"))
        await asyncio.wait_for(endpoints.entered.wait(), 30)
        writer.close()
        await asyncio.wait_for(endpoints.cancelled.wait(), 10)


@both
async def test_a_slow_reader_pauses_its_source(direct: bool) -> None:
    """Bytes that nobody reads pause the source, and reading resumes it."""
    async with serving(direct=direct) as (port, endpoints):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/flood"))
        await asyncio.wait_for(endpoints.paused.wait(), 30)
        while not endpoints.resumed.is_set():
            assert await asyncio.wait_for(reader.read(1 << 20), 30)
        writer.close()


@both
async def test_a_defect_becomes_a_500_without_its_text(direct: bool) -> None:
    """An unexpected exception is answered in the envelope, and its text stays inside."""
    async with serving(direct=direct) as (port, _):
        answer = await raw(port, post("/broken"))
        assert answer.startswith(b"HTTP/1.1 500")
        assert b"a defect" not in answer and b"internal_error" in answer


@both
async def test_scopes_are_checked_before_the_endpoint(direct: bool) -> None:
    """A principal without a route's scope gets 403."""
    async with serving(direct=direct) as (port, endpoints):
        assert (await raw(port, post("/private"))).startswith(b"HTTP/1.1 200")
        assert (await raw(port, post("/admin"))).startswith(b"HTTP/1.1 403")
        assert len(endpoints.bodies) == 1


async def test_connections_beyond_the_cap_are_refused() -> None:
    """One connection too many is told so."""
    async with serving(direct=True, limits=replace(LIMITS, max_connections=1)) as (port, _):
        _, first = await asyncio.open_connection("127.0.0.1", port)
        assert (await raw(port, b"")).startswith(b"HTTP/1.1 503")
        first.close()
