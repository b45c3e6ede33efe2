"""A scripted Triton over gRPC: two models with the tensors of its vLLM and TensorRT-LLM backends, in this process.

It stands in for the real server where that is too large to install; ``make test-triton`` asks the real one the same.
What a real one was seen to do is done here: the final flag on the last answer, errors as messages of the stream.

    with TritonStandIn(words) as server: ...            # server.url is grpc://127.0.0.1:PORT
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

VLLM, TRT = "phi3", "ensemble"
_BOOL, _TEXT = "BOOL", "BYTES"
_INPUTS: dict[str, dict[str, tuple[str, list[int]]]] = {
    VLLM: {
        "text_input": (_TEXT, [1]),
        "stream": (_BOOL, [1]),
        "sampling_parameters": (_TEXT, [1]),
        "exclude_input_in_output": (_BOOL, [1]),
        "return_finish_reason": (_BOOL, [1]),
        "return_num_input_tokens": (_BOOL, [1]),
        "return_num_output_tokens": (_BOOL, [1]),
    },
    TRT: {
        "text_input": (_TEXT, [-1, 1]),
        "max_tokens": ("INT32", [-1, 1]),
        "stop_words": (_TEXT, [-1, -1]),
        "temperature": ("FP32", [-1, 1]),
        "top_k": ("INT32", [-1, 1]),
        "top_p": ("FP32", [-1, 1]),
        "random_seed": ("UINT64", [-1, 1]),
        "stream": (_BOOL, [-1, 1]),
    },
}
_NUMBERS = {"INT32": "<i4", "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", _BOOL: "?"}


@dataclass
class TritonSeen:
    """One request as it arrived, its tensors as plain values."""

    model: str
    inputs: dict[str, Any]


@dataclass
class TritonStandIn:
    """The server. Both models say ``words``, cut at ``max_tokens``, and break after two words at a prompt with BREAK;
    ``gone`` counts requests that were cancelled."""

    words: Sequence[str]
    requests: list[TritonSeen] = field(default_factory=list)
    gone: int = 0
    hold: threading.Event | None = None
    """Once set, models wait for it after their first word."""
    workers: int = 8
    every_s: float = 0.0
    """Between two words."""

    def __post_init__(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(self.workers))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def __enter__(self) -> TritonStandIn:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.stop(None).wait()


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, server: TritonStandIn) -> None:
        self._told = server

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own names
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in _INPUTS)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in _INPUTS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        inputs = [
            tensor(name=name, datatype=kind, shape=shape) for name, (kind, shape) in _INPUTS[request.name].items()
        ]
        names = ["text_output"]
        if request.name == VLLM:
            names += ["finish_reason", "num_input_tokens", "num_output_tokens"]
        outputs = [tensor(name=name, datatype=_TEXT, shape=[-1]) for name in names]
        return service_pb2.ModelMetadataResponse(name=request.name, inputs=inputs, outputs=outputs)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            seen = TritonSeen(request.model_name, _plain(request))
            self._told.requests.append(seen)
            yield from self._answer(request, seen, context)

    def _answer(self, request: Any, seen: TritonSeen, context: Any) -> Iterator[Any]:
        vllm = seen.model == VLLM
        sampling = json.loads(seen.inputs.get("sampling_parameters") or "{}")
        limit = sampling["max_tokens"] if vllm else seen.inputs["max_tokens"]
        words = list(self._told.words[:limit])
        for number, word in enumerate(words):
            if number and self._told.hold is not None:
                self._told.hold.wait(30)
            if self._told.every_s:
                time.sleep(self._told.every_s)
            if not context.is_active():
                self._told.gone += 1
                return
            if number == 2 and "BREAK" in seen.inputs["text_input"]:
                yield service_pb2.ModelStreamInferResponse(error_message="Error generating stream: CANARY")
                return
            last = number + 1 == len(words)
            tensors: list[tuple[str, str, Any]] = [("text_output", _TEXT, word)]
            if vllm:
                reason = ("length" if len(words) == limit else "stop") if last else "None"
                prompt = len(seen.inputs["text_input"].split())
                tensors.append(("finish_reason", _TEXT, reason))
                tensors += [("num_input_tokens", "UINT32", prompt), ("num_output_tokens", "UINT32", 1)]
            yield _response(request, tensors, final=last)


def _plain(request: Any) -> dict[str, Any]:
    """Returns the tensors of a request by name: one value, or a list where there are several."""
    found: dict[str, Any] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == _TEXT:
            values = [each.decode() for each in deserialize_bytes_tensor(raw)]
        else:
            values = numpy.frombuffer(raw, dtype=_NUMBERS[tensor.datatype]).tolist()
        found[tensor.name] = values[0] if len(values) == 1 else values
    return found


def _response(request: Any, tensors: Sequence[tuple[str, str, Any]], *, final: bool) -> Any:
    answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name, kind, value in tensors:
        answer.outputs.add(name=name, datatype=kind, shape=[1])
        if kind == _TEXT:
            raw = serialize_byte_tensor(numpy.array([value.encode()], dtype=object)).item()
        else:
            raw = numpy.array([value], dtype=_NUMBERS[kind]).tobytes()
        answer.raw_output_contents.append(raw)
    answer.parameters["triton_final_response"].bool_param = final
    return service_pb2.ModelStreamInferResponse(infer_response=answer)
