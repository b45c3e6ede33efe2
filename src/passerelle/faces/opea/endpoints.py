"""OPEA's routes. A chat request that holds ``query`` (``initial_query``) in place of ``messages`` is theirs."""

from __future__ import annotations

import re
import uuid
from typing import Any

import msgspec

from passerelle.catalog.holder import Catalog
from passerelle.domain.errors import BadRequest, NotFound
from passerelle.domain.model import ModelKind
from passerelle.domain.request import Request
from passerelle.edge.dispatch import Context
from passerelle.faces.body import decode
from passerelle.faces.calls import Calls
from passerelle.faces.health import respond_json
from passerelle.faces.opea.answers import Latencies, OpeaRendering, render_error
from passerelle.faces.opea.bodies import OpeaBody
from passerelle.faces.opea.prompt import join
from passerelle.faces.openai import wire

_DECODER = msgspec.json.Decoder(OpeaBody)
_ASKS = re.compile(rb'"(?:query|initial_query)"\s*:')


class OpeaFace:
    """The endpoints. ``name`` is the service's own; ``openai_chunks`` makes streams of OpenAI's chunks."""

    def __init__(self, calls: Calls, catalog: Catalog, *, name: str, openai_chunks: bool) -> None:
        self._calls = calls
        self._catalog = catalog
        self._name = name
        self._openai_chunks = openai_chunks
        self._latencies = Latencies()

    @staticmethod
    def is_asked(body: bytes) -> bool:
        """Whether a chat request's body is one of this face; cheap for those that are not."""
        return b'"messages"' not in body and _ASKS.search(body) is not None

    async def chat(self, context: Context, body: bytes) -> None:
        """``POST /v1/chat/completions`` with ``query``."""
        context.render_error = render_error
        asked = _parsed(body)
        question = asked.query if asked.query is not None else asked.initial_query
        assert question is not None
        documents = [*(asked.documents or ()), *(each.text for each in asked.retrieved_docs or ())]
        request = self._request(asked, join(question, documents, asked.chat_template))
        rendering = OpeaRendering(
            asked.id or uuid.uuid4().hex, question, self._latencies.watch(), openai_chunks=self._openai_chunks
        )
        await self._calls.run(context, request, rendering)

    async def health(self, context: Context) -> None:
        """``GET /v1/health_check``."""
        title = f"{self._name}/MicroService"
        document = {"Service Title": title, "Service Description": "OPEA Microservice Infrastructure"}
        await respond_json(context, document)

    async def statistics(self, context: Context) -> None:
        """``GET /v1/statistics``: of this process."""
        await respond_json(context, {self._name: self._latencies.statistics()})

    def _request(self, asked: OpeaBody, prompt: str) -> Request:
        document: dict[str, Any] = {
            "model": asked.model or self._default_model(),
            "prompt": prompt,
            "max_tokens": asked.limit,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "repetition_penalty": asked.repetition_penalty,
            "stream": asked.streams,
        }
        return wire.parse_completion(msgspec.json.encode(document))

    def _default_model(self) -> str:
        for model in self._catalog.current.models.values():
            if model.kind is ModelKind.CHAT:
                return model.name
        raise NotFound("No model that writes text is configured.", code="model_not_found")


def _parsed(body: bytes) -> OpeaBody:
    asked = decode(body, _DECODER)
    if asked.query is None and asked.initial_query is None:
        raise BadRequest("Field `query` is required.", param="query")
    return asked
