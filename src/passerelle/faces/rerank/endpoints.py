"""The routes of rerank and score: by a model of the kind ``rerank``, or by the likeness of embeddings."""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import BadRequest
from passerelle.domain.model import ModelKind
from passerelle.domain.request import Operation, Request
from passerelle.edge.dispatch import Context
from passerelle.faces.body import decode
from passerelle.faces.calls import Calls
from passerelle.faces.openai import wire
from passerelle.faces.rerank.answers import RerankRendering, ScoreRendering
from passerelle.faces.rerank.bodies import RerankBody, ScoreBody

_RERANK = msgspec.json.Decoder(RerankBody)
_SCORE = msgspec.json.Decoder(ScoreBody)


class RerankFace:
    """The endpoints."""

    def __init__(self, calls: Calls, catalog: Catalog) -> None:
        self._calls = calls
        self._catalog = catalog

    async def rerank(self, context: Context) -> None:
        """``POST /v1/rerank``: documents by how well they answer a query."""
        asked = decode(await context.exchange.body(), _RERANK)
        texts = asked.texts
        by_embedding = self._by_embedding(asked.model)
        if by_embedding:
            request = _embedding(asked.model, [asked.query, *texts])
        else:
            request = _native(Operation.RERANK, {"model": asked.model, "query": asked.query, "documents": texts})
        rendering = RerankRendering(
            context.request_id,
            asked.model,
            texts,
            top_n=asked.top_n,
            show=asked.return_documents,
            by_embedding=by_embedding,
        )
        await self._calls.run(context, request, rendering)

    async def score(self, context: Context) -> None:
        """``POST /v1/score``: how alike two texts are, for one pair or many."""
        asked = decode(await context.exchange.body(), _SCORE)
        firsts = [asked.text_1] if isinstance(asked.text_1, str) else asked.text_1
        seconds = [asked.text_2] if isinstance(asked.text_2, str) else asked.text_2
        if len(firsts) not in (1, len(seconds)):
            raise BadRequest("`text_1` is one text, or as many as `text_2`.", param="text_1")
        by_embedding = self._by_embedding(asked.model)
        if by_embedding:
            request = _embedding(asked.model, [*firsts, *seconds])
        else:
            pairs = {"text_1": firsts[0] if len(firsts) == 1 else firsts, "text_2": seconds}
            request = _native(Operation.SCORE, {"model": asked.model, **pairs})
        rendering = ScoreRendering(
            context.request_id, asked.model, len(firsts), len(seconds), by_embedding=by_embedding
        )
        await self._calls.run(context, request, rendering)

    def _by_embedding(self, name: str) -> bool:
        model = self._catalog.current.resolve(name)
        return model is not None and model.kind is ModelKind.EMBEDDING


def _embedding(model: str, texts: list[str]) -> Request:
    return wire.parse_embedding(msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"}))


def _native(operation: Operation, document: dict[str, Any]) -> Request:
    fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in document.items()}
    return Request(operation, document["model"], msgspec.json.encode(document), fields)
