"""The bodies of OPEA's LLM microservice, of its first version (``query``) and of the one that joins documents.

Defaults are the original's, streaming included.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class RetrievedDocument(msgspec.Struct):
    """A document of the retriever."""

    text: str


class OpeaBody(msgspec.Struct, kw_only=True):
    """``LLMParamsDoc`` and ``SearchedDoc``: a question, and what an answer may rest on."""

    query: str | None = None
    initial_query: str | None = None
    documents: list[str] | None = None
    retrieved_docs: list[RetrievedDocument] | None = None
    chat_template: str | None = None
    id: str | None = None
    model: str | None = None
    max_new_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] = 10
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    typical_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Taken and not sent on, as in the original."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.01
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.03
    streaming: bool | None = None
    stream: bool | None = None
    """The later name of ``streaming``."""

    @property
    def streams(self) -> bool:
        """Whether the answer streams: it does unless told otherwise."""
        wanted = self.streaming if self.streaming is not None else self.stream
        return True if wanted is None else wanted

    @property
    def limit(self) -> int:
        """The most tokens to make."""
        return self.max_new_tokens or self.max_tokens or 1024
