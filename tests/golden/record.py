"""Records the transcripts of the servers that run here: ``python -m tests.golden.record llama-server|triton``."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
_HELLO = [{"role": "user", "content": "Say hello."}]
_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
_USAGE = {"stream_options": {"include_usage": True}}
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"

LLAMA: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (_CHAT, {"messages": _HELLO}),
    "chat-usage": (_CHAT, {"messages": _HELLO, **_USAGE}),
    "chat-accents": (_CHAT, {"messages": [{"role": "user", "content": "Répète : été, œuf, 猫, 🙂"}], **_USAGE}),
    "chat-tool": (_CHAT, {"messages": _HELLO, "tools": [_TOOL], "tool_choice": "required", **_USAGE}),
    "chat-logprobs": (_CHAT, {"messages": _HELLO, "logprobs": True, "top_logprobs": 2, **_USAGE}),
    "completion": (_TEXT, {"prompt": "The capital of France is"}),
    "completion-usage": (_TEXT, {"prompt": "The capital of France is", **_USAGE}),
}
"""By name: where a request is posted, and the request without ``stream``."""

TRITON: dict[str, tuple[str, str, int]] = {
    "vllm": ("phi3", "one two three", 6),
    "vllm-accents": ("phi3", "é", 4),
    "vllm-fails": ("phi3", "fail", 6),
    "trt": ("ensemble", "a", 5),
}
"""By name: the model, the prompt, and the most tokens."""


def record_llama_server() -> None:
    """Starts llama-server with the default model and writes every transcript."""
    import xllamacpp
    from tests.harness.models import Quiet, shared_cache

    from passerelle.models.catalogue import DEFAULT_CHAT_MODEL
    from passerelle.models.store import ModelStore

    with tempfile.TemporaryDirectory() as home:
        store = ModelStore(Path(home), cache=shared_cache())
        store.pull(DEFAULT_CHAT_MODEL, Quiet())
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(store.resolve(DEFAULT_CHAT_MODEL))
        parameters.model_alias, parameters.use_jinja = {"m"}, True
        parameters.n_ctx, parameters.n_parallel, parameters.port = 2048, 1, 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
        server = xllamacpp.Server(parameters)
        for name, (path, body) in LLAMA.items():
            asked = body | {"model": "m", "stream": True, "max_tokens": 8, "temperature": 0, "seed": 1}
            answer = httpx.post(server.listening_address + path, json=asked, timeout=60)
            answer.raise_for_status()
            (HERE / "llama-server" / f"{name}.sse").write_bytes(answer.content)


def record_triton() -> None:
    """Starts Triton with the models of ``tests/triton`` and writes every transcript."""
    import grpc
    from tests.triton.server import build, default_folder, triton
    from tritonclient.grpc import service_pb2_grpc

    with (
        tempfile.TemporaryDirectory() as folder,
        triton(build(default_folder()), Path(folder)) as server,
        grpc.insecure_channel(server.url.removeprefix("grpc://")) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, asked in TRITON.items():
            messages = [each.SerializeToString() for each in stub.ModelStreamInfer(iter([_infer(*asked)]))]
            told = b"".join(struct.pack(">I", len(each)) + each for each in messages)
            (HERE / "triton" / f"{name}.bin").write_bytes(told)


def _infer(model: str, prompt: str, tokens: int) -> Any:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, id="r")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    shape = [1, 1] if model == "ensemble" else [1]
    tensors: list[tuple[str, str, bytes]] = [("text_input", "BYTES", _text(prompt)), ("stream", "BOOL", b"\x01")]
    if model == "ensemble":
        tensors.append(("max_tokens", "INT32", struct.pack("<i", tokens)))
    else:
        tensors.append(("sampling_parameters", "BYTES", _text(json.dumps({"max_tokens": tokens}))))
        counts = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
        tensors += [(name, "BOOL", b"\x01") for name in counts]
    for name, kind, raw in tensors:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(raw)
    return request


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def framed(data: bytes) -> Iterator[bytes]:
    """Yields the messages of a Triton transcript."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


if __name__ == "__main__":
    {"llama-server": record_llama_server, "triton": record_triton}[sys.argv[1]]()
