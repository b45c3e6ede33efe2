"""TGI's own client, ``text-generation``, against the embedded model."""

from __future__ import annotations

from typing import Any

CLIENT = "text_generation"


def test_answers(seen: dict[str, Any]) -> None:
    """Whole, streamed, asynchronous and at the root the text is the same, with TGI's details."""
    assert seen["text"]
    assert seen["text"] == seen["streamed"] == seen["last"] == seen["root"] == seen["again"]
    assert seen["finish"] in ("length", "eos_token")
    assert 0 < seen["tokens"] <= 8


def test_errors(seen: dict[str, Any]) -> None:
    """A wrong request is the client's own error."""
    assert seen["error"] == "ValidationError"
