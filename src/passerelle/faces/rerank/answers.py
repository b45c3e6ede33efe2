"""Answers of rerank and score, from a model made for it or from the likeness of embeddings.

Which of the two it was stands in ``method``: ``model``, or ``embedding_similarity`` (the cosine, from -1 to 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from passerelle.domain.errors import UpstreamFailed

BY_MODEL, BY_EMBEDDING = "model", "embedding_similarity"


class _Document:
    """The parts of a `passerelle.faces.translated.Rendering` that a whole answer does not use."""

    content_type = b"application/json"

    def comment(self, text: bytes) -> bytes:
        """Nothing: it does not stream."""
        return b""

    def event(self, event: dict[str, Any]) -> bytes:
        """Nothing: it does not stream."""
        return b""

    def end(self) -> bytes:
        """Nothing: it does not stream."""
        return b""


class RerankRendering(_Document):
    """Renders a ranking. ``documents`` None leaves their texts out; ``by_embedding`` reads embeddings of query, then
    documents."""

    def __init__(
        self, request_id: str, model: str, texts: Sequence[str], *, top_n: int | None, show: bool, by_embedding: bool
    ) -> None:
        self._id = f"rerank-{request_id.removeprefix('req_')}"
        self._model = model
        self._texts = texts
        self._top_n = top_n
        self._show = show
        self._by_embedding = by_embedding

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns the results, best first. Raises UpstreamFailed for scores that do not fit the documents."""
        scores = self._similarities(answer) if self._by_embedding else self._scores(answer)
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: self._top_n]
        results = []
        for index in order:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if self._show:
                result["document"] = {"text": self._texts[index]}
            results.append(result)
        tokens = (answer.get("usage") or {}).get("total_tokens", 0)
        return msgspec.json.encode(
            {
                "id": self._id,
                "model": self._model,
                "method": BY_EMBEDDING if self._by_embedding else BY_MODEL,
                "results": results,
                "usage": {"total_tokens": tokens},
            }
        )

    def _similarities(self, answer: dict[str, Any]) -> list[float]:
        query, *documents = embeddings(answer, 1 + len(self._texts))
        return [cosine(query, document) for document in documents]

    def _scores(self, answer: dict[str, Any]) -> list[float]:
        found = {result["index"]: float(result["relevance_score"]) for result in answer.get("results") or ()}
        if found.keys() != set(range(len(self._texts))):
            raise _unfit()
        return [found[index] for index in range(len(self._texts))]


class ScoreRendering(_Document):
    """Renders scores of pairs: of embeddings of the first texts, then the second; ``firsts`` says how many."""

    def __init__(self, request_id: str, model: str, firsts: int, seconds: int, *, by_embedding: bool) -> None:
        self._id = f"score-{request_id.removeprefix('req_')}"
        self._model = model
        self._firsts = firsts
        self._seconds = seconds
        self._by_embedding = by_embedding

    def document(self, answer: dict[str, Any]) -> bytes:
        """Returns one score a pair, in order. Raises UpstreamFailed for what does not fit."""
        if self._by_embedding:
            vectors = embeddings(answer, self._firsts + self._seconds)
            firsts, seconds = vectors[: self._firsts], vectors[self._firsts :]
            firsts = firsts * len(seconds) if len(firsts) == 1 else firsts
            scores = [cosine(one, other) for one, other in zip(firsts, seconds, strict=True)]
        else:
            data = sorted(answer.get("data") or (), key=lambda each: each["index"])
            scores = [float(each["score"]) for each in data]
            if len(scores) != self._seconds:
                raise _unfit()
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        tokens = (answer.get("usage") or {}).get("total_tokens", 0)
        method = BY_EMBEDDING if self._by_embedding else BY_MODEL
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"id": self._id, "object": "list", "model": self._model, "method": method, "data": data, "usage": usage}
        return msgspec.json.encode(body)


def embeddings(answer: dict[str, Any], count: int) -> list[Sequence[float]]:
    """Returns the vectors of an embeddings answer, in order. Raises UpstreamFailed unless there are ``count``."""
    data = sorted(answer.get("data") or (), key=lambda each: each["index"])
    vectors: list[Sequence[float]] = [each["embedding"] for each in data]
    if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
        raise _unfit()
    return vectors


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns the cosine of the angle between two vectors, 0 when one has no length."""
    length = math.sqrt(math.fsum(x * x for x in one)) * math.sqrt(math.fsum(x * x for x in other))
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / length if length else 0.0


def _unfit() -> UpstreamFailed:
    return UpstreamFailed("The model server's answer does not fit the texts that were sent; retry the request.")
