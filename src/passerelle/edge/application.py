"""The ASGI application: lifespan, the data plane's exchanges, and nothing that knows a route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from passerelle.edge.asgi import AsgiExchange, Receive, Scope, Send
from passerelle.edge.dispatch import Dispatcher
from passerelle.edge.socket import SocketExchange


class AsgiApplication:
    """Runs under any ASGI server; under our own, the data plane takes `passerelle.edge.protocol` instead.

    ``start`` and ``stop`` run in the lifespan.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        max_body_bytes: int,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        self._dispatcher = dispatcher
        self._max_body_bytes = max_body_bytes
        self._start = start
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            exchange = AsgiExchange(scope, receive, send, max_body_bytes=self._max_body_bytes)
            try:
                await self._dispatcher(exchange)
            finally:
                await exchange.asgi_client.close()
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            socket = SocketExchange(scope, receive, send)
            try:
                await self._dispatcher(socket)
            finally:
                await socket.finish()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})
