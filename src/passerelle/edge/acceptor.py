"""Accepts connections from a socket that several processes listen on, so that each gets its part.

An event loop accepts all that is there at once, so a burst of connections, and with keep-alive all their requests,
would go to whichever process woke up first. This one accepts one at a time, and a process that has more connections
than another leaves the next one to it, for a moment: if nobody takes it then, it does so itself; more at a time each
time that happens again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

_YIELD_S = 0.002
_MOST_AFTER_YIELD = 32
"""Connections that are taken, at the most, without a look at the others when they did not come for one."""
_OUT_OF_FILES_S = 0.5


class Acceptor:
    """Accepts from ``listener`` until closed.

    ``factory`` makes a connection's protocol. ``yields`` is told how many connections are being set up here, and says
    whether the next should rather be another process's.
    """

    def __init__(
        self, listener: socket.socket, factory: Callable[[], asyncio.Protocol], yields: Callable[[int], bool]
    ) -> None:
        self._listener = listener
        self._factory = factory
        self._yields = yields
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._mine = 0
        self._after_yield = 1
        self._starting: set[asyncio.Task[object]] = set()
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accepts no more; the listener stays open."""
        self._loop.remove_reader(self._listener)
        if self._resuming is not None:
            self._resuming.cancel()

    def _accept(self) -> None:
        others_first = self._yields(len(self._starting))
        if self._mine:
            self._mine -= 1
        elif others_first:
            self._pause(_YIELD_S)
            return
        else:
            self._after_yield = 1
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._mine, self._after_yield = 0, 1  # another was faster
            return
        except OSError as error:
            logger.error("cannot accept a connection: %s", error.strerror)
            self._pause(_OUT_OF_FILES_S)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.ensure_future(self._loop.connect_accepted_socket(self._factory, connection))
        self._starting.add(task)
        task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[object]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("a connection ended before it began: %s", error)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._resuming = None
        self._mine = self._after_yield
        self._after_yield = min(2 * self._after_yield, _MOST_AFTER_YIELD)
        self._loop.add_reader(self._listener, self._accept)
