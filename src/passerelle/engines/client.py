"""Requests to a model server that does not speak OpenAI's wire: one pooled connection, JSON both ways.

What a status means is the same for each of them, so it stands here once:

    2xx                 an `Answer`
    400, 413, 422       EngineRejected, with the words of ``explain`` when it finds some
    408                 EngineBroke, a deadline of the server's
    429, 503            EngineRefused, busy, with Retry-After
    anything else       EngineBroke: our key is wrong, the route is missing, the server redirects or failed
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TypeVar

import msgspec

from passerelle.domain.model import Target
from passerelle.engines.base import EngineBroke, EngineError, EngineRefused, EngineRejected
from passerelle.engines.rejection import overflow_code
from passerelle.engines.transport import Answer, Origin, Pool, Transport

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 3600.0
ERROR_BODY_S = 1.0
_MAX_ROUTES = 4096

_T = TypeVar("_T")
Explain = Callable[[bytes], str | None]
"""(body of a 4xx answer) -> a message that is safe to show, or None."""


@dataclass(frozen=True, slots=True)
class _Route:
    pool: Pool
    head: bytes


class HttpClient:
    """Posts to and gets from targets over one `Transport`. ``explain`` reads the server's error documents."""

    def __init__(self, transport: Transport, explain: Explain) -> None:
        self._transport = transport
        self._explain = explain
        self._routes: dict[tuple[str, str | None, object, str, str], _Route] = {}

    async def post(
        self, target: Target, path: str, document: object, *, timeout_s: float, request_id: str = "probe"
    ) -> Answer:
        """Sends ``document`` as JSON and returns a 2xx answer whose head is here. Raises EngineError."""
        if not (request_id.isascii() and request_id.isprintable()):
            raise ValueError("a request id is printable ASCII")
        body = msgspec.json.encode(document)
        route = self._route(target, "POST", path)
        head = b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n" % (route.head, len(body), request_id.encode("ascii"))
        answer = await self._transport.request(route.pool, head + body, timeouts=target.timeouts, timeout_s=timeout_s)
        if 200 <= answer.status < 300:
            return answer
        raise await self._failure(answer)

    async def get(self, target: Target, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """Returns status and body, whatever the status. Raises EngineError when there is no answer."""
        route = self._route(target, "GET", path)
        until = time.monotonic() + timeout_s
        answer = await self._transport.request(
            route.pool, route.head + b"\r\n", timeouts=target.timeouts, timeout_s=timeout_s
        )
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                return answer.status, await answer.read(MAX_DOCUMENT_BYTES)
        except TimeoutError:
            answer.abort()
            raise EngineBroke("the server did not end its answer in time", timeout=True) from None

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    def _route(self, target: Target, method: str, path: str) -> _Route:
        ca_file = target.options.get("ca_file")
        key = (target.url, target.api_key, ca_file, method, path)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:  # reloads leave old targets behind
                self._routes.clear()
            origin = Origin.of(target.url, ca_file=str(ca_file) if ca_file is not None else None)
            route = _Route(self._transport.pool(origin), request_head(method, target.url, path, origin, target.api_key))
            self._routes[key] = route
        return route

    async def _failure(self, answer: Answer) -> EngineError:
        status = answer.status
        if status in (400, 413, 422):
            message = self._explain(await error_body(answer))
            why = f"the server answered {status}"
            return EngineRejected(why, status=status, message=message, code=overflow_code(message))
        retry_after_s = retry_after(answer.retry_after)
        answer.discard(MAX_ERROR_BYTES, ERROR_BODY_S)
        if status in (429, 503):
            why = f"the server is busy ({status})"
            return EngineRefused(why, status=status, busy=True, retry_after_s=retry_after_s)
        if status in (401, 403, 407):
            return EngineBroke("the server refuses the target's api_key", status=status)
        if 300 <= status < 400:
            return EngineBroke("the server redirects; the target's url must be the final one", status=status)
        return EngineBroke(f"the server answered {status}", status=status, timeout=status == 408)


def decoded(kind: type[_T], body: bytes) -> _T:
    """Returns a server's JSON as ``kind``. Raises EngineBroke when it has another shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise EngineBroke("the server's answer is not JSON of the expected shape") from None


def retry_after(value: bytes | None) -> float | None:
    """Reads Retry-After, seconds or a date (RFC 9110, 10.2.3); between 0 and an hour, None when it is neither."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if isfinite(seconds) else None


def request_head(method: str, base: str, path: str, origin: Origin, api_key: str | None) -> bytes:
    """Returns the lines of a request to ``base`` + ``path`` that each one repeats. Raises EngineRefused."""
    prefix = base.partition("://")[2].partition("/")[2]
    full_path = f"/{prefix}{path}" if prefix else path
    lines = [
        f"{method} {full_path} HTTP/1.1",
        f"host: {origin.authority}",
        "user-agent: passerelle",
        "accept: */*",
        "accept-encoding: identity",
        "connection: keep-alive",
    ]
    if method == "POST":
        lines.append("content-type: application/json")
    if api_key is not None:
        lines.append(f"authorization: Bearer {api_key}")
    if not all(line.isascii() and line.isprintable() for line in lines) or " " in full_path:
        raise EngineRefused("the target's url or api_key holds characters that HTTP cannot carry")
    return ("\r\n".join(lines) + "\r\n").encode("ascii")


async def error_body(answer: Answer) -> bytes:
    """Returns what an answer that reports an error says, empty when it does not come in time."""
    try:
        async with asyncio.timeout(ERROR_BODY_S):
            return await answer.read(MAX_ERROR_BYTES)
    except (EngineBroke, TimeoutError):
        return b""
