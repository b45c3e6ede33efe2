"""A server of pictures, honest ones and the other sort."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from contextlib import suppress


def png(width: int = 1, height: int = 1, *, padding: int = 0) -> bytes:
    """Returns a PNG that announces a size, with ``padding`` further bytes in a text chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"tEXt", b"x\0" + b"a" * padding) if padding else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 4))
    return b"\x89PNG\r\n\x1a\n" + head + text + pixels + chunk(b"IEND", b"")


class PictureServer:
    """Answers by path; ``heads`` are the requests it saw, ``visits`` the connections, ``sent`` the bytes it sent.

    /ok /large /html /huge-pixels  200 and a body        /missing            404
    /to/<URL>                      302 to what follows    /loop /hop/<n>      302 to itself, to one less
    /endless /lying-length         bytes without an end   /drip               a byte now and then
    /gzip                          a compressed bomb      /silent             nothing
    /nowhere                       302 without Location
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self.visits = 0
        self.sent = 0
        self.heads: list[bytes] = []
        self._busy: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> PictureServer:
        self._server = await asyncio.start_server(self._visited, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._busy):
            writer.transport.abort()
        async with asyncio.timeout(5):
            while self._busy:
                await asyncio.sleep(0.01)

    def url(self, path: str, host: str | None = None) -> str:
        """Returns an address of it."""
        return f"http://{host or self.host}:{self.port}{path}"

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        self._busy.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            await self._answer(writer, head.split(b" ")[1].decode().partition("?")[0])
        self._busy.discard(writer)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, path: str) -> None:
        whole = {
            "/ok": png(),
            "/large": png(padding=300_000),
            "/html": b"<html>",
            "/huge-pixels": png(100_000, 100_000),
        }.get(path)
        if whole is not None:
            await self._send(writer, b"200 OK\r\ncontent-length: %d" % len(whole), whole)
        elif path.startswith("/to/"):
            await self._send(writer, b"302 Found\r\ncontent-length: 0\r\nlocation: " + path[4:].encode())
        elif path == "/loop":
            await self._send(writer, b"307 Temporary Redirect\r\ncontent-length: 0\r\nlocation: /loop")
        elif path.startswith("/hop/"):
            left = int(path[5:])
            there = b"/ok" if not left else b"/hop/%d" % (left - 1)
            await self._send(writer, b"301 Moved Permanently\r\ncontent-length: 0\r\nlocation: " + there)
        elif path == "/nowhere":
            await self._send(writer, b"302 Found\r\ncontent-length: 0")
        elif path in ("/endless", "/lying-length"):
            framing = b"\r\ncontent-length: 10000000000" if path == "/lying-length" else b""
            await self._send(writer, b"200 OK" + framing, png())
            while not writer.is_closing():
                await self._more(writer, b"\0" * 65_536)
        elif path == "/drip":
            await self._send(writer, b"200 OK\r\ncontent-length: 100000", png()[:8])
            while not writer.is_closing():
                await self._more(writer, b"\0")
                await asyncio.sleep(0.02)
        elif path == "/gzip":
            bomb = gzip.compress(b"\0" * 20_000_000)
            await self._send(writer, b"200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d" % len(bomb), bomb)
        elif path == "/silent":
            while not writer.is_closing():
                await asyncio.sleep(0.02)
        else:
            await self._send(writer, b"404 Not Found\r\ncontent-length: 0")

    async def _send(self, writer: asyncio.StreamWriter, head: bytes, body: bytes = b"") -> None:
        await self._more(writer, b"HTTP/1.1 " + head + b"\r\nset-cookie: a=b\r\n\r\n" + body)

    async def _more(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        self.sent += len(data)
        await writer.drain()
