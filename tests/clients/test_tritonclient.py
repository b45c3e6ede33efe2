"""tritonclient's HTTP clients against the embedded model, and Triton's generate extension as curl sends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tests.clients.conftest import Server
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.slow
PROMPT = "The capital of France is"
SAMPLING = {"temperature": 0, "max_tokens": 6}


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(server.url.partition("://")[2])
    yield made
    made.close()


@pytest.fixture
def headers(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.key}"}


@pytest.fixture(scope="module")
def wanted(server: Server) -> str:
    """What the model says, by OpenAI's route."""
    body = {"model": server.model, "prompt": PROMPT, **SAMPLING}
    answer = httpx.post(server.url + "/v1/completions", json=body, headers={"x-api-key": server.key}, timeout=60)
    return str(answer.json()["choices"][0]["text"])


def tensor(module: Any, name: str, value: Any, kind: str = "BYTES", *, binary: bool = True) -> Any:
    """Returns an input of one element."""
    made = module.InferInput(name, [1], kind)
    types = {"BYTES": numpy.object_, "BOOL": numpy.bool_, "INT32": numpy.int32}
    made.set_data_from_numpy(numpy.array([value], dtype=types[kind]), binary_data=binary)
    return made


def text_of(answer: Any) -> str:
    value = answer.as_numpy("text_output").reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def test_health_and_metadata(client: triton.InferenceServerClient, server: Server, headers: dict[str, str]) -> None:
    """The client finds the server and the model ready, and learns the tensors."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.model, headers=headers)
    assert client.is_model_ready(server.model, "1", headers=headers)
    assert not client.is_model_ready("nowhere", headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "passerelle"
    described = client.get_model_metadata(server.model, headers=headers)
    assert {"text_input", "max_tokens"} <= {each["name"] for each in described["inputs"]}
    assert "text_output" in {each["name"] for each in described["outputs"]}
    index = client.get_model_repository_index(headers=headers)
    assert {"name": server.model, "version": "1", "state": "READY"} in index
    assert all("embed" not in each["name"] and "e5" not in each["name"] for each in index)


@pytest.mark.parametrize("binary", [True, False])
def test_infer_with_the_vllm_tensors(
    client: triton.InferenceServerClient, server: Server, headers: dict[str, str], wanted: str, binary: bool
) -> None:
    """The same text as by OpenAI's route, with tensors as bytes and as JSON, in both directions."""
    inputs = [
        tensor(triton, "text_input", PROMPT.encode() if binary else PROMPT, binary=binary),
        tensor(triton, "sampling_parameters", json.dumps(SAMPLING).encode(), binary=True),
        tensor(triton, "exclude_input_in_output", True, "BOOL", binary=binary),
    ]
    names = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(server.model, inputs, outputs=outputs, request_id="mine", headers=headers)
    assert text_of(answer) == wanted
    assert answer.get_response()["id"] == "mine"
    assert int(answer.as_numpy("num_output_tokens")[0]) == 6
    assert int(answer.as_numpy("num_input_tokens")[0]) >= 5
    assert answer.as_numpy("finish_reason")[0] in (b"length", "length")
    plain = client.infer(server.model, inputs[:2], headers=headers)
    assert text_of(plain) == PROMPT + wanted


async def test_infer_with_tensorrt_tensors(server: Server, headers: dict[str, str], wanted: str) -> None:
    """The asynchronous client, TensorRT-LLM's names, and sampling as request parameters."""
    client = triton_aio.InferenceServerClient(server.url.partition("://")[2])
    try:
        inputs = [tensor(triton_aio, "text_input", PROMPT.encode()), tensor(triton_aio, "max_tokens", 6, "INT32")]
        answer = await client.infer(server.model, inputs, parameters={"temperature": 0}, headers=headers)
        assert text_of(answer) == wanted
    finally:
        await client.close()


def test_errors(client: triton.InferenceServerClient, server: Server, headers: dict[str, str]) -> None:
    """The client raises its own error with the status and the sentence."""
    text = tensor(triton, "text_input", PROMPT.encode())
    for model, inputs, sent, status, said in [
        ("nowhere", [text], headers, "404", "unknown model"),
        ("multilingual-e5-small", [text], headers, "404", "no such model that writes text"),
        (server.model, [text], {}, "401", "key"),
        (server.model, [text, tensor(triton, "stream", True, "BOOL")], headers, "400", "generate_stream"),
        (server.model, [text, tensor(triton, "colour", b"red")], headers, "400", "unexpected inference input 'colour'"),
        (server.model, [tensor(triton, "max_tokens", 6, "INT32")], headers, "400", "text_input"),
    ]:
        with pytest.raises(InferenceServerException, match=said) as caught:
            client.infer(model, inputs, headers=sent)
        assert caught.value.status() == status
    with pytest.raises(InferenceServerException, match="version 1 only"):
        client.infer(server.model, [text], model_version="2", headers=headers)
    with pytest.raises(InferenceServerException, match="unexpected inference output"):
        client.infer(server.model, [text], outputs=[triton.InferRequestedOutput("logits")], headers=headers)


def test_generate(server: Server, headers: dict[str, str], wanted: str) -> None:
    """Triton's own samples of curl: whole, and piece by piece."""
    base = f"{server.url}/v2/models/{server.model}"
    body = {"text_input": PROMPT, "parameters": {"stream": False, **SAMPLING}, "id": "7"}
    answer = httpx.post(f"{base}/generate", json=body, headers=headers, timeout=60).json()
    assert answer == {"id": "7", "model_name": server.model, "model_version": "1", "text_output": PROMPT + wanted}
    trt = {"text_input": PROMPT, "max_tokens": 6, "bad_words": "", "stop_words": "", "temperature": 0}
    assert httpx.post(f"{base}/generate", json=trt, headers=headers, timeout=60).json()["text_output"] == wanted
    stream = {"text_input": PROMPT, "stream": True, "return_num_output_tokens": True, "parameters": SAMPLING}
    with httpx.stream("POST", f"{base}/generate_stream", json=stream, headers=headers, timeout=60) as lines:
        assert lines.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in lines.iter_lines() if line]
    assert len(events) > 2
    assert "".join(event["text_output"] for event in events) == wanted
    assert events[-1]["num_output_tokens"] == 6
    once = httpx.post(f"{base}/generate_stream", json=stream | {"stream": False}, headers=headers, timeout=60)
    assert json.loads(once.text.removeprefix("data: "))["text_output"] == PROMPT + wanted
    refused = httpx.post(f"{base}/generate", json=stream, headers=headers, timeout=60)
    assert refused.status_code == 400
    assert "generate_stream" in refused.json()["error"]
