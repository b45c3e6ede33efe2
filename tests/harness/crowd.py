"""Thousands of websockets on one loop, each as light as can be: it reads frames, answers pings, keeps numbers."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import resource
import socket
import struct
from collections.abc import Callable

_SEQ = re.compile(rb'"seq":(\d+)')
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
SPARE_DESCRIPTORS = 300
"""What a test needs beside its sockets."""


def raise_descriptors(wanted: int) -> int:
    """Lets this process, and those it starts, open so many files as far as it may; returns how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


class Listener(asyncio.Protocol):
    """One websocket. ``seen`` are the numbers of the events it got, ``closed`` the code at its end (RFC 6455)."""

    texts = 0
    """Messages so far, events or not."""
    pongs = 0

    def __init__(self, changed: Callable[[], None]) -> None:
        self.status = 0
        self.seen: list[int] = []
        self.closed: int | None = None
        self.gone = False
        self._changed = changed
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when it is connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def shake(self, path: str, host: str, headers: str = "") -> None:
        """Sends the handshake."""
        assert self._transport is not None
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def pause(self) -> None:
        """Reads nothing from now on."""
        assert self._transport is not None
        self._transport.pause_reading()

    def resume(self) -> None:
        """Reads again."""
        assert self._transport is not None
        self._transport.resume_reading()

    def send(self, data: bytes) -> None:
        """Sends raw bytes."""
        assert self._transport is not None
        self._transport.write(data)

    def leave(self) -> None:
        """Goes away without a word."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called with bytes as they come."""
        self._buffer += data
        if not self.status:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self.status, self._buffer = int(head.split(b" ", 2)[1]), rest
            self._changed()
        while self.status == 101 and (frame := self._frame()) is not None:
            self._take(*frame)

    def _frame(self) -> tuple[int, bytes] | None:
        """Takes a whole frame of the server from the buffer; those are never masked."""
        data = self._buffer
        if len(data) < 2:
            return None
        size, start = data[1], 2
        if size == 126:
            if len(data) < 4:
                return None
            size, start = struct.unpack("!H", data[2:4])[0], 4
        elif size == 127:
            if len(data) < 10:
                return None
            size, start = struct.unpack("!Q", data[2:10])[0], 10
        if len(data) < start + size:
            return None
        self._buffer = data[start + size :]
        return data[0] & 15, data[start : start + size]

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            self.texts += 1
            if (found := _SEQ.search(payload)) is not None:
                self.seen.append(int(found[1]))
        elif opcode == _PING:
            self.send(bytes((0x8A, 0x80 | len(payload))) + b"\0\0\0\0" + payload)
        elif opcode == _PONG:
            self.pongs += 1
        elif opcode == _CLOSE:
            self.closed = struct.unpack("!H", payload[:2])[0] if payload else 1005
            self.send(b"\x88\x82\0\0\0\0" + payload[:2])
        self._changed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called at the end of the connection."""
        self.gone = True
        self._changed()


class Crowd:
    """Websockets on one server at ``port`` of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.listeners: list[Listener] = []
        self._news = asyncio.Event()

    async def join(self, path: str, *, receive_bytes: int | None = None, headers: str = "") -> Listener:
        """Opens one more; returns when the handshake was answered. ``receive_bytes`` bounds the kernel's buffer."""
        loop = asyncio.get_running_loop()
        listener = Listener(self._news.set)
        end = socket.socket()
        end.setblocking(False)
        if receive_bytes is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await loop.sock_connect(end, ("127.0.0.1", self.port))
        await loop.create_connection(lambda: listener, sock=end)
        self.listeners.append(listener)
        listener.shake(path, f"127.0.0.1:{self.port}", headers)
        await self.until(lambda: bool(listener.status) or listener.gone)
        return listener

    async def until(self, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        """Returns when something has changed so that ``condition`` holds."""
        async with asyncio.timeout(within_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def leave(self) -> None:
        """Ends all."""
        for listener in self.listeners:
            listener.leave()
