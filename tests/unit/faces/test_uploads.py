"""Forms read as they arrive: the same parts wherever the bytes are cut, and nothing in memory but a piece."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from passerelle.domain.errors import BadRequest, UnsupportedMedia
from passerelle.faces.multipart import MAX_HEAD_BYTES, MAX_PARTS
from passerelle.faces.uploads import MAX_FIELD_BYTES, FormReader

TYPE = b"multipart/form-data; boundary=cut"
TRICKY = b"\r\n--cu\r\n--cut-\r\n--cutter\r\n\r\n--cu"
"""Data that nearly is a boundary."""


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    """One part with its delimiter."""
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--cut\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"


async def cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    """The body in pieces."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, size: int = 7, content_type: bytes = TYPE) -> list[tuple[str, str | None, bytes]]:
    """All parts of a form."""
    form = FormReader(content_type, cut(body, size))
    found = []
    while (head := await form.next()) is not None:
        found.append((*head, b"".join([piece async for piece in form.data()])))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 50, 10_000])
async def test_where_bytes_are_cut_does_not_matter(size: int) -> None:
    """A field, a file of data that nearly is a boundary, and an empty file come out as they went in."""
    body = part("purpose", b"batch") + part("file", TRICKY, "a.jsonl") + part("empty", b"", "e") + b"--cut--\r\n"
    expected = [("purpose", None, b"batch"), ("file", "a.jsonl", TRICKY), ("empty", "e", b"")]
    assert await read(body, size) == expected


async def test_a_part_that_is_not_read_is_skipped() -> None:
    """The next part is found without reading the one before."""
    form = FormReader(TYPE, cut(part("a", b"x" * 1000, "f") + part("b", b"y") + b"--cut--", 64))
    assert await form.next() == ("a", "f")
    assert await form.next() == ("b", None)
    assert await form.text("b") == "y"
    assert await form.next() is None


async def test_a_large_file_is_never_whole_in_memory() -> None:
    """No piece is larger than what arrived at once and the boundary that may begin in it."""
    form = FormReader(TYPE, cut(part("file", bytes(1_000_000), "f") + b"--cut--", 4096))
    await form.next()
    sizes = [len(piece) async for piece in form.data()]
    assert sum(sizes) == 1_000_000
    assert max(sizes) <= 4096 + 16


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"junk" + part("a", b"x") + b"--cut--",
        part("a", b"x"),
        b"--cut\r\nContent-Disposition: form-data; name=a\r\n\r\nno end",
        b"--cut\r\n" + b"x" * (MAX_HEAD_BYTES + 10),
        b"--cutx\r\n",
        b"--cut\r\nContent-Type: text/plain\r\n\r\nx\r\n--cut--",
        b"".join(part(f"p{n}", b"") for n in range(MAX_PARTS + 1)) + b"--cut--",
    ],
    ids=["empty", "junk", "no end", "open part", "long head", "other boundary", "no name", "parts"],
)
async def test_what_is_malformed_is_refused(body: bytes) -> None:
    """Each ends as a 400, whatever stands in it (promises row 24)."""
    with pytest.raises(BadRequest):
        await read(body)


async def test_what_is_no_form_is_refused() -> None:
    """Another content type is 415; a field as long as a file is 400, and so is one that is no text."""
    with pytest.raises(UnsupportedMedia):
        await read(b"{}", content_type=b"application/json")
    for value in (b"x" * (MAX_FIELD_BYTES + 1), b"\xff"):
        form = FormReader(TYPE, cut(part("a", value) + b"--cut--", 512))
        await form.next()
        with pytest.raises(BadRequest, match="`a`"):
            await form.text("a")
