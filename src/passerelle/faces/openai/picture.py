"""How large a picture says it is, read from its first bytes and nothing else: no decoder sees it here.

A few kilobytes of PNG can announce 100,000 x 100,000 pixels, which a model server would unpack into 30 GB. So the
announced size is checked before the picture goes anywhere. Sources: PNG (ISO/IEC 15948), GIF89a, JPEG (ITU T.81,
annex B), WebP (RFC 9649).
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Protocol

_MAX_SEGMENTS = 1000
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


_MARKS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


class Reader(Protocol):
    """Where the bytes of a picture are."""

    def at(self, offset: int, count: int) -> bytes:
        """Returns ``count`` bytes from ``offset``. Raises ValueError when there are fewer."""


class BytesReader:
    """Reads pieces of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def at(self, offset: int, count: int) -> bytes:
        """Returns ``count`` bytes from ``offset``. Raises ValueError when there are fewer."""
        found = self._data[offset : offset + count]
        if len(found) < count:
            raise ValueError("too short")
        return found


class Base64Reader:
    """Reads pieces of what a base64 text stands for, without decoding the whole."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._start = start

    def at(self, offset: int, count: int) -> bytes:
        """Returns ``count`` bytes from ``offset``. Raises ValueError when there are fewer, or it is not base64."""
        first, last = offset // 3 * 4, (offset + count + 2) // 3 * 4
        try:
            piece = base64.b64decode(self._text[self._start + first : self._start + last], validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
        found = piece[offset % 3 : offset % 3 + count]
        if len(found) < count:
            raise ValueError("too short")
        return found


def picture_kind(data: bytes) -> str | None:
    """Returns which picture begins with these bytes (png, jpeg, gif, webp), None when it is none of them."""
    return next((kind for mark, kind in _MARKS if data.startswith(mark)), None)


def picture_size(kind: str, reader: Reader) -> tuple[int, int]:
    """Returns (width, height) in pixels that a picture of ``kind`` (png, jpeg, gif, webp) announces.

    Raises ValueError when it is no such picture.
    """
    read = {"png": _png, "gif": _gif, "webp": _webp}.get(kind, _jpeg)
    width, height = read(reader)
    if not width or not height:
        raise ValueError("no size")
    return width, height


def _png(reader: Reader) -> tuple[int, int]:
    head = reader.at(0, 24)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _gif(reader: Reader) -> tuple[int, int]:
    head = reader.at(0, 10)
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        raise ValueError("not a GIF")
    width, height = struct.unpack("<HH", head[6:10])
    return width, height


def _jpeg(reader: Reader) -> tuple[int, int]:
    if reader.at(0, 2) != b"\xff\xd8":
        raise ValueError("not a JPEG")
    offset = 2
    for _ in range(_MAX_SEGMENTS):
        mark, kind = reader.at(offset, 2)
        if mark != 0xFF:
            raise ValueError("not a JPEG")
        if kind == 0xFF:  # a fill byte
            offset += 1
        elif kind in _ALONE:
            offset += 2
        elif kind in _SOF:
            height, width = struct.unpack(">HH", reader.at(offset + 5, 4))
            return width, height
        else:
            offset += 2 + max(2, int.from_bytes(reader.at(offset + 2, 2), "big"))
    raise ValueError("too many segments")


def _webp(reader: Reader) -> tuple[int, int]:
    head = reader.at(0, 30)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        raise ValueError("not a WebP")
    form = head[12:16]
    if form == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if form == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if form == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("not a WebP")
