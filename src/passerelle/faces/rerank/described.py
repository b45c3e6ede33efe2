"""The routes of rerank and score for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import Described
from passerelle.faces.rerank.bodies import RerankBody, ScoreBody

Method = Literal["model", "embedding_similarity"]


class RankedText(msgspec.Struct):
    """A document's text."""

    text: str


class RankedDocument(msgspec.Struct):
    """A document of the request, by its place there."""

    index: int
    relevance_score: float
    document: RankedText | None = None


class RankUsage(msgspec.Struct):
    """What it took."""

    total_tokens: int


class RerankAnswer(msgspec.Struct):
    """Documents, best first. ``method`` says whether a model ranked them or the likeness of embeddings."""

    id: str
    model: str
    method: Method
    results: list[RankedDocument]
    usage: RankUsage


class PairScore(msgspec.Struct):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class ScoreUsage(msgspec.Struct):
    """What it took."""

    prompt_tokens: int
    total_tokens: int


class ScoreAnswer(msgspec.Struct):
    """One score a pair, in order."""

    id: str
    object: Literal["list"]
    model: str
    method: Method
    data: list[PairScore]
    usage: ScoreUsage


def _route(path: str, name: str) -> Described:
    summary = "Rank documents for a query"
    return Described("POST", path, "Rerank", name, summary, Scope.INFERENCE, RerankAnswer, RerankBody)


def _score(path: str, name: str) -> Described:
    summary = "Score pairs of texts"
    return Described("POST", path, "Rerank", name, summary, Scope.INFERENCE, ScoreAnswer, ScoreBody)


RERANK = (
    _route("/v1/rerank", "rerank"),
    _route("/v2/rerank", "rerankV2"),
    _score("/v1/score", "score"),
)
