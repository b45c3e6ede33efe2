"""What a Triton client asks of a text model, by the names of the vLLM backend's tensors or of TensorRT-LLM's.

A name that is neither is a sampling field, as the vLLM backend takes it from a request's parameters: it goes through
the same list as on OpenAI's route, so that an unknown one is left out and named in ``x-passerelle-dropped-fields``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from passerelle.domain.errors import BadRequest
from passerelle.domain.request import Request
from passerelle.faces.openai import wire

DEFAULT_TOKENS: Final = 256
"""vLLM's own 16 cuts answers short, and TensorRT-LLM's backend has none."""

INPUTS: Final[Mapping[str, tuple[str, int]]] = {
    "text_input": ("BYTES", 1),
    "stream": ("BOOL", 1),
    "sampling_parameters": ("BYTES", 1),
    "exclude_input_in_output": ("BOOL", 1),
    "return_finish_reason": ("BOOL", 1),
    "return_num_input_tokens": ("BOOL", 1),
    "return_num_output_tokens": ("BOOL", 1),
    "max_tokens": ("INT32", 1),
    "stop_words": ("BYTES", -1),
    "temperature": ("FP32", 1),
    "top_k": ("INT32", 1),
    "top_p": ("FP32", 1),
    "random_seed": ("UINT64", 1),
    "min_length": ("INT32", 1),
    "repetition_penalty": ("FP32", 1),
    "presence_penalty": ("FP32", 1),
    "frequency_penalty": ("FP32", 1),
}
"""The inputs that a model's metadata shows: name -> datatype and length, -1 for any."""
OUTPUTS: Final[Mapping[str, str]] = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}

_TENSORRT = frozenset({"max_tokens", "stop_words", "bad_words"})
"""A request with one of these speaks TensorRT-LLM's tensors."""
_OURS = {"random_seed": "seed", "min_length": "min_tokens", "stop_words": "stop"}
_WITHOUT_EFFECT = frozenset({"end_id", "pad_id", "request_id"})
_REFUSED = frozenset(
    {
        "bad_words",
        "cum_log_probs",
        "echo",
        "embedding_request",
        "image",
        "image_input",
        "logprobs",
        "num_draft_tokens",
        "output_log_probs",
        "prompt_embedding_table",
        "prompt_logprobs",
        "return_context_logits",
        "return_cumulative_logprob",
        "return_generation_logits",
        "return_log_probs",
        "return_logprobs",
        "suffix",
    }
)
"""They would change the answer, and nothing behind this route follows them; an empty or false one is nothing."""
_ONE = frozenset({"beam_width", "n", "num_return_sequences"})
_PROTOCOL = frozenset(
    {"binary_data_output", "priority", "sequence_end", "sequence_id", "sequence_start", "stream_options", "timeout"}
)  # of KServe's requests; nothing here has sequences
_FLOATS = frozenset({"frequency_penalty", "min_p", "presence_penalty", "repetition_penalty", "temperature", "top_p"})
_COUNTS = frozenset({"max_tokens", "min_tokens", "n", "seed", "top_k"})
_FLAGS = frozenset({"ignore_eos", "skip_special_tokens"})
_WORDS = frozenset({"bad_words", "stop_words"})
_RESULTS = ("finish_reason", "num_input_tokens", "num_output_tokens")
TAKEN: Final = frozenset(INPUTS).union(_REFUSED, _ONE, _WITHOUT_EFFECT, _FLOATS, _COUNTS, _FLAGS)
"""Inputs that are no mistake, though some are refused for what they say."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. ``stream`` is None when it was not said; ``prompt_in_front`` whether the answer begins with it."""

    prompt: str
    sampling: Mapping[str, Any]
    stream: bool | None
    prompt_in_front: bool
    wants: frozenset[str]

    def request(self, model: str, *, stream: bool) -> Request:
        """Returns the request for the gateway. Raises BadRequest."""
        document = {"max_tokens": DEFAULT_TOKENS, **self.sampling, "model": model, "prompt": self.prompt}
        document["stream"] = stream
        if stream:
            document["stream_options"] = {"include_usage": True}
        return wire.parse_completion(msgspec.json.encode(document))


def read_asked(members: Mapping[str, Any], parameters: Mapping[str, Any]) -> Asked:
    """Returns what is asked by a request's inputs and parameters; an input may be a list of one. Raises BadRequest."""
    inputs = {name: _single(name, value) for name, value in members.items()}
    prompt = inputs.pop("text_input", None)
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("The input `text_input` is a text that is not empty.", param="text_input")
    sampling = {name: value for name, value in parameters.items() if not _is_protocol(name)}
    sampling |= _sampling_parameters(inputs.pop("sampling_parameters", None))
    tensorrt = not _TENSORRT.isdisjoint(inputs)
    sampling |= inputs
    stream = _flag("stream", sampling.pop("stream", None))
    excluded = _flag("exclude_input_in_output", sampling.pop("exclude_input_in_output", None))
    if stream and excluded is False:
        message = "When streaming, `exclude_input_in_output` = False is not allowed."
        raise BadRequest(message, param="exclude_input_in_output")
    wants = {name for name in _RESULTS if _flag(f"return_{name}", sampling.pop(f"return_{name}", None))}
    in_front = excluded is False or (excluded is None and not stream and not tensorrt)
    return Asked(prompt, _sampling(sampling), stream, in_front, frozenset(wants))


def _single(name: str, value: Any) -> Any:
    if isinstance(value, list) and name in TAKEN and name not in _WORDS:
        if len(value) != 1:
            raise BadRequest(
                f"The input `{name[:64]}` has one element: send one request for each text.", param=name[:64]
            )
        return value[0]
    return value


def _is_protocol(name: str) -> bool:
    return name in _PROTOCOL or name.startswith("triton_")


def _sampling_parameters(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value:
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            raise BadRequest("`sampling_parameters` is not valid JSON.", param="sampling_parameters") from None
    if not value:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("`sampling_parameters` is a JSON object.", param="sampling_parameters")
    return value


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns OpenAI's fields. Raises BadRequest for what nothing here can follow."""
    found = {}
    for name, value in given.items():
        if name in _WORDS:
            words = value if isinstance(value, list) else [value]
            value = [word for word in words if word]  # a sample of TensorRT-LLM sends "" for none
        if name in _REFUSED and value not in (None, False, 0, "", []):
            raise BadRequest(f"`{name}` cannot be followed by the model servers here; leave it out.", param=name)
        if name in _ONE and value not in (None, 1, "1"):
            raise BadRequest(f"`{name}` is 1 here: there is one answer to a request.", param=name)
        if name in _REFUSED or name in _ONE or name in _WITHOUT_EFFECT or value is None or value == []:
            continue
        ours = _OURS.get(name, name)
        found[ours] = _number(name, ours, value)
    return found


def _number(name: str, ours: str, value: Any) -> Any:
    """Returns a sampling value; numbers may come as texts, which the vLLM backend takes too."""
    kind = float if ours in _FLOATS else int if ours in _COUNTS else bool if ours in _FLAGS else None
    if kind is None or not isinstance(value, str):
        return value
    try:
        return msgspec.convert(value.strip().lower(), kind, strict=False)
    except msgspec.ValidationError:
        raise BadRequest(f"`{name}` is a number, or a text that reads so.", param=name) from None


def _flag(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise BadRequest(f"`{name}` is true or false.", param=name)
