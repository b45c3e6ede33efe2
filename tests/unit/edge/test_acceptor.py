"""A socket that several accept from: one at a time, the others first when they have fewer, and nobody waits long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from passerelle.edge.acceptor import Acceptor


class Opened(asyncio.Protocol):
    """A connection that greets with the name of who accepted it."""

    def __init__(self, party: Party) -> None:
        self._party = party

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._party.open += 1
        self._transport = transport
        transport.write(self._party.name)

    def connection_lost(self, exc: Exception | None) -> None:
        self._party.open -= 1


class Party:
    """One of those who accept; ``others`` are asked how many they have."""

    def __init__(self, name: bytes, listener: socket.socket) -> None:
        self.name = name
        self.open = 0
        self.others: list[Party] = []
        self.acceptor = Acceptor(listener.dup(), lambda: Opened(self), self._yields)

    def _yields(self, starting: int) -> bool:
        return any(other.open < self.open + starting for other in self.others)


@asynccontextmanager
async def parties(count: int) -> AsyncIterator[tuple[list[Party], Callable[[], socket.socket]]]:
    """Some who accept from one socket, and what connects to it. Everything is closed afterwards."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        found = [Party(b"%d" % number, listener) for number in range(count)]
        for party in found:
            party.others = [other for other in found if other is not party]

        def connect() -> socket.socket:
            made = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
            made.setblocking(False)
            return made

        yield found, connect
        for party in found:
            party.acceptor.close()
            party.acceptor._listener.close()
    for _ in range(200):
        if not any(party.open for party in found):
            break
        await asyncio.sleep(0.005)


async def greeting(connection: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 16), 30)


async def test_a_burst_is_spread() -> None:
    """Forty connections that are there at once are shared out evenly, to a few."""
    async with parties(2) as (found, connect):
        connections = [connect() for _ in range(40)]
        for connection in connections:
            await greeting(connection)
        assert sum(party.open for party in found) == 40
        assert min(party.open for party in found) >= 12


async def test_nobody_waits_for_one_who_does_not_come() -> None:
    """With fewer connections and without an interest in more, a party holds up nobody."""
    async with parties(2) as (found, connect):
        found[1].acceptor.close()
        connections = [connect() for _ in range(40)]
        assert {await greeting(connection) for connection in connections} == {b"0"}


async def test_a_closed_one_accepts_no_more() -> None:
    """After close a connection is left to the others, also while a pause was running."""
    async with parties(2) as (found, connect):
        first = connect()
        taker = found[int(await greeting(first))]
        taker.acceptor.close()
        taker.acceptor.close()
        (other,) = taker.others
        assert await greeting(connect()) == other.name
        assert await greeting(connect()) == other.name
