"""Triton's routes for the OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec

from passerelle.domain.principal import Scope
from passerelle.faces.described import Described
from passerelle.faces.triton.tensors import InferBody


class TritonServer(msgspec.Struct):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class TensorShape(msgspec.Struct):
    """An input or output of a model; -1 stands for any length."""

    name: str
    datatype: str
    shape: list[int]


class TritonModel(msgspec.Struct):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorShape]
    outputs: list[TensorShape]


class IndexedModel(msgspec.Struct):
    """One model of the repository's index; ``state`` is READY or UNAVAILABLE."""

    name: str
    version: str
    state: str


class Ready(msgspec.Struct):
    """Whether it can answer now; the status says the same."""

    ready: bool


class OutputTensor(msgspec.Struct):
    """One output: its data, or the size of its bytes among ``parameters``."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(msgspec.Struct):
    """The answer as tensors."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


class TritonGenerateBody(msgspec.Struct):
    """Inputs by name, sampling fields among ``parameters`` or beside them."""

    text_input: str
    stream: bool | None = None
    sampling_parameters: str | None = None
    exclude_input_in_output: bool | None = None
    max_tokens: int | None = None
    stop_words: list[str] | str | None = None
    parameters: dict[str, Any] | None = None
    id: str | None = None


class TritonGenerateAnswer(msgspec.Struct):
    """The text, after the prompt where that was asked for."""

    model_name: str
    model_version: str
    text_output: str
    id: str | None = None
    finish_reason: str | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None


class TritonError(msgspec.Struct):
    """Triton's envelope of an error; ``code`` and ``request_id`` are ours."""

    error: str
    code: str
    request_id: str


def _route(method: str, path: str, name: str, summary: str, answer: Any, body: Any = None, **more: Any) -> Described:
    more |= {"error_answer": TritonError}
    return Described(method, path, "Triton", name, summary, Scope.INFERENCE, answer, body, **more)


def _models(infix: str, suffix: str, of: str) -> tuple[Described, ...]:
    base = "/v2/models/{model}" + infix
    return (
        _route(
            "POST", f"{base}/infer", f"tritonInfer{suffix}", "Complete a text, as tensors" + of, InferAnswer, InferBody
        ),
        _route(
            "POST",
            f"{base}/generate",
            f"tritonGenerate{suffix}",
            "Complete a text" + of,
            TritonGenerateAnswer,
            TritonGenerateBody,
        ),
        _route(
            "POST",
            f"{base}/generate_stream",
            f"tritonGenerateStream{suffix}",
            "Complete a text, piece by piece" + of,
            None,
            TritonGenerateBody,
            content_type="text/event-stream",
        ),
        _route(
            "GET",
            f"{base}/ready",
            f"tritonModelReady{suffix}",
            "Can the model answer?" + of,
            Ready,
            unavailable="No server of the model can answer now.",
        ),
        _route("GET", base, f"tritonModel{suffix}", "Describe the model's tensors" + of, TritonModel),
    )


def _health(path: str, name: str, summary: str, **more: Any) -> Described:
    return Described("GET", path, "Triton", name, summary, None, None, content_type="application/json", **more)


TRITON = (
    _health("/v2/health/live", "tritonLive", "Does the process answer?"),
    _health("/v2/health/ready", "tritonReady", "As `/ready`; 503 until models can answer"),
    _route("GET", "/v2", "tritonServer", "Who answers", TritonServer),
    _route("POST", "/v2/repository/index", "tritonIndex", "List the models", list[IndexedModel]),
    *_models("/versions/{version}", "Version", ", of a version; there is version 1 only"),
    *_models("", "", ""),
)
"""Triton's routes: the KServe v2 protocol and the generate extension, for models that write text."""
