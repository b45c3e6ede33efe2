"""Fetches one small document from a server that an operator named: the identity provider's, say.

Over the same transport as models, so what holds there holds here: deadlines, no redirects, no compressed bodies, no
proxies from the environment, TLS with the system's authorities or the ones of ``ca_file``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from passerelle.domain.model import Timeouts
from passerelle.engines.base import EngineError
from passerelle.engines.transport import Origin, Transport

MAX_DOCUMENT_BYTES = 1024 * 1024


class Fetcher:
    """Sends single requests over a `Transport`, which it owns."""

    def __init__(self, transport: Transport, *, ca_file: str | None = None, timeout_s: float = 10.0) -> None:
        self._transport = transport
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._timeouts = Timeouts(connect_s=min(5.0, timeout_s), first_byte_s=timeout_s, idle_s=timeout_s)

    async def __call__(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Returns status and body, whatever the status. Raises OSError when there is no whole answer in time."""
        until = time.monotonic() + self._timeout_s
        try:
            origin = Origin.of(url, ca_file=self._ca_file)
            payload = _head(method, url, origin, headers or {}, body) + body
            answer = await self._transport.request(
                self._transport.pool(origin), payload, timeouts=self._timeouts, timeout_s=self._timeout_s
            )
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    return answer.status, await answer.read(MAX_DOCUMENT_BYTES)
            except TimeoutError:
                answer.abort()
                raise
        except EngineError as error:
            raise ConnectionError(str(error)) from None

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._transport.aclose()


def _head(method: str, url: str, origin: Origin, headers: Mapping[str, str], body: bytes) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"{method} {target} HTTP/1.1",
        f"host: {origin.authority}",
        "user-agent: passerelle",
        "accept: application/json",
        "accept-encoding: identity",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if method != "GET":
        lines.append(f"content-length: {len(body)}")
    if not all(line.isascii() and line.isprintable() for line in lines) or " " in target:
        raise ConnectionError("the address or a header holds characters that HTTP cannot carry")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
