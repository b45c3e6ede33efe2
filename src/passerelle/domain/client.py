"""The caller's connection as the gateway sees it: something bytes go to, that may be slow and may leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Headers = list[tuple[bytes, bytes]]
"""Lower-case names, in order. A pair without a name holds whole lines, rendered already: see `spelled_out`."""


def spelled_out(headers: Headers) -> Headers:
    """Returns headers that all have a name: lines that were rendered in one, for speed, become pairs again."""
    found: Headers = []
    for name, value in headers:
        if name:
            found.append((name, value))
        else:
            for line in value.split(b"\r\n")[:-1]:
                key, _, rest = line.partition(b": ")
                found.append((key, rest))
    return found


class Client(Protocol):
    """One caller waiting for one answer.

    Either ``respond`` once, or ``begin``, ``write`` any number of times and then ``end`` or ``abort``.
    """

    @property
    def gone(self) -> bool:
        """The caller has left; writes go nowhere."""

    @property
    def started(self) -> bool:
        """A head was sent: it is too late for an error status."""

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Calls back once when the caller leaves; at once if that has happened. A new callback replaces the old one."""

    def on_flow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Calls ``pause`` when more than the allowed bytes wait for a slow caller, ``resume`` when they have gone."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole answer."""

    def begin(self, status: int, headers: Headers) -> None:
        """Queues the head of a streamed answer; never blocks."""

    def write(self, data: bytes) -> None:
        """Queues bytes of the body; never blocks."""

    def last(self) -> None:
        """The connection is to close after this answer, where the server allows it."""

    async def end(self) -> None:
        """Waits until everything is written, and finishes the body."""

    def abort(self) -> None:
        """Closes the connection without finishing the body."""
