"""HTTP/1.1 as we accept it: uvicorn's protocol with limits, deadlines and a direct path for the data plane.

Everything is parsed by llhttp (httptools). Requests of the data plane are answered without going through ASGI: the
exchange below writes to the transport itself, so that a relayed chunk costs one write and no task switch. All other
requests take uvicorn's ASGI path. Both end in the same dispatcher (ADR 0003).

Deadlines are kept per connection as one number and checked by a sweep once a second, because timers per request cost
more than the requests' own parsing.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from passerelle.domain.client import Headers
from passerelle.domain.errors import BadRequest, HeadersTooLarge, PasserelleError, RequestTimeout
from passerelle.domain.ids import new_id
from passerelle.edge.asgi import STALL_S, refuse_compressed, too_large
from passerelle.edge.exchange import ClientGone

_READ_AHEAD_BYTES = 64 * 1024
"""A body that nobody asked for yet is read this far."""
_MAX_PIPELINED = 16
_LINGER_S = 1.0
"""A connection that is only listened to any more is closed when this long nothing came."""
_LINGER_MOST_S = 30.0


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What a connection may ask of us. Sizes in bytes, times in seconds."""

    max_body_bytes: int = 20 * 1024 * 1024
    max_head_bytes: int = 32 * 1024
    max_headers: int = 100
    max_url_bytes: int = 8 * 1024
    head_timeout_s: float = 10.0
    body_grace_s: float = 10.0
    """A body may take this long whatever its rate."""
    body_min_rate_bytes_s: int = 16 * 1024
    keep_alive_s: float = 75.0
    max_connections: int = 10_000


@dataclass(frozen=True, slots=True)
class DirectPath:
    """The data plane's short way: which requests take it, and who handles them."""

    paths: frozenset[str]
    handle: Callable[[DirectExchange], Awaitable[None]]
    limits: EdgeLimits
    plain: Mapping[bytes, str] = field(init=False)
    """The paths as they stand in a request line, when it has no query and nothing is escaped."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", {path.encode("ascii"): path for path in self.paths})


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()


_STATUS_LINES = {status.value: _status_line(status.value) for status in http.HTTPStatus}


def refusal(status: int, code: str, message: str) -> bytes:
    """Returns a whole answer for a request that cannot even be dispatched; the connection closes after it."""
    request_id = new_id("req")
    kind = "invalid_request_error" if status < 500 else "overloaded_error"
    error = {"message": message, "type": kind, "param": None, "code": code, "request_id": request_id}
    body = msgspec.json.encode({"error": error})
    fields = [
        _STATUS_LINES[status],
        b"content-type: application/json\r\nconnection: close\r\n",
        b"x-request-id: %b\r\n" % request_id.encode(),
        b"retry-after: 1\r\n" if status == 503 else b"",
        b"content-length: %d\r\n\r\n" % len(body),
    ]
    return b"".join(fields) + body


class DirectExchange:
    """One request of the data plane: an `Exchange` and its `Client` in one object."""

    __slots__ = (
        "_added",
        "_body",
        "_body_waiter",
        "_complete",
        "_encoded",
        "_error",
        "_gone_callback",
        "_keep_alive",
        "_pause",
        "_protocol",
        "_received",
        "_resume",
        "_size",
        "_write",
        "arrived",
        "chunked",
        "gone",
        "headers",
        "method",
        "path",
        "peer",
        "query",
        "started",
        "task",
    )

    def __init__(
        self,
        protocol: EdgeProtocol,
        method: str,
        path: str,
        query: bytes,
        headers: Headers,
        *,
        keep_alive: bool,
        chunked: bool,
        encoded: bool,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.peer: str | None = protocol.client[0] if protocol.client else None
        self.arrived = protocol.read_at
        self.gone = False
        self.started = False
        self.chunked = chunked
        self._added: Headers | None = None
        self._protocol = protocol
        self._keep_alive = keep_alive
        self._encoded = encoded
        self._write = protocol.transport.write
        self._body: list[bytes] = []
        self._size = 0
        self._received = False
        self._complete = False
        self._error: PasserelleError | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._gone_callback: Callable[[], object] | None = None
        self._pause: Callable[[], None] | None = None
        self._resume: Callable[[], None] | None = None
        self.task: asyncio.Task[None]

    @property
    def client(self) -> DirectExchange:
        return self

    # What the protocol reports.

    def feed(self, data: bytes) -> None:
        """Takes a piece of the body."""
        self._size += len(data)
        protocol = self._protocol
        if self._size > protocol.limits.max_body_bytes:
            self.fail(too_large(protocol.limits.max_body_bytes))
            return
        self._body.append(data)
        if self._size > _READ_AHEAD_BYTES and self._body_waiter is None:
            protocol.flow.pause_reading()

    def received(self) -> None:
        """The body is here."""
        self._received = True
        self._wake()

    def fail(self, error: PasserelleError) -> None:
        """The body will never be whole; ``body`` raises the error."""
        self._error = error
        self._keep_alive = False
        self._body.clear()
        self._wake()

    def leave(self) -> None:
        """The connection is gone."""
        if not self.gone and not self._complete:
            self.gone = True
            self._wake()
            if self._gone_callback is not None:
                self._gone_callback()

    def writable(self, yes: bool) -> None:
        """The transport's buffer passed its high or its low mark."""
        callback = self._resume if yes else self._pause
        if callback is not None:
            callback()

    def last(self) -> None:
        """The connection closes after this answer."""
        self._keep_alive = False

    def _wake(self) -> None:
        waiter = self._body_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Exchange

    async def body(self) -> bytes:
        """As `Exchange.body`; it is given out once."""
        if self._encoded:
            refuse_compressed(self.headers)
        while not self._received and self._error is None and not self.gone:
            self._body_waiter = self._protocol.loop.create_future()
            self._protocol.flow.resume_reading()
            await self._body_waiter
        if self._error is not None:
            raise self._error
        if not self._received:
            raise ClientGone
        pieces, self._body = self._body, []  # a second copy would stay as long as the answer
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def pieces(self, max_body_bytes: int) -> AsyncIterator[bytes]:
        """As `Exchange.pieces`: in one, as the bodies of the direct path are small."""
        body = await self.body()
        if len(body) > max_body_bytes:
            raise too_large(max_body_bytes)
        yield body

    # Client

    def on_gone(self, callback: Callable[[], object]) -> None:
        self._gone_callback = callback
        if self.gone:
            callback()

    def add_headers(self, headers: Headers) -> None:
        self._added = headers

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self._resume = pause, resume
        if self._protocol.flow.write_paused:
            pause()

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        if self.gone:
            return
        self.started = True
        self._write(b"%bcontent-length: %d\r\n\r\n%b" % (self._head(status, headers), len(body), body))
        self._finish()

    def begin(self, status: int, headers: Headers) -> None:
        if self.gone:
            return
        self.started = True
        if not self.chunked:
            self._keep_alive = False  # an HTTP/1.0 body ends with its connection
        end = b"transfer-encoding: chunked\r\n\r\n" if self.chunked else b"\r\n"
        self._write(self._head(status, headers) + end)

    def write(self, data: bytes) -> None:
        if self.gone or not data:
            return
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def end(self) -> None:
        if self.gone or self._complete:
            return
        if self.chunked:
            self._write(b"0\r\n\r\n")
        self._finish()

    def abort(self) -> None:
        if not self._complete:
            self._complete = True
            self._protocol.transport.abort()

    def _head(self, status: int, headers: Headers) -> bytes:
        head = [_STATUS_LINES[status], self._protocol.common_head()]
        if self._added is not None:
            headers = [*headers, *self._added]
        for name, value in headers:
            if not name:
                head.append(value)
            elif name == b"connection" and value == b"close":
                self._keep_alive = False
            else:
                head.append(b"%b: %b\r\n" % (name, value))
        if not self._keep_alive or not (self._received or self._error):
            # A body that was refused unread would be taken for the next request.
            self._keep_alive = False
            head.append(b"connection: close\r\n")
        return b"".join(head)

    def _finish(self) -> None:
        self._complete = True
        self._gone_callback = self._pause = self._resume = None
        self._protocol.finished(self, keep_alive=self._keep_alive)

    @property
    def unread(self) -> bool:
        """The body was refused before its end: more of it may be on its way."""
        return self._error is not None

    @property
    def complete(self) -> bool:
        """The answer was written, or given up."""
        return self._complete


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with our limits and the direct path; one per connection."""

    direct: DirectPath

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = self.direct.limits
        self.read_at = time.monotonic()
        """When bytes came last, in monotonic seconds."""
        self.deadline = self.read_at + self.limits.head_timeout_s
        """Monotonic time at which the sweep closes this connection; infinity while an answer is on its way."""
        self._incoming: DirectExchange | None = None  # whose body is being received
        self._active: DirectExchange | None = None  # who is being answered
        self._queued: deque[DirectExchange] = deque()
        self._head_bytes = 0
        self._body_started = 0.0
        self._body_bytes = 0
        self._refused = False
        self._linger_until = 0.0
        self._stalled_since = 0.0
        self._stalled_bytes = 0
        self._progress = False
        self._in_trailers = False
        self._upgrading = False  # to a websocket, once the parser has let go
        self._encoded = False  # the head has a Content-Encoding
        self._rendered: Headers = []
        self._common_head = b""
        self._silent_bytes = 0  # received in a row without a head, a piece of a body or an end

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too_many_connections", "Too many connections; retry later.")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for exchange in (self._active, *self._queued):
            if exchange is not None:
                exchange.leave()
        self._queued.clear()

    def data_received(self, data: bytes) -> None:
        self.read_at = time.monotonic()
        if self._refused:
            return
        self._progress = False
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        except httptools.HttpParserUpgrade:
            if self._upgrading:
                self._to_websocket()
                return
            # Any other upgrade is answered as if it had not been asked for.
        if self._progress:
            self._silent_bytes = 0
            return
        # The parser gathers a header's value until it ends, and reports nothing before.
        self._silent_bytes += len(data)
        if self._silent_bytes > self.limits.max_head_bytes + self.limits.max_url_bytes:
            self._head_too_large()

    def send_400_response(self, msg: str) -> None:
        if self._incoming is not None:
            self._refused = True
            self._incoming.fail(BadRequest("The request body is not well-formed HTTP/1.1.", code="malformed_request"))
            self._incoming = None
        else:
            self._refuse(400, "malformed_request", "The request is not well-formed HTTP/1.1.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_since = time.monotonic()
        self._stalled_bytes = self.transport.get_write_buffer_size()
        if self._active is not None:
            self._active.writable(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_since = 0.0
        if self._active is not None:
            self._active.writable(True)

    def shutdown(self) -> None:
        if self._active is not None:
            self._active.last()
        elif self._incoming is None:
            super().shutdown()

    def sweep(self, now: float) -> None:
        """Closes the connection when a deadline has passed; called about once a second."""
        if self._stalled_since:
            waiting = self.transport.get_write_buffer_size()
            if waiting < self._stalled_bytes:
                self._stalled_since, self._stalled_bytes = now, waiting
            elif now - self._stalled_since > STALL_S:
                self.transport.abort()
                return
        if self._body_started:
            allowed_s = self.limits.body_grace_s + self._body_bytes / self.limits.body_min_rate_bytes_s
            if now - self._body_started > allowed_s and not self.flow.read_paused:
                self._body_too_slow()
        elif now > self.deadline and not self._refused:
            if self._head_bytes:
                self._refuse(408, "request_timeout", "The request's head took too long to arrive.")
            else:
                self.transport.close()

    def _head_too_large(self) -> None:
        text = "The request headers are too large or too many."
        if self._incoming is not None:  # trailers
            self._refused = True
            self._incoming.fail(HeadersTooLarge(text))
            self._incoming = None
        else:
            self._refuse(431, "headers_too_large", text)

    def _body_too_slow(self) -> None:
        self._body_started = 0.0
        if self._incoming is not None:
            self._incoming.fail(RequestTimeout("The request body arrived too slowly; send it faster."))
            self._incoming = None
        else:
            self._refuse(408, "request_timeout", "The request body arrived too slowly; send it faster.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._refused:
            return
        self._refused = True
        if self._active is None and (self.cycle is None or not self.cycle.response_started):
            self.transport.write(refusal(status, code, message))
        self.transport.close()

    # Parser callbacks

    def on_message_begin(self) -> None:
        # uvicorn's own method makes an ASGI scope as well: `_to_asgi` does, for requests that need one.
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._progress = True
        self._in_trailers = False
        self._head_bytes = 1
        if self._active is None:
            self.deadline = self.read_at + self.limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.max_url_bytes:
            self._refuse(414, "uri_too_long", "The request address is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.limits.max_head_bytes:
            self._head_too_large()
            return
        if self._in_trailers:
            return  # they are no headers: what checked the head must have seen all that counts (RFC 9110, 6.5.1)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        if len(self.headers) > self.limits.max_headers:
            self._head_too_large()
            return
        self._progress = self._in_trailers = True
        self._head_bytes = 0
        self.deadline = inf
        version = self.parser.get_http_version()
        length = self._framing(version)
        if length is None:
            self._refuse(400, "malformed_request", "The request's version or framing is not one of HTTP/1.1.")
            return
        if self.parser.should_upgrade() and self._should_upgrade():
            if length:
                self._refuse(400, "malformed_request", "A request for a websocket has no body.")
            elif self._active is None and (self.cycle is None or self.cycle.response_complete):
                self._upgrading = True
            else:
                self._hang_up_after_active()
            return
        self._body_started, self._body_bytes = self.read_at, 0
        # The ASGI path answers 413 without reading the body.
        exchange = self._direct_exchange(version) if length <= self.limits.max_body_bytes else None
        busy = self._active is not None or (self.cycle is not None and not self.cycle.response_complete)
        if exchange is None:
            if self._active is not None:
                self._hang_up_after_active()
            else:
                self._to_asgi()
            return
        self._incoming = exchange
        if not busy:
            self._start(exchange)
        elif self._active is not None and len(self._queued) < _MAX_PIPELINED:
            self._queued.append(exchange)
        else:
            self._hang_up_after_active()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        self._body_bytes += len(body)
        if self._incoming is not None:
            self._incoming.feed(body)
        elif not self._refused and self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        self._body_started = 0.0
        if self._incoming is not None:
            self._incoming.received()
            self._incoming = None
        elif not self._refused and not self._upgrading and self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self.deadline = time.monotonic() + self.limits.keep_alive_s

    def _to_websocket(self) -> None:
        """Hands the connection over to uvicorn's websocket protocol, which reads the head again."""
        self.connections.discard(self)
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        lines += [b"%b: %b" % header for header in self.headers]
        assert self.ws_protocol_class is not None
        make: Callable[..., asyncio.Protocol] = self.ws_protocol_class
        protocol = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        protocol.connection_made(self.transport)
        protocol.data_received(b"\r\n".join(lines) + b"\r\n\r\n")
        self.transport.set_protocol(protocol)

    # The direct path

    def _framing(self, version: str) -> int | None:
        """Returns the length of the body as the head states it, 0 when it does not, and None for a head that is bad.

        A body's length is stated once and clearly (RFC 9112, section 6.3), in a version we speak; HTTP/1.1 asks for a
        Host as well (section 3.2).
        """
        if version not in ("1.1", "1.0"):
            return None
        length = framings = hosts = 0
        self._encoded = False
        for name, value in self.headers:
            if name == b"content-length":
                framings += 1
                if not value.isdigit():
                    return None
                length = int(value)
            elif name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                framings += 1
                if version == "1.0" or value.strip().lower() != b"chunked":
                    return None
            elif name == b"content-encoding":
                self._encoded = True
        if framings > 1 or (not hosts and version == "1.1"):
            return None
        return length

    def _direct_exchange(self, version: str) -> DirectExchange | None:
        parser = self.parser
        if parser.get_method() != b"POST" or parser.should_upgrade() or self.expect_100_continue:
            return None
        path, query = self.direct.plain.get(self.url), b""
        if path is None:
            url = httptools.parse_url(self.url)
            path, query = url.path.decode("ascii"), url.query or b""
            if "%" in path:
                path = unquote(path)
            if path not in self.direct.paths:
                return None
        modern = version == "1.1"
        return DirectExchange(
            self,
            "POST",
            path,
            query,
            self.headers,
            keep_alive=modern and parser.should_keep_alive(),
            chunked=modern,
            encoded=self._encoded,
        )

    def _to_asgi(self) -> None:
        """Hands the request whose head is here to uvicorn's own path."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()
        self.cycle.transport = _LastWord(self)

    def _start(self, exchange: DirectExchange) -> None:
        self._active = exchange
        exchange.task = self.loop.create_task(self._answer(exchange))
        self.tasks.add(exchange.task)

    async def _answer(self, exchange: DirectExchange) -> None:
        try:
            await self.direct.handle(exchange)
        finally:
            if not exchange.complete:
                exchange.abort()
            self.tasks.discard(exchange.task)

    def finished(self, exchange: DirectExchange, *, keep_alive: bool) -> None:
        """An exchange's answer is written: goes on with the next request, or closes."""
        self.server_state.total_requests += 1
        self._active = None
        if self.transport.is_closing():
            return
        if not keep_alive:
            if exchange.unread:
                self.linger()
            else:
                self.transport.close()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        self.deadline = time.monotonic() + self.limits.keep_alive_s
        if self._queued:
            self._start(self._queued.popleft())

    def linger(self) -> None:
        """Closes our side, and the whole once the other has said all: closing while bytes still come resets the
        connection, and the answer may be lost with it (RFC 9112, section 9.6). What comes until then is thrown away.
        """
        self._refused = True
        if self.flow.read_paused:
            self.flow.resume_reading()
        self.transport.write_eof()
        self._linger_until = time.monotonic() + _LINGER_MOST_S
        self.loop.call_later(_LINGER_S, self._let_go)

    def _let_go(self) -> None:
        now = time.monotonic()
        if now - self.read_at < _LINGER_S and now < self._linger_until and not self.transport.is_closing():
            self.loop.call_later(_LINGER_S, self._let_go)
        else:
            self.transport.close()

    def common_head(self) -> bytes:
        """Returns the header lines that every answer has; the server makes new ones once a second."""
        headers = self.server_state.default_headers
        if headers is not self._rendered:
            self._rendered = headers
            self._common_head = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        return self._common_head

    def _hang_up_after_active(self) -> None:
        """Pipelining beyond what we keep in order: the requests under way are answered, the rest goes unanswered."""
        self._refused = True
        last = self._queued[-1] if self._queued else self._active
        if last is not None:
            last.last()
        else:
            self.cycle.keep_alive = False


class _LastWord(asyncio.Transport):
    """The transport of one request on uvicorn's path: closing it while the body still comes waits for its end."""

    def __init__(self, protocol: EdgeProtocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes."""
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        """Ends the connection after what was written."""
        if self._protocol.cycle.more_body and not self.is_closing():
            self._protocol.linger()
        else:
            self._protocol.transport.close()
