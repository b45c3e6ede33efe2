"""LangChain's OpenAI integration against a running Passerelle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

pytestmark = pytest.mark.slow


@pytest.fixture
def http_client() -> Iterator[httpx.Client]:
    """A client that is closed at the end, which LangChain's own is not."""
    with httpx.Client() as client:
        yield client


@pytest.fixture
def chat(server: Any, http_client: httpx.Client) -> ChatOpenAI:
    """A chat model as LangChain's documentation shows it."""
    return ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=server.key,
        model=server.model,
        temperature=0,
        max_tokens=16,
        max_retries=0,
        stream_usage=True,
        http_client=http_client,
    )


MESSAGES = [SystemMessage("You are a helpful assistant."), HumanMessage("Say hello.")]


def test_invoke(chat: ChatOpenAI) -> None:
    """An answer with its usage."""
    answer = chat.invoke(MESSAGES)
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(chat: ChatOpenAI) -> None:
    """The chunks add up to the answer, usage included."""
    chunks = [chunk for chunk in chat.stream(MESSAGES) if isinstance(chunk, AIMessageChunk)]
    assert len(chunks) > 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == chat.invoke(MESSAGES).content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def test_batch(chat: ChatOpenAI) -> None:
    """Several conversations at once."""
    assert all(answer.content for answer in chat.batch([MESSAGES] * 3))


def test_embeddings(server: Any, http_client: httpx.Client) -> None:
    """Texts go as texts: without its own tokenizer LangChain would ask the internet for one."""
    embeddings = OpenAIEmbeddings(
        base_url=f"{server.url}/v1",
        api_key=server.key,
        model=server.embedding_model,
        check_embedding_ctx_length=False,
        max_retries=0,
        http_client=http_client,
    )
    documents = embeddings.embed_documents(["Le chat dort.", "Stock prices fell."])
    query = embeddings.embed_query("The cat is asleep.")
    near, far = (sum(a * b for a, b in zip(query, document, strict=True)) for document in documents)
    assert near > far
