"""LlamaIndex's OpenAILike models against the embedded ones."""

from __future__ import annotations

from typing import Any

CLIENT = "llama_index"


def test_answers(seen: dict[str, Any]) -> None:
    """Whole and streamed the answer is the same text; a completion is answered too."""
    assert seen["text"]
    assert seen["text"] == seen["streamed"]
    assert seen["completed"]


def test_embeddings_and_error(seen: dict[str, Any]) -> None:
    """Vectors have their dimensions, and a model that is missing is the client's own error."""
    assert seen["vectors"] == [384, 384]
    assert seen["error"] == "NotFoundError"
