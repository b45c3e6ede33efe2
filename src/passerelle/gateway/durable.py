"""The end of an answer that waits for its usage row: ``accounting.durability: strict``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from passerelle.domain.client import Client, Headers
from passerelle.gateway.call import Call
from passerelle.gateway.relay import DONE

Settle = Callable[[Call], Awaitable[None]]
"""Settles a call, unless it is settled, and returns when its row is durable. Raises Unavailable."""


class DurableClient:
    """A caller whose answer ends only after the call was settled durably; every other byte passes at once."""

    def __init__(self, client: Client, call: Call, settle: Settle) -> None:
        self._client = client
        self._call = call
        self._settle = settle
        self._held = b""

    @property
    def gone(self) -> bool:
        """The caller has left."""
        return self._client.gone

    @property
    def started(self) -> bool:
        """A head was sent."""
        return self._client.started

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Calls back once when the caller leaves."""
        self._client.on_gone(callback)

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Calls back when the caller is slow, and when no more."""
        self._client.on_flow(pause, resume)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole answer, once its row is durable."""
        await self._settle(self._call)
        await self._client.respond(status, headers, body)

    def begin(self, status: int, headers: Headers) -> None:
        """Queues the head of a streamed answer."""
        self._client.begin(status, headers)

    def write(self, data: bytes) -> None:
        """Queues bytes of the body; the one that says that all is done waits for `end`."""
        if data.endswith(DONE):
            self._held += DONE
            data = data[: -len(DONE)]
        if data:
            self._client.write(data)

    def last(self) -> None:
        """The connection is to close after this answer."""
        self._client.last()

    async def end(self) -> None:
        """Finishes the body, once its row is durable."""
        await self._settle(self._call)
        if self._held:
            self._client.write(self._held)
        await self._client.end()

    def abort(self) -> None:
        """Closes the connection without finishing the body."""
        self._client.abort()
