"""Websockets on real sockets, by a real client: routes, refusals before the handshake, limits, the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.edge.test_protocol import LIMITS, raw
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from passerelle.domain.client import Headers
from passerelle.domain.errors import Unauthenticated
from passerelle.domain.principal import Principal, Scope
from passerelle.edge.application import AsgiApplication
from passerelle.edge.dispatch import Context, Dispatcher, Route, RouteTable
from passerelle.edge.exchange import header
from passerelle.edge.protocol import DirectPath
from passerelle.edge.server import Server, bind
from passerelle.edge.socket import MAX_MESSAGE_BYTES, WEBSOCKET, SocketClosed, SocketExchange
from passerelle.faces.openai import errors


class Endpoints:
    """What websockets are tried with."""

    def __init__(self) -> None:
        self.left: asyncio.Queue[int] = asyncio.Queue()

    async def echo(self, context: Context) -> None:
        assert isinstance(context.exchange, SocketExchange)
        socket = context.exchange.socket
        await socket.accept()
        try:
            while True:
                await socket.send(f"{context.parameters['name']}: {await socket.receive()!s}")
        except SocketClosed as closed:
            self.left.put_nowait(closed.code)

    async def broken(self, context: Context) -> None:
        assert isinstance(context.exchange, SocketExchange)
        await context.exchange.socket.accept()
        raise ZeroDivisionError("a defect")


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, Endpoints, Server]]:
    endpoints = Endpoints()
    table = RouteTable(
        [
            Route(WEBSOCKET, "/ws/{name}", Scope.INFERENCE, endpoints.echo),
            Route(WEBSOCKET, "/broken", None, endpoints.broken),
        ]
    )
    caller = Principal("key_1", "test", scopes=frozenset({Scope.INFERENCE}))

    def identify(headers: Headers, peer: str | None) -> Principal:
        if header(headers, b"authorization") != b"Bearer good":
            raise Unauthenticated("no")
        return caller

    async def nothing() -> None:
        return

    dispatcher = Dispatcher(table, identify, errors.render, now=time.monotonic)
    application = AsgiApplication(dispatcher, max_body_bytes=1000, start=nothing, stop=nothing)
    listener = bind("127.0.0.1", 0)
    started = asyncio.Event()
    server = Server(
        application,
        DirectPath(frozenset(), dispatcher, LIMITS),
        grace_s=1,
        on_started=started.set,
        on_draining=lambda: None,
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.wait_for(started.wait(), 5)
    try:
        yield listener.getsockname()[1], endpoints, server
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)


def opened(port: int, path: str = "/ws/a", key: str = "good") -> connect:
    return connect(f"ws://127.0.0.1:{port}{path}", additional_headers={"authorization": f"Bearer {key}"})


async def talk(socket: ClientConnection, text: str) -> str:
    await socket.send(text)
    return str(await asyncio.wait_for(socket.recv(), 5))


async def test_messages_go_both_ways() -> None:
    """A route's endpoint talks until the client leaves, and learns of that."""
    async with serving() as (port, endpoints, _):
        async with opened(port) as socket:
            assert await talk(socket, "one") == "a: one"
            assert await talk(socket, "two") == "a: two"
        assert await asyncio.wait_for(endpoints.left.get(), 5) == 1000


@pytest.mark.parametrize(("path", "key", "status"), [("/ws/a", "bad", 401), ("/nowhere", "good", 404)])
async def test_refusals_are_answers_of_http(path: str, key: str, status: int) -> None:
    """Who may not come in gets a status and the usual envelope instead of a handshake."""
    async with serving() as (port, _, _):
        with pytest.raises(InvalidStatus) as caught:
            async with opened(port, path, key):
                raise AssertionError("it must not open")
        assert caught.value.response.status_code == status
        assert b'"error"' in (caught.value.response.body or b"")


async def test_a_plain_request_to_a_websocket() -> None:
    """A GET without an upgrade is told what the address is."""
    async with serving() as (port, _, _):
        answer = await raw(port, b"GET /ws/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405")
        assert b"websocket" in answer


async def test_a_long_message_closes_the_socket() -> None:
    """A message over the limit is 1009, and nothing of it reaches the endpoint."""
    async with serving() as (port, endpoints, _), opened(port) as socket:
        with pytest.raises(ConnectionClosed) as caught:
            await socket.send("x" * (MAX_MESSAGE_BYTES + 1))
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        assert await asyncio.wait_for(endpoints.left.get(), 5) in (1006, 1009)


async def test_a_defect_closes_with_1011() -> None:
    """An endpoint that fails after the handshake closes the socket as an error of ours."""
    async with serving() as (port, _, _), opened(port, "/broken") as socket:
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(socket.recv(), 5)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1011


async def test_a_stopping_server_says_so() -> None:
    """Open sockets are closed with 1012 (service restart): the client may come back."""
    async with serving() as (port, _, server), opened(port) as socket:
        assert await talk(socket, "one") == "a: one"
        server.should_exit = True
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(socket.recv(), 10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
