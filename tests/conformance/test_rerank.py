"""Rerank and score through a real gateway: by a server that ranks, and by embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Seen, Step, UpstreamThread, status

DOCUMENTS = ["about cats", "about trains", "about boats"]


def scripted(seen: Seen) -> list[Step]:
    """A server that ranks by the length of texts, and embeds a text as counts of letters."""
    asked: dict[str, Any] = seen.json if seen.body else {}
    if seen.path == "/v1/rerank":
        results = [{"index": n, "relevance_score": len(text) / 100} for n, text in enumerate(asked["documents"])]
        return answer({"model": "r", "results": results[::-1], "usage": {"total_tokens": 9}})
    if seen.path == "/v1/score":
        data = [{"index": n, "object": "score", "score": 0.5} for n, _ in enumerate(asked["text_2"])]
        return answer({"object": "list", "data": data, "usage": {"total_tokens": 4}})
    if seen.path == "/v1/embeddings":
        vectors = [[text.count(letter) for letter in "catrinbos"] for text in asked["input"]]
        data = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        return answer({"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 5, "total_tokens": 5}})
    return answer({"object": "list", "data": [{"id": "r"}, {"id": "e"}]})


def answer(document: dict[str, Any]) -> list[Step]:
    return [status(200, [("content-type", "application/json")], json.dumps(document).encode())]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with UpstreamThread(scenario=scripted) as upstream:
        models = [
            {"name": "ranker", "kind": "rerank", "targets": [{"url": upstream.url, "model": "r"}]},
            {"name": "embedder", "kind": "embedding", "targets": [{"url": upstream.url, "model": "e"}]},
            {"name": "writer", "targets": [{"url": upstream.url, "model": "w"}]},
        ]
        with GatewayProcess(tmp_path_factory.mktemp("rerank") / "home", {"models": models}) as process:
            yield process


def ask(gateway: GatewayProcess, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    code, content = gateway.post(path, body)
    return code, json.loads(content)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_a_model_that_ranks(gateway: GatewayProcess, path: str) -> None:
    """Its scores come back best first, with the documents, and are counted."""
    code, found = ask(gateway, path, model="ranker", query="q", documents=[*DOCUMENTS, {"text": "x"}], top_n=2)
    assert code == 200
    assert found["method"] == "model"
    assert [(each["index"], each["document"]["text"]) for each in found["results"]] == [
        (1, "about trains"),
        (2, "about boats"),
    ]
    assert found["usage"] == {"total_tokens": 9}


def test_likeness_of_embeddings(gateway: GatewayProcess) -> None:
    """A model for embeddings ranks by cosine, and the answer says so."""
    code, found = ask(
        gateway, "/v1/rerank", model="embedder", query="cats", documents=DOCUMENTS, return_documents=False
    )
    assert code == 200
    assert found["method"] == "embedding_similarity"
    assert found["results"][0]["index"] == 0
    assert "document" not in found["results"][0]
    scores = [each["relevance_score"] for each in found["results"]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(("model", "method"), [("ranker", "model"), ("embedder", "embedding_similarity")])
def test_scores(gateway: GatewayProcess, model: str, method: str) -> None:
    """One text against several, and pairs, in order."""
    code, found = ask(gateway, "/v1/score", model=model, text_1="cat", text_2=["cat", "boat"])
    assert code == 200
    assert found["method"] == method
    assert [each["index"] for each in found["data"]] == [0, 1]
    assert ask(gateway, "/score", model=model, text_1=["cat", "boat"], text_2=["cat", "boat"])[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"model": "ranker", "query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"model": "ranker", "query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"model": "writer", "query": "q", "documents": ["a"]}, "model"),
        ("/v1/score", {"model": "ranker", "text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
        ("/v1/chat/completions", {"model": "ranker", "messages": [{"role": "user", "content": "a"}]}, "model"),
    ],
)
def test_mistakes_name_the_field(gateway: GatewayProcess, path: str, body: dict[str, Any], param: str) -> None:
    """A wrong request is a 400 that names the field; so is a model of another kind."""
    code, found = ask(gateway, path, **body)
    assert code == 400
    assert found["error"]["param"] == param
