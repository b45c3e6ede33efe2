"""The exchange over any ASGI server: one listener notices that the caller left, one writer bounds what waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from passerelle.domain.client import Headers, spelled_out
from passerelle.domain.errors import PayloadTooLarge, UnsupportedMedia
from passerelle.edge.exchange import ClientGone, header

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]

HIGH_WATER_BYTES = 64 * 1024
"""More than this waiting for a caller pauses the upstream."""
STALL_S = 30.0
"""A caller that takes nothing for this long is cut off."""


class AsgiClient:
    """A `passerelle.domain.client.Client` over ASGI's ``receive`` and ``send``."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.gone = False
        self.started = False
        self.added: Headers = []
        """Headers of the answer beside those it is given."""
        self._receive = receive
        self._send = send
        self._gone_callback: Callable[[], object] | None = None
        self._pause: Callable[[], None] | None = None
        self._resume: Callable[[], None] | None = None
        self._paused = False
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._ended = False
        self._complete = False
        """The last of the body was given out: a disconnect after it is how servers tell that an answer is done."""
        self._writer: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    def on_gone(self, callback: Callable[[], object]) -> None:
        self._gone_callback = callback
        if self.gone:
            callback()
        elif self._listener is None:
            self._listener = asyncio.ensure_future(self._listen())

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self._resume = pause, resume

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.started = True
        headers = [*spelled_out(headers), *self.added, (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self._complete = True
        await self._send({"type": "http.response.body", "body": body})

    def begin(self, status: int, headers: Headers) -> None:
        self.started = True
        headers = [*spelled_out(headers), *self.added]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        self._writer = asyncio.ensure_future(self._write_out(start))

    def write(self, data: bytes) -> None:
        if self.gone:
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._wake.set()
        if self._waiting_bytes > HIGH_WATER_BYTES and not self._paused and self._pause is not None:
            self._paused = True
            self._pause()

    def last(self) -> None:
        """ASGI has no word for it once the head is on its way: the connection stays."""

    async def end(self) -> None:
        self._ended = True
        self._wake.set()
        if self._writer is not None:
            await self._writer

    def abort(self) -> None:
        """Leaves the body unfinished: the server closes the connection when the application returns."""
        if self._writer is not None:
            self._writer.cancel()

    async def close(self) -> None:
        """Stops the listener and the writer; called once the endpoint returned."""
        tasks = [task for task in (self._listener, self._writer) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._complete:
            self._leave()

    def _leave(self) -> None:
        if not self.gone:
            self.gone = True
            if self._gone_callback is not None:
                self._gone_callback()

    async def _write_out(self, start: Message) -> None:
        await self._send(start)
        while True:
            await self._wake.wait()
            self._wake.clear()
            data, ended = b"".join(self._waiting), self._ended
            self._waiting.clear()
            if data:
                try:
                    async with asyncio.timeout(STALL_S):
                        await self._send({"type": "http.response.body", "body": data, "more_body": True})
                except TimeoutError:
                    self._leave()
                    return
            self._waiting_bytes -= len(data)
            if self._paused and self._waiting_bytes <= HIGH_WATER_BYTES and self._resume is not None:
                self._paused = False
                self._resume()
            if ended and not self._waiting:
                self._complete = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                return


class AsgiExchange:
    """A `passerelle.edge.exchange.Exchange` read from an ASGI scope."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, max_body_bytes: int) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: Headers = scope["headers"]
        peer = scope.get("client")
        self.peer: str | None = peer[0] if peer else None
        self.arrived = time.monotonic()
        self.asgi_client = AsgiClient(receive, send)
        self.client = self.asgi_client
        self._receive = receive
        self._max_body_bytes = max_body_bytes

    def add_headers(self, headers: Headers) -> None:
        self.asgi_client.added = headers

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces(self._max_body_bytes)])

    async def pieces(self, max_body_bytes: int) -> AsyncIterator[bytes]:
        refuse_compressed(self.headers)
        length = header(self.headers, b"content-length")
        if length is not None and length.isdigit() and int(length) > max_body_bytes:
            raise too_large(max_body_bytes)
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size += len(piece)
            if size > max_body_bytes:
                raise too_large(max_body_bytes)
            yield piece
            if not message.get("more_body", False):
                return


def too_large(max_body_bytes: int) -> PayloadTooLarge:
    """Returns the error for a body over the limit; the connection is closed, as its rest is never read."""
    return PayloadTooLarge(
        f"The request body is larger than {max_body_bytes} bytes; send less.", headers=((b"connection", b"close"),)
    )


def refuse_compressed(headers: Headers) -> None:
    """Raises UnsupportedMedia for a compressed body: one kilobyte of it can be a gigabyte of work."""
    encoding = header(headers, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise UnsupportedMedia("Send the request body without Content-Encoding.", headers=((b"connection", b"close"),))
