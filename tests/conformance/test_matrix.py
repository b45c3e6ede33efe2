"""The matrix of client dialects and model servers: every cell is asked, through one gateway, and its row looked up.

The servers are scripted on real sockets and speak each wire as its server does; the embedded models are real. A cell
that cannot be is a 4xx that names its reason, and never a 5xx.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.conformance.asked import Asked, ask_all, check, check_broken
from tests.conformance.matrix import BREAK, BROKEN_FACES, FACES, OPENAI, WORDS, Face, Row
from tests.conformance.test_text_engines import legacy_stream, tgi_routes, tgi_stream
from tests.harness.gateway import GatewayProcess
from tests.harness.tritond import TRT, VLLM, TritonStandIn
from tests.harness.upstreamd import Seen, Step, UpstreamThread, body, end, headers, normal, reset, status

ROWS = (
    Row("vllm", OPENAI | {"pictures"}),
    Row("llama-server", OPENAI - {"echo"}),
    Row("tgi", frozenset({"text", "history", "logprobs", "schema", "tokenizer"})),
    Row("vllm-legacy", frozenset({"text", "min_p"}), counts=False, tells_length=False),
    Row("triton-vllm", frozenset({"text", "min_p"})),
    Row("triton-trt", counts=False, tells_length=False),
    Row("embedder", frozenset({"vectors", "rank", "tokenizer", "detokenizer"})),
    Row("ranker", frozenset({"rank", "tokenizer", "detokenizer", "ranks"})),
)


TEXT_ROWS = tuple(row for row in ROWS if "text" in row.can)

# Each server's wire.


def openai_wire(seen: Seen) -> list[Step]:
    """A server of OpenAI's wire that writes text: vLLM, or llama-server."""
    if seen.method == "GET" or seen.path in ("/tokenize", "/detokenize", "/apply-template"):
        return [normal()]
    if not seen.path.endswith("/completions"):
        return [status(404, [("content-type", "application/json")], b'{"detail":"Not Found"}')]
    asked = seen.json
    chat = seen.path.endswith("/chat/completions")
    if not asked.get("stream"):
        return [status(500)] if breaks(seen) else document(openai_document(asked, chat=chat))
    chunks = [*openai_chunks(asked, chat=chat), "[DONE]"]
    if breaks(seen):
        chunks = [*chunks[:2], {"error": {"message": "it broke at CANARY", "type": "server_error", "code": 500}}]
    lines = [b"data: " + (each.encode() if isinstance(each, str) else json.dumps(each).encode()) for each in chunks]
    return [headers(), *[body(line + b"\n\n") for line in lines], end()]


def breaks(seen: Seen) -> bool:
    """Whether the server is to break off."""
    return BREAK.encode() in seen.body


def document(content: Any) -> list[Step]:
    return [status(200, [("content-type", "application/json")], json.dumps(content).encode())]


def cut(asked: dict[str, Any]) -> tuple[list[str], str]:
    """Returns the words of an answer and why it ended."""
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 99
    return list(WORDS[:limit]), "length" if limit <= len(WORDS) else "stop"


CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def openai_document(asked: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """One answer, with as many choices as were asked for."""
    words, reason = cut(asked)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
    if asked.get("tools") and asked.get("tool_choice") == "required":
        message, reason = {"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls"
    answer = {"message": message} if chat else {"text": "".join(words)}
    several = asked.get("prompt") if isinstance(asked.get("prompt"), list) else None
    count = (asked.get("n") or 1) * (len(several) if several and isinstance(several[0], str) else 1)
    return {
        "id": "answer-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": asked["model"],
        "choices": [{"index": n, **answer, "logprobs": None, "finish_reason": reason} for n in range(count)],
        "usage": {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)},
    }


def openai_chunks(asked: dict[str, Any], *, chat: bool) -> Iterator[dict[str, Any]]:
    """The events of one streamed answer."""
    words, reason = cut(asked)
    head = {"id": "answer-1", "object": "chat.completion.chunk" if chat else "text_completion", "created": 1}
    head |= {"model": asked["model"]}
    pieces: list[dict[str, Any]] = [{"delta": {"content": word}} if chat else {"text": word} for word in words]
    if asked.get("tools") and asked.get("tool_choice") == "required":
        pieces, reason = [{"delta": {"role": "assistant", "tool_calls": [CALL]}}], "tool_calls"
    pieces.append({"delta": {}} if chat else {"text": ""})
    for number, piece in enumerate(pieces):
        last = number + 1 == len(pieces)
        yield {**head, "choices": [{"index": 0, **piece, "logprobs": None, "finish_reason": reason if last else None}]}
    if (asked.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
        yield {**head, "choices": [], "usage": usage}


def llama_wire(seen: Seen) -> list[Step]:
    """llama-server, whose embeddings are switched off."""
    if seen.path == "/v1/embeddings":
        error = {"code": 501, "message": "This server does not support embeddings.", "type": "not_supported_error"}
        return [status(501, [("content-type", "application/json")], json.dumps({"error": error}).encode())]
    return openai_wire(seen)


def tgi_wire(seen: Seen) -> list[Step]:
    """TGI: its own routes, and its stream."""
    known = tgi_routes(seen)
    if known is not None:
        return known
    words, reason = cut({"max_tokens": seen.json["parameters"].get("max_new_tokens")})
    if breaks(seen):
        first = b"\n\n".join(tgi_stream(words).split(b"\n\n")[:4]) + b"\n\n"
        error = {"error": "Request failed during generation: CANARY", "error_type": "generation"}
        return [headers(), body(first), body(b"data: " + json.dumps(error).encode() + b"\n\n"), end()]
    stream = tgi_stream(words).replace(b"eos_token", b"length" if reason == "length" else b"eos_token")
    return [headers(), body(stream.replace(b'"generated_tokens": 5', b'"generated_tokens": %d' % len(words))), end()]


def legacy_wire(seen: Seen) -> list[Step]:
    """vLLM's first route."""
    if seen.method == "GET":
        return [normal()]
    if breaks(seen):
        return [headers(), body(legacy_stream(WORDS[:2])), reset()]
    return [headers(), body(legacy_stream(cut(seen.json)[0])), end()]


def ranking_wire(seen: Seen) -> list[Step]:
    """A server that ranks and embeds."""
    asked: dict[str, Any] = seen.json if seen.body else {}
    if seen.path == "/v1/rerank":
        results = [{"index": n, "relevance_score": 0.5 + n} for n, _ in enumerate(asked["documents"])]
        return document({"model": "m", "results": results, "usage": {"total_tokens": 9}})
    if seen.path == "/v1/score":
        data = [{"index": n, "object": "score", "score": 0.5} for n, _ in enumerate(asked["text_2"])]
        return document({"object": "list", "data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}})
    return [normal()]


def openai_target(url: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"url": url, "model": "m", **fields}]


# The scripted servers.


@dataclass
class Servers:
    """The gateway, what each cell was answered, and what the servers saw of it."""

    gateway: GatewayProcess
    asked: dict[tuple[str, str], Asked]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Asks every cell, several at a time, and waits for their usage rows."""
    with (
        UpstreamThread(scenario=openai_wire, kind="vllm") as vllm,
        UpstreamThread(scenario=llama_wire, kind="llamacpp") as llama,
        UpstreamThread(scenario=tgi_wire) as tgi,
        UpstreamThread(scenario=legacy_wire) as legacy,
        UpstreamThread(scenario=ranking_wire, kind="vllm") as ranking,
        TritonStandIn(WORDS) as triton,
    ):
        models = [
            {"name": "vllm", "images": True, "targets": openai_target(vllm.url)},
            {"name": "llama-server", "targets": openai_target(llama.url)},
            {"name": "tgi", "targets": openai_target(tgi.root, engine="tgi")},
            {"name": "vllm-legacy", "targets": openai_target(legacy.root, engine="vllm-legacy")},
            {"name": "triton-vllm", "targets": [{"url": triton.url, "engine": "triton", "model": VLLM}]},
            {"name": "triton-trt", "targets": [{"url": triton.url, "engine": "triton", "model": TRT}]},
            {"name": "embedder", "kind": "embedding", "targets": openai_target(ranking.url)},
            {"name": "ranker", "kind": "rerank", "targets": openai_target(ranking.url)},
        ]
        config = {"models": models, "accounting": {"flush_interval_s": 0.05}}
        with GatewayProcess(tmp_path_factory.mktemp("matrix") / "home", config) as gateway:
            asked = ask_all(gateway, FACES, ROWS)
            yield Servers(gateway, asked | ask_all(gateway, BROKEN_FACES, TEXT_ROWS))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
def test_cell(servers: Servers, face: Face, row: Row) -> None:
    """Text, finish reason and usage are the server's; a refusal names its reason; one usage row says the same."""
    check(face, row, servers.asked[face.name, row.name])


@pytest.mark.parametrize("row", TEXT_ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("face", BROKEN_FACES, ids=lambda face: face.name)
def test_broken_cell(servers: Servers, face: Face, row: Row) -> None:
    """A server that breaks is told in the dialect's own way; a stream keeps what had come and never ends well."""
    check_broken(face, servers.asked[face.name, row.name])


def test_a_field_without_a_tensor_is_named(servers: Servers) -> None:
    """Sampling that a TensorRT-LLM model has no input for is left out, and the answer says so."""
    left_out = servers.asked["opea", "triton-trt"].headers["x-passerelle-dropped-fields"]
    assert "repetition_penalty" in left_out
    assert "x-passerelle-dropped-fields" not in servers.asked["opea", "triton-vllm"].headers


def test_what_a_server_does_not_offer_costs_it_nothing(servers: Servers) -> None:
    """Asking a chat model for embeddings again and again is the caller's mistake: its target stays in use."""
    for _ in range(8):
        assert servers.gateway.post("/v1/embeddings", {"model": "vllm", "input": "a"})[0] == 400
    router = json.loads(servers.gateway.get("/admin/router", key=servers.gateway.key)[1])
    (target,) = next(model for model in router["models"] if model["model"] == "vllm")["targets"]
    assert target["state"] == "ready"


EMBEDDED_ROWS = (
    Row("smollm2-135m-instruct", OPENAI - {"echo", "tools"}, words=None),
    Row("multilingual-e5-small", frozenset({"vectors", "rank"}), words=None),
)


@pytest.fixture(scope="module")
def embedded(embedded_gateway: GatewayProcess) -> dict[tuple[str, str], Asked]:
    """The answers of the embedded models."""
    return ask_all(embedded_gateway, FACES, EMBEDDED_ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("row", EMBEDDED_ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
def test_embedded_cell(embedded: dict[tuple[str, str], Asked], face: Face, row: Row) -> None:
    """The same of the models that run here: what they write is theirs, all else is as of the others."""
    check(face, row, embedded[face.name, row.name])
