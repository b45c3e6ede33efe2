"""Tests of what passes from a server's error answer to a caller."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.engines.rejection import Rejection, read_rejection, scrub


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see http://10.1.2.3:8000/v1?key=x now", "see [url] now"),
        ("file:///etc/passwd", "[url]"),
        ("grpc+tls://gpu/a", "[url]"),
        ("from 10.1.2.3:8000 and 192.168.0.1.", "from [address] and [address]."),
        ("at fe80::1 or [::1]:80 or 2001:db8:0:0:0:0:0:1", "at [address] or [address] or [address]"),
        ("localhost:8000, gpu-1:8001 and a.b.c:9000", "[address], [address] and [address]"),
        ("host gpu-1.cluster.local is down", "host [address] is down"),
        ("<_io.BytesIO object at 0x7f3e1c2d>", "<_io.BytesIO object at [pointer]>"),
        ("in /usr/lib/python3/vllm/x.py, line 3", "in [path], line 3"),
        ("~/models/a.gguf and C:\\models\\a.gguf", "[path] and [path]"),
        ('File "/secret.txt"', 'File "[path]"'),
        ("a\nb\x00c\x1b[31m\u2028d", "a b c [31m d"),
    ],
)
def test_scrubbed(text: str, shown: str) -> None:
    """URLs, addresses, hosts, pointers, paths and control characters do not pass."""
    assert scrub(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        "temperature must be in [0, 2], got 3.5; use either/or.",
        "The model `org/name-7b` does not exist: std::bad_alloc at 12:30",
        "'max_tokens:4096' ≥ 1 / 2",
    ],
)
def test_kept(text: str) -> None:
    """What a server says about the request itself passes as it is."""
    assert scrub(text) == text


def test_secret() -> None:
    """The target's own key is cut out."""
    assert scrub("bad key sk-canary!", secret="sk-canary") == "bad key [secret]!"


@given(st.text(max_size=6000))
def test_bounded(text: str) -> None:
    """Whatever comes, what passes is one printable line of at most 500 characters."""
    shown = scrub(text)
    assert len(shown) <= 500
    assert shown.isprintable()


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "bad_n"}},
        {"object": "error", "message": "no", "type": "BadRequestError", "param": "n", "code": "bad_n"},
    ],
)
def test_shapes(document: dict[str, object]) -> None:
    """The shapes of OpenAI and of vLLM are read."""
    assert read_rejection(json.dumps(document).encode()) == Rejection("no", "bad_n", "n")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"{}",
        b'"no"',
        b'{"message": "no"}',
        b'{"object": "list", "message": "no"}',
        b'{"error": "no"}',
        b'{"error": {"message": 5}}',
        b'{"error": {"message": "no"',
        b"\xff",
    ],
)
def test_other_shapes(body: bytes) -> None:
    """Nothing passes from any other shape."""
    assert read_rejection(body) == Rejection()


def test_fields_are_names() -> None:
    """A code that is a number and a param that is a sentence do not pass."""
    document = {"error": {"message": "no", "param": "see http://x/", "code": 400}}
    assert read_rejection(json.dumps(document).encode()) == Rejection("no", None, None)


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "This model's maximum context length is 9 tokens.", "code": 400}},
        {"object": "error", "message": "This model's maximum context length is 9 tokens.", "code": 400},
        {"error": {"message": "too big", "type": "exceed_context_size_error", "code": 400}},
    ],
)
def test_context_overflow(document: dict[str, object]) -> None:
    """A prompt that does not fit has one code, whatever the server."""
    assert read_rejection(json.dumps(document).encode()).code == "context_length_exceeded"
