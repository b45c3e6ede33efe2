"""Haystack's OpenAIChatGenerator and embedder against the embedded models."""

from __future__ import annotations

from typing import Any

CLIENT = "haystack"


def test_answers(seen: dict[str, Any]) -> None:
    """Whole, streamed and within a pipeline the answer is the same text, with its usage and reason."""
    assert seen["text"]
    assert seen["text"] == seen["streamed"] == seen["pieces"] == seen["piped"]
    assert seen["count"] > 2
    assert 0 < seen["usage"] <= 12
    assert seen["finish"] in ("stop", "length")


def test_embedding_and_error(seen: dict[str, Any]) -> None:
    """A vector has its dimensions, and a model that is missing is the client's own error."""
    assert seen["vector"] == 384
    assert seen["error"] == "NotFoundError"
