"""Sizes of pictures, read from their first bytes."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.faces.openai.picture import Base64Reader, picture_size

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", 3, 5) + b"\x08\x02\0\0\0"
_VP8L = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 6 | 8 << 14) + b"\0" * 8
_VP8 = b"RIFF\x1a\0\0\0WEBPVP8 \x0d\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 7 | 1 << 14, 9) + b"\0" * 4
_JPEG = b"\xff\xd8\xff\xff\xfe\0\x04ab\xff\xc4\0\x02\xff\xc2\0\x0b\x08" + struct.pack(">HH", 9, 7) + b"\0" * 4


def read(kind: str, data: bytes) -> tuple[int, int]:
    """Returns the size that a picture announces."""
    return picture_size(kind, Base64Reader("data:" + base64.b64encode(data).decode(), 5))


@pytest.mark.parametrize(
    ("kind", "data", "size"),
    [
        ("png", _PNG, (3, 5)),
        ("gif", b"GIF89a" + struct.pack("<HH", 3, 5), (3, 5)),
        ("webp", _VP8L, (7, 9)),
        ("webp", _VP8, (7, 9)),
        ("jpeg", _JPEG, (7, 9)),
        ("jpg", _JPEG, (7, 9)),
    ],
)
def test_the_announced_size(kind: str, data: bytes, size: tuple[int, int]) -> None:
    """Every form of every format."""
    assert read(kind, data) == size


@pytest.mark.parametrize("kind", ["png", "gif", "jpeg", "webp"])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_size_or_a_value_error(kind: str, data: bytes) -> None:
    """Nothing else comes out, whatever goes in."""
    for start in (b"", _PNG[:16], b"\xff\xd8\xff", b"RIFF0000WEBPVP8", b"GIF89a"):
        try:
            width, height = read(kind, start + data)
        except ValueError:
            continue
        assert width > 0 and height > 0


@given(data=st.binary(max_size=100), offset=st.integers(0, 120), count=st.integers(1, 40))
def test_pieces_are_those_of_the_whole(data: bytes, offset: int, count: int) -> None:
    """Reading at an offset is the same as decoding everything first."""
    reader = Base64Reader(base64.b64encode(data).decode(), 0)
    if offset + count <= len(data):
        assert reader.at(offset, count) == data[offset : offset + count]
    else:
        with pytest.raises(ValueError, match="too short"):
            reader.at(offset, count)
