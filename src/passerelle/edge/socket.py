"""A websocket as an exchange: refused by an HTTP answer before the handshake, used by `Socket` after it.

A route of the method ``WEBSOCKET`` is found, authenticated and refused like any other; only its endpoint knows that
there is more than one message each way.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from passerelle.domain.client import Headers, spelled_out
from passerelle.edge.asgi import Receive, Scope, Send

WEBSOCKET: Final = "WEBSOCKET"
MAX_MESSAGE_BYTES = 64 * 1024
"""The longest message a client may send; longer ones close the socket with 1009."""


class SocketClosed(Exception):
    """The other side closed the websocket, or went away. ``code`` is as in RFC 6455, section 7.4."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class Socket:
    """One websocket, from the handshake on."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.accepted = False
        self.closed = False
        self._receive = receive
        self._send = send

    async def accept(self, subprotocol: str | None = None, headers: Headers | None = None) -> None:
        """Answers the handshake."""
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers or []})
        self.accepted = True

    async def receive(self) -> str | bytes:
        """Returns the next message. Raises SocketClosed."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self.closed = True
            raise SocketClosed(message.get("code") or 1006)
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def send(self, text: str) -> None:
        """Sends a message and waits until there is room for another. Raises SocketClosed."""
        if self.closed:
            raise SocketClosed(1006)
        try:
            await self._send({"type": "websocket.send", "text": text})
        except (OSError, RuntimeError):  # servers differ in how they say that nobody is there
            self.closed = True
            raise SocketClosed(1006) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the websocket; once more does nothing."""
        if self.closed:
            return
        self.closed = True
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": reason[:120]})
        except (OSError, RuntimeError):
            pass


class _Refusal:
    """The `Client` of a websocket's handshake: an HTTP answer refuses it."""

    def __init__(self, socket: Socket, send: Send, *, can_answer: bool) -> None:
        self._socket = socket
        self._send = send
        self._can_answer = can_answer
        self.gone = False

    @property
    def started(self) -> bool:
        return self._socket.accepted

    def on_gone(self, callback: Callable[[], object]) -> None:
        """A handshake is answered at once."""

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """A refusal is one answer."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self._socket.closed = True
        if not self._can_answer:
            await self._send({"type": "websocket.close", "code": 1008})
            return
        headers = [*spelled_out(headers), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": body})

    def begin(self, status: int, headers: Headers) -> None:
        raise TypeError("a handshake is not answered by a stream")

    def write(self, data: bytes) -> None:
        raise TypeError("a handshake is not answered by a stream")

    def last(self) -> None:
        """There is nothing after a refusal."""

    async def end(self) -> None:
        """Everything was written."""

    def abort(self) -> None:
        """`SocketExchange.finish` closes what is open."""


class SocketExchange:
    """A `passerelle.edge.exchange.Exchange` whose answer is a conversation."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method = WEBSOCKET
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: Headers = scope["headers"]
        peer = scope.get("client")
        self.peer: str | None = peer[0] if peer else None
        self.arrived = time.monotonic()
        self.socket = Socket(receive, send)
        can_answer = "websocket.http.response" in (scope.get("extensions") or {})
        self.client = _Refusal(self.socket, send, can_answer=can_answer)

    def add_headers(self, headers: Headers) -> None:
        """Adds nothing: no page reads the answer to a handshake."""

    async def body(self) -> bytes:
        """A handshake has none."""
        return b""

    async def pieces(self, max_body_bytes: int) -> AsyncIterator[bytes]:
        """A handshake has none."""
        return
        yield b""

    async def finish(self) -> None:
        """Closes what an endpoint left open: it failed."""
        await self.socket.close(1011)
