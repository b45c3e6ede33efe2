"""Forms with files read as they arrive: nothing of a file is in memory but the piece at hand (RFC 7578).

The rules are those of `passerelle.faces.multipart`, for bodies too large to be whole. What is bounded here is the
number of parts and the headers of each; how large a file may be is for who takes its pieces to say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from passerelle.domain.errors import BadRequest
from passerelle.faces.multipart import MAX_HEAD_BYTES, MAX_PARTS, boundary_of, disposition_of, malformed

MAX_FIELD_BYTES = 4096
"""Of a field that is no file."""


class FormReader:
    """Reads one form. ``pieces`` are the bytes of its body.

    Raises UnsupportedMedia for another content type, and BadRequest for a form that is malformed.
    """

    def __init__(self, content_type: bytes | None, pieces: AsyncIterator[bytes]) -> None:
        self._delimiter = b"--" + boundary_of(content_type)
        self._pieces = pieces
        self._buffer = bytearray()
        self._ended = False
        self._parts = 0
        self._in_part = False

    async def next(self) -> tuple[str, str | None] | None:
        """Returns name and filename (None for what is no file) of the next part; None after the last.

        What is left of the part before is skipped.
        """
        if self._parts == 0:
            await self._fill(len(self._delimiter))
            if not self._buffer.startswith(self._delimiter):
                raise malformed("it does not begin with its boundary")
            del self._buffer[: len(self._delimiter)]
        elif self._in_part:
            async for _ in self.data():
                pass
        await self._fill(2)
        mark = bytes(self._buffer[:2])
        if mark == b"--":
            self._buffer.clear()
            async for _ in self._pieces:
                pass
            return None
        if mark != b"\r\n":
            raise malformed("its boundary is not followed by a line break")
        if self._parts == MAX_PARTS:
            raise BadRequest(f"A form has at most {MAX_PARTS} parts.")
        self._parts += 1
        del self._buffer[:2]
        head = await self._head()
        self._in_part = True
        return disposition_of(head)

    async def data(self) -> AsyncIterator[bytes]:
        """Yields the bytes of the part that `next` returned."""
        close = b"\r\n" + self._delimiter
        start = 0
        while True:
            found = self._buffer.find(close, start)
            if found >= 0 and len(self._buffer) >= found + len(close) + 2:
                after = bytes(self._buffer[found + len(close) : found + len(close) + 2])
                if after in (b"\r\n", b"--"):
                    last = bytes(self._buffer[:found])
                    del self._buffer[: found + len(close)]
                    self._in_part = False
                    if last:
                        yield last
                    return
                start = found + 1
                continue
            keep = len(self._buffer) - found if found >= 0 else len(close) - 1
            safe = len(self._buffer) - keep
            if safe > 0:
                piece = bytes(self._buffer[:safe])
                del self._buffer[:safe]
                start = 0
                yield piece
            if not await self._more():
                raise malformed("it ends in the middle of a part")

    async def text(self, name: str) -> str:
        """Returns the value of the part ``name``, which `next` returned. Raises BadRequest when it is too long."""
        value = bytearray()
        async for piece in self.data():
            value += piece
            if len(value) > MAX_FIELD_BYTES:
                raise BadRequest(f"Field `{name}` is longer than {MAX_FIELD_BYTES} bytes.", param=name)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"Field `{name}` is not UTF-8 text.", param=name) from None

    async def _head(self) -> bytes:
        while True:
            end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
            if end >= 0:
                head = bytes(self._buffer[:end])
                del self._buffer[: end + 4]
                return head
            if len(self._buffer) >= MAX_HEAD_BYTES or not await self._more():
                raise malformed(f"a part has no headers, or more than {MAX_HEAD_BYTES} bytes of them")

    async def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            if not await self._more():
                raise malformed("it ends too early")

    async def _more(self) -> bool:
        if self._ended:
            return False
        piece = await anext(self._pieces, None)
        if piece is None:
            self._ended = True
            return False
        self._buffer += piece
        return True
