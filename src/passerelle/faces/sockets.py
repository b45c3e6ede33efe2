"""What every websocket of ours does the same way: where a browser may come from, and everything that ends one.

A socket ends when its work is done (1000), when the other side leaves, and within seconds when the caller's key was
revoked or has expired (4401).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from passerelle.domain.errors import BadRequest, Forbidden
from passerelle.domain.principal import Principal
from passerelle.edge.dispatch import Context
from passerelle.edge.exchange import header
from passerelle.edge.origins import TrustedOrigins
from passerelle.edge.socket import Socket, SocketClosed, SocketExchange

KEY_ENDED = 4401
"""The close code when the caller's key was revoked or has expired."""


class Presence:
    """Who is connected for long, so that the end of a key ends what it holds open."""

    def __init__(self) -> None:
        self._callbacks: defaultdict[str, set[Callable[[], None]]] = defaultdict(set)

    @contextmanager
    def of(self, principal: Principal) -> Iterator[asyncio.Event]:
        """Yields an event that is set when the key is revoked or expires."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        callbacks = self._callbacks[principal.key_id]
        callbacks.add(ended.set)
        timer = None
        if principal.expires_at is not None:
            timer = loop.call_later(max(0.0, principal.expires_at - time.time()), ended.set)
        try:
            yield ended
        finally:
            if timer is not None:
                timer.cancel()
            callbacks.discard(ended.set)
            if not callbacks:
                self._callbacks.pop(principal.key_id, None)

    def end(self, key_id: str) -> None:
        """Ends everything that was opened with a key."""
        for callback in tuple(self._callbacks.get(key_id, ())):
            callback()


class Origins:
    """Which pages of browsers may open websockets: those of this very host, and ``trusted`` ones (``*`` for any)."""

    def __init__(self, trusted: TrustedOrigins) -> None:
        self._trusted = trusted

    def check(self, context: Context) -> None:
        """Raises Forbidden for a page of another origin; who sends no Origin is no browser."""
        origin = header(context.exchange.headers, b"origin")
        if origin is None or origin in self._trusted:
            return
        text = origin.decode("latin-1").lower()
        host = (header(context.exchange.headers, b"host") or b"").decode("latin-1").lower()
        if host and urlsplit(text).netloc == host:
            return
        raise Forbidden(
            "Pages of this origin may not open websockets here; an operator may allow it in `server.trusted_origins`.",
            code="origin_not_allowed",
        )


def socket_of(context: Context) -> Socket:
    """Returns the websocket of a request."""
    exchange = context.exchange
    if not isinstance(exchange, SocketExchange):
        raise BadRequest("This address is a websocket.")
    return exchange.socket


async def converse(socket: Socket, ended: asyncio.Event, talk: Awaitable[None]) -> None:
    """Runs ``talk`` on an accepted socket until it returns, the other side leaves, or ``ended`` is set; then closes.

    What the other side says meanwhile is not heard.
    """
    talking = asyncio.ensure_future(talk)
    hearing = asyncio.ensure_future(_hear(socket))
    watching = asyncio.ensure_future(ended.wait())
    tasks = (talking, hearing, watching)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not talking.done():
            await socket.close(KEY_ENDED, "the key was revoked or has expired")
        elif talking.done():
            try:
                talking.result()
            except SocketClosed:
                pass
            await socket.close()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _hear(socket: Socket) -> None:
    try:
        while True:
            await socket.receive()
    except SocketClosed:
        pass
