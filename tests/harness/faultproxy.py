"""A TCP proxy that spoils what passes, with faults named as Toxiproxy's.

    async with FaultProxy(upstream.port) as proxy:
        proxy.toxics = [latency(5.0), bandwidth(10_000)]

A toxic works on what the server sends (``downstream``, the default) or on what the client sends. Toxics are taken
from the list when a connection is made and again for each piece of data, so they can be changed at any time.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


class Cut(Exception):
    """The connection ends now; ``reset`` with RST, otherwise with FIN."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("cut")
        self.reset = reset


@dataclass(slots=True)
class Flow:
    """One direction of one connection, as a toxic sees it."""

    downstream: bool
    passed_bytes: int = 0


Toxic = Callable[[Flow, bytes], Awaitable[list[bytes]]]
"""Takes a piece, waits as long as it likes, and returns the pieces that go on; b"" is the end of the stream."""


def latency(seconds: float, jitter_s: float = 0.0, *, downstream: bool = True, seed: int = 1) -> Toxic:
    """Each piece comes later, by ``seconds`` plus or minus up to ``jitter_s``."""
    draw = random.Random(seed)

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        if flow.downstream is downstream and data:
            await asyncio.sleep(max(0.0, seconds + jitter_s * draw.uniform(-1, 1)))
        return [data]

    return toxic


def bandwidth(bytes_per_s: float, *, downstream: bool = True) -> Toxic:
    """No more than this passes in a second."""

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        if flow.downstream is downstream:
            await asyncio.sleep(len(data) / bytes_per_s)
        return [data]

    return toxic


def slicer(size_bytes: int, delay_s: float = 0.0, *, downstream: bool = True) -> Toxic:
    """Cuts pieces into smaller ones, each sent on its own."""

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        if flow.downstream is not downstream or len(data) <= size_bytes:
            return [data]
        if delay_s:
            await asyncio.sleep(delay_s)
        return [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]

    return toxic


def limit_data(size_bytes: int, *, reset: bool = False, downstream: bool = True) -> Toxic:
    """Closes the connection after so many bytes."""

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        if flow.downstream is downstream and flow.passed_bytes + len(data) > size_bytes:
            raise Cut(reset=reset)
        return [data]

    return toxic


def timeout(seconds: float | None = None) -> Toxic:
    """Lets nothing pass, and closes after ``seconds`` (never, for None)."""

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        if seconds is None:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(seconds)
        raise Cut(reset=False)

    return toxic


def slow_close(seconds: float) -> Toxic:
    """The end of the stream comes late."""

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        if not data:
            await asyncio.sleep(seconds)
        return [data]

    return toxic


def reset_peer(after_s: float = 0.0) -> Toxic:
    """Resets the connection ``after_s`` after the first data."""

    async def toxic(flow: Flow, data: bytes) -> list[bytes]:
        await asyncio.sleep(after_s)
        raise Cut(reset=True)

    return toxic


@dataclass
class FaultProxy:
    """Listens on a free port and passes everything to ``to_port``; ``refuse`` closes new connections at once."""

    to_port: int
    toxics: list[Toxic] = field(default_factory=list)
    refuse: bool = False
    accepted: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            if self.refuse:
                return
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.to_port)
            writers.append(to_writer)
            up = asyncio.create_task(self._pass(Flow(downstream=False), reader, to_writer))
            down = asyncio.create_task(self._pass(Flow(downstream=True), to_reader, writer))
            try:
                done, _ = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
                if down not in done and up.exception() is None:
                    # Half closed by the client: the server's answer may still come, unless it leaves as well.
                    await asyncio.wait((down,), timeout=0.2)
                for finished in (up, down):
                    if finished.done() and isinstance(cut := finished.exception(), Cut) and cut.reset:
                        for each in writers:
                            _reset(each)
            finally:
                for pipe in (up, down):
                    pipe.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.close()

    async def _pass(self, flow: Flow, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                data = await reader.read(65_536)
            except ConnectionError:
                data = b""
            pieces = [data]
            for toxic in list(self.toxics):
                pieces = [after for before in pieces for after in await toxic(flow, before)]
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                flow.passed_bytes += len(piece)
                if len(pieces) > 1:
                    await asyncio.sleep(0)
            if not data:
                return


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
