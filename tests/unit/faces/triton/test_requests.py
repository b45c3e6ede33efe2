"""What Triton's clients ask, as requests of our own: both backends' names, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from passerelle.domain.errors import BadRequest
from passerelle.faces.triton.requests import DEFAULT_TOKENS, read_asked


def sent(members: dict[str, Any], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the completion that a request becomes."""
    request = read_asked({"text_input": "hi", **members}, parameters or {}).request("m", stream=False)
    document: dict[str, Any] = msgspec.json.decode(request.body)
    assert document.pop("model") == "m"
    assert document.pop("prompt") == "hi"
    document.pop("stream", None)
    return document


def test_sampling_comes_by_three_ways() -> None:
    """The JSON tensor of the vLLM backend, request parameters, and fields beside the text are the same to us."""
    wanted = {"max_tokens": 5, "temperature": 0.5, "top_k": 3}
    tensor = '{"max_tokens": "5", "temperature": "0.5", "top_k": 3}'
    assert sent({"sampling_parameters": tensor}) == wanted
    assert sent({"sampling_parameters": [tensor]}) == wanted
    assert sent({}, {"max_tokens": 5, "temperature": 0.5, "top_k": "3"}) == wanted
    assert sent(wanted) == wanted


def test_tensorrt_names() -> None:
    """TensorRT-LLM's names become OpenAI's, and its samples' empty words are none."""
    members = {"max_tokens": [4], "stop_words": ["a", ""], "bad_words": "", "random_seed": 7, "min_length": 2}
    assert sent({**members, "pad_id": 2, "end_id": 2, "beam_width": 1}) == {
        "max_tokens": 4,
        "stop": ["a"],
        "seed": 7,
        "min_tokens": 2,
    }
    assert sent({"max_tokens": 4, "stop_words": ""}) == {"max_tokens": 4}


def test_left_out() -> None:
    """Without a limit there is one that does not cut short; unknown fields are left out and reported."""
    request = read_asked({"text_input": "a"}, {"length_penalty": 1.0, "timeout": 5, "triton_x": 1}).request(
        "m", stream=False
    )
    assert msgspec.json.decode(request.body)["max_tokens"] == DEFAULT_TOKENS
    assert request.dropped == ("length_penalty",)


@pytest.mark.parametrize(
    ("members", "in_front"),
    [
        ({}, True),
        ({"stream": True}, False),
        ({"exclude_input_in_output": True}, False),
        ({"max_tokens": 5}, False),
        ({"stop_words": ["x"]}, False),
        ({"max_tokens": 5, "exclude_input_in_output": False}, True),
        ({"parameters": {"stream": False, "max_tokens": 5}}, True),
        ({"parameters": {"exclude_input_in_output": True}}, False),
    ],
)
def test_when_the_prompt_comes_along(members: dict[str, Any], in_front: bool) -> None:
    """As in the vLLM backend unless it is told, and never for TensorRT-LLM's tensors unless it is told."""
    parameters = members.pop("parameters", {})
    assert read_asked({"text_input": "a", **members}, parameters).prompt_in_front is in_front


def test_wanted_results() -> None:
    """What is asked for beside the text is known by the backend's flags."""
    asked = read_asked({"text_input": "a", "return_finish_reason": [True]}, {"return_num_input_tokens": True})
    assert asked.wants == {"finish_reason", "num_input_tokens"}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"text_input": ""}, "text_input"),
        ({"text_input": 5}, "text_input"),
        ({"text_input": ["a", "b"]}, "text_input"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
        ({"sampling_parameters": "{"}, "sampling_parameters"),
        ({"sampling_parameters": "[1]"}, "sampling_parameters"),
        ({"sampling_parameters": '{"n": 2}'}, "n"),
        ({"sampling_parameters": '{"temperature": "hot"}'}, "temperature"),
        ({"sampling_parameters": '{"logprobs": 3}'}, "logprobs"),
        ({"sampling_parameters": '{"lora_name": "x"}'}, "lora_name"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"beam_width": 2}, "beam_width"),
        ({"image": "aaaa"}, "image"),
        ({"echo": True}, "echo"),
        ({"return_log_probs": True}, "return_log_probs"),
    ],
)
def test_refused(members: dict[str, Any], param: str) -> None:
    """What cannot be followed is refused with the name of the field."""
    with pytest.raises(BadRequest) as caught:
        read_asked({"text_input": "a", **members}, {}).request("m", stream=False)
    assert caught.value.param == param


def test_nothing_of_the_client_replaces_the_request() -> None:
    """The model, the prompt and the streaming are the route's, whatever parameters say."""
    parameters = {"model": "other", "prompt": "other", "stream_options": {"include_usage": False}, "messages": []}
    assert sent({"max_tokens": 1}, parameters) == {"max_tokens": 1}
