"""A pooled HTTP/1.1 client: asyncio protocols and llhttp, and nothing between the socket and the caller's function.

One `Transport` holds one `Pool` for each origin (scheme, host, port, CA file). A request is one write. Its answer is an
`Answer`, which is the `Reply` of `passerelle.engines.base`. The rules that keep a bad peer out of the pool:

* a connection goes back only when its body ended as framed, everything was written, and both sides keep it alive;
* anything odd on the wire (see `_Odd`) closes it, and so does any byte that arrives while it is idle;
* a request on a reused connection that died before one byte of answer came is sent once more on a new connection:
  the server closed an idle connection while our request was on its way. Nothing else is retried here.

Deadlines cost no timer for each request or chunk: a connection has one timer, re-armed when it fires too early.
Environment variables that name proxies are not read.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from passerelle.domain.model import Timeouts
from passerelle.engines.base import EngineBroke, EngineRefused

MAX_HEAD_BYTES = 64 * 1024
"""Status line and headers of one answer, interim (1xx) answers included."""
MAX_HEADERS = 100
MAX_BUFFERED_BYTES = 64 * 1024
"""Body bytes kept before somebody reads them; past it the server has to wait."""
_TIMER_SLACK_S = 0.002
_CLOSING_TURNS = 20


class _Odd(Exception):
    """The answer breaks a rule of HTTP/1.1, or is something we do not accept (101, a compressed body, a huge head)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go. ``authority`` is the value of the Host header."""

    scheme: str
    host: str
    port: int
    authority: str
    ca_file: str | None = None
    address: str | None = None
    """The IP address to connect to, for callers who looked at it; the host is resolved when it is None."""

    @classmethod
    def of(cls, url: str, *, ca_file: str | None = None) -> Origin:
        """Reads the origin of an http or https URL; IPv6 literals are in brackets. Raises EngineRefused."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise EngineRefused("the target's URL is not valid") from None
        if parts.scheme not in ("http", "https") or not host:
            raise EngineRefused("the target's URL is not an http or https URL")
        if parts.username is not None or parts.password is not None:
            raise EngineRefused("the target's URL holds credentials; use api_key")
        default = 443 if parts.scheme == "https" else 80
        try:
            name = host if ":" in host else host.encode("idna").decode("ascii")
        except UnicodeError:
            raise EngineRefused("the target's host name is not valid") from None
        shown = f"[{name}]" if ":" in name else name
        authority = shown if port in (None, default) else f"{shown}:{port}"
        return cls(parts.scheme, name, port or default, authority, ca_file if parts.scheme == "https" else None)


class Answer:
    """One answer: a `Reply` once `Transport.request` returned it, with ``retry_after`` and ``location`` as sent."""

    __slots__ = (
        "_buffer",
        "_buffered",
        "_choked",
        "_connection",
        "_ended",
        "_error",
        "_held",
        "_limit",
        "_loop",
        "_waiter",
        "connect_s",
        "content_type",
        "in_responses",
        "location",
        "retry_after",
        "stale",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection, connect_s: float) -> None:
        self._loop = loop
        self._connection: Connection | None = connection
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._limit: int | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: EngineBroke | None = None
        self._ended = False
        self._held = False
        self._choked = False
        self.status = 0
        self.content_type = b""
        self.retry_after: bytes | None = None
        self.location: bytes | None = None
        self.connect_s = connect_s
        self.in_responses = False
        self.stale = False

    # What a caller does.

    async def head(self) -> None:
        """Waits for the status line and the headers. Raises EngineBroke."""
        while not self.status and self._error is None:
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            except asyncio.CancelledError:
                self.abort()
                raise
        if self._error is not None and not self._ended and not self._buffered:
            raise self._error

    async def first(self) -> None:
        """Waits until the first byte of the body is here, or the body ended empty. Raises EngineBroke."""
        while not self._buffered and not self._ended:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole body. Raises EngineBroke when it breaks, stalls or passes ``limit_bytes``."""
        self._limit = limit_bytes
        if self._buffered > limit_bytes:
            self.abort()
            raise EngineBroke(_too_large(limit_bytes))
        if not self._ended:
            self._unchoke()
            await self._end()
        body = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        return body

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        """Pushes the body into ``feed`` as it arrives and returns at its end.

        ``feed`` runs inside the event loop's read callback: it must be quick, and the only exception it may raise is
        EngineBroke, which ends the answer. Raises EngineBroke.
        """
        try:
            if self._buffer:
                chunk = b"".join(self._buffer)
                self._buffer.clear()
                self._buffered = 0
                feed(chunk)
        except EngineBroke:
            self.abort()
            raise
        connection = self._connection
        if connection is not None:
            connection.push_to(feed)
        self._unchoke()
        await self._end()

    def pause(self) -> None:
        """Stops reading from the server."""
        self._held = True
        if self._connection is not None:
            self._connection.hold()

    def resume(self) -> None:
        """Reads on."""
        self._held = False
        if self._connection is not None and not self._choked:
            self._connection.let_go()

    @property
    def pieces(self) -> int:
        """None are counted: the server's own bytes pass."""
        return 0

    def abort(self) -> None:
        """Closes the connection at once if the body has not ended."""
        if self._connection is not None:
            self._connection.give_up("aborted by the gateway")

    def discard(self, limit_bytes: int, within_s: float) -> None:
        """Lets go of a body nobody wants: a short one ends by itself and saves the connection, a long one is cut."""
        if self._connection is None:
            return
        left = limit_bytes - self._buffered
        if left < 0:
            self.abort()
            return

        def count(chunk: bytes) -> None:
            nonlocal left
            left -= len(chunk)
            if left < 0:
                self.abort()

        self._connection.push_to(count)
        self._unchoke()
        self._loop.call_later(within_s, self.abort)

    async def _end(self) -> None:
        try:
            while not self._ended:
                if self._error is not None:
                    raise self._error
                await self._wait()
        except asyncio.CancelledError:
            self.abort()
            raise

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        await waiter

    def _unchoke(self) -> None:
        self._choked = False
        if self._connection is not None and not self._held:
            self._connection.let_go()

    # What its connection does.

    def head_came(self, status: int, content_type: bytes, retry_after: bytes | None) -> None:
        """Takes what the head of the answer says."""
        self.status = status
        self.content_type = content_type
        self.retry_after = retry_after
        self._wake()

    def keep(self, chunk: bytes) -> None:
        """Takes body bytes nobody pumps yet."""
        self._buffer.append(chunk)
        self._buffered += len(chunk)
        if self._limit is not None:
            if self._buffered > self._limit and self._connection is not None:
                self._connection.give_up(_too_large(self._limit))
            return
        if self._buffered > MAX_BUFFERED_BYTES and not self._choked and self._connection is not None:
            self._choked = True
            self._connection.hold()
        self._wake()

    def ended(self) -> None:
        """The body is complete."""
        self._connection = None
        self._ended = True
        self._wake()

    def broke(self, error: EngineBroke) -> None:
        """No more will come, and this is why."""
        self._connection = None
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection to an origin, used by one answer at a time."""

    __slots__ = (
        "_answer",
        "_chunked",
        "_complete",
        "_content_length",
        "_content_type",
        "_deadline",
        "_feed_data",
        "_head_bytes",
        "_header_bytes",
        "_header_count",
        "_idle_s",
        "_in_body",
        "_last_read",
        "_loop",
        "_now",
        "_odd",
        "_parser",
        "_parts",
        "_pool",
        "_push",
        "_reading",
        "_retry_after",
        "_reusable",
        "_timer",
        "_timer_at",
        "_transport",
        "_until_close",
        "lost",
        "on_body",
        "served",
    )

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._now = loop.time
        self._parts: list[bytes] = []
        # llhttp appends body bytes by itself: no Python frame for each chunk.
        self.on_body = self._parts.append
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._feed_data = self._parser.feed_data
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._push: Callable[[bytes], None] | None = None
        self._reading = True
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._deadline = inf
        self._idle_s = inf
        self._last_read = 0.0
        self._in_body = False
        self._odd: str | None = None
        self._head_bytes = 0
        self.lost = False
        self.served = 0
        self._new_message()

    def _new_message(self) -> None:
        self._complete = False
        self._reusable = False
        self._until_close = False
        self._chunked = False
        self._content_length: bytes | None = None
        self._content_type = b""
        self._retry_after: bytes | None = None
        self._header_bytes = 0
        self._header_count = 0

    # Called by the answer and the transport.

    def start(self, payload: bytes, timeouts: Timeouts, timeout_s: float, connect_s: float) -> Answer:
        """Sends one request; its answer's head has to be here within ``first_byte_s`` and ``timeout_s`` seconds."""
        assert self._transport is not None
        answer = self._answer = Answer(self._loop, self, connect_s)
        self._idle_s = timeouts.idle_s
        if self.served:
            self._in_body = False
            self._head_bytes = 0
            self._new_message()
        limit_s = timeouts.first_byte_s
        self._deadline = deadline = self._now() + (limit_s if limit_s < timeout_s else timeout_s)
        if deadline < self._timer_at:
            self._arm(deadline)
        self._transport.write(payload)
        return answer

    def push_to(self, feed: Callable[[bytes], None]) -> None:
        """Hands the body to ``feed`` from now on, as it arrives."""
        self._push = feed

    def hold(self) -> None:
        """Stops reading from the server."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def let_go(self) -> None:
        """Reads on."""
        if not self._reading and self._transport is not None:
            self._reading = True
            self._last_read = self._now()
            self._transport.resume_reading()

    def give_up(self, reason: str, *, timeout: bool = False) -> None:
        """Closes at once; the current answer, if any, ends with EngineBroke."""
        self._break(EngineBroke(reason, timeout=timeout))

    def is_open(self) -> bool:
        """Whether a request may be sent on it."""
        return not self.lost and self._transport is not None and not self._transport.is_closing()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._close()  # nobody asked: these bytes could be taken for the next answer
            return
        self._last_read = self._now()
        try:
            self._feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._deliver()
            self._break(EngineBroke(f"malformed answer: {self._odd or 'bad HTTP framing'}"))
            return
        parts = self._parts
        if parts:
            self._head_bytes = 0
            push = self._push
            if push is not None and len(parts) == 1:
                chunk = parts.pop()
                try:
                    push(chunk)
                except EngineBroke as error:
                    self._break(error)
            else:
                self._deliver()
        else:
            # Headers, and later trailers and chunk extensions: bytes in a row that bring no content.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._break(EngineBroke("malformed answer: head too large"))
        if self._complete:
            self._finish()

    def eof_received(self) -> bool:
        if self._answer is not None and self._in_body and self._until_close:
            self._complete = True
            self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._pool.closed(self)
        answer = self._answer
        if answer is not None:
            answer.stale = self.served > 0 and not self._in_body and not self._head_bytes
            how = "reset" if isinstance(exc, ConnectionResetError) else "closed"
            where = "before the answer" if not self._in_body else "within the body"
            self._break(EngineBroke(f"connection {how} {where}"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None
        self._parser = None  # parser and connection hold each other

    # Called by llhttp, inside feed_data.

    def on_message_begin(self) -> None:
        if self._complete:
            raise self._complaint("bytes after the end")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count = count = self._header_count + 1
        self._header_bytes = size = self._header_bytes + len(name) + len(value)
        if count > MAX_HEADERS:
            raise self._complaint("too many headers")
        if size > MAX_HEAD_BYTES:
            raise self._complaint("head too large")
        if self._in_body:
            return  # trailers say nothing we use
        name = name.lower()
        if name == b"content-type":
            self._content_type = value
        elif name == b"content-length":
            if self._content_length is not None or self._chunked:
                raise self._complaint("two framings")
            self._content_length = value
        elif name == b"transfer-encoding":
            if self._chunked or self._content_length is not None:
                raise self._complaint("two framings")
            if value.lower() != b"chunked":
                raise self._complaint("unknown transfer coding")
            self._chunked = True
        elif name == b"content-encoding":
            if value.lower() != b"identity":
                raise self._complaint("a compressed body nobody asked for")
        elif name == b"retry-after":
            self._retry_after = value
        elif name == b"location" and self._answer is not None:
            self._answer.location = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        assert self._answer is not None
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise self._complaint("101 without a request to switch protocols")
            return
        self._in_body = True
        self._until_close = self._content_length is None and not self._chunked and status not in (204, 304)
        stalls_at = self._last_read + self._idle_s
        if stalls_at < self._timer_at:
            self._arm(stalls_at)
        self._answer.head_came(status, self._content_type, self._retry_after)

    def on_message_complete(self) -> None:
        if not self._in_body:
            count = self._header_bytes
            self._new_message()
            self._header_bytes = count
            return
        assert self._parser is not None
        self._complete = True
        self._reusable = self._parser.should_keep_alive()

    def _complaint(self, reason: str) -> _Odd:
        self._odd = reason
        return _Odd(reason)

    # The rest of a connection's life.

    def _deliver(self) -> None:
        parts = self._parts
        if not parts:
            return
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        push = self._push
        if push is None:
            if self._answer is not None:
                self._answer.keep(chunk)
            return
        try:
            push(chunk)
        except EngineBroke as error:
            self._break(error)

    def _finish(self) -> None:
        answer = self._answer
        if answer is None:
            return
        self._answer = None
        self._push = None
        transport = self._transport
        if self._reusable and transport is not None and not transport.get_write_buffer_size() and self.is_open():
            if not self._reading:
                self.let_go()
            self.served += 1
            pool = self._pool
            self._deadline = deadline = self._last_read + pool.keep_alive_s
            if deadline < self._timer_at:
                self._arm(deadline)
            pool.give_back(self)
        else:
            self._close()
        answer.ended()

    def _break(self, error: EngineBroke) -> None:
        answer = self._answer
        self._answer = None
        self._push = None
        self._close()
        if answer is not None:
            answer.broke(error)

    def _close(self) -> None:
        self.lost = True
        self._pool.drop(self)
        if self._transport is not None:
            self._transport.abort()

    def _arm(self, when: float) -> None:
        """Has the timer fire at ``when``; for callers who found that it would fire later (they are the hot path)."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = inf
        now = self._now()
        when = self._deadline
        if self._answer is not None and self._in_body:
            when = self._last_read + self._idle_s if self._reading else now + self._idle_s
        if when > now + _TIMER_SLACK_S:
            self._arm(when)
        elif self._answer is None:
            self._close()
        elif self._in_body:
            self.give_up(f"no byte for {self._idle_s:g} s within the body", timeout=True)
        else:
            self.give_up("no answer in time", timeout=True)


class Pool:
    """The connections to one origin. The one used last is used next, so that the others may expire."""

    __slots__ = ("_idle", "_open", "_ssl", "keep_alive_s", "origin")

    def __init__(self, origin: Origin, keep_alive_s: float, tls: ssl.SSLContext | None = None) -> None:
        self.origin = origin
        self.keep_alive_s = keep_alive_s
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._ssl = tls

    @property
    def open_count(self) -> int:
        """Connections open now, idle ones included."""
        return len(self._open)

    @property
    def idle_count(self) -> int:
        """Connections waiting for a request."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """Returns an idle connection that looks alive."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open():
                return connection
        return None

    def give_back(self, connection: Connection) -> None:
        """Takes a connection that is ready for another request."""
        self._idle.append(connection)

    def opened(self, connection: Connection) -> None:
        """Takes note of a new connection."""
        self._open.add(connection)

    def drop(self, connection: Connection) -> None:
        """Forgets an idle connection that is closing."""
        if connection in self._idle:
            self._idle.remove(connection)

    def closed(self, connection: Connection) -> None:
        """Forgets a connection that has ended."""
        self._open.discard(connection)
        self.drop(connection)

    def close(self) -> None:
        """Closes every connection, the busy ones too."""
        for connection in list(self._open):
            connection.give_up("the gateway is stopping")

    async def connect(self, limit_s: float) -> Connection:
        """Opens a connection, name resolution and TLS handshake included. Raises EngineRefused."""
        origin = self.origin
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit_s):
                context = await self._tls() if origin.scheme == "https" else None
                _, connection = await loop.create_connection(
                    lambda: Connection(self, loop),
                    origin.address or origin.host,
                    origin.port,
                    ssl=context,
                    server_hostname=origin.host if context else None,
                )
        except TimeoutError:
            raise EngineRefused(f"no connection within {limit_s:g} s") from None
        except socket.gaierror:
            raise EngineRefused("the host name does not resolve") from None
        except ssl.SSLCertVerificationError as error:
            raise EngineRefused(f"TLS: the certificate is not trusted ({error.verify_message})") from None
        except ssl.SSLError as error:
            raise EngineRefused(f"TLS: the handshake failed ({error.reason or 'no reason given'})") from None
        except OSError as error:
            raise EngineRefused(f"no connection: {_why(error)}") from None
        return connection

    async def _tls(self) -> ssl.SSLContext:
        if self._ssl is None:
            ca_file = self.origin.ca_file
            try:
                self._ssl = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file)
            except (OSError, ssl.SSLError):
                raise EngineRefused("TLS: the target's ca_file cannot be read") from None
        return self._ssl


class Transport:
    """All pools of one event loop. ``keep_alive_s``: how long a connection may wait for its next request."""

    def __init__(self, *, keep_alive_s: float = 20.0) -> None:
        self._keep_alive_s = keep_alive_s
        self._pools: dict[Origin, Pool] = {}

    def pool(self, origin: Origin) -> Pool:
        """Returns the pool of an origin, a new one the first time."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self._keep_alive_s)
        return pool

    async def request(self, pool: Pool, payload: bytes, *, timeouts: Timeouts, timeout_s: float) -> Answer:
        """Sends ``payload`` (head and body, as one write) and returns when the head of the answer is here.

        ``timeout_s`` bounds all of it, connecting included. Any status is an answer here.
        Raises EngineRefused when there is no connection and EngineBroke for everything later.
        """
        began = time.monotonic()
        connection = pool.take()
        if connection is not None:
            answer = connection.start(payload, timeouts, timeout_s, 0.0)
            try:
                await answer.head()
                return answer
            except EngineBroke:
                if not answer.stale:
                    raise
        began_connect = time.monotonic()
        timeout_s -= began_connect - began
        connection = await pool.connect(max(0.0, min(timeouts.connect_s, timeout_s)))
        connect_s = time.monotonic() - began_connect
        answer = connection.start(payload, timeouts, max(0.0, timeout_s - connect_s), connect_s)
        await answer.head()
        return answer

    async def aclose(self) -> None:
        """Closes idle connections and aborts the others."""
        pools = list(self._pools.values())
        self._pools.clear()
        for pool in pools:
            pool.close()
        for _ in range(_CLOSING_TURNS):  # the loop closes sockets in its next turns; none is to outlive this call
            if not any(pool.open_count for pool in pools):
                return
            await asyncio.sleep(0)


def _too_large(limit_bytes: int) -> str:
    return f"the answer is larger than {limit_bytes} bytes"


def _why(error: OSError) -> str:
    """Returns our words for a failed connect; asyncio's own text lists addresses."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return os.strerror(error.errno).lower() if error.errno else "all addresses failed"
