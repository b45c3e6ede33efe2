"""Server-sent events, as the WHATWG HTML standard frames them (section 9.2.6), without decoding what they carry.

Model servers send whole events that end with a blank line; the aligner passes those bytes on untouched. What the
standard allows besides (CR and CRLF, an event over several chunks, a byte order mark, a last event without its blank
line) comes out in one form: lines that end with LF, and a blank line after each event.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_EVENT_BYTES = 1024 * 1024
"""An event larger than this is an attack or a defect: a token is a few hundred bytes, a usage event a thousand."""
_BOM = b"\xef\xbb\xbf"


class EventAligner:
    """Cuts a stream at the ends of events. Holds at most ``max_event_bytes`` and one chunk."""

    __slots__ = ("_max_event_bytes", "_skip_lf", "_started", "_tail")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail = bytearray()
        self._skip_lf = False
        self._started = False

    def feed(self, chunk: bytes) -> bytes:
        """Takes bytes as they arrived and returns whole events only, or nothing.

        Raises ValueError when an event is larger than ``max_event_bytes``.
        """
        if self._started and not self._tail and not self._skip_lf and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            if len(chunk) > self._max_event_bytes:
                self._check(chunk)
            return chunk
        return self._align(chunk)

    @property
    def holding(self) -> bool:
        """Whether the next chunk cannot be passed on as it is: a part of an event waits, or nothing has come yet."""
        return bool(self._tail) or self._skip_lf or not self._started

    def flush(self) -> bytes:
        """Takes the end of the stream: returns what is left as a last event, its blank line added."""
        rest = bytes(self._tail)
        self._tail.clear()
        if not self._started and rest == _BOM[: len(rest)]:
            return b""
        if not rest.strip(b"\n"):
            return b""
        return rest + (b"\n" if rest.endswith(b"\n") else b"\n\n")

    def _align(self, chunk: bytes) -> bytes:
        tail = self._tail
        if self._skip_lf and chunk:
            self._skip_lf = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            # A CR at the end is a line end already; the LF that may follow in the next chunk is dropped there.
            self._skip_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        seen = max(0, len(tail) - 1)
        tail += chunk
        if not self._started:
            if len(tail) < len(_BOM) and _BOM.startswith(tail):
                return b""
            self._started = True
            if tail.startswith(_BOM):
                del tail[: len(_BOM)]
                seen = 0
        end = tail.rfind(b"\n\n", seen)
        if end < 0:
            if len(tail) > self._max_event_bytes:
                raise ValueError("event too large")
            return b""
        block = bytes(tail[: end + 2])
        del tail[: end + 2]
        if len(block) > self._max_event_bytes:
            self._check(block)
        if len(tail) > self._max_event_bytes:
            raise ValueError("event too large")
        return block

    def _check(self, block: bytes) -> None:
        if any(len(event) > self._max_event_bytes for event in block.split(b"\n\n")):
            raise ValueError("event too large")


def iter_data(block: bytes) -> Iterator[bytes]:
    """Yields the data of each event in a block that `EventAligner` returned; events without data yield nothing."""
    for event in block.split(b"\n\n"):
        if event.startswith(b"data: ") and b"\n" not in event:
            yield event[6:]
            continue
        lines = [line for line in event.split(b"\n") if line[:5] == b"data:" or line == b"data"]
        if lines:
            yield b"\n".join(line[5:].removeprefix(b" ") for line in lines)
