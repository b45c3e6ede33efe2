"""The curl lines of OPEA's README against `passerelle serve --opea-config`, with a model server behind it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator

import pytest
from tests.harness.gateway import GatewayProcess
from tests.harness.upstreamd import Upstream, UpstreamThread

pytestmark = pytest.mark.slow
QUERY = {
    "query": "What is Deep Learning?",
    "max_new_tokens": 5,
    "top_k": 10,
    "top_p": 0.95,
    "typical_p": 0.95,
    "temperature": 0.01,
    "repetition_penalty": 1.03,
    "streaming": False,
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with UpstreamThread(kind="vllm") as made:
        yield made


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("opea")
    (folder / "config.ini").write_text(
        "[OPEA_Microservice]\nname=opea_service@llm\nhost=127.0.0.1\nport=9000\n"
        f'[Model]\nmodel_name="m"\nmodel_server="vllm"\nmodel_server_endpoint="{upstream.root}"\n'
    )
    arguments = ("--opea-config", str(folder / "config.ini"))
    with GatewayProcess(folder / "home", arguments=arguments) as process:
        yield process.wait_ready()


def curl(gateway: GatewayProcess, path: str, body: object = None) -> str:
    """Returns what curl prints; no key is sent, as in the README."""
    command = ["curl", "-sS", "-N", "--max-time", "20", gateway.url + path]
    if body is not None:
        command += ["-X", "POST", "-d", json.dumps(body), "-H", "Content-Type: application/json"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout


def frames(printed: str) -> list[str]:
    return [line.removeprefix("data: ") for line in printed.split("\n\n") if line]


def test_readme_example(gateway: GatewayProcess, upstream: Upstream) -> None:
    """The README's request is answered with id, text and prompt, and reaches vLLM as a completion."""
    answer = json.loads(curl(gateway, "/v1/chat/completions", QUERY))
    assert answer.keys() == {"id", "text", "prompt"}
    assert answer["prompt"] == QUERY["query"]
    assert answer["text"].strip()
    assert len(answer["id"]) == 32
    sent = upstream.requests[-1]
    assert sent.path == "/v1/completions"
    assert sent.json["prompt"] == QUERY["query"]
    assert sent.json["max_tokens"] == 5


def test_streaming_is_the_default(gateway: GatewayProcess) -> None:
    """Without ``streaming`` the answer comes as frames of Python bytes, then [DONE]."""
    body = {key: value for key, value in QUERY.items() if key != "streaming"}
    *pieces, last = frames(curl(gateway, "/v1/chat/completions", body))
    assert last == "[DONE]"
    texts = [ast.literal_eval(piece) for piece in pieces]
    assert b"".join(texts) == b"tok0 tok1 tok2 tok3 tok4 "


def test_documents_are_joined(gateway: GatewayProcess, upstream: Upstream) -> None:
    """Documents of the reranker, in either form, stand in the prompt before the question."""
    curl(gateway, "/v1/chat/completions", {**QUERY, "documents": ["Doc one.", "Doc two."]})
    prompt = upstream.requests[-1].json["prompt"]
    assert prompt.index("Doc one. Doc two.") < prompt.index("What is Deep Learning?")
    body = {"initial_query": "Why?", "retrieved_docs": [{"text": "Because."}], "streaming": False}
    assert json.loads(curl(gateway, "/v1/chat/completions", body))["prompt"] == "Why?"
    assert "Because." in upstream.requests[-1].json["prompt"]


def test_health_and_statistics(gateway: GatewayProcess) -> None:
    """The name is told as in the original, and latencies are real numbers once there were answers."""
    curl(gateway, "/v1/chat/completions", QUERY)
    assert json.loads(curl(gateway, "/v1/health_check"))["Service Title"] == "opea_service@llm/MicroService"
    found = json.loads(curl(gateway, "/v1/statistics"))["opea_service@llm"]
    assert 0 < found["p50_latency_first_token"] <= found["p99_latency"] < 20


def test_openai_clients_go_on(gateway: GatewayProcess) -> None:
    """A request with messages is OpenAI's, on the same route."""
    answer = json.loads(
        curl(gateway, "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "a"}]})
    )
    assert answer["object"] == "chat.completion"


def test_errors(gateway: GatewayProcess) -> None:
    """Mistakes are told in ``detail``; the admin's routes still ask for a key."""
    assert "temperature" in json.loads(curl(gateway, "/v1/chat/completions", {**QUERY, "temperature": 9}))["detail"]
    assert "model" in json.loads(curl(gateway, "/v1/chat/completions", {**QUERY, "model": "nope"}))["detail"]
    assert json.loads(curl(gateway, "/admin/router"))["error"]["code"] in ("invalid_api_key", "permission_denied")
