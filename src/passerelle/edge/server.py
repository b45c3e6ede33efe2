"""uvicorn, with our protocol under it: one process's listener, its sweep of deadlines, and its shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from passerelle.edge.acceptor import Acceptor
from passerelle.edge.application import AsgiApplication
from passerelle.edge.protocol import DirectPath, EdgeProtocol
from passerelle.edge.socket import MAX_MESSAGE_BYTES
from passerelle.edge.websocket import EdgeWebSocket

BACKLOG = 4096
_FORCED_S = 2.0
"""Answers that are cut by a second Ctrl-C have this long to say so."""


class PortInUse(Exception):
    """The address cannot be listened on; the message says why."""


def bind(host: str, port: int) -> socket.socket:
    """Returns a listening socket, port 0 for any free one. Raises PortInUse.

    Connections are accepted by the kernel from now on, and answered once a worker serves. Child processes do not
    inherit it: a model server that had it would keep the port open after the gateway has closed it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise PortInUse(f"Cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}.") from error
    return listener


class Server(uvicorn.Server):
    """uvicorn's server; each second it closes connections whose deadlines have passed.

    ``on_started`` is called when it listens, ``on_draining`` when it was asked to stop. With ``yields`` other processes
    listen on the same socket: it is told how many connections there are here, ten times a second and before one is
    accepted, and says whether another process should have that one.
    """

    def __init__(
        self,
        application: AsgiApplication,
        direct: DirectPath,
        *,
        grace_s: float,
        on_started: Callable[[], None],
        on_draining: Callable[[], None],
        yields: Callable[[int], bool] | None = None,
    ) -> None:
        self._yields = yields
        self._acceptor: Acceptor | None = None
        self._on_started = on_started
        self._on_draining = on_draining
        protocol = type("BoundEdgeProtocol", (EdgeProtocol,), {"direct": direct})
        config = uvicorn.Config(
            application,
            http=protocol,
            ws=EdgeWebSocket,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            ws_per_message_deflate=False,  # a small message could be a gigabyte of text
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(direct.limits.keep_alive_s),
            timeout_graceful_shutdown=max(1, round(grace_s)),
            backlog=BACKLOG,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        if self._yields is None or not sockets:
            await super().startup(sockets)
        else:
            await super().startup([])
            self._acceptor = Acceptor(sockets[0], self._protocol, self._yields_with)
        self._on_started()

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _yields_with(self, starting: int) -> bool:
        return self._yields is not None and self._yields(len(self.server_state.connections) + starting)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what runs, then the application: also when forced, for what was accounted is still to be written."""
        if self._acceptor is not None:
            self._acceptor.close()
        await super().shutdown(sockets)
        if self.force_exit:
            # A second Ctrl-C skips the application's end; what was accounted is to be written all the same.
            if self.server_state.tasks:
                await asyncio.wait(tuple(self.server_state.tasks), timeout=_FORCED_S)
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        """Runs ten times a second."""
        if self._acceptor is not None:
            self._yields_with(0)
        if counter % 10 == 0:
            now = time.monotonic()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, EdgeProtocol):
                    connection.sweep(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks to stop: once drains, a second Ctrl-C does not wait for running answers."""
        if not self.should_exit:
            self._on_draining()
        super().handle_exit(sig, frame)
        if self.force_exit:
            for task in tuple(self.server_state.tasks):
                task.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals in the event loop. uvicorn's own raises them again at the end, which would end us early."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
