"""Tests of the event framing, against the plain reading of the standard."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.engines.sse import EventAligner, iter_data


def plain(stream: bytes) -> list[bytes]:
    """The standard's parser, slow and whole; a last event without its blank line counts."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*lines, b""]:
        name, _, value = line.partition(b":")
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


def aligned(stream: bytes, cuts: list[int]) -> tuple[list[bytes], list[bytes]]:
    """Returns the blocks and the data that an aligner finds in a stream cut at these places."""
    aligner = EventAligner()
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    blocks = [aligner.feed(stream[a:b]) for a, b in pairwise(places)]
    blocks.append(aligner.flush())
    return blocks, [data for block in blocks for data in iter_data(block)]


LINE = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data:",
        b"data:  two",
        b": comment",
        b"id: 7",
        b"event: error",
        b"dat",
        b"x",
        b"",
    ]
)
END = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAM = st.builds(
    lambda bom, lines, last: bom + b"".join(line + end for line, end in lines) + last,
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    st.lists(st.tuples(LINE, END), max_size=12),
    LINE,
)


@given(STREAM, st.lists(st.integers(0, 400), max_size=12))
def test_any_split_yields_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut, its events are those of the whole."""
    assert aligned(stream, cuts)[1] == plain(stream)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_any_bytes_split(stream: bytes, cuts: list[int]) -> None:
    """That holds for bytes that are no event stream at all."""
    assert aligned(stream, cuts)[1] == plain(stream)


@given(STREAM, st.lists(st.integers(0, 400), max_size=12))
def test_blocks_are_whole_events(stream: bytes, cuts: list[int]) -> None:
    """Each block ends with a blank line and has no CR, so that anything may be appended after it."""
    for block in aligned(stream, cuts)[0]:
        assert b"\r" not in block
        assert not block or block.endswith(b"\n\n")


def test_whole_events_pass_untouched() -> None:
    """A chunk of whole events is the same object on its way out."""
    aligner = EventAligner()
    aligner.feed(b"data: 0\n\n")
    chunk = b'data: {"a": 1}\n\ndata: [DONE]\n\n'
    assert aligner.feed(chunk) is chunk


def test_half_an_event_waits() -> None:
    """Nothing of an event comes out before all of it is in."""
    aligner = EventAligner()
    assert aligner.feed(b'data: 1\n\ndata: {"a"') == b"data: 1\n\n"
    assert aligner.feed(b": 1}\n") == b""
    assert aligner.feed(b"\n") == b'data: {"a": 1}\n\n'


def test_an_event_ends_at_its_cr() -> None:
    """An event that ends with CR CR is not held back for a LF that may never come."""
    aligner = EventAligner()
    assert aligner.feed(b"data: 1\r\r") == b"data: 1\n\n"
    assert aligner.feed(b"\ndata: 2\r\n\r\n") == b"data: 2\n\n"


def test_flush_without_an_event() -> None:
    """An end after whole events, after blank lines or after half a mark gives nothing."""
    for stream in (b"", b"data: 1\n\n", b"data: 1\n\n\n", b"\xef\xbb"):
        aligner = EventAligner()
        aligner.feed(stream)
        assert aligner.flush() == b""


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_too_large(size: int) -> None:
    """An event past the limit is refused while it grows, in chunks of any size."""
    aligner = EventAligner(max_event_bytes=100)
    with pytest.raises(ValueError, match="too large"):
        for _ in range(1000):
            aligner.feed(b"x" * size)


def test_too_large_in_one_chunk() -> None:
    """The limit also holds for whole events in a single chunk, and counts each by itself."""
    small = b"data: " + b"x" * 40 + b"\n\n"
    aligner = EventAligner(max_event_bytes=100)
    assert aligner.feed(small * 10) == small * 10
    assert aligner.feed(small * 10) == small * 10
    with pytest.raises(ValueError, match="too large"):
        aligner.feed(small + b"data: " + b"x" * 100 + b"\n\n")
