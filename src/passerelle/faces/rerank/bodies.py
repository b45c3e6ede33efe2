"""The bodies of rerank and score, as Jina's, Cohere's and vLLM's clients send them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_DOCUMENTS = 1000
MAX_CHARACTERS = 1_000_000

Text = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class RerankDocument(msgspec.Struct):
    """A document with its text apart, as some clients send it."""

    text: Text


class RerankBody(msgspec.Struct):
    """``POST /v1/rerank``."""

    model: Name
    query: Text
    documents: Annotated[list[Text | RerankDocument], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class ScoreBody(msgspec.Struct):
    """``POST /v1/score``: one text against one or many, or as many against each other."""

    model: Name
    text_1: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    text_2: Text | Annotated[list[Text], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
