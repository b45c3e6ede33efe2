"""Triton's own clients and samples, to Triton itself and to the gateway in front of it: what they get is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy
import pytest
import tritonclient.http as triton_http
from tests.harness.gateway import GatewayProcess
from tests.triton.server import Triton
from tests.triton.test_triton import direct


@pytest.fixture(params=["direct", "through us"])
def base(request: pytest.FixtureRequest, server: Triton, gateway: GatewayProcess) -> str:
    return server.http if request.param == "direct" else gateway.url


@pytest.fixture
def headers(gateway: GatewayProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.key}"}


@pytest.fixture
def client(base: str) -> Iterator[triton_http.InferenceServerClient]:
    made = triton_http.InferenceServerClient(base.partition("://")[2])
    yield made
    made.close()


def test_health_and_models(client: triton_http.InferenceServerClient, headers: dict[str, str]) -> None:
    """The client sees a server that is live and ready, a model that is ready, and one that is not there."""
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready("phi3", headers=headers)
    assert client.is_model_ready("phi3", "1", headers=headers)
    assert not client.is_model_ready("nowhere", headers=headers)
    described = client.get_model_metadata("phi3", headers=headers)
    assert {"text_input", "stream", "sampling_parameters"} <= {each["name"] for each in described["inputs"]}
    assert {"text_output", "finish_reason"} <= {each["name"] for each in described["outputs"]}
    index = client.get_model_repository_index(headers=headers)
    assert [each["state"] for each in index if each["name"] == "phi3"] == ["READY"]


BODIES: dict[str, dict[str, Any]] = {
    "parameters": {"parameters": {"max_tokens": 4}},
    "tensor": {"sampling_parameters": '{"max_tokens": 4}', "stream": False},
    "excluded": {"sampling_parameters": '{"max_tokens": 4}', "exclude_input_in_output": True},
    "results": {
        "sampling_parameters": '{"max_tokens": 4}',
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    },
}


@pytest.mark.parametrize("name", BODIES)
def test_generate(server: Triton, gateway: GatewayProcess, headers: dict[str, str], name: str) -> None:
    """The generate extension's answer is Triton's own: every member that Triton sends, with the same value."""
    body = {"text_input": "one two é", **BODIES[name]}
    theirs, ours = (
        httpx.post(f"{url}/v2/models/phi3/generate", json=body, headers=headers, timeout=30).json()
        for url in (server.http, gateway.url)
    )
    if name != "results":  # our model answers every output, asked for or not
        theirs = {member: theirs[member] for member in ("model_name", "model_version", "text_output")}
    assert ours == theirs
    assert ours["text_output"].endswith("é0 é1 é2 é3 ")
    assert ours["text_output"].startswith("one two é") is (name in ("parameters", "tensor"))


def test_generate_stream(base: str, headers: dict[str, str]) -> None:
    """Events hold the pieces, in Triton's frame."""
    body = {"text_input": "one", "stream": True, "sampling_parameters": '{"max_tokens": 4}'}
    answer = httpx.post(f"{base}/v2/models/phi3/generate_stream", json=body, headers=headers, timeout=30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    assert [event["text_output"] for event in events] == ["tok0 ", "tok1 ", "tok2 ", "tok3 "]
    assert {(event["model_name"], event["model_version"]) for event in events} == {("phi3", "1")}


def test_errors(base: str, headers: dict[str, str]) -> None:
    """Errors have Triton's member ``error``, before an answer and within one, and nobody's secrets from us."""
    missing = httpx.post(f"{base}/v2/models/nowhere/generate", json={"text_input": "a"}, headers=headers)
    assert missing.status_code in (400, 404)
    assert "unknown model" in missing.json()["error"]
    body = {"text_input": "fail", "stream": True, "sampling_parameters": '{"max_tokens": 9}'}
    broken = httpx.post(f"{base}/v2/models/phi3/generate_stream", json=body, headers=headers, timeout=30)
    events = [json.loads(part.removeprefix("data: ")) for part in broken.text.split("\n\n") if part]
    assert [event.get("text_output") for event in events] == ["tok0 ", "tok1 ", None]
    assert events[-1]["error"]


def test_infer_through_us(server: Triton, gateway: GatewayProcess, headers: dict[str, str]) -> None:
    """What tritonclient's ``infer`` gets through us is what its gRPC stream gets from Triton.

    Triton itself refuses ``infer`` for models that answer in pieces; here it is one whole answer.
    """
    sampling = json.dumps({"max_tokens": 5}).encode()
    inputs = []
    for name, value in (("text_input", b"one two three"), ("sampling_parameters", sampling)):
        tensor = triton_http.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(numpy.array([value], dtype=numpy.object_))
        inputs.append(tensor)
    excluded = triton_http.InferInput("exclude_input_in_output", [1], "BOOL")
    excluded.set_data_from_numpy(numpy.array([True]))
    with triton_http.InferenceServerClient(gateway.url.partition("://")[2]) as client:
        answer = client.infer("phi3", [*inputs, excluded], headers=headers)
        assert answer.as_numpy("text_output")[0].decode() == direct(server, "one two three", 5)
    with (
        triton_http.InferenceServerClient(server.http.partition("://")[2]) as client,
        pytest.raises(triton_http.InferenceServerException, match="decoupled"),
    ):
        client.infer("phi3", inputs)
