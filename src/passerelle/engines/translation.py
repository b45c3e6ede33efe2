"""A reply whose bytes are OpenAI's while the server's are not: a `Reader` turns the ones into the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from passerelle.engines.base import EngineBroke, EngineError
from passerelle.engines.transport import Answer


class Reader(Protocol):
    """Reads one answer of a server. Every method may raise EngineError."""

    stream: bool
    """Whether the caller gets events, or one document at the end."""
    pieces: int
    """How many pieces of text came so far: about as many as tokens, for servers that tell none."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Takes bytes as they arrived; yields the events they make, nothing when the answer is one document.

        What stands before a fault in the same bytes is yielded before it is raised: how the network cut an answer
        makes no difference.
        """

    def end(self) -> Iterator[bytes]:
        """Takes the end of the answer; yields the last events, or the whole document."""


class TranslatedReply:
    """As `passerelle.engines.base.Reply`.

    ``pump`` and ``read`` may also raise EngineRefused and EngineRejected as long as nothing was fed: these servers tell
    by their first event what others tell by a status.
    """

    __slots__ = ("_answer", "_fed", "_reader", "connect_s", "content_type", "status")

    def __init__(self, answer: Answer, reader: Reader) -> None:
        self._answer = answer
        self._reader = reader
        self._fed = False
        self.status = 200
        self.content_type = b"text/event-stream" if reader.stream else b"application/json"
        self.connect_s = answer.connect_s

    @property
    def in_responses(self) -> bool:
        """Never: it is a chat, or none."""
        return False

    @property
    def pieces(self) -> int:
        """As `Reply.pieces`."""
        return self._reader.pieces

    async def first(self) -> None:
        """Waits for the server's first byte. Raises EngineBroke."""
        await self._answer.first()

    async def read(self, limit_bytes: int) -> bytes:
        """Returns the whole answer. Raises EngineError."""
        parts: list[bytes] = []
        await self._run(parts.append, limit_bytes)
        return b"".join(parts)

    async def pump(self, feed: Callable[[bytes], None]) -> None:
        """Pushes the answer's events into ``feed``. Raises EngineError."""

        def note(data: bytes) -> None:
            self._fed = True
            feed(data)

        await self._run(note, None)

    def pause(self) -> None:
        """Stops reading from the server."""
        self._answer.pause()

    def resume(self) -> None:
        """Reads on."""
        self._answer.resume()

    def abort(self) -> None:
        """Releases the connection: closed if the body has not ended."""
        self._answer.abort()

    async def _run(self, feed: Callable[[bytes], None], limit_bytes: int | None) -> None:
        fault: EngineError | None = None
        received = 0

        def take(chunk: bytes) -> None:
            nonlocal fault, received
            received += len(chunk)
            try:
                if limit_bytes is not None and received > limit_bytes:
                    raise EngineBroke(f"the answer is larger than {limit_bytes} bytes")
                for data in self._reader.feed(chunk):
                    feed(data)
            except EngineError as error:
                fault = error
                raise EngineBroke(error.reason) from error

        try:
            await self._answer.pump(take)
            for data in self._reader.end():
                feed(data)
        except EngineError as error:
            raise self._told(fault or error) from error

    def _told(self, error: EngineError) -> EngineError:
        """Once something went out, the only thing to say is that the answer broke."""
        if self._fed and not isinstance(error, EngineBroke):
            return EngineBroke(error.reason, status=error.status)
        return error
